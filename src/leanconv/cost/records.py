"""The vocabulary of a recorded forward: tensors, operators and modules, as frozen data that holds no memory alive."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

__all__ = ["ModuleRef", "OpRecord", "Origin", "Recording", "TensorRef", "aten", "refs_in"]


def aten(*names: str) -> frozenset[str]:
    """The operators of some blank-separated lists, as records name them.

    >>> sorted(aten("mm bmm", "t"))
    ['aten.bmm', 'aten.mm', 'aten.t']
    """
    return frozenset(f"aten.{name}" for line in names for name in line.split())


class Origin(enum.IntEnum):
    """Where the numbers of a tensor come from; of two inputs the larger one decides."""

    CONSTANT = 0  # buffers and tensors the forward makes itself
    WEIGHT = 1  # parameters, and whatever is computed from parameters alone
    IMAGE = 2  # depends on the network's input


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor of the recorded forward at one moment; it holds no storage alive.

    `serial` names the tensor object and `storage` its memory (views share it); `identity` and `weight_numel` tell, for
    tensors that do not depend on the image, which weight they hold and how many different numbers it has.
    """

    serial: int
    storage: int
    shape: tuple[int, ...]
    storage_bytes: int
    floating: bool
    origin: Origin
    identity: Hashable
    weight_numel: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class OpRecord:
    """One executed ATen operator.

    `name` is "aten.convolution" (in-place forms lose their trailing underscore), `args` maps the operator's argument
    names to values with a `TensorRef` for every tensor, `stack` holds the names of the modules that were running, the
    innermost last. `fresh[i]` says that output i owns memory nobody had before; `writes` are the inputs it overwrote.
    """

    name: str
    stack: tuple[str, ...]
    args: dict[str, Any]
    outputs: tuple[TensorRef, ...]
    fresh: tuple[bool, ...]
    writes: tuple[TensorRef, ...]
    pointwise: bool

    @property
    def path(self) -> str:
        """Name of the innermost running module, "" for the network itself."""
        return self.stack[-1] if self.stack else ""

    @property
    def inputs(self) -> Iterator[TensorRef]:
        """Every tensor among the arguments, in order."""
        return refs_in(self.args.values())


@dataclass(frozen=True, slots=True)
class ModuleRef:
    """A module of the recorded network: its name ("" is the network), class name, parameter elements and calls."""

    name: str
    type: str
    params: int
    calls: int


@dataclass(frozen=True, slots=True)
class Recording:
    """All operators of one forward, in order.

    `modules` lists every module in the network's order, `peak_bytes` is the largest sum of live
    memory seen after any operator: the input and every tensor the forward made and had not dropped, views counted with
    the memory they look at, weights and buffers not counted, as in an inference under `torch.no_grad()`.
    """

    records: tuple[OpRecord, ...]
    image: TensorRef
    outputs: tuple[TensorRef, ...]
    modules: tuple[ModuleRef, ...]
    peak_bytes: int


def refs_in(values: Iterable[Any]) -> Iterator[TensorRef]:
    """Every tensor among `values` and the tuples in it, in order."""
    for value in values:
        if isinstance(value, TensorRef):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from refs_in(value)
