"""How the pixels that a strided convolution reads are sorted by phase, so that neighbouring outputs read neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from leanconv.kernels.layout import LINE, Geometry, odd_lines, up
from leanconv.kernels.program import Stage
from leanconv.kernels.tiles import parts

__all__ = ["Rows", "Sorted", "ends_of", "sorted_columns", "sorted_flat"]

_MASKED_TILES = 2
"""Groups of so many tiles of outputs read flat rows with masks, groups of more from copies."""


class Rows(NamedTuple):
    """Rows of a channel that are sorted: for a band of n output rows, `times` n + `more` of them.

    The first is `start` floats behind the one from which the band starts, the others each `step` further; they go to
    `to`, each `pitch` further. Of flat maps columns before `first` and from `last` on are zeros.
    """

    start: int
    step: int
    to: int
    pitch: int
    times: int
    more: int
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class Sorted:
    """A channel of a band, sorted: its floats, what goes where, and where the taps find it.

    Columns are sorted into those from `before` before the first to `count` of each phase, `length` floats from phase to
    phase; the bits of `wanted` say which phases. Of flat maps the parts say it all.
    """

    plane: int
    wanted: int
    length: int
    before: int
    count: int
    parts: tuple[Rows, ...]
    rstep: int
    rows: list[int]
    columns: list[int]


def sorted_columns(stage: Stage, band: int, made: int, pitch: int, out: Geometry) -> Sorted:
    """Rows as they are, in each the columns of one phase behind those of another, the padding with them.

    `made` columns are written; `pitch` is that of what is read.
    """
    (sy, sx), (dy, dx), (py, px) = stage.stride, stage.dilation, stage.padding
    across = [tap * dx - px for tap in range(stage.kernel[1])]
    before = max(0, -(across[0] // sx))
    count = made + max(0, across[-1] // sx)
    length = up(before, LINE) + up(count, out.lanes)
    row = length * sx
    alone = stage.kernel[0] == 1  # then the rows between are not read
    span = (stage.kernel[0] - 1) * dy + 1
    times, more = (1, 0) if alone else (sy, span - sy)
    start = up(before, LINE)
    part = Rows(-py * pitch, (sy if alone else 1) * pitch, start, row, times, more)
    return Sorted(
        plane=odd_lines(start + (band * times + more) * row),
        wanted=_bits({tap % sx for tap in across}),
        length=length,
        before=before,
        count=count,
        parts=(part,),
        rstep=row * (1 if alone else sy),
        rows=[start + tap * dy * row for tap in range(stage.kernel[0])],
        columns=[tap % sx * length + tap // sx for tap in across],
    )


def sorted_flat(stage: Stage, band: int, made: int, width: int, pitch: int, out: Geometry) -> Sorted:
    """A map for each phase of rows and each column of the kernel, flat as what is written, with zeros beside the map.

    Then there is neither a stride any more nor a tap that would read the end of another row. Of `width` columns that
    are read `made` are written; `pitch` is that of what is read.
    """
    (sy, sx), (dy, dx), (py, px) = stage.stride, stage.dilation, stage.padding
    down = [tap * dy - py for tap in range(stage.kernel[0])]
    across = [tap * dx - px for tap in range(stage.kernel[1])]
    phases = sorted({tap % sy for tap in down})
    shifts = {phase: sorted(tap // sy for tap in down if tap % sy == phase) for phase in phases}
    reach = {phase: found[-1] - found[0] for phase, found in shifts.items()}
    one = odd_lines((band + max(reach.values())) * out.pitch + out.lanes)  # a vector may be stored over the end
    parts, columns = [], []
    for index, tap in enumerate(across):
        met = [column for column in range(made) if 0 <= column * sx + tap < width]
        ends = (met[0], met[-1] + 1) if met else (0, 0)
        columns.append(index * len(phases) * one)
        for row, phase in enumerate(phases):
            start = (shifts[phase][0] * sy + phase) * pitch + tap
            parts.append(Rows(start, sy * pitch, columns[-1] + row * one, out.pitch, 1, reach[phase], *ends))
    rows = [phases.index(tap % sy) * one + (tap // sy - shifts[tap % sy][0]) * out.pitch for tap in down]
    plane = len(across) * len(phases) * one
    return Sorted(plane, 0, 0, 0, 0, tuple(parts), out.pitch, rows, columns)


def gathered(band: int, out: Geometry) -> Sorted:
    """The pixels of a band as they are, those of one channel close behind those of another."""
    plane = odd_lines(up(band, out.lanes))
    return Sorted(plane, 0, 0, 0, 0, (Rows(0, 1, 0, 1, 1, 0, 0, 1),), 1, [0], [0])


def ends_of(stage: Stage, width: int, made: int, geometry: Geometry) -> tuple[int, ...] | None:
    """Which lanes the first and the last of three taps take, where rows of `made` pixels are flat; `width` are read.

    Nothing where every tap takes all lanes that count; None where sorted copies serve better, or alone.
    """
    if stage.stride != (1, 1):
        return None
    shifts = [tap * stage.dilation[1] - stage.padding[1] for tap in range(stage.kernel[1])]
    met = [[0 <= column + shift < width for column in range(geometry.pitch)] for shift in shifts]
    whole = [all(found[:made]) for found in met]
    if all(whole):
        return ()
    # Where many tiles read the same channels, one copy for all of them costs less than the masks of each.
    tiles = len(parts(len(stage.weight) // stage.groups))
    if len(met) != 3 or not whole[1] or tiles > _MASKED_TILES:
        return None
    bits = [sum(1 << lane for lane in range(geometry.lanes) if found[lane % geometry.pitch]) for found in met]
    return bits[0], bits[2]


def _bits(numbers: set[int]) -> int:
    return sum(1 << number for number in numbers)
