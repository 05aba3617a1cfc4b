"""Convolutions of 3 x 3 by Winograd's minimal filtering, on maps in blocks: sixteen multiply-adds for thirty-six.

A tile of 4 x 4 pixels gives 2 x 2 outputs. Pixels and weights become sixteen numbers each (`native/winograd.h`), and
for each of those the channels are multiplied as a convolution of 1 x 1 is. A pixel that is infinite or no number makes
all outputs of its tiles no numbers, up to 4 x 4 of them instead of 3 x 3.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from leanconv.kernels.program import Buffer, Floats, Stage

__all__ = ["NUMBERS", "Tiling", "Winograd", "is_faster", "tiling", "weights_of"]

Winograd = Literal["here", "everywhere", "never"]
"""Which convolutions of 3 x 3 are computed so: those that are faster with the vectors at hand, or with any, or none."""

NUMBERS = 16
"""Of a tile."""
_BAND_FLOATS = {16: 192 * 1024, 8: 64 * 1024, 4: 64 * 1024}
"""The numbers of the inputs of a band stay in the second cache; by lanes, as it grew with them."""
_LEAST_TILES = {16: 32, 8: 16, 4: 16}
"""Weights that fewer tiles are multiplied with take longer to come from memory than they save: by lanes."""
_GAIN = 0.9
_MIXING, _SUMMING = 48, 56
"""Vectors that are loaded, stored or added for each block of inputs and of outputs of a tile."""
_GRAIN = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


class Tiling(NamedTuple):
    """Blocks of inputs; tiles in a row; rows of them in a band; tiles that are multiplied together."""

    blocks: int
    across: int
    band: int
    wide: int

    @property
    def plane(self) -> int:
        """The tiles of a band."""
        return self.band * self.across


def is_faster(stage: Stage, made: Buffer, inputs: int, outputs: int, lanes: int | None = None) -> bool:
    """Whether a stage of so many inputs and outputs is a 3 x 3 that takes less time by tiles than by taps.

    With vectors of `lanes`, or with any.
    """
    if stage.kernel != (3, 3) or stage.groups != 1 or stage.stride != (1, 1) or stage.dilation != (1, 1):
        return False
    tiles = -(-made.height // 2) * -(-made.width // 2)
    least = max(_LEAST_TILES.values()) if lanes is None else _LEAST_TILES[lanes]
    by_tiles = tiles * (NUMBERS * inputs * outputs + _MIXING * inputs + _SUMMING * outputs)
    by_taps = 9 * made.height * made.width * inputs * outputs
    return tiles >= least and by_tiles < _GAIN * by_taps


def tiling(made: Buffer, blocks: int, lanes: int, most: int) -> Tiling:
    """How maps that are made of so many blocks of inputs are cut; `most` tiles can be multiplied together."""
    across, down = -(-made.width // 2), -(-made.height // 2)
    rows = max(1, _BAND_FLOATS[lanes] // (blocks * NUMBERS * 16 * across))
    band = -(-down // -(-down // rows))
    return Tiling(blocks, across, band, -(-band * across // -(-band * across // most)))


def weights_of(weight: Floats) -> Floats:
    """The sixteen numbers of each kernel, G kernel G': (C_out, C_in, 3, 3) to (C_out, C_in, 16)."""
    exact: Floats = np.einsum("ik,ockl,jl->ocij", _GRAIN, weight.astype(np.float64), _GRAIN, optimize=True)
    return exact.reshape(*weight.shape[:2], NUMBERS).astype(np.float32)
