"""Convolutions of clips as the library runs them: of one frame of what they make, frames that are read are channels.

The frames of a group's channels are copied into the scratch, band by band of rows, with zeros around them, and columns
of one phase of a stride behind those of another. There the tiles of maps read them: their slots are of a frame, a
channel and a tap, frame by frame, so that those of frames outside of the clip are left out. What they make is written
beside, whole vectors at a time, and its pixels go from there to where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from leanconv.kernels.layout import LINE, Geometry, lanes_for, odd_lines, up
from leanconv.kernels.stages import Inputs, Outputs, Plane, packed_stage
from leanconv.kernels.steps import ZERO, ClipConv, Floats, Stage
from leanconv.kernels.tiles import FLAT_ROUND, MOST_CHANNELS

__all__ = ["ClipScratch", "clip_scratch", "packed_clip"]

_BAND_FLOATS = 64 * 1024
"""What the tiles of a band read stays well within the second cache."""
_BAND_ROWS = 4
"""It is of whole tiles of so many rows."""
_BAND_PIXELS = 512
"""A band has at least so many pixels where there is room."""


@dataclass(frozen=True, slots=True)
class ClipScratch:
    """Positions within the scratch: frames of `plane`s of rows of `pitch`, a row before it is sorted, results.

    Of each phase `count` columns are there, those of `before` left of the map among them, `length` floats from phase to
    phase. `spare` is whether there is a plane of zeros behind the channels of each frame.
    """

    lanes: int
    band: int
    before: int
    count: int
    length: int
    pitch: int
    plane: int
    frame: int
    line: int
    made: int
    made_pitch: int
    made_plane: int
    spare: bool
    floats: int


def clip_scratch(step: ClipConv, size: tuple[int, int], lanes: int) -> ClipScratch:
    """The scratch for maps of a `size`, on vectors of at most `lanes` floats."""
    _, height, width = step.sides(size)
    (_, sy, sx), (_, dy, dx), (_, _, px) = step.stride, step.dilation, step.padding
    deep, high, wide = step.kernel
    vector, channels = lanes_for(width, lanes), step.weight.shape[1]
    before, last = -(-px // sx), max(0, ((wide - 1) * dx - px) // sx)
    count = before + width + last
    length = up(before + up(width, vector) + last, LINE)
    pitch = length * sx
    band, reach = min(height, up(-(-_BAND_PIXELS // width), _BAND_ROWS)), (high - 1) * dy + 1
    while band > _BAND_ROWS and deep * channels * ((band - 1) * sy + reach) * pitch > _BAND_FLOATS:
        band = up(band, _BAND_ROWS) - _BAND_ROWS
    plane = odd_lines(((band - 1) * sy + reach) * pitch)
    spare = wide != 3 and high * wide % FLAT_ROUND > 0  # of an odd number of channels, if not of all
    frame = plane * (channels + spare)
    # As if the last frame were the first of a kernel: nobody reads there, and a plan is checked without regard to that.
    line = (step.frames + (deep - 1) * step.dilation[0]) * frame + LINE
    made = up(line + max(before * sx + size[1], count * sx), LINE) + LINE
    made_pitch = up(width, vector)
    made_plane = odd_lines(band * made_pitch)
    floats = made + MOST_CHANNELS * made_plane
    return ClipScratch(
        *(vector, band, before, count, length, pitch, plane, frame, line, made, made_pitch, made_plane, spare, floats)
    )


def packed_clip(
    step: ClipConv,
    size: tuple[int, int],
    geometries: tuple[Geometry, Geometry],
    lanes: int,
    registers: int,
    scratch: int,
    reads: Sequence[int],
    writes: Callable[[int], int],
    needed: set[int],
    table: Callable[[Iterable[int]], int],
    floats: Callable[[Floats], int],
) -> list[int]:
    """The record without its kind, as in native/plan.h.

    `geometries` are of what is read and made, `reads` the places of its channels, `writes` gives that of a channel
    that is made, of which some are `needed`; `scratch` is where that is.
    """
    made, found = step.sides(size), clip_scratch(step, size, lanes)
    (_, sy, sx), (dt, dy, dx), (_, _, px) = step.stride, step.dilation, step.padding
    (deep, high, wide), channels = step.kernel, step.weight.shape[1]
    across = [tap * dx - px + found.before * sx for tap in range(wide)]
    live = [wire != ZERO for wire in step.reads]
    origins, lives = [], []
    for group in range(step.groups):
        first = group * channels
        for frame in range(deep):
            for channel in range(first, first + channels):
                origins.append(frame * dt * found.frame + sum(live[first:channel]) * found.plane)
                lives.append(live[channel])
    weight = step.weight.transpose(0, 2, 1, 3, 4).reshape(len(step.weight), deep * channels, high, wide)
    stage = Stage(weight=weight, bias=step.bias, groups=step.groups, stride=(sy, sx), dilation=(dy, dx))
    inputs = Inputs(
        together=deep * channels,
        base=0,
        in_row=0,
        rstep=sy * found.pitch,
        rows=[tap * dy * found.pitch for tap in range(high)],
        columns=[column % sx * found.length + column // sx for column in across],
        origins=origins,
        live=lives,
        zeros=channels * found.plane,
        equal=deep,
        equal_step=dt * found.frame,
    )

    def group_of(slots: Sequence[int]) -> int:
        """The record of the channels of a group: how many, and their places."""
        own = slots[: len(slots) // deep]
        begin = own[0] // (deep * channels)
        places = [reads[begin * channels + slot % (deep * channels)] for slot in own]
        return table([len(places), table(places)])

    to = Outputs({slot: [slot] for slot in range(len(step.weight)) if slot in needed}, 0, writes, 0, found.made_pitch)
    geometry = Geometry(found.made_pitch, found.made_plane, 0, found.lanes)
    record = packed_stage(
        *(stage, inputs, to, Plane(made[2], found.band, geometry, registers, ()), step.activation),
        added=None,
        sorting=group_of,
        table=table,
        floats=floats,
    )
    wanted = sum(1 << phase for phase in {column % sx for column in across})
    return [
        *(step.frames, size[0] // step.frames, size[1], geometries[0].pitch, *made, geometries[1].pitch),
        *(deep, step.stride[0], step.padding[0], dt, sy, step.padding[1], (high - 1) * dy + 1),
        *(sx, wanted, found.before, found.count, found.length, scratch, found.frame, found.plane, found.pitch),
        *(channels * found.plane if found.spare else -1, scratch + found.line, scratch + found.made),
        *(found.made_plane, found.made_pitch, found.band, *record),
    ]
