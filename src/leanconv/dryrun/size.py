"""The shape of the input, or of several: checked, taken from the model where it says one, and made as tensors.

A `size` is the shape of one input without the batch axis, (3, 224, 224). A network of several inputs takes a list of
shapes, [(3, 32, 224, 224), (3, 4, 224, 224)]: they are the arguments of its forward in their order, or, where the
forward has room for only one argument, the list that it takes. A list inside the list is a list for the forward in any
case: [[(3, 32, 224, 224), (3, 4, 224, 224)]] is one argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanconv.dryrun.detector import image_size
from leanconv.errors import LeanconvError, shown

__all__ = [
    "Size",
    "Sizes",
    "arguments",
    "check_size",
    "check_sizes",
    "default_size",
    "each_shape",
    "fake_input",
    "positional",
    "shapes_of",
]

Size = Sequence[Any]
"""The shape of one input, a list of shapes, or one with lists of shapes in it."""

Sizes = tuple[Any, ...]
"""The same, checked: `(3, 224, 224)`, or `((3, 32, 224, 224), (3, 4, 224, 224))`."""

_MOST_VALUES = 2**40

_WANTED = "size is the shape of one input without the batch axis, such as (3, 224, 224)"


def check_size(size: Sequence[int], *, axes: tuple[int, int] | None = None) -> tuple[int, ...]:
    """`size` as a tuple; raises `LeanconvError` unless it is whole numbers from 1, at least one of them.

    `axes` are the least and the most axes behind the channels.

    >>> check_size([3, 32, 32])
    (3, 32, 32)
    """
    if isinstance(size, (str, bytes)) or not isinstance(size, Sequence):
        raise LeanconvError(f"{_WANTED}; got {size!r}")
    fewest, most = (0, None) if axes is None else axes
    if len(size) < 1 + fewest or (most is not None and len(size) > 1 + most):
        entries = "at least one entry" if most is None else f"{1 + fewest} to {1 + most} entries"
        raise LeanconvError(f"{_WANTED}: it has {entries}; got {tuple(size)}")
    for value in size:
        check_count(value, f"{_WANTED}: every entry of size")
    if prod(size) > _MOST_VALUES:
        raise LeanconvError(f"{_WANTED}; {shown(tuple(size))} is larger than any input")
    return tuple(size)


def check_sizes(size: Size, *, axes: tuple[int, int] | None = None) -> Sizes:
    """As `check_size`, for one input or several; raises `LeanconvError` naming the shape that is wrong.

    >>> check_sizes([[3, 32, 32], [1, 32, 32]])
    ((3, 32, 32), (1, 32, 32))
    >>> check_sizes((3, 32, 32))
    (3, 32, 32)
    """
    if not _is_list(size) or not any(map(_is_list, size)):
        return check_size(size, axes=axes)
    return tuple(check_sizes(one, axes=axes) for one in size)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def shapes_of(size: Size) -> list[tuple[int, ...]]:
    """The shapes of all inputs, in order.

    >>> shapes_of([(3, 8, 8), [(1, 4), (1, 2)]])
    [(3, 8, 8), (1, 4), (1, 2)]
    """
    if not any(map(_is_list, size)):
        return [tuple(size)]
    return [shape for one in size for shape in shapes_of(one)]


def each_shape(size: Sizes, change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Sizes:
    """The same inputs with other shapes.

    >>> each_shape(((3, 8, 8), (1, 8, 8)), lambda shape: (shape[0], 16, *shape[1:]))
    ((3, 16, 8, 8), (1, 16, 8, 8))
    """
    return tuple(each_shape(one, change) for one in size) if _is_list(size[0]) else change(size)


def check_count(value: object, what: str) -> int:
    """`value`, a whole number of at least 1; raises `LeanconvError` naming `what` it is."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LeanconvError(f"{what} must be a whole number of at least 1, got {value!r}")
    return value


def default_size(model: nn.Module) -> tuple[int, ...] | None:
    """The size of the input that `model` itself says it was made for, without the batch axis; None where it says none.

    An elastic network says it as `default_input_size`, a network of timm in its `pretrained_cfg`; of a detector it is
    the largest image that it makes of those it is given, (3, shorter side, longer side).

    >>> net = nn.Conv2d(3, 8, 3)
    >>> net.pretrained_cfg = {"input_size": (3, 224, 224)}
    >>> default_size(net)
    (3, 224, 224)
    """
    config = getattr(model, "pretrained_cfg", None)
    told = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    for size in (getattr(model, "default_input_size", None), told):
        if isinstance(size, (tuple, list)) and len(size) > 1 and all(type(n) is int and n > 0 for n in size):
            return tuple(size)
    return image_size(model)


def arguments(model: nn.Module, size: Size, make: Callable[[tuple[int, ...]], Any]) -> tuple[Any, ...]:
    """The positional arguments for the forward of `model`, each input made by `make` of its shape.

    >>> class Two(nn.Module):
    ...     def forward(self, fast, slow): ...
    >>> class Listed(nn.Module):
    ...     def forward(self, pathways): ...
    >>> sizes = ((3, 8, 8), (1, 8, 8))
    >>> [len(arguments(net, sizes, torch.empty)) for net in (Two(), Listed())]
    [2, 1]
    """
    if not _is_list(size[0]):
        return (make(tuple(size)),)
    made = tuple(_made(one, make) for one in size)
    as_written = len(made) == 1 or any(isinstance(one, list) for one in made)
    return made if as_written or positional(model)[1] != 1 else (list(made),)


def _made(size: Size, make: Callable[[tuple[int, ...]], Any]) -> Any:
    return [_made(one, make) for one in size] if _is_list(size[0]) else make(tuple(size))


def positional(model: nn.Module) -> tuple[int, int | None]:
    """How many positional arguments the forward of `model` must be given, and how many it has room for.

    None is as many as one likes, also where the forward does not say.
    """
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1, None
    taken = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in taken)
    return needed, None if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(taken)


def fake_input(model: nn.Module, size: Sequence[int], *, batch: int = 2) -> Tensor:
    """An uninitialised batch of inputs of `size`, of the device and type of the model's first floating tensor.

    Made inside a fake mode it takes no memory.
    """
    like = next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), None)
    shape = (batch, *size)
    return torch.empty(shape) if like is None else torch.empty(shape, device=like.device, dtype=like.dtype)


def tensors_of(tree: Any) -> tuple[Tensor, ...]:
    """Every tensor in nested tuples, lists and dictionaries."""
    return tuple(leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
