"""No more memory for a story than its weights can fill: a number in a small text file must not take the machine's.

Constructors of layers draw tensors of the sizes that a story says. Within `bounded` every operation that makes a tensor
out of numbers is looked at before it runs; what goes beyond any use ends the construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from leanconv.errors import LeanconvError

__all__ = ["TooMuch", "bounded"]

_FREE_BYTES = 2**28
_TIMES = 16
"""What a construction may make for each byte of the weights: drafts of layers that are rewritten, wide elastic ones."""

_FREE_TENSORS = 20_000
_TENSORS_EACH = 100

_FACTORIES = frozenset(
    ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm", "arange", "linspace", "eye",
     "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "empty_like", "zeros_like",
     "ones_like", "full_like", "rand_like", "randn_like", "repeat", "cat", "clone")
)  # fmt: skip


class TooMuch(LeanconvError):
    """A story builds more than its weights fill."""


@contextmanager
def bounded(stored_bytes: int, stored_tensors: int) -> Iterator[None]:
    """Raise `TooMuch` within the scope before more is made than a model of so many bytes and tensors has use for."""
    with _Bounded(_FREE_BYTES + _TIMES * stored_bytes, _FREE_TENSORS + _TENSORS_EACH * stored_tensors):
        yield


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, most_bytes: int, most_tensors: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes_left, self.tensors_left = most_bytes, most_tensors
        self.most_bytes = most_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _FACTORIES:
            count = _elements(name, args)
            if count * 4 > self.bytes_left:
                raise TooMuch(
                    f"it builds a network of more than {self.most_bytes / 1e6:.0f} MB, far beyond what the weights fill"
                )
            self.tensors_left -= 1
            if self.tensors_left < 0:
                raise TooMuch("it builds far more layers than the weights fill")
        made = func(*args, **kwargs)
        if name in _FACTORIES and isinstance(made, Tensor) and not made.is_meta:
            self.bytes_left -= made.nbytes
        return made


def _elements(name: str, args: Any) -> int:
    """How many values the operation is about to make, as far as its arguments say."""
    first = args[0] if args else 0
    if isinstance(first, Tensor):
        sizes = (
            args[1] if len(args) > 1 and name in ("repeat", "new_empty", "new_zeros", "new_ones", "new_full") else ()
        )
        scale = first.numel() if name in ("repeat", "clone") or name.endswith("_like") else 1
        return scale * (prod(sizes) if isinstance(sizes, list | tuple | torch.Size) else 1)
    if isinstance(first, list | tuple) and first and isinstance(first[0], Tensor):
        return sum(one.numel() for one in first)
    if isinstance(first, list | tuple | torch.Size):
        return prod(int(side) for side in first)
    if name in ("arange", "randperm") and isinstance(args[-1] if name == "arange" else first, int | float):
        return int(args[-1] if name == "arange" else first)
    return int(first) ** 2 if name == "eye" and isinstance(first, int) else 1
