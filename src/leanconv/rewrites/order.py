"""In which order the convolutions of a model run, at which stage, and what comes out: found by a dry run.

A rewrite looks before, for stem, depth and stage, and afterwards, to see that the new network still runs through its
new layers and gives outputs of the same shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from leanconv.dryrun import DryRun, Sizes, one_line, place_of
from leanconv.errors import LeanconvError, RewriteError
from leanconv.rewrites.guards import convolutions

__all__ = ["Order", "check_still_runs", "order_of", "told"]


class Order(NamedTuple):
    """`names` are the convolutions by first qualified name as they run, `stages` the halvings of the input before each
    one's output, `shapes` those of the network's outputs for a batch of two, `called` all modules that ran."""

    names: tuple[str, ...]
    stages: dict[str, int]
    shapes: tuple[tuple[int, ...], ...]
    called: frozenset[str]

    def ran(self, name: str) -> bool:
        """Whether the layer called `name` ran; an operator made of several convolutions does where one of them does."""
        return any(found == name or found.startswith(f"{name}." if name else "") for found in self.called)


def told(cause: BaseException) -> str:
    """What went wrong on one line, and where: the line of the network's own code, with file and number."""
    place = place_of(cause)
    return one_line(cause) + (f", in {place}" if place else "")


def order_of(model: nn.Module, size: Sizes) -> Order:
    """The order in `model` on an input of `size` = (C, *spatial), or on several.

    Raises `RewriteError` where the model does not run.
    """
    return _run(DryRun(model, size, error=RewriteError))


def check_still_runs(
    model: nn.Module,
    size: Sizes,
    before: Order,
    changed: Sequence[str],
    *,
    selects: bool = True,
    same_shapes: bool = True,
) -> Order:
    """The order in the rewritten `model`; raises `RewriteError`, naming the layer, unless its new layers run.

    Catches a parent that uses the weights of its convolution directly, one that calls the old convolution all the same,
    and an output whose shape is no longer the same. `selects` says whether the rewrite has a `where`,
    `same_shapes` whether the outputs must have the old shapes.
    """
    dry = DryRun(model, size, error=RewriteError)
    try:
        after = _run(dry)
    except LeanconvError as error:
        cause = error.__cause__ or error
        inner = dry.stack.path_of(cause)
        near = [name for name in changed if name == inner or name.startswith(f"{inner}." if inner else "")]
        blame = near or list(changed)
        shown = ", ".join(blame[:3]) + (", ..." if len(blame) > 3 else "")
        raise RewriteError(
            f"{inner or type(model).__name__} no longer runs after {shown} was replaced: {told(cause)}"
            f"{_leave_alone(blame[0], selects)}"
        ) from cause
    for name in changed:
        if name in before.names and not after.ran(name):
            raise RewriteError(
                f"{name} was replaced but the network does not call the new layer, although it called the old one"
                f"{_leave_alone(name, selects)}"
            )
    if same_shapes and after.shapes != before.shapes:
        raise RewriteError(f"the rewritten network gives outputs {after.shapes}, the original {before.shapes}")
    return after


def _leave_alone(name: str, selects: bool) -> str:
    return f": leave it alone with where='... !{name}'" if selects else ""


def _run(dry: DryRun) -> Order:
    first_name = {id(module): names[0] for module, names in convolutions(dry.model)}
    stages: dict[str, int] = {}
    length = max(tensor.shape[-1] for tensor in dry.inputs)

    def look(_name: str, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        name = first_name.get(id(module))
        if name is not None and name not in stages and isinstance(output, Tensor) and output.ndim > 2:
            stages[name] = round(math.log2(length / output.shape[-1]))

    dry.stack.on_leave.append(look)
    ran = dry.run()
    return Order(tuple(stages), stages, ran.shapes, frozenset(ran.calls))
