"""Windows as the library runs them: the rows of a window become one, beside which are numbers that change nothing.

That row is in the scratch; from there each column of the result takes those of its window.
"""

from __future__ import annotations

from typing import NamedTuple

from leanconv.kernels.layout import LINE, Geometry, lanes_for, up
from leanconv.kernels.steps import Window

__all__ = ["WindowLine", "fields", "line_of"]


class WindowLine(NamedTuple):
    """Where column 0 of the row is in the scratch, columns behind the map, and the floats of all."""

    at: int
    right: int
    floats: int


def line_of(step: Window, size: tuple[int, int]) -> WindowLine:
    """The row for maps of a `size`, for vectors of any length."""
    width, made = size[1], step.sides(size)[2]
    at, reach = up(step.padding[2], LINE), (step.kernel[2] - 1) * step.dilation[2] - step.padding[2]
    right = max(0, (made - 1) * step.stride[2] + reach + 1 - width)
    last = max(up(width, LINE), width + right, up(made, LINE) * step.stride[2] + max(reach, 0))
    return WindowLine(at, right, at + up(last, LINE))


def fields(
    step: Window,
    size: tuple[int, int],
    geometries: tuple[Geometry, Geometry],
    lanes: int,
    scratch: int,
    tables: tuple[int, int, int],
    factors: tuple[int, int],
) -> list[int]:
    """The record without its kind, as in native/plan.h.

    `geometries` are of what is read and made, `tables` how many channels and where their places are, `factors` where
    those of columns, and of frames and rows, are among the weights, `scratch` where that is.
    """
    line = line_of(step, size)
    return [
        *(lanes_for(size[1], lanes), *tables, step.frames, size[0] // step.frames, size[1], geometries[0].pitch),
        *(*step.sides(size), geometries[1].pitch, *step.kernel, *step.stride, *step.padding, *step.dilation),
        *(step.largest, *factors, scratch + line.at, line.right),
    ]
