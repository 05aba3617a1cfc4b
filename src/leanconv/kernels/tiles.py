"""Which register tile computes what: outputs in groups of nearly equal size, rows and vectors of pixels for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["FLAT", "FLAT_ROUND", "MOST_CHANNELS", "ROWS", "THREE", "TWO_ROWS", "Tile", "flat_tile", "parts", "tile"]

# As in native/kernels.h and native/tiles.h.
FLAT, THREE, ROWS, TWO_ROWS = range(4)
MOST_CHANNELS = 6
FLAT_ROUND = 2


class Tile(NamedTuple):
    """`kind`: FLAT takes (channel, tap) slots one by one, THREE knows a 3 x 3 kernel, ROWS shares rows between taps.

    TWO_ROWS is ROWS where a vector holds two rows of the map.
    """

    kind: int
    rows: int
    vectors: int


def parts(count: int) -> list[range]:
    """`count` outputs cut into as few tiles as possible, of nearly equal size.

    >>> [len(part) for part in parts(20)]
    [5, 5, 5, 5]
    """
    tiles = -(-count // MOST_CHANNELS)
    return [range(count * index // tiles, count * (index + 1) // tiles) for index in range(tiles)]


def _most_pixels(channels: int, registers: int) -> int:
    """Vectors of pixels in a tile: two FMA units of latency 4 need at least 8 sums on the way."""
    table: Sequence[int] = (8, 8, 8, 4, 4, 4) if registers == 32 else (8, 4, 4, 3, 2, 2)
    return table[channels - 1]


def tile(channels: int, width: int, lanes: int, *, registers: int, shares_rows: bool, three: bool) -> Tile:
    """The tile for `channels` outputs on maps of a width.

    `three` is for kernels of 3 x 3, `shares_rows` for those of them whose output rows are neighbours in the input too.

    >>> tile(4, 32, 8, registers=16, shares_rows=True, three=True)  # twelve sums
    Tile(kind=1, rows=3, vectors=1)
    """
    if shares_rows and channels <= 2:
        return Tile(ROWS, 8 if registers == 32 and channels == 1 else 4, 1)
    pixels, whole = _most_pixels(channels, registers), width // lanes
    vectors = next((v for v in (4, 2) if pixels % v == 0 and whole and whole % v == 0), 1)
    rows = pixels // vectors
    return Tile(THREE if three else FLAT, rows if rows in (1, 2, 3, 8) else 4, vectors)


def flat_tile(
    channels: int, pixels: int, pitch: int, lanes: int, *, registers: int, shares_rows: bool, three: bool
) -> Tile:
    """The tile for `channels` outputs on a flat band of `pixels`, rows of which stand `pitch` apart.

    >>> flat_tile(6, 64, 8, 16, registers=32, shares_rows=True, three=True)
    Tile(kind=1, rows=1, vectors=4)
    """
    if shares_rows and channels <= 2 and pitch * 2 == lanes:
        return Tile(TWO_ROWS, 4, 1)
    most, whole = _most_pixels(channels, registers), max(1, pixels // lanes)
    sizes = (8, 4, 2, 1) if lanes == 16 else (4, 2, 1)
    vectors = next(v for v in sizes if v <= most and v <= whole)
    return Tile(THREE if three else FLAT, 1, vectors)
