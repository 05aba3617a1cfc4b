"""Where the maps of a program lie in memory: pitches, padding, and which buffers share a place.

The memory (an *arena*) begins with a line that says whose it is, then a channel of zeros, then scratch, then the maps.
Rows of a map stand `pitch` floats apart and channels `plane`; the zeros right of a row are those left of the next, the
zeros below a channel those above the next. No step ever writes to them.

*Flat* maps, those narrower than a vector, have no padding right of their rows: a row takes 1, 2, 4 or 8 floats,
whatever its width, so that a vector holds whole rows, a band is one long run of pixels, and no lane is idle.
Convolutions that look left and right of a pixel read shifted copies (`sort.py`), in which the pixels beside a row are
zeros; what stands behind the width of a row is anything. *Tight* maps are flat maps of any width, whose rows take no
more than that: those of clips between filters over time, which make copies of their own, and convolutions that read
pixels one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from leanconv.kernels.program import (
    ZERO,
    Buffer,
    ClipConv,
    Conv,
    Product,
    Program,
    Repeat,
    Spread,
    Step,
    Sums,
    Volume,
    Wire,
)

__all__ = [
    "LINE",
    "Geometry",
    "Places",
    "also_read",
    "beside",
    "flat_pitch",
    "geometries",
    "lanes_for",
    "needed",
    "odd_lines",
    "places",
    "size_of",
    "up",
    "written_over",
]

LINE = 16
"""Floats of a cache line."""

_SLACK = 16 * LINE
"""Floats behind the last map: the last vector that is loaded may reach over its end."""


def up(number: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-number // step) * step


def odd_lines(floats: int) -> int:
    """Room for so many floats that is an odd number of cache lines, or channels would share their sets of the cache."""
    return (-(-floats // LINE) | 1) * LINE


def lanes_for(width: int, lanes: int) -> int:
    """Floats of a vector for rows of a width, of at most `lanes`: half of a vector of sixteen would be idle on 8."""
    return 8 if lanes == 16 and width <= 8 else lanes


@dataclass(frozen=True, slots=True)
class Geometry:
    """How maps of one height and width lie: floats between rows, between channels, and before the first row.

    `lanes` are those of the vectors that such maps are written with, `flat` whether rows stand close, `tight` whether
    they take no more than their width.
    """

    pitch: int
    plane: int
    lead: int
    lanes: int
    flat: bool = False
    tight: bool = False

    @property
    def row(self) -> int:
        """Floats of what steps count as a row: a pixel of tight maps, whose rows do not matter to anybody."""
        return 1 if self.tight else self.pitch


Size = tuple[int, int]


def beside(program: Program) -> dict[Size, list[int]]:
    """Rows and columns of zeros that what reads maps of a size needs beside them."""
    sides: dict[Size, list[int]] = {(buffer.height, buffer.width): [0, 0] for buffer in program.buffers}
    for step in program.steps:
        if isinstance(step, Conv):
            stage, out = step.first, program.buffers[step.writes]
            size = size_of(program, step.reads)
            for axis, made in enumerate((out.height, out.width)):
                reach = (made - 1) * stage.stride[axis] + (stage.kernel[axis] - 1) * stage.dilation[axis]
                after = reach - stage.padding[axis] - (size[axis] - 1)
                sides[size][axis] = max(sides[size][axis], stage.padding[axis], after)
        elif isinstance(step, Sums):
            size = size_of(program, step.reads)
            for axis in range(2):
                reach = step.dilation[axis] * (step.kernel[axis] - 1)
                sides[size][axis] = max(sides[size][axis], step.padding[axis], reach - step.padding[axis])
    return sides


def geometries(program: Program, lanes: int) -> dict[Size, Geometry]:
    """The geometry of every size of map, with the padding that its readers need.

    >>> from leanconv.kernels.program import Buffer, Program, Wire
    >>> geometries(Program(buffers=(Buffer(1, 4, 5),), steps=(), inputs=(0,), outputs=((Wire(0, 0),),)), 8)
    {(4, 5): Geometry(pitch=8, plane=32, lead=0, lanes=8, flat=False, tight=False)}
    """
    sides = beside(program)
    tight = _tight(program)
    flat = _flat(program, lanes) | {size: size[1] for size in tight}
    found = {}
    for (height, width), (rows, columns) in sides.items():
        if (height, width) in flat:
            pitch = flat[height, width]
            wide = lanes_for(height * pitch, lanes)
            # The last vector may reach over the last row; an odd number of lines, or channels would share their sets.
            plane = odd_lines(up(height * pitch, wide) + rows * pitch)
            found[height, width] = Geometry(
                pitch, plane, up(rows * pitch + columns, LINE), wide, True, (height, width) in tight
            )
            continue
        wide = lanes_for(width, lanes)
        pitch = up(width + columns, wide)
        plane = (height + rows) * pitch
        if plane % 1024 == 0:  # channels a multiple of 4096 bytes apart would share a few sets of the cache
            plane += LINE
        found[height, width] = Geometry(pitch, plane, up(rows * pitch + columns, LINE), wide)
    return found


def flat_pitch(width: int, lanes: int) -> int | None:
    """Floats from row to row of flat maps of a width; None for maps as wide as a vector.

    >>> [flat_pitch(width, 16) for width in (1, 3, 7, 8, 9)]
    [1, 4, 8, 8, None]
    """
    pitch = 1 << (width - 1).bit_length()
    return pitch if pitch < lanes else None


def _flat(program: Program, lanes: int) -> dict[Size, int]:
    """The sizes whose maps are flat, and floats from row to row: a step that reads flat maps writes flat maps."""
    found: dict[Size, int] = {}
    for buffer in program.buffers:
        pitch = flat_pitch(buffer.width, lanes)
        if pitch is not None:
            found[buffer.height, buffer.width] = pitch
    while True:
        unfit = {
            size_of(program, step.reads)
            for step in program.steps
            if isinstance(step, Conv) and program.buffers[step.writes][1:] not in found
        } & set(found)
        if not unfit:
            return found
        for size in unfit:
            del found[size]


def _tight(program: Program) -> set[Size]:
    """The sizes of maps that filters over time read or write, and others only pixel by pixel."""
    found: set[Size] = set()
    for step in program.steps:
        if isinstance(step, (ClipConv, Volume)):
            found |= {size_of(program, step.reads), program.buffers[step.writes][1:]}
    for step in program.steps:
        if isinstance(step, Conv) and not step.first.pointwise:
            found -= {size_of(program, step.reads), program.buffers[step.writes][1:]}
        elif isinstance(step, (Sums, Spread)):
            found.discard(size_of(program, step.reads))
    return found


def size_of(program: Program, wires: tuple[Wire, ...]) -> Size:
    """Height and width of what is read."""
    buffer: Buffer = next(program.buffers[wire.buffer] for wire in wires if wire != ZERO)
    return buffer.height, buffer.width


@dataclass(frozen=True, slots=True)
class Places:
    """Positions in the arena: of row 0, column 0 of channel 0 of each buffer, and of a channel of zeros; its size.

    What is before `own` is zeros and scratch, of which every thread needs its own.
    """

    origins: dict[int, int]
    zeros: int
    scratch: int
    own: int
    floats: int


def places(program: Program, found: dict[Size, Geometry], zeros: int, scratch: int) -> Places:
    """Give every buffer that is used a place, the same one as another's where that is not needed any more.

    Only maps of one size share, so that their padding is at the same positions. `zeros` and `scratch` are floats that
    the longest channel of zeros and the scratch of the steps need.
    """
    lead = max(geometry.lead for geometry in found.values())
    at_zeros = LINE + lead
    at_scratch = up(at_zeros + zeros + _SLACK, LINE)
    end = own = up(at_scratch + scratch + _SLACK, LINE)
    origins: dict[int, int] = {}
    free: dict[Size, list[tuple[int, int]]] = defaultdict(list)  # channels, origin
    room: dict[int, int] = {}
    last = dict(_last_use(program))

    def take(number: int) -> None:
        nonlocal end
        channels, *size = program.buffers[number]
        geometry = found[tuple(size)]  # type: ignore[index]
        fitting = sorted(one for one in free[tuple(size)] if one[0] >= channels)  # type: ignore[index]
        if fitting:
            free[tuple(size)].remove(fitting[0])  # type: ignore[index]
            room[number], origins[number] = fitting[0]
        else:
            room[number], origins[number] = channels, end + geometry.lead
            end = up(origins[number] + channels * geometry.plane + LINE, LINE)

    def give(number: int) -> None:
        buffer = program.buffers[number]
        free[buffer.height, buffer.width].append((room[number], origins[number]))

    for number in program.inputs:
        take(number)
    for index, step in enumerate(program.steps):
        over = written_over(program, step)
        ending = {number for number in _used(step) if last[number] == index}
        if isinstance(step, Sums):
            for number in ending:
                give(number)
            continue
        if over is not None and over in ending:
            # The sum is written over what was added, pixel by pixel: one map less in the cache.
            room[step.writes], origins[step.writes] = room[over], origins[over]
            ending.remove(over)
        else:
            take(step.writes)
        for number in ending:
            give(number)
        if step.writes not in last:
            give(step.writes)
    return Places(origins, at_zeros, at_scratch, own, up(end + _SLACK, LINE))


def _used(step: Step) -> set[int]:
    wires = (*step.reads, *also_read(step))
    return {wire.buffer for wire in wires if wire != ZERO}


def also_read(step: Step) -> tuple[Wire, ...]:
    """What a step reads beside `reads`."""
    if isinstance(step, (Conv, Repeat)):
        return step.residual or ()
    if isinstance(step, Product):
        return (*step.by, *(step.residual or ()))
    return step.gradient if isinstance(step, Sums) else ()


def _last_use(program: Program) -> Iterator[tuple[int, int]]:
    """The step after which a buffer is not needed; outputs are needed to the end."""
    for index, step in enumerate(program.steps):
        for number in _used(step):
            yield number, index
    for wires in program.outputs:
        for wire in wires:
            if wire != ZERO:
                yield wire.buffer, len(program.steps)


def written_over(program: Program, step: Step) -> int | None:
    """The buffer that a step adds, if it could be written over: channel for channel, and read for nothing else."""
    if not isinstance(step, Conv) or step.residual is None:
        return None
    number = step.residual[0].buffer
    whole = tuple(Wire(number, channel) for channel in range(program.buffers[step.writes].channels))
    reads = {wire.buffer for wire in step.reads}
    return number if step.residual == whole and number not in reads else None


def needed(program: Program) -> dict[int, set[int]]:
    """The channels of each buffer that somebody reads."""
    found: dict[int, set[int]] = {number: set() for number in range(-1, len(program.buffers))}
    wires = [wire for output in program.outputs for wire in output]
    for step in program.steps:
        wires += [*step.reads, *also_read(step)]
    for wire in wires:
        found[wire.buffer].add(wire.channel)
    return found
