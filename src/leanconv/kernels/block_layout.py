"""Where the maps of a program of dense convolutions lie in memory, in blocks of sixteen channels.

    [block][row][column][16]

Zeros right of a row are those left of the next, zeros below a block those above the next; no step ever writes to them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from leanconv.kernels.layout import LINE, also_read, beside, size_of, up, written_over
from leanconv.kernels.merge import Halves
from leanconv.kernels.program import ZERO, Conv, Pool, Product, Program, Repeat, Window, Wire

__all__ = ["BLOCK", "BlockStep", "Map", "as_they_came", "placed", "whole"]

BLOCK = 16
"""Channels of a block, whatever the vectors: as in native/kernels.h."""

BlockStep = Conv | Pool | Product | Repeat | Window
"""The steps of a program that is laid out in blocks."""


class _Geometry(NamedTuple):
    """Of maps of one size, in pixels: from row to row, from block to block, and what is before the first."""

    row: int
    plane: int
    lead: int


class Map(NamedTuple):
    """Where a buffer lies: floats to its first pixel, of a pixel, from row to row, from block (or channel) to block."""

    origin: int
    pixel: int
    row: int
    plane: int

    def channel(self, number: int) -> int:
        """Where a channel starts."""
        if self.pixel == 1:
            return self.origin + number * self.plane
        return self.origin + number // BLOCK * self.plane + number % BLOCK


def whole(wires: Sequence[Wire]) -> list[Wire] | None:
    """The first channel of each block that the wires are; None where they are no blocks."""
    found = []
    for at in range(0, len(wires), BLOCK):
        part = wires[at : at + BLOCK]
        first = part[0]
        if first == ZERO or first.channel % BLOCK:
            return None
        if any(wire != (first.buffer, first.channel + index) for index, wire in enumerate(part)):
            return None
        found.append(first)
    return found


def placed(
    program: Program, halves: Halves, steps: Sequence[BlockStep], start: int, tiled: Iterable[int]
) -> tuple[dict[int, Map], int]:
    """Give each buffer a place from `start` on, that of another of its size which is not needed any more.

    What writes the buffers in `tiled` reads the pixels of whole tiles of 2 x 2 outputs. Returns the places, and where
    the last one ends.
    """
    geometries, apart = _geometries(program, set(tiled)), as_they_came(program, halves, steps)
    maps: dict[int, Map] = {}
    last = {wire.buffer: index for index, step in enumerate(steps) for wire in _read(step, halves)}
    last |= {wire.buffer: len(steps) for wires in program.outputs for wire in wires}
    free: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # blocks, origin
    end, blocks = start, dict[int, int]()

    def take(number: int, over: int | None = None) -> None:
        nonlocal end
        channels, *_ = size = program.buffers[number]
        geometry = geometries[size[1:]]
        pixel = 1 if number in apart else BLOCK
        blocks[number] = channels if pixel == 1 else -(-channels // BLOCK)
        row, plane, lead = (pixel * one for one in geometry)
        fitting = sorted(one for one in free[size[1:]] if one[0] >= blocks[number]) if pixel > 1 else []
        if over is not None:
            origin, blocks[number] = maps[over].origin, blocks[over]
        elif fitting:
            free[size[1:]].remove(fitting[0])
            blocks[number], origin = fitting[0]
        else:
            origin = end + up(lead, LINE)
            end = up(origin + blocks[number] * plane + lead, LINE)
        maps[number] = Map(origin, pixel, row, plane)

    for number in program.inputs:
        take(number)
    for index, step in enumerate(steps):
        ending = {wire.buffer for wire in _read(step, halves) if last[wire.buffer] == index}
        over = written_over(program, step)
        if over is not None and over in ending:  # the sum is written over what was added, pixel by pixel
            ending.remove(over)
            take(step.writes, over)
        else:
            take(step.writes)
        if step.writes not in last:
            ending.add(step.writes)
        for number in ending - apart:
            free[program.buffers[number][1:]].append((blocks[number], maps[number].origin))
    return maps, end


def _geometries(program: Program, tiled: set[int]) -> Mapping[tuple[int, int], _Geometry]:
    """With the zeros that convolutions read beside the maps: those right of a row are those left of the next."""
    sides = beside(program)
    for step in program.steps:
        if isinstance(step, Conv) and step.writes in tiled:  # the last tile may reach a row and a column further
            size = size_of(program, step.reads)
            for axis, side in enumerate(program.buffers[step.writes][1:]):
                sides[size][axis] = max(sides[size][axis], step.first.padding[axis] + side % 2)
    found = {}
    for (height, width), (rows, columns) in sides.items():
        row = width + columns
        plane = (height + rows) * row
        plane += plane % 64 == 0  # or blocks would share a few sets of the cache
        found[height, width] = _Geometry(row, plane, rows * row + columns)
    return found


def as_they_came(program: Program, halves: Halves, steps: Sequence[BlockStep]) -> set[int]:
    """The inputs whose channels stay apart."""
    found = {number for number in program.inputs if program.buffers[number].channels < BLOCK}
    for wires in program.outputs:
        found -= {wire.buffer for wire in wires}
    for step in steps:
        read = {wire.buffer for wire in step.reads if wire != ZERO}
        if not (isinstance(step, Conv) and step.stages and step.first.groups == 1 and len(read) == 1):
            found -= read
        found -= {wire.buffer for wire in (*also_read(step), *halves.get(step.writes, ()))}
    return found


def _read(step: BlockStep, halves: Halves) -> list[Wire]:
    wires = (*step.reads, *also_read(step), *halves.get(step.writes, ()))
    return [wire for wire in wires if wire != ZERO]
