"""Which channels of a tensor are kept at a width: plain integers, found once by the trace and read by every layer.

A tensor's channel axis is a row of *segments*: one after a convolution, several after a concatenation. Each segment
counts the *units* of an *axis*, and every tensor that must agree with another shares its axis: both sides of a residual
add, the input and output of a depthwise or grouped convolution (whole groups are dropped, so a unit is a group), a
squeeze-and-excitation gate and what it gates. The kept part of a segment is its first units; so the kept part of a
concatenation is a gather, never a prefix.

    Axis, Segment, unify, align     while tracing: axes merge and split as layers turn out to be coupled
    Span, Channels                  afterwards: frozen, answers count(width) and runs(width)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import NamedTuple

from leanconv.elastic.width import channels_at

__all__ = ["Axis", "Channels", "Misfit", "Row", "Segment", "Span", "align", "fixed_row", "pin", "resolve", "unify"]


class Misfit(Exception):
    """Two rows of segments that cannot be cut at the same places; the trace turns it into an error with a name."""


@dataclass(eq=False)
class Axis:
    """One coupled channel count: `units` of `size` channels each in the layer that made it.

    `fixed` says why it is never sliced; `stream` that it is a residual stream, `depthwise` that a depthwise convolution
    runs on it; `ratio` is that of the rounding law; `became` what it was merged with or cut into.
    """

    units: int
    size: int = 1
    makers: tuple[str, ...] = ()
    fixed: str | None = None
    stream: bool = False
    depthwise: bool = False
    ratio: Fraction | None = None
    became: tuple[tuple[Axis, int], ...] = field(default=(), repr=False)

    def regrouped(self, factor: int) -> Axis:
        """This axis with `factor` units in each unit."""
        if factor == 1:
            return self
        new = Axis(
            self.units // factor, self.size * factor, self.makers, self.fixed, self.stream, self.depthwise, self.ratio
        )
        self.became = ((new, factor),)
        return new

    def cut(self, at: int) -> None:
        """Split into the first `at` units and the rest."""
        parts = (
            Axis(units, self.size, self.makers, self.fixed, self.stream, self.depthwise, self.ratio)
            for units in (at, self.units - at)
        )
        self.became = tuple((part, 1) for part in parts)

    def merge(self, other: Axis) -> None:
        """Take over `other`, which has as many units."""
        self.size = min(self.size, other.size)
        self.makers += other.makers
        self.fixed = self.fixed or other.fixed
        self.stream |= other.stream
        self.depthwise |= other.depthwise
        self.ratio = self.ratio or other.ratio
        other.became = ((self, 1),)


class Segment(NamedTuple):
    """All units of `axis`, `unit` channels each in this tensor."""

    axis: Axis
    unit: int

    @property
    def full(self) -> int:
        """Channels at width 1."""
        return self.axis.units * self.unit


Row = tuple[Segment, ...]
"""The channel axis of a tensor."""


def fixed_row(count: int, why: str) -> Row:
    """A row of `count` channels that are never sliced."""
    return (Segment(Axis(count, fixed=why), 1),)


def resolve(row: Row) -> Row:
    """The row in terms of today's axes."""
    out: list[Segment] = []
    for axis, unit in row:
        if axis.became:
            # `became` counts new units in old ones: (new, factor) holds factor old units in each of its own.
            out += resolve(tuple(Segment(new, unit * factor) for new, factor in axis.became))
        else:
            out.append(Segment(axis, unit))
    return tuple(out)


def pin(row: Row, why: str) -> None:
    """Never slice these channels."""
    for segment in resolve(row):
        segment.axis.fixed = segment.axis.fixed or why


def align(row: Row, quantum: int) -> Row:
    """The row with every segment's unit a multiple of `quantum`, the channels per group of a grouped convolution."""
    for segment in resolve(row):
        unit = lcm(segment.unit, quantum)
        if segment.full % unit:
            raise Misfit(f"groups of {quantum} channels do not fit into a part of {segment.full} channels")
        segment.axis.regrouped(unit // segment.unit)
    return resolve(row)


def unify(one: Row, other: Row) -> Row:
    """Make two rows of the same length one: cut at the same places, merge the axes, whoever holds them."""
    while True:
        one, other = resolve(one), resolve(other)
        for left, right in zip(one, other, strict=False):
            if left.full != right.full:
                _cut(*((left, right.full) if left.full > right.full else (right, left.full)))
                break
            if left.axis is not right.axis:
                unit = lcm(left.unit, right.unit)
                a, b = left.axis.regrouped(unit // left.unit), right.axis.regrouped(unit // right.unit)
                a.merge(b)
                break
            if left.unit != right.unit:
                raise Misfit(f"{left.full} channels are tied to themselves in another order")
        else:
            return one


def _cut(segment: Segment, channels: int) -> None:
    if channels % segment.unit:
        raise Misfit(f"{segment.full} channels in units of {segment.unit} cannot be cut at {channels}")
    segment.axis.cut(channels // segment.unit)


@dataclass(frozen=True, slots=True)
class Span:
    """A finished segment: `units` of `unit` channels; None for `law` means never sliced.

    `law` is (size, divisor, ratio): channels per unit in the layer that made the axis, and the rounding law's d and r.
    """

    units: int
    unit: int
    law: tuple[int, int, Fraction] | None = None

    @property
    def full(self) -> int:
        """Channels at width 1."""
        return self.units * self.unit

    def kept(self, width: float) -> int:
        """Channels at `width`, the first ones."""
        if self.law is None:
            return self.full
        size, divisor, ratio = self.law
        channels = channels_at(self.units * size, width, divisor=divisor, ratio=ratio, quantum=size)
        return channels // size * self.unit


class Channels:
    """The channel axis of a layer's input or output, for any width.

    >>> concat = Channels((Span(64, 1, (1, 8, Fraction(1))), Span(32, 1, (1, 8, Fraction(1)))))
    >>> concat.full, concat.count(0.5), concat.runs(0.5)
    (96, 48, ((0, 32), (64, 16)))
    """

    REMEMBERED = 128
    """Widths whose runs are remembered: training draws new ones for ever."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = tuple(spans)
        self.full = sum(span.full for span in self.spans)
        self._runs: dict[float, tuple[tuple[int, int], ...]] = {}

    def runs(self, width: float) -> tuple[tuple[int, int], ...]:
        """The kept channels as (start, length), in order, neighbours joined."""
        found = self._runs.get(width)
        if found is None:
            joined: list[tuple[int, int]] = []
            start = 0
            for span in self.spans:
                kept = span.kept(width)
                if joined and sum(joined[-1]) == start:
                    joined[-1] = (joined[-1][0], joined[-1][1] + kept)
                else:
                    joined.append((start, kept))
                start += span.full
            if len(self._runs) >= self.REMEMBERED:
                self._runs.clear()
            found = self._runs[width] = tuple(joined)
        return found

    def count(self, width: float) -> int:
        """How many channels are kept."""
        return sum(length for _, length in self.runs(width))

    def __repr__(self) -> str:
        return f"Channels({self.full}, {len(self.spans)} spans)"
