"""What of a network follows the width, in plain data: found by `coupling`, read by `layers`.

A `Slice` is a row of channels with the rounding law that it obeys; `Channels` are slices one behind the other, an axis
of a tensor or a count. The weights are allocated for the largest width, which may be above 1; the network as it was,
width 1, then is a part of them like any other. While coupling is found, rows stand where `Channels` do in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Any, Generic, TypeVar

from leanconv.elastic.width import Width, channels_at

__all__ = ["MOST", "Axes", "Channels", "Counts", "Layer", "OtherLayer", "Place", "Runs", "Slice", "cached", "counting"]
__all__ += ["joined"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T", covariant=True)
U = TypeVar("U")

Runs = tuple[tuple[int, int], ...]
"""Channels as (start, length), in order."""

Axes = tuple[T | None, ...]
"""The channels on each axis of a tensor; None is never sliced."""

Place = tuple[Any, int]
"""A function, and how many times it was called before in the same forward."""

MOST = 128
"""Widths whose channels are kept in a cache: training draws new ones for ever."""


def cached(known: dict[K, V], key: K, make: Callable[[], V]) -> V:
    """What `make` gave for that key; all is dropped when there are `MOST`. Threads may ask at the same time."""
    try:
        return known[key]
    except KeyError:
        made = make()
    if len(known) >= MOST:
        known.clear()
    known[key] = made
    return made


def joined(runs: Iterable[tuple[int, int]]) -> Runs:
    """Runs in order, each that begins where the one before it ends made one with it.

    >>> joined([(0, 32), (32, 8), (64, 16)])
    ((0, 40), (64, 16))
    """
    out: list[tuple[int, int]] = []
    for start, length in runs:
        if out and sum(out[-1]) == start:
            out[-1] = (out[-1][0], out[-1][1] + length)
        else:
            out.append((start, length))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Slice:
    """`units` of `unit` channels at width 1, room for `room` of them, of which the first are kept.

    `law` is (size, divisor, ratio): channels per unit in the layer that made the axis, and the rounding law's d and r;
    None is never sliced. `group` names the layers that it is in step with where every layer has a width of its own.
    """

    units: int
    unit: int
    law: tuple[int, int, Fraction] | None = None
    room: int = 0
    group: str = ""

    @property
    def full(self) -> int:
        """Channels that there are weights for."""
        return max(self.units, self.room) * self.unit

    def kept(self, width: Width) -> int:
        """Channels at `width`, the first ones."""
        if self.law is None:
            return self.full
        size, divisor, ratio = self.law
        channels = channels_at(self.units * size, width.of(self.group), divisor=divisor, ratio=ratio, quantum=size)
        return channels // size * self.unit


class Channels:
    """The channel axis of a layer's input or output, for any width.

    >>> concat = Channels((Slice(64, 1, (1, 8, Fraction(1))), Slice(32, 1, (1, 8, Fraction(1)))))
    >>> concat.full, concat.count(Width(0.5)), concat.runs(Width(0.5))
    (96, 48, ((0, 32), (64, 16)))
    """

    def __init__(self, slices: Iterable[Slice]) -> None:
        self.slices = tuple(slices)
        self.full = sum(one.full for one in self.slices)
        self._known: dict[Width, Runs] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channels) and self.slices == other.slices

    def __hash__(self) -> int:
        return hash(self.slices)

    def runs(self, width: Width) -> Runs:
        """The kept channels, neighbours joined."""
        return cached(self._known, width, lambda: self._find(width))

    def count(self, width: Width) -> int:
        """How many channels are kept."""
        return sum(length for _, length in self.runs(width))

    def _find(self, width: Width) -> Runs:
        starts = accumulate((one.full for one in self.slices), initial=0)
        return joined(zip(starts, (one.kept(width) for one in self.slices), strict=False))


@dataclass(frozen=True)
class Counts(Generic[T]):
    """Numbers of a call or an attribute, as the full network has them, some of which count channels.

    `of` maps positions to (the channels, how many of them are counted as one).
    """

    numbers: tuple[int, ...]
    of: Mapping[int, tuple[T, int]]

    def map(self, done: Callable[[T], U]) -> Counts[U]:
        """The same of other channels."""
        return Counts(self.numbers, {place: (done(one), per) for place, (one, per) in self.of.items()})

    def at(self: Counts[Channels], width: Width) -> dict[int, int]:
        """The numbers that `width` decides, by position."""
        return {place: channels.count(width) // per for place, (channels, per) in self.of.items()}


def counting(channels: U, number: int, per: int = 1) -> Counts[U]:
    """One number, which counts channels."""
    return Counts((number,), {0: (channels, per)})


@dataclass(frozen=True)
class Layer(Generic[T]):
    """A layer: the channels it reads and makes, those on its tensors and in its attributes.

    `mixes` says that every output reads every input; `pieces` are (channels before, channels in) of each piece that a
    reordering of channels reads.
    """

    inputs: T
    outputs: T
    tensors: Mapping[str, Axes[T]] = field(default_factory=dict)
    attributes: Mapping[str, Counts[T]] = field(default_factory=dict)
    mixes: bool = False
    pieces: tuple[tuple[T, T], ...] = ()

    def map(self, done: Callable[[T], U]) -> Layer[U]:
        """The same with other channels."""
        return Layer(
            done(self.inputs),
            done(self.outputs),
            {name: tuple(None if one is None else done(one) for one in axes) for name, axes in self.tensors.items()},
            {name: counts.map(done) for name, counts in self.attributes.items()},
            self.mixes,
            tuple((done(before), done(part)) for before, part in self.pieces),
        )


@dataclass(frozen=True)
class OtherLayer:
    """A module that is no layer but has something that follows the width: tensors, attributes, numbers in its calls.

    `made` says how often its forward calls each function that may hold counts.
    """

    tensors: Mapping[str, Axes[Channels]]
    attributes: Mapping[str, Counts[Channels]]
    calls: Mapping[Place, Counts[Channels]]
    made: Mapping[Any, int]
