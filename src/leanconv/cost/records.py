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
    STATE = 2  # computed for each image of the batch from what is the same for all, such as learned queries
    IMAGE = 3  # depends on the network's input


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor of the recorded forward at one moment; it holds no storage alive.

    `serial` names the tensor object and `storage` its memory (views share it). For tensors that do not depend on the
    image `identity` and `weight_numel` say which weight they hold and how many different numbers it has, `parameters`
    of which parameters it was computed (their serials), and `spread` that it was repeated along the batch axis, or made
    with one, and nothing has been computed of it yet.
    """

    serial: int
    storage: int
    shape: tuple[int, ...]
    storage_bytes: int
    floating: bool
    origin: Origin
    identity: Hashable
    weight_numel: int
    parameters: frozenset[int] = frozenset()
    spread: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def active(self) -> bool:
        """Whether it holds numbers of its own for each image."""
        return self.origin >= Origin.STATE

    @property
    def untouched(self) -> bool:
        """Whether it is a parameter or a constant as it is, or a view of one."""
        return isinstance(self.identity, tuple) and self.identity[0] == "tensor"


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

    `inputs` are the tensors given to the network, `modules` lists every module in its order, `parameters` the elements
    of every parameter by its serial. `peak_bytes` is the largest sum of live memory seen after any operator: the inputs
    and every tensor the forward made and had not dropped, views counted with the memory they look at, weights and
    buffers not counted, as in an inference under `torch.no_grad()`.
    """

    records: tuple[OpRecord, ...]
    inputs: tuple[TensorRef, ...]
    outputs: tuple[TensorRef, ...]
    modules: tuple[ModuleRef, ...]
    parameters: dict[int, int]
    peak_bytes: int


def refs_in(values: Iterable[Any]) -> Iterator[TensorRef]:
    """Every tensor among `values` and the tuples in it, in order."""
    for value in values:
        if isinstance(value, TensorRef):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from refs_in(value)
