"""Which recipes are run under which seeds, as plain data, and the folder that keeps it.

study.json             the names of the recipes, in order, and the seeds
RECIPE/recipe.yaml     the recipe as it is run, under whatever seed
RECIPE/seed0/          its run folder; seed0.yaml and seed0.log are what it was given and what it said
results.json           what came out, once something has
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leanconv.errors import CheckpointError, LeanconvError, shown, unknown
from leanconv.files import write_text
from leanconv.plain_text import BadText, read_json
from leanconv.recipes.config import read_recipe, to_data, to_yaml
from leanconv.recipes.settings import Recipe
from leanconv.schema import Count, Fault, ListOf, Record, Text
from leanconv.train.runfolder import differences

__all__ = ["StudyPlan", "kept_plan", "merged", "read_plan", "run_folder", "write_plan"]

FILE = "study.json"
_SHAPE = Record({"recipes": ListOf(Text(200), 1000, 1), "seeds": ListOf(Count(), 1000, 1)})


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Every one of `recipes` under every one of `seeds`; what they are tested on is the same for all.

    Raises `LeanconvError` for fewer than two seeds, which give no interval, for a seed or a name given twice, and for
    recipes that are tested on other data: a difference of accuracies on other items says nothing about the networks.

    >>> from leanconv.recipes.demo import digits_resnet20
    >>> plan = StudyPlan(recipes=(digits_resnet20(),), seeds=(0, 1, 2))
    >>> [(name, seed) for name, seed in plan.runs][:2]
    [('digits_resnet20', 0), ('digits_resnet20', 1)]
    """

    recipes: tuple[Recipe, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.recipes:
            raise LeanconvError("a study needs at least one recipe (leanconv list --recipes)")
        names = [recipe.name for recipe in self.recipes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise LeanconvError(
                f"{twice[0]} is named twice: to compare two settings of one recipe, write one of them to a file under"
                f" its own name: leanconv train {twice[0]} --set name=other --set ... --dry > other.yaml"
            )
        if twice_seeds := sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1}):
            raise LeanconvError(f"seed {twice_seeds[0]} is named twice, and gives the same run twice")
        if len(self.seeds) < 2:
            raise LeanconvError(
                f"an interval needs at least 2 seeds, got {len(self.seeds)}: with one, nothing tells a difference from"
                " chance; for a single run: leanconv train"
            )
        first = self.recipes[0]
        for other in self.recipes[1:]:
            for what, mine, its in zip(_TESTED_ON, _tested_on(first), _tested_on(other), strict=True):
                if mine != its:
                    raise LeanconvError(
                        f"{first.name} and {other.name} are tested on other data: {what} is {shown(mine)} for one and"
                        f" {shown(its)} for the other, so their accuracies cannot be compared; --data and --set change"
                        " all recipes alike"
                    )

    @property
    def runs(self) -> tuple[tuple[str, int], ...]:
        """Every recipe's name with every seed: the first seed of all recipes, then the second."""
        return tuple((recipe.name, seed) for seed in self.seeds for recipe in self.recipes)

    def recipe(self, name: str, seed: int) -> Recipe:
        """What is run: the recipe of that name under that seed."""
        for recipe in self.recipes:
            if recipe.name == name:
                return replace(recipe, seed=seed)
        raise unknown("recipe of this study", name, [recipe.name for recipe in self.recipes])


_TESTED_ON = ("data.spec", "the share held out of training", "data.exif", "how clips are taken", "the length of a test")


def _tested_on(recipe: Recipe) -> tuple[object, ...]:
    """What decides on which items a network is tested."""
    video = recipe.data.video
    clips = None if video is None else (video.test_clips, video.test_crops)
    return recipe.data.spec, recipe.data.held_out, recipe.data.exif, clips, recipe.test_limit


def run_folder(out: Path, name: str, seed: int) -> Path:
    """The run folder of a recipe under a seed."""
    return out / name / f"seed{seed}"


def write_plan(plan: StudyPlan, out: Path) -> None:
    """Keep the plan in its folder."""
    for recipe in plan.recipes:
        write_text(out / recipe.name / "recipe.yaml", to_yaml(recipe))
    told = {"recipes": [recipe.name for recipe in plan.recipes], "seeds": list(plan.seeds)}
    write_text(out / FILE, json.dumps(told, indent=2) + "\n")


def kept_plan(out: Path) -> bool:
    """Whether the folder holds a study."""
    return (out / FILE).exists()


def read_plan(out: Path) -> StudyPlan:
    """The plan in that folder. Raises `CheckpointError` where there is none, or it cannot be read."""
    path = out / FILE
    try:
        data = read_json(path.read_text(encoding="utf-8"))
        _SHAPE.check(data, "")
    except FileNotFoundError as error:
        raise CheckpointError(f"{out}: holds no study (no {FILE}): name recipes, and where to begin one") from error
    except (OSError, UnicodeDecodeError, BadText, Fault) as error:
        raise CheckpointError(
            f"{path}: not the plan of a study: {getattr(error, 'strerror', None) or error}"
        ) from error
    recipes = []
    for name in data["recipes"]:
        if set(name) & set("/\\\0") or name in ("", ".", ".."):
            raise CheckpointError(f"{path}: {shown(name)} is no name of a recipe")
        recipe = read_recipe(out / name / "recipe.yaml")
        if recipe.name != name:
            raise CheckpointError(
                f"{out / name / 'recipe.yaml'}: is named {shown(recipe.name)}, expected {shown(name)}"
            )
        recipes.append(recipe)
    return StudyPlan(recipes=tuple(recipes), seeds=tuple(data["seeds"]))


def merged(before: StudyPlan, recipes: Sequence[Recipe], seeds: Sequence[int]) -> StudyPlan:
    """The plan that goes on with `before`: further recipes and seeds may come in, what was there stays as it was.

    Raises `LeanconvError` for a recipe that says something else now.
    """
    known = {recipe.name: recipe for recipe in before.recipes}
    for recipe in recipes:
        if recipe.name not in known:
            continue
        changed = differences(*({**to_data(one), "seed": 0} for one in (known[recipe.name], recipe)))
        if changed:
            more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
            raise LeanconvError(
                f"{recipe.name} is another recipe than the one this study has: {'; '.join(changed[:3])}{more}: its runs"
                " would be of two kinds; set it back, give it another name, or choose another --out"
            )
    new = tuple(recipe for recipe in recipes if recipe.name not in known)
    further = tuple(seed for seed in seeds if seed not in before.seeds)
    return StudyPlan(recipes=before.recipes + new, seeds=before.seeds + further)
