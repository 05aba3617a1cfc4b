"""Why a model cannot be followed, in one text for all who run it without computing.

Either its forward asks for a value (a branch, an `.item()`, a boolean mask), which a tensor without values cannot
answer; or it fails, as it would on a real input of that size. Both name the module and the operator.
"""

from __future__ import annotations

import logging
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from leanconv.dryrun.size import Size, arguments, positional, shapes_of
from leanconv.errors import LeanconvError

__all__ = ["check_higher_order", "failure", "one_line", "place_of", "quiet"]

_LEANCONV, _TORCH = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)  # torchvision too
_PYTHON = sysconfig.get_paths()["stdlib"]


def failure(
    error: Exception,
    model: nn.Module,
    size: Size,
    *,
    module: str = "",
    kind: type[LeanconvError] = LeanconvError,
) -> LeanconvError:
    """The error, of class `kind`, for a forward of `model` on fake inputs of `size` that raised `error`.

    `module` is the qualified name of the innermost module that was running. An error of ours is returned as it is.
    """
    if isinstance(error, LeanconvError):
        return error
    name = type(model).__name__
    operator = _operator(error)
    if _reads_values(error):
        place = place_of(error)
        asked = f"{operator or 'Tensor.numpy'}{f' of module {module!r}' if module else ''}"
        return kind(
            f"the forward of {name} reads tensor values{f': {place}' if place else ''} ({asked}), and it is followed "
            "by shapes alone, without values: take the .item(), the branch or the boolean mask out of the forward, or "
            "pass a part of the network that has none"
        )
    where = [operator, f"module {module!r}" if module else ""]
    within = " of ".join(part for part in where if part)
    if (unknown := _without_shapes(error)) is not None:
        return kind(
            f"the forward of {name} uses {unknown or operator}{f' in module {module!r}' if module else ''}, of which "
            "torch cannot say what it returns without computing it, and it is followed by shapes alone: pass a part of "
            "the network without it, or, where the operator is yours, register that with torch.library.register_fake"
        )
    return kind(
        f"the forward of {name} fails on {_given(size)}{f' in {within}' if within else ''}: "
        f"{one_line(error)}; {_advice(model, size)}"
    )


def check_higher_order(operator: HigherOrderOperator) -> None:
    """Raise `NotImplementedError` unless `operator`, which takes functions, runs the same whatever the values are."""
    if str(operator) != "flex_attention":
        raise NotImplementedError(f"HigherOrderOperator {operator}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from logging a traceback of its own for an error that is about to be told in one line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def one_line(error: BaseException) -> str:
    """The class of an error and the first line of its message.

    >>> one_line(ValueError("too small\\nby far"))
    'ValueError: too small'
    """
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def place_of(error: BaseException) -> str:
    """The line of somebody's code, neither ours nor torch's nor Python's, in which `error` arose, with file and number.

    Empty where no such line took part.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_machinery(frame.filename)]
    return f"`{own[-1].line}` at {own[-1].filename}:{own[-1].lineno}" if own else ""


def _is_machinery(file: str) -> bool:
    library = file.startswith(_PYTHON) and "-packages" not in file[len(_PYTHON) :]
    library = library or Path(file).stem == "typing_extensions"  # whose wrappers torchvision's functions have
    return library or file.startswith((_LEANCONV, _TORCH, "<frozen"))


def _reads_values(error: Exception) -> bool:
    if isinstance(error, (DataDependentOutputException, DynamicOutputShapeException)):
        return True
    return isinstance(error, RuntimeError) and ".numpy() is not supported" in str(error)


def _without_shapes(error: Exception) -> str | None:
    """The operator that runs on values only, "" where the error does not name it; None for any other error."""
    if isinstance(error, UnsupportedOperatorException):
        return ""
    if isinstance(error, NotImplementedError):
        text = str(error)
        if "HigherOrderOperator" in text:
            return f"torch.{text.partition('HigherOrderOperator ')[2].split()[0]}"
        if "no fake impl" in text:
            return ""
    return None


def _operator(error: BaseException) -> str:
    """The ATen operator that failed, without its overload; "" where none did.

    A dispatch mode is asked as `__torch_dispatch__(self, func, types, args, kwargs)`: the outermost such call in the
    traceback has the operator that the forward called, not one that torch makes it of.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "__torch_dispatch__" and (found := _asked(frame)) is not None:
            return str(found.overloadpacket)
    return ""


def _asked(frame: FrameType) -> OpOverload | None:
    found = frame.f_locals.get("func")
    return found if isinstance(found, OpOverload) else None


def _given(size: Size) -> str:
    shapes = shapes_of(size)
    return f"an input of shape {shapes[0]}" if len(shapes) == 1 else f"inputs of shapes {', '.join(map(str, shapes))}"


def _advice(model: nn.Module, size: Size) -> str:
    """What to do about the size: another one, or another number of inputs."""
    needed, room = positional(model)
    given = len(arguments(model, size, lambda shape: shape))
    if room == 0:
        return "its forward takes no input"
    if needed > given:
        return f"it takes {needed} inputs: pass size as a list of {needed} shapes"
    if room is not None and room < given:
        return f"it takes {room} inputs, and size has {given} shapes"
    return "size must be what the network takes, without the batch axis"
