"""Whether a run trains on leanconv's own C library: by rule where it can, by measuring where it pays, and said.

`kernels` of a recipe is "auto", "always" or "never". With "auto" a step of the network is timed both ways before the
run begins, and what was found becomes part of the run's `config.yaml`, so that a resumed run computes as it began. Not
timed, and left to torch, are runs that take fewer steps than the timing is worth, and those of several processes, which
would disturb one another; their `config.yaml` says "auto", and a resumed run takes that for "never".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from leanconv.ranks import rank_and_world
from leanconv.recipes.config import read_recipe
from leanconv.rewrites.composed import composed_chains

if TYPE_CHECKING:
    from torch import nn

    from leanconv.recipes.settings import Recipe

__all__ = ["choose_kernels", "training_form"]

_PAYS = 0.95
"""So much of torch's time, at most, or torch's own convolutions stay."""

_LEAST_STEPS = 50

_DIFFERENCE = 5e-2
"""Gradients further apart are no rounding: a deep network enlarges that, and a ReLU at zero that rounding turns on or
off moves a gradient by a few hundredths, float32 from float64 as much as these kernels from torch's."""


def choose_kernels(
    recipe: Recipe, net: nn.Module, batches: int, out: Path, *, resume: bool
) -> tuple[Recipe, str | None]:
    """The recipe with `kernels` decided, and a sentence for the log, None where there is nothing to say of `net`.

    `batches` are those of the training part. A resumed run goes on as its `config.yaml` in `out` says.
    """
    if recipe.kernels == "auto" and resume and (out / "config.yaml").exists():
        before = read_recipe(out / "config.yaml").kernels
        recipe = replace(recipe, kernels="never" if before == "auto" else before)
    if recipe.kernels == "never":
        return recipe, None
    why = _why_not(recipe)
    if recipe.kernels == "auto" and why is None:
        steps = recipe.epochs * min(batches, recipe.steps_per_epoch or batches)
        if steps < _LEAST_STEPS:
            why = f"a run of {steps} steps is not worth timing"
        elif rank_and_world()[1] > 1 or recipe.devices * recipe.nodes > 1:
            why = "with several processes nothing is timed"
    convs = _count(net)
    if why is not None:
        return recipe, f"kernels: torch's own convolutions ({why})" if convs else None
    if not convs:
        return recipe, None
    return _measured(recipe, net, convs)


def _measured(recipe: Recipe, net: nn.Module, convs: int) -> tuple[Recipe, str]:
    import torch

    from leanconv.deploy.forms.measured import measure_training, vectors_used

    where = f"leanconv's C library ({vectors_used()})"
    if recipe.kernels == "always":
        return recipe, f"kernels: {convs} convolutions train on {where}, not timed"
    batch = min(8, recipe.data.batch_size)
    found = measure_training(net, recipe.data.input_size, batch=batch, threads=torch.get_num_threads())
    assert found is not None  # there are such layers
    took = f"{found.ratio:.2f} of torch's time for a step of {batch} images here"
    if found.difference > _DIFFERENCE:
        why = f"gradients on {where} are {found.difference:.0e} of their size apart"
        return replace(recipe, kernels="never"), f"kernels: torch's own convolutions ({why})"
    if found.ratio > _PAYS:
        why = f"{where} takes {took}; kernels=always takes it all the same"
        return replace(recipe, kernels="never"), f"kernels: torch's own convolutions ({why})"
    kept = f"{found.saved_mb:.1f} MB an image are kept for the backward pass, not {found.plain_mb:.1f}"
    return replace(recipe, kernels="always"), (
        f"kernels: {found.convs} of {found.of} convolutions train on {where}, in {took}; {kept}; kernels=never leaves"
        " them to torch"
    )


@contextmanager
def training_form(recipe: Recipe, net: nn.Module) -> Iterator[None]:
    """A scope in which `net` trains composed, or on the library, as the recipe says."""
    if recipe.composed:
        with composed_chains(net):
            yield
    elif recipe.kernels == "always" and _why_not(recipe) is None:
        from leanconv.deploy.forms.trained import trained_by_kernels

        with trained_by_kernels(net):
            yield
    else:
        yield


def _count(net: nn.Module) -> int:
    """How many convolutions of `net` the library would take."""
    from leanconv.deploy.forms.trained import trained_by_kernels

    with trained_by_kernels(net) as names:
        return len(names)


def _why_not(recipe: Recipe) -> str | None:
    """Why nothing of a run can train on the library, by rule; None where it can."""
    import torch

    from leanconv.deploy.forms.measured import missing

    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if recipe.accelerator not in ("auto", "cpu") or (recipe.accelerator == "auto" and gpu):
        return "training is not on the CPU"
    if recipe.precision != "32-true":
        return f"precision={recipe.precision}, the library's kernels are float32"
    if recipe.composed:
        return "composed=true"
    if recipe.elastic is not None:
        return "the network is elastic"
    return missing()
