"""The shape of one input: checked, taken from the model where it says one, and made as a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from leanconv.errors import LeanconvError

__all__ = ["check_size", "default_size", "fake_input"]

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
    return tuple(size)


def check_count(value: object, what: str) -> int:
    """`value`, a whole number of at least 1; raises `LeanconvError` naming `what` it is."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LeanconvError(f"{what} must be a whole number of at least 1, got {value!r}")
    return value


def default_size(model: nn.Module) -> tuple[int, ...] | None:
    """The size of the input that `model` itself says it was made for, without the batch axis; None where it says none.

    An elastic network says it as `default_input_size`, a network of timm in its `pretrained_cfg`.

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
    return None


def fake_input(model: nn.Module, size: Sequence[int], *, batch: int = 2) -> Tensor:
    """An uninitialised batch of inputs of `size`, of the device and type of the model's first floating tensor.

    Made inside a fake mode it takes no memory.
    """
    like = next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), None)
    shape = (batch, *size)
    return torch.empty(shape) if like is None else torch.empty(shape, device=like.device, dtype=like.dtype)
