"""Filters over time as the library runs them: where a channel is copied with zeros around its frames, and what is made.

A channel is copied frame by frame, just before the first tiles that read it, so that the frames of a filter are in the
first caches; a frame of the result is written beside the copy, whole vectors at a time, and its pixels from there to
where they belong. Rows of tiles then may be of any width.
"""

from __future__ import annotations

from dataclasses import dataclass

from leanconv.kernels.layout import LINE, Geometry, lanes_for, up
from leanconv.kernels.program import Volume

__all__ = ["VolumeScratch", "fields", "scratch_of"]


@dataclass(frozen=True, slots=True)
class VolumeScratch:
    """Floats of the scratch: `pitch` from row to row of the copy, whose first row begins behind `left` zeros.

    Zeros behind a row are those before the next. `made` is where a frame of the result begins, `made_pitch` from row to
    row of it.
    """

    left: int
    pitch: int
    made: int
    made_pitch: int
    floats: int


def scratch_of(step: Volume, size: tuple[int, int], made: tuple[int, int, int], lanes: int) -> VolumeScratch:
    """The scratch for maps of a `size`; `made` are the frames, height and width of the result."""
    if step.weight is None:
        return VolumeScratch(0, 0, 0, 0, 0)
    wide, width = lanes_for(made[2], lanes), size[1]
    columns = (made[2] - 1) * step.stride[2] + 1  # a stride takes its columns from all of them
    # Pixels stand where cache lines begin: a vector stored over the end of one costs twice as much.
    left = up(step.padding[2], LINE)
    pitch = up(max(width + step.padding[2], columns + 2 * step.dilation[2] - step.padding[2]), wide)
    high, rows = size[0] // step.frames + 2 * step.padding[1], up(columns, wide)
    # The last vector of a row may reach into what follows, the last of all behind the copy: two lines are enough.
    at = up(left + step.frames * high * pitch + 2 * LINE, LINE)
    return VolumeScratch(left, pitch, at, rows, at + made[1] * rows)


def fields(
    step: Volume,
    size: tuple[int, int],
    geometries: tuple[Geometry, Geometry],
    lanes: int,
    scratch: int,
    tables: tuple[int, int, int],
    weights: tuple[int, int, int],
    registers: int,
    curve: int,
) -> list[int]:
    """The record without its kind, as in native/plan.h.

    `geometries` are of what is read and made, `tables` how many channels and where their places are, `weights` where
    those, biases and bounds are, `scratch` where that is.
    """
    made = step.sides(size)
    found, wide = scratch_of(step, size, made, lanes), lanes_for(made[2], lanes)
    taps = 0 if step.weight is None else 3
    return [
        *(wide, *tables, step.frames, size[0] // step.frames, size[1], geometries[0].pitch),
        *(*made, geometries[1].pitch, step.kernel[0], step.kernel[1], taps),
        *(*step.stride, *step.padding, *step.dilation, *weights, curve),
        *(scratch, found.pitch, found.left, scratch + found.made, found.made_pitch),
        8 if registers == 32 and wide == lanes else 4,
    ]
