"""Which functions and classes of others a recipe would run, with their arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanconv.errors import LeanconvError
from leanconv.recipes.settings import Recipe
from leanconv.story import is_own_code
from leanconv.train.runfolder import saved_model

__all__ = ["named_code"]


def named_code(recipe: Recipe) -> list[dict[str, Any]]:
    """What stands in the recipe itself, and in the stories of the saved models that it names.

    >>> named_code(Recipe(name="a", model="my_nets:build", model_args={"width": 8}))
    [{'where': 'model', 'code': 'my_nets:build', 'options': {'width': 8}}]
    """
    named: list[dict[str, Any]] = []
    if is_own_code(recipe.model):
        named.append({"where": "model", "code": recipe.model, "options": recipe.model_args})
    folders = {
        "model": recipe.model,
        "weights": recipe.weights,
        "teacher": recipe.teacher,
        "elastic.teacher": None if recipe.elastic is None else recipe.elastic.teacher,
    }
    for where, name in folders.items():
        if name is not None and (story := _story_in(saved_model(name))) and is_own_code(str(story["model"])):
            named.append({"where": f"{where}={name}", "code": story["model"], "options": story.get("options", {})})
    return named


def _story_in(folder: Path) -> dict[str, Any] | None:
    """The story of a saved model; None where there is none that can be read, which is said when it is loaded."""
    from leanconv.build.folder import read_record

    try:
        story: dict[str, Any] = read_record(folder)["story"]
    except LeanconvError:
        return None
    return story
