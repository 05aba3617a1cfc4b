"""Recipes: one function per row of a paper's table (and the demo), each returning frozen data."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from leanconv.errors import unknown
from leanconv.recipes.compare import TestedRun, paired_with
from leanconv.recipes.config import change, read_recipe, to_data, to_yaml
from leanconv.recipes.csn import CSN
from leanconv.recipes.demo import demo, digits_resnet20
from leanconv.recipes.finetuning import finetune
from leanconv.recipes.igc import IGC
from leanconv.recipes.images import score_images
from leanconv.recipes.load import LoadedRun, load_run
from leanconv.recipes.mutual import MUTUAL
from leanconv.recipes.named_code import named_code
from leanconv.recipes.octave import OCTAVE
from leanconv.recipes.osep import OSEP
from leanconv.recipes.predicted import Predicted, predict
from leanconv.recipes.run import RunResult, build_model, open_data, run_recipe
from leanconv.recipes.settings import DataSettings, ElasticSettings, Recipe, VideoSettings
from leanconv.recipes.study import StudyPlan, study
from leanconv.recipes.tested import Tested, evaluate, evaluate_loaded
from leanconv.recipes.videos import score_videos

__all__ = [
    "PAPERS",
    "RECIPES",
    "DataSettings",
    "ElasticSettings",
    "LoadedRun",
    "Predicted",
    "Recipe",
    "RunResult",
    "StudyPlan",
    "Tested",
    "TestedRun",
    "VideoSettings",
    "build_model",
    "change",
    "evaluate",
    "evaluate_loaded",
    "finetune",
    "get_recipe",
    "list_recipes",
    "named_code",
    "load_run",
    "open_data",
    "paired_with",
    "predict",
    "read_recipe",
    "run_recipe",
    "score_images",
    "score_videos",
    "study",
    "to_data",
    "to_yaml",
]

PAPERS: dict[str, dict[str, Callable[[], Recipe]]] = {
    "Embedded digits": {"demo": demo, "digits_resnet20": digits_resnet20},
    "Optimized separable convolution": OSEP,
    "Interleaved group convolutions": IGC,
    "Octave convolution": OCTAVE,
    "Channel-separated networks": CSN,
    "MutualNet": MUTUAL,
}
"""Paper -> the recipes of its experiments, by name."""

RECIPES: dict[str, Callable[[], Recipe]] = {name: make for group in PAPERS.values() for name, make in group.items()}
"""Name -> the function that makes the recipe."""


def list_recipes() -> dict[str, str]:
    """Every recipe's name and, in a sentence, what it is."""
    return {name: make().note for name, make in RECIPES.items()}


def get_recipe(name: str, *, tiny: bool = False, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe called `name`, cut down to two steps if `tiny`, then changed by `overrides` (see `change`).

    >>> get_recipe("demo", overrides=["epochs=3", "optim.lr=0.2"]).optim.lr
    0.2
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    recipe = RECIPES[name]()
    return change(recipe.tiny() if tiny else recipe, overrides)
