"""Sums of products as the library computes them: which register tile sums which weights, and where each sum is.

A tile has `taps` columns of one kernel row, some inputs and some outputs of one group, and keeps a vector for each of
its weights. What limits it are multiply-adds (two a cycle), loads (two a cycle, and an unaligned one counts for more)
and that a sum waits four cycles for the one before: of the sizes that fit the registers the cheapest is taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanconv.kernels.layout import Geometry, up
from leanconv.kernels.program import Sums
from leanconv.kernels.tiles import MOST_CHANNELS

__all__ = ["PackedSums", "pack_sums", "sum_tile"]

_BAND_FLOATS = 2048
"""A band of a map has at least so many floats: the maps of a tile stay in the first cache, and sums are kept long."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedSums:
    """Records without their kind; the number of each sum, weight, then bias (-1: always zero); the next number."""

    records: list[list[int]]
    numbers: NDArray[np.int64]
    sums: int


@functools.cache
def sum_tile(inputs: int, outputs: int, taps: int, registers: int) -> tuple[int, int]:
    """How many inputs and outputs of a group share a tile.

    >>> sum_tile(20, 20, 1, 32), sum_tile(3, 3, 3, 32), sum_tile(4, 4, 3, 16)
    ((5, 5), (3, 3), (2, 2))
    """
    found = []
    for i in range(1, min(inputs, MOST_CHANNELS) + 1):
        for o in range(1, min(outputs, MOST_CHANNELS) + 1):
            if taps * i * o + o + 1 <= registers:
                tiles = -(-inputs // i) * -(-outputs // o)
                products, loads = taps * i * o / 2, (taps * i * (1.5 if taps > 1 else 1) + o) / 2
                found.append((tiles * (max(products, loads, 4) + 1), i, o))
    _, i, o = min(found)
    return i, o


def pack_sums(
    step: Sums,
    size: tuple[int, int],
    geometry: Geometry,
    reads: Sequence[int | None],
    gradient: Sequence[int | None],
    registers: int,
    first: int,
    table: Callable[[Iterable[int]], int],
) -> PackedSums:
    """The records of a step whose maps have a `size` and lie as `geometry` says, at those places (None: zeros).

    `registers` are those of its vectors, `first` is the number of the first sum, `table` puts numbers into the plan.
    """
    (height, width), pitch, lanes = size, geometry.pitch, geometry.lanes
    columns = [tap * step.dilation[1] - step.padding[1] for tap in range(step.kernel[1])]
    every = (1 << lanes) - 1
    kept = [every] * len(columns)
    pixels = every
    if geometry.flat:  # only pixels, and no tap that would read the end of another row
        pixels = _bits(lanes, pitch, range(width))
        kept = [_bits(lanes, pitch, [x for x in range(width) if 0 <= x + shift < width]) for shift in columns]
        rows, floats, row, band = 1, up(height * pitch, lanes), 0, 1
    else:
        rows, floats, row = -(-height // step.step), up(width, lanes), step.step * pitch
        band = max(1, _BAND_FLOATS // pitch)
    numbers = np.full(step.weights, -1, dtype=np.int64)
    bias = np.full(len(gradient) if step.bias else 0, -1, dtype=np.int64)
    sums, records = first, []
    together = [range(3)] if len(columns) == 3 else [range(tap, tap + 1) for tap in range(len(columns))]
    for taps in together:
        masks = [kept[tap] for tap in taps]
        masked = any(mask != every for mask in masks)
        room = registers - (len(taps) if masked and lanes < 16 else 0)
        tiles: list[int] = []
        for group in range(step.groups):
            group_in, group_out = len(reads) // step.groups, len(gradient) // step.groups
            ins = [slot for slot in range(group_in) if reads[group * group_in + slot] is not None]
            outs = [slot for slot in range(group * group_out, (group + 1) * group_out) if gradient[slot] is not None]
            if not ins or not outs:
                continue
            most = sum_tile(len(ins), len(outs), len(taps), room)
            for some_out in _cut(outs, most[1]):
                to = table(gradient[slot] or 0 for slot in some_out)
                for some_in in _cut(ins, most[0]):
                    for ky in range(step.kernel[0]):
                        down = (ky * step.dilation[0] - step.padding[0]) * pitch
                        across = columns[taps[0]] if len(taps) == 1 else 0
                        at = table((reads[group * group_in + slot] or 0) + down + across for slot in some_in)
                        tiles += [len(taps), masked, len(some_in), len(some_out), at, to, sums]
                        for i in some_in:
                            for kx in taps:
                                numbers[some_out, i, ky, kx] = range(sums, sums + len(some_out))
                                sums += len(some_out)
        biases: list[int] = []
        if step.bias and taps == together[0]:
            for slot, place in enumerate(gradient):
                if place is not None:
                    biases += [place, sums]
                    bias[slot] = sums
                    sums += 1
        shifts = [columns[tap] for tap in taps] if len(taps) == 3 else [0]
        records.append([
            *(lanes, rows, floats, band, row, row, *[*shifts, 0, 0][:3], *[*masks, 0, 0][:3], pixels),
            *(len(tiles) // 7, table(tiles), len(biases) // 2, table(biases)),
        ])  # fmt: skip
    return PackedSums(records, np.concatenate([numbers.ravel(), bias]), sums)


def _bits(lanes: int, pitch: int, columns: Iterable[int]) -> int:
    """The lanes of those columns, where a vector holds rows of `pitch`."""
    kept = set(columns)
    return sum(1 << lane for lane in range(lanes) if lane % pitch in kept)


def _cut(slots: list[int], most: int) -> list[list[int]]:
    """Slots in as few parts of at most `most` as possible, of nearly equal size."""
    count = -(-len(slots) // most)
    return [slots[len(slots) * part // count : len(slots) * (part + 1) // count] for part in range(count)]
