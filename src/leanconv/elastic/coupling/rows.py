"""Which channels of a tensor are kept at a width: rows of segments, found once while coupling is looked for.

A tensor's channel axis is a row of *segments*: one after a convolution, several after a concatenation. Each segment
counts the *units* of an *axis*, and every tensor that must agree with another shares its axis: both sides of a residual
add, the input and output of a grouped convolution (whole groups are dropped, so a unit is a group), a gate and what it
gates. The kept part of a segment is its first units, so that of a concatenation is a gather. An axis may appear in a
row several times: heads of an attention, groups behind a channel shuffle, all keep the first channels of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from math import lcm, prod
from typing import NamedTuple

MANY = 4096
"""Segments that a row may have; a row of more is a sign that every channel has become a case of its own."""


class CannotFollow(Exception):
    """Channels that cannot follow the width; the message is the reason, the caller adds the module."""


@dataclass(eq=False)
class WidthGroup:
    """Axes of one width even where every layer has its own, named after the first layer that makes one of them."""

    name: str = ""
    joined: WidthGroup | None = None

    @property
    def root(self) -> WidthGroup:
        """The group that this one has become."""
        return self if self.joined is None else self.joined.root

    def join(self, other: WidthGroup) -> None:
        """Become one with `other`."""
        mine, theirs = self.root, other.root
        if mine is not theirs:
            mine.name = mine.name or theirs.name
            theirs.joined = mine


@dataclass(eq=False)
class Axis:
    """One coupled channel count: `units` of `size` channels each in the layer that made it.

    `fixed` says why it is never sliced; `passive` that no layer makes it: the axis of a parameter of another module,
    sliced only where it meets one that is. `stream` marks a residual stream, `depthwise` that a depthwise convolution
    runs on it; `ratio` is that of the rounding law, `share` the part that it is of the axis it was cut from, so that
    the parts shrink in step; `became` what it was merged with or cut into.
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
    group: WidthGroup = field(default_factory=WidthGroup, repr=False)
    became: tuple[tuple[Axis, int], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.group.root.name = self.group.root.name or "".join(self.makers[:1])

    def regroup(self, factor: int) -> None:
        """Put `factor` units into each unit."""
        if factor > 1:
            self.became = ((replace(self, units=self.units // factor, size=self.size * factor), factor),)

    def cut(self, at: int) -> None:
        """Split into the first `at` units and the rest."""
        shares = ((units, self.share * Fraction(units, self.units)) for units in (at, self.units - at))
        self.became = tuple((replace(self, units=units, share=share), 1) for units, share in shares)

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
        self.group.join(other.group)
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

Dims = tuple[Row | None, ...]
"""For each axis of a tensor the row of channels that lies there, or None."""


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
        raise CannotFollow(f"the channels fall into more than {MANY} parts")
    return tuple(out)


def is_sliceable(row: Row | None) -> bool:
    """Whether some channels of the row may be sliced, as far as is known today."""
    return row is not None and any(segment.axis.fixed is None for segment in resolve(row))


def makers(row: Row, *, sliceable: bool = False) -> list[str]:
    """The layers whose channels these are, each once; on request only of those that may be sliced."""
    segments = (one for one in resolve(row) if one.axis.fixed is None or not sliceable)
    return list(dict.fromkeys(name for one in segments for name in one.axis.makers))


def fix(row: Row, why: str) -> None:
    """Never slice these channels."""
    for segment in resolve(row):
        segment.axis.fixed = segment.axis.fixed or why


def fix_passive(row: Row, why: str) -> bool:
    """`fix` channels that no layer makes, those of a parameter; False where a layer makes some."""
    passive = all(segment.axis.passive or segment.axis.fixed is not None for segment in resolve(row))
    if passive:
        fix(row, why)
    return passive


def require_fixed(row: Row | None, why: str) -> None:
    """Raise `CannotFollow` where an operation needs these channels to stay and a layer makes them."""
    if row is not None and not fix_passive(row, why):
        raise CannotFollow(why)


def of_length(row: Row | None, length: int) -> Row | None:
    """A row that is fixed at another length; one that may be sliced as it is."""
    return row if row is None or is_sliceable(row) else fixed_row(length, resolve(row)[0].axis.fixed or "")


def align(row: Row, quantum: int) -> Row:
    """The row with every segment's unit a multiple of `quantum`, the channels per group of a grouped convolution."""
    while True:
        row = resolve(row)
        odd = next((segment for segment in row if segment.unit % quantum), None)
        if odd is None:
            return row
        unit = lcm(odd.unit, quantum)
        if odd.full % unit:
            raise CannotFollow(f"groups of {quantum} channels do not fit into a part of {odd.full} channels")
        odd.axis.regroup(unit // odd.unit)


def unify(one: Row, other: Row) -> Row:
    """Make two rows of the same length one: cut at the same places, merge the axes, whoever holds them."""
    while True:
        one, other = resolve(one), resolve(other)
        pairs = zip(one, other, strict=False)
        differing = next(((a, b) for a, b in pairs if a.full != b.full or a.axis is not b.axis), None)
        if differing is None:
            return one
        left, right = differing
        if left.full != right.full:
            _cut(*((left, right.full) if left.full > right.full else (right, left.full)))
            continue
        unit = lcm(left.unit, right.unit)
        if left.full % unit:
            raise CannotFollow(f"{left.full} channels are in units of {left.unit} and of {right.unit} at once")
        left.axis.regroup(unit // left.unit)
        right.axis.regroup(unit // right.unit)
        if unit == left.unit == right.unit:
            left.axis.merge(right.axis)


def cut(row: Row, at: int) -> tuple[Row, Row]:
    """The first `at` channels of the row, and the others.

    All of them are in step from now on: a forward that finds the place by itself (`chunk`) finds it by proportion.
    """
    row = resolve(row)
    full = sum(segment.full for segment in row)
    if 0 < at < full and not is_sliceable(row):
        why = row[0].axis.fixed or ""
        return fixed_row(at, why), fixed_row(full - at, why)
    for segment in row[1:] if 0 < at < full else ():
        row[0].axis.group.join(segment.axis.group)
    start = index = 0
    while start < at and index < len(row):
        if start + row[index].full > at:
            _cut(row[index], at - start)
            row = resolve(row)
        start, index = start + row[index].full, index + 1
    return row[:index], row[index:]


def _cut(segment: Segment, channels: int) -> None:
    if channels % segment.unit:
        raise CannotFollow(f"{segment.full} channels in units of {segment.unit} cannot be cut at {channels}")
    segment.axis.cut(channels // segment.unit)


def scaled(row: Row, times: int) -> Row:
    """The row where each channel has become `times` neighbours."""
    return tuple(Segment(axis, unit * times) for axis, unit in row)


def shrunk(row: Row, times: int) -> Row:
    """The row where `times` neighbours have become one channel."""
    return tuple(Segment(axis, unit // times) for axis, unit in align(row, times))


def reshaped(name: str, dims: Dims, old: Sequence[int], new: Sequence[int], computed: int | None = None) -> Dims:
    """The dims of a tensor of sizes `old` read as sizes `new`: axes are divided into atoms and atoms joined.

    `computed` is the new axis whose size the code leaves to be computed.
    """
    if 0 in old:
        return (None,) * len(new)
    # The coarsest sizes of which both shapes are made by joining neighbours, without ones.
    steps = sorted({prod(shape[i:]) for shape in (old, new) for i in range(len(shape) + 1)})
    if any(big % small for small, big in pairwise(steps)):
        raise CannotFollow(f"{name} from {list(old)} to {list(new)} divides or mixes the channels")
    atoms = [big // small for small, big in pairwise(steps)][::-1]
    dealt = _dealt(new, atoms)
    alone = computed is not None and len(dealt[computed]) == 1
    mark = sum(map(len, dealt[:computed])) if alone else -1  # the number of the atom that is computed
    parts: list[Row | None] = []
    for row, sizes in zip(dims, _dealt(old, atoms), strict=True):
        parts += [row] * len(sizes) if row is None or len(sizes) < 2 else divide(row, sizes, mark - len(parts))
    out: list[Row | None] = []
    for sizes in dealt:
        out.append(_join(parts[: len(sizes)], sizes))
        parts = parts[len(sizes) :]
    return tuple(out)


def _dealt(shape: Sequence[int], atoms: Sequence[int]) -> list[list[int]]:
    """Which of the atoms make each axis."""
    left = list(atoms)
    out: list[list[int]] = []
    for size in shape:
        out.append([])
        while prod(out[-1]) < size:
            out[-1].append(left.pop(0))
    return out


def divide(row: Row, sizes: Sequence[int], computed: int) -> list[Row | None]:
    """The rows of the axes of `sizes` that this one is divided into; exactly one of them can follow the width.

    Which one is decided by the structure that the row has already (whole groups, equal parts), else by `computed`, the
    axis whose size the code leaves to be computed, else it is the longest: heads, branches and shuffle groups stay and
    shrink inside.
    """
    row = resolve(row)
    places = [index for index, size in enumerate(sizes) if size > 1]
    if not is_sliceable(row):
        return [of_length(row, size) if index in places else None for index, size in enumerate(sizes)]

    def odd(index: int) -> int:
        outer, inner = prod(sizes[:index]), prod(sizes[index + 1 :])
        return (row != row[: len(row) // outer] * outer) + any(segment.unit % inner for segment in row)

    chosen = min(places, key=lambda index: (odd(index), index != computed, -sizes[index]))
    part, rest = cut(row, prod(sizes[chosen:]))
    while rest:
        other, rest = cut(rest, prod(sizes[chosen:]))
        part = unify(part, other)
    why = "it counts groups of channels, each of which shrinks inside"
    out = [fixed_row(size, why) if index in places else None for index, size in enumerate(sizes)]
    out[chosen] = shrunk(part, prod(sizes[chosen + 1 :]))
    return out


def _join(rows: Sequence[Row | None], sizes: Sequence[int]) -> Row | None:
    """The row of the axis that these axes are flattened into, the last one running fastest."""
    places = {index: row for index, row in enumerate(rows) if row is not None and sizes[index] > 1}
    if len(rows) == 1 or not places:
        return places.get(0)
    moving = [index for index, row in places.items() if is_sliceable(row)]
    if len(moving) > 1:
        moving = [i for i in moving if not fix_passive(places[i], "it is flattened together with other axes")]
    if len(moving) > 1:
        raise CannotFollow("two axes that both hold channels are flattened into one")
    if not moving:
        return of_length(next(iter(places.values())), prod(sizes))
    (index,) = moving
    return resolve(scaled(places[index], prod(sizes[index + 1 :])) * prod(sizes[:index]))
