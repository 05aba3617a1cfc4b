"""Which channels of a tensor are kept at a width: rows of segments, found once by the trace.

A tensor's channel axis is a row of *segments*: one after a convolution, several after a concatenation. Each segment
counts the *units* of an *axis*, and every tensor that must agree with another shares its axis: both sides of a residual
add, the input and output of a depthwise or grouped convolution (whole groups are dropped, so a unit is a group), a
squeeze-and-excitation gate and what it gates. The kept part of a segment is its first units; so the kept part of a
concatenation is a gather, never a prefix. An axis may appear in a row several times: the heads of an attention, or the
groups behind a channel shuffle, all keep the same first channels of their own.

    Axis, Segment           while tracing: axes merge and split as layers turn out to be coupled
    unify, align, cut       make rows agree, make units whole groups, part a row
    divide, join            what a reshape does to a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import lcm, prod
from typing import NamedTuple

__all__ = [
    "Axis",
    "Misfit",
    "Row",
    "Segment",
    "align",
    "cut",
    "divide",
    "fixed_row",
    "is_fixed",
    "join",
    "makers",
    "pin",
    "resolve",
    "scaled",
    "unify",
]

MANY = 4096
"""Segments that a row may have; a row of more is a sign that every channel has become a case of its own."""


class Misfit(Exception):
    """Two rows of segments that cannot be cut at the same places; the trace turns it into an error with a name."""


@dataclass(eq=False)
class Kin:
    """Axes that were cut from one, lie in a row that was cut, or met one that did: they have one width even where every
    layer has its own.

    Named after the first layer that makes one of them.
    """

    name: str = ""
    joined: Kin | None = None

    @property
    def root(self) -> Kin:
        """The kin that this one has become."""
        return self if self.joined is None else self.joined.root

    def join(self, other: Kin) -> None:
        """Become one with `other`."""
        mine, theirs = self.root, other.root
        if mine is not theirs:
            mine.name = mine.name or theirs.name
            theirs.joined = mine


@dataclass(eq=False)
class Axis:
    """One coupled channel count: `units` of `size` channels each in the layer that made it.

    `fixed` says why it is never sliced; `passive` that no layer makes it: the axis of a parameter beside the layers,
    sliced only where it meets one that is. `stream` marks a residual stream, `depthwise` that a depthwise convolution
    runs on it; `ratio` is that of the rounding law, `share` the part that it is of the axis it was cut from, so that
    the parts shrink in step, and `kin` those that it is in step with; `became` what it was merged with or cut into.
    """

    units: int
    size: int = 1
    makers: tuple[str, ...] = ()
    fixed: str | None = None
    passive: bool = False
    stream: bool = False
    depthwise: bool = False
    ratio: Fraction | None = None
    share: Fraction = Fraction(1)
    kin: Kin = field(default_factory=Kin, repr=False)
    became: tuple[tuple[Axis, int], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.makers and not self.kin.root.name:
            self.kin.root.name = self.makers[0]

    def regroup(self, factor: int) -> None:
        """Put `factor` units into each unit."""
        if factor > 1:
            new = replace(self, units=self.units // factor, size=self.size * factor)
            self.became = ((new, factor),)

    def cut(self, at: int) -> None:
        """Split into the first `at` units and the rest."""
        self.became = tuple(
            (replace(self, units=units, share=self.share * Fraction(units, self.units)), 1)
            for units in (at, self.units - at)
        )

    def merge(self, other: Axis) -> None:
        """Take over `other`, which has as many units."""
        made = [axis for axis in (self, other) if not axis.passive] or [self, other]
        self.size = min(axis.size for axis in made)
        self.share = max(axis.share for axis in made)
        self.passive &= other.passive
        self.makers += other.makers
        self.fixed = self.fixed or other.fixed
        self.stream |= other.stream
        self.depthwise |= other.depthwise
        self.ratio = self.ratio or other.ratio
        self.kin.join(other.kin)
        other.became = ((self, 1),)


class Segment(NamedTuple):
    """All units of `axis`, `unit` channels each in this tensor."""

    axis: Axis
    unit: int

    @property
    def full(self) -> int:
        """Channels of the network as it was."""
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
    if len(out) > MANY:
        raise Misfit(f"the channels fall into more than {MANY} parts")
    return tuple(out)


def is_fixed(row: Row) -> bool:
    """Whether no channel of the row is ever sliced, as far as is known today."""
    return all(segment.axis.fixed is not None for segment in resolve(row))


def makers(row: Row) -> tuple[str, ...]:
    """The layers whose channels these are, each once."""
    return tuple(dict.fromkeys(name for segment in resolve(row) for name in segment.axis.makers))


def pin(row: Row, why: str) -> None:
    """Never slice these channels."""
    for segment in resolve(row):
        segment.axis.fixed = segment.axis.fixed or why


def align(row: Row, quantum: int) -> Row:
    """The row with every segment's unit a multiple of `quantum`, the channels per group of a grouped convolution."""
    while True:
        row = resolve(row)
        loose = next((segment for segment in row if segment.unit % quantum), None)
        if loose is None:
            return row
        unit = lcm(loose.unit, quantum)
        if loose.full % unit:
            raise Misfit(f"groups of {quantum} channels do not fit into a part of {loose.full} channels")
        loose.axis.regroup(unit // loose.unit)


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
                if left.full % unit:
                    raise Misfit(f"{left.full} channels are in units of {left.unit} and of {right.unit} at once")
                left.axis.regroup(unit // left.unit)
                right.axis.regroup(unit // right.unit)
                if unit == left.unit == right.unit:
                    left.axis.merge(right.axis)
                break
            if left.unit != right.unit:
                raise Misfit(f"{left.full} channels are tied to themselves in another order")
        else:
            return one


def cut(row: Row, at: int) -> tuple[Row, Row]:
    """The first `at` channels of the row, and the others.

    All of them are in step from now on: a forward that finds the place by itself (`chunk`) finds it by proportion.
    """
    if 0 < at < sum(segment.full for segment in row):
        first, *others = resolve(row)
        for segment in others:
            first.axis.kin.join(segment.axis.kin)
    while True:
        row = resolve(row)
        start = 0
        for index, segment in enumerate(row):
            if start == at:
                return row[:index], row[index:]
            if start + segment.full > at:
                _cut(segment, at - start)
                break
            start += segment.full
        else:
            return row, ()


def _cut(segment: Segment, channels: int) -> None:
    if channels % segment.unit:
        raise Misfit(f"{segment.full} channels in units of {segment.unit} cannot be cut at {channels}")
    segment.axis.cut(channels // segment.unit)


def scaled(row: Row, times: int) -> Row:
    """The row where each channel has become `times` neighbours."""
    return tuple(Segment(axis, unit * times) for axis, unit in row)


def divide(row: Row, sizes: Sequence[int], computed: int | None = None) -> list[Row | None]:
    """The rows of the axes of `sizes` that this one is divided into; exactly one of them can follow the width.

    Which one is told by the structure that the row has already (whole groups, equal parts), else by `computed`, the
    axis whose size the code leaves to be computed, else it is the longest: heads, branches and shuffle groups stay and
    shrink inside.
    """
    row = resolve(row)
    if is_fixed(row):
        why = row[0].axis.fixed or ""
        return [fixed_row(size, why) if size > 1 else None for size in sizes]

    def strange(index: int) -> int:
        outer, inner = prod(sizes[:index]), prod(sizes[index + 1 :])
        return (row != row[: len(row) // outer] * outer) + any(segment.unit % inner for segment in row)

    places = [index for index, size in enumerate(sizes) if size > 1]
    chosen = min(places, key=lambda index: (strange(index), index != computed, -sizes[index]))
    length, inner = prod(sizes[chosen:]), prod(sizes[chosen + 1 :])
    part, rest = cut(row, length)
    while rest:
        other, rest = cut(rest, length)
        part = unify(part, other)
    kept: Row = tuple(Segment(axis, unit // inner) for axis, unit in align(part, inner))
    why = "it counts groups of channels, each of which shrinks inside"
    return [kept if index == chosen else fixed_row(size, why) if size > 1 else None for index, size in enumerate(sizes)]


def join(rows: Sequence[Row | None], sizes: Sequence[int]) -> Row | None:
    """The row of the axis that these axes are flattened into, the last one running fastest."""
    places = [index for index, row in enumerate(rows) if row is not None and sizes[index] > 1]
    if len(places) == 1 and len(rows) == 1:
        return rows[0]
    moving = [index for index in places if not is_fixed(rows[index] or ())]
    if len(moving) > 1:
        for index in list(moving):
            row = resolve(rows[index] or ())
            if all(segment.axis.passive for segment in row):
                pin(row, "it is flattened together with other axes")
                moving.remove(index)
    if not places:
        return None
    if not moving:
        return fixed_row(prod(sizes), resolve(rows[places[0]] or ())[0].axis.fixed or "")
    if len(moving) > 1:
        raise Misfit("two axes that both hold channels are flattened into one")
    index = moving[0]
    outer, inner = prod(sizes[:index]), prod(sizes[index + 1 :])
    return resolve(scaled(rows[index] or (), inner) * outer)
