"""How a convolution is cut in bands of rows, and what it needs beside its maps while it runs over one."""

from __future__ import annotations

from dataclasses import dataclass

from leanconv.kernels.layout import Geometry, odd_lines, up
from leanconv.kernels.program import Buffer, Conv
from leanconv.kernels.sort import Sorted, ends_of, gathered, sorted_columns, sorted_flat
from leanconv.kernels.tiles import parts

__all__ = ["Scratch", "band_of", "scratch_of"]

_BAND_PIXELS = 1024
"""A band has at least so many pixels where there is room: the beginnings and ends of tiles and of rows cost."""
_SLAB_FLOATS = {16: 12288, 8: 3072, 4: 3072}
"""What a single stage reads of a band for one tile, by lanes: a fraction of the first cache, which grew with them."""
_COPIED_FLOATS = {16: 12288, 8: 12288, 4: 3072}
"""The same of single pixels of a stride, which are copied close together first."""
_TIGHT_FLOATS = {16: 32768, 4: 6144}
"""The same of tight maps, whose bands are of whole tiles of `_TIGHT_VECTORS` at least; of eight lanes see below."""
_TIGHT_VECTORS = {16: 4, 8: 2, 4: 4}
_LEAST_GATHERED = 1024
"""Channels of tight maps that are so far apart or further, a page each, are gathered for vectors of eight: with AVX2
convolutions of 1 x 1 take 10 to 15 % less time so. For other vectors it was not measured."""
_GATHERED_BAND, _DIRECT_BAND = (192, 48 * 1024), (64, 32 * 1024)
"""For vectors of eight: pixels of a band of tight maps and floats that it reads, where they are gathered or are not."""
_MIDDLE_FLOATS = 96 * 1024
"""The band between two stages stays within the second cache."""
_MOST_TOGETHER = 8
"""Channels of several groups that are sorted in one call: one by one the calls cost more than the pixels."""
_SORTED_FLOATS = 4608
"""What is sorted for one tile and then forgotten stays in the first cache, with what it is sorted from."""


@dataclass(slots=True)
class Scratch:
    """Positions within the scratch of a step: columns sorted by phase, then what stands between two stages.

    Bands begin at a multiple of `grain` rows. So many channels are sorted together: those of one group, or of several
    small ones.
    """

    band: int
    grain: int
    sorted: Sorted | None = None
    sorted_channels: int = 0
    ends: tuple[int, ...] | None = ()
    middle_pitch: int = 0
    middle_plane: int = 0
    middle_channels: int = 0

    @property
    def sorted_floats(self) -> int:
        return 0 if self.sorted is None else self.sorted.plane * self.sorted_channels

    @property
    def floats(self) -> int:
        return self.sorted_floats + self.middle_plane * self.middle_channels


def scratch_of(step: Conv, width: int, pitch: int, out: Buffer, geometry: Geometry, lanes: int) -> Scratch:
    """The scratch of a step that reads maps of a `width` and `pitch` and makes `out`, which lies as `geometry` says."""
    stage = step.first
    found = Scratch(band=band_of(step, out, geometry, lanes), grain=_grain(geometry, lanes))
    if geometry.flat:
        found.ends = None if pitch != geometry.pitch else ends_of(stage, width, out.width, geometry)
        if found.ends is None:
            found.sorted = sorted_flat(stage, found.band, out.width, width, pitch, geometry)
        elif gathers(step, geometry, lanes):
            found.sorted = gathered(found.band, geometry)
    elif stage.stride[1] > 1:
        found.sorted = sorted_columns(stage, found.band, out.width, pitch, geometry)
    group = int(stage.weight.shape[1])
    room = 0 if found.sorted is None else min(_MOST_TOGETHER, _SORTED_FLOATS // found.sorted.plane)
    found.sorted_channels = group * min(stage.groups, max(1, room // group))
    if len(step.stages) == 2:
        found.middle_pitch = geometry.row if geometry.flat else up(out.width, geometry.lanes)
        found.middle_plane = odd_lines(up(found.band * found.middle_pitch, geometry.lanes))
        found.middle_channels = len(stage.weight)
    return found


def gathers(step: Conv, geometry: Geometry, lanes: int) -> bool:
    """Whether the pixels of a band are copied close together, since many tiles read channels that are far apart."""
    if lanes != 8 or not geometry.tight or geometry.plane < _LEAST_GATHERED:
        return False
    return len(parts(len(step.first.weight) // step.first.groups)) > 2


def _grain(geometry: Geometry, lanes: int) -> int:
    """What bands are a multiple of, in rows, of tight maps in pixels.

    The last vector of a band must not reach into the next one: what is added there may lie where the sum goes.
    """
    if geometry.tight:
        return _TIGHT_VECTORS[lanes] * geometry.lanes
    return max(1, geometry.lanes // geometry.pitch) if geometry.flat else 1


def band_of(step: Conv, out: Buffer, geometry: Geometry, lanes: int) -> int:
    """Rows of a band, of tight maps pixels; `lanes` are those of the longest vectors."""
    least = _grain(geometry, lanes)
    if geometry.tight:  # in pixels
        pixels, channels = out.height * out.width, int(step.first.weight.shape[1])
        if len(step.stages) == 2:
            channels = max(channels, len(step.first.weight))
        if lanes == 8:  # bands of about equal size
            widest, floats = _GATHERED_BAND if gathers(step, geometry, lanes) else _DIRECT_BAND
            most = min(widest, max(2 * least, floats // channels))
            return up(-(-pixels // max(1, round(pixels / most))), least)
        most = (_MIDDLE_FLOATS if len(step.stages) == 2 else _TIGHT_FLOATS[lanes]) // channels
        return min(max(least, most // least * least), pixels)
    band = max(4, least)
    while band * out.width < _BAND_PIXELS and band < out.height:
        band += max(4, least)
    if len(step.stages) == 2:
        while band > least and len(step.stages[0].weight) * band * out.width > _MIDDLE_FLOATS:
            band = _half(band, least)
    else:
        copied = step.first.kernel == (1, 1) and step.first.stride[1] > 1
        most = (_COPIED_FLOATS if copied else _SLAB_FLOATS)[lanes]
        while band > max(2, least) and step.first.weight.shape[1] * band * out.width > most:
            band = _half(band, least)
    stage = step.first
    tiles = parts(len(stage.weight) // stage.groups)
    if stage.stride[1] > 1 and not geometry.flat and len(tiles) == 1:
        row = 2 * up(out.width, geometry.lanes) * stage.stride[1]
        while band > 4 and stage.weight.shape[1] * band * stage.stride[0] * row > _SORTED_FLOATS:
            band //= 2
    return min(band, out.height)


def _half(band: int, grain: int) -> int:
    return max(grain, band // 2 // grain * grain)
