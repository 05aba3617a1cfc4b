"""What the papers print for a recipe's accuracy, and in which settings a recipe is no longer the paper's.

`printed.json` is written from the manifest of the papers' rows by `python docs/write_papers.py`.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from leanconv.recipes.config import to_data
from leanconv.recipes.settings import Recipe
from leanconv.train.runfolder import differences

__all__ = ["changed_settings", "printed_for"]

_NOT_TOLD = {"seed", "note", "accelerator", "devices", "nodes", "spec", "train_sample", "name"}
"""What changes nothing that a paper says, and where the data lie."""


@cache
def _all() -> dict[str, list[dict[str, Any]]]:
    text = files("leanconv.recipes.study").joinpath("printed.json").read_text(encoding="utf-8")
    found: dict[str, list[dict[str, Any]]] = json.loads(text)
    return found


def printed_for(name: str) -> list[dict[str, Any]]:
    """The rows of the papers for the recipe called `name`: where, and the accuracy in percent, each value once.

    >>> [(row["place"], row["accuracy"]) for row in printed_for("o_resnet20_cifar10")]
    [('Table 2', 93.37)]
    """
    return _all().get(name, [])


def changed_settings(recipe: Recipe, original: Recipe) -> list[str]:
    """In what `recipe` differs from the `original` of that name, in words: "epochs was 200 and is 10"."""
    found = differences(to_data(original), to_data(recipe))
    return [line for line in found if line.partition(" was ")[0].rpartition(".")[2] not in _NOT_TOLD]
