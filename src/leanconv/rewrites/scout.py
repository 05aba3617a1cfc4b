"""One forward pass on fake tensors: in which order the convolutions run, at which sizes, and what comes out.

Nothing is computed and nothing of the model changes: it runs on a copy that shares the weights, in eval mode, under
fake tensors. A rewrite looks before, to know stem, depth and stage, and after, to see that the new network still runs.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from leanconv.errors import LeanconvError, RewriteError
from leanconv.rewrites.guards import convolutions
from leanconv.rewrites.swap import duplicate

__all__ = ["Sighting", "blame", "check_runs", "check_size", "scout"]


class _Stopped(Exception):
    """The forward pass failed; `path` are the modules that were running, outermost first."""

    def __init__(self, path: tuple[str, ...], cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.path = path


@dataclass(frozen=True)
class Sighting:
    """What a forward pass showed: `order` and `stages` by first qualified name, `shapes` of the outputs."""

    order: tuple[str, ...]
    stages: dict[str, int] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ()


def check_size(size: Sequence[int]) -> tuple[int, ...]:
    """`size` as a tuple; raises `LeanconvError` unless it is channels and 1 to 3 spatial axes, without the batch."""
    wanted = "size is the shape of one input without the batch axis, such as (3, 224, 224)"
    if isinstance(size, (str, bytes)) or not isinstance(size, Sequence):
        raise LeanconvError(f"{wanted}; got {size!r}")
    if not 2 <= len(size) <= 4 or not all(type(number) is int and number > 0 for number in size):
        raise LeanconvError(f"{wanted}; got {tuple(size)}")
    return tuple(size)


def scout(model: nn.Module, size: tuple[int, ...]) -> Sighting:
    """Run `model` on a fake batch of `size` = (C, *spatial) and tell what happened.

    Raises `RewriteError` where the model does not run.
    """
    try:
        return _run(model, size)
    except _Stopped as stop:
        where = (stop.path and stop.path[-1]) or type(model).__name__
        raise RewriteError(
            f"the model does not run on one input of shape {size}: {where} fails with {_told(stop)}; pass the "
            "size it was made for, or leave size out (then nothing is traced and where= may not "
            "speak of stage)"
        ) from stop.__cause__


def check_runs(model: nn.Module, size: tuple[int, ...], before: Sighting, changed: Sequence[str]) -> Sighting:
    """`scout` the rewritten model; raise `RewriteError`, naming the layer, unless it runs through its new layers.

    Catches a parent that uses the weights of its convolution directly, one that keeps a second reference to the old
    convolution, and an output whose shape is no longer the same.
    """
    try:
        after = _run(model, size)
    except _Stopped as stop:
        inner = stop.path[-1] if stop.path else ""
        prefix = f"{inner}." if inner else ""
        blame = [name for name in changed if name.startswith(prefix) or name == inner] or list(changed)
        shown = ", ".join(blame[:3]) + (", ..." if len(blame) > 3 else "")
        raise RewriteError(
            f"{inner or type(model).__name__} no longer runs after {shown} was replaced: {_line(stop)}; it probably "
            f"uses the convolution's own weights in its forward: leave it alone with where='... !{blame[0]}'"
        ) from stop.__cause__
    for name in changed:
        if name in before.order and name not in after.order:
            raise RewriteError(
                f"{name} was replaced but the network does not call the new layer: somebody holds a second reference "
                f"to the old one; leave it alone with where='... !{name}'"
            )
    if after.shapes != before.shapes:
        raise RewriteError(f"the rewritten network gives outputs {after.shapes}, the original {before.shapes}")
    return after


def blame(error: BaseException) -> str:
    """The line of somebody's code in which `error` arose, with file and number, and the message."""
    frames = traceback.extract_tb(error.__traceback__)
    ours, theirs = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)
    own = [frame for frame in frames if not frame.filename.startswith((ours, theirs))]
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not own:
        return message
    return f"`{own[-1].line}` at {own[-1].filename}:{own[-1].lineno} ({message})"


def _told(stop: _Stopped) -> str:
    """The first line of the error; for a forward that looks at values, the line that does."""
    cause = stop.__cause__
    if isinstance(cause, DataDependentOutputException):
        return f"{blame(cause)}: its forward depends on the values of tensors, so it cannot be traced"
    return _line(stop)


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _run(model: nn.Module, size: tuple[int, ...]) -> Sighting:
    """One forward pass; raises `_Stopped`."""
    probe = duplicate(model, share_tensors=True).eval()
    like = next((t for t in chain(probe.parameters(), probe.buffers()) if t.is_floating_point()), torch.empty(0))
    order: list[str] = []
    stages: dict[str, int] = {}

    def on_conv(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if name not in stages and isinstance(output, Tensor) and output.ndim > 2:
                order.append(name)
                stages[name] = round(math.log2(size[-1] / output.shape[-1]))

        return hook

    for module, names in convolutions(probe):
        module.register_forward_hook(on_conv(names[0]))
    # A model on the meta device needs no fake tensors, and they do not mix with it.
    fake = nullcontext() if like.is_meta else FakeTensorMode(allow_non_fake_inputs=True)
    with _quiet(), _trail(probe), torch.no_grad(), fake:
        outputs = probe(torch.zeros(2, *size, dtype=like.dtype, device=like.device))
    return Sighting(tuple(order), stages, tuple(_shapes(outputs)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging a traceback of its own for an error that is about to be told in one line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def _trail(model: nn.Module) -> Iterator[None]:
    """Turn any exception of a forward pass into `_Stopped` with the names of the modules that were running."""
    path: list[str] = []

    def enter(name: str) -> Any:
        return lambda _module, _inputs: path.append(name)

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        path.pop()

    for name, module in model.named_modules():
        module.register_forward_pre_hook(enter(name))
        module.register_forward_hook(leave)
    try:
        yield
    except Exception as error:
        raise _Stopped(tuple(path), error) from error


def _shapes(outputs: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all tensors in nested lists, tuples and dictionaries."""
    if isinstance(outputs, Tensor):
        yield tuple(outputs.shape)
    elif isinstance(outputs, (list, tuple, dict)):
        for part in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from _shapes(part)
