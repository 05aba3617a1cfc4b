"""How a player shows a frame that lies in the file: turned, mirrored, with pixels that are not square."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any, NamedTuple

from leanconv.data.video.plan import Picture
from leanconv.errors import DataError

__all__ = ["Turn", "pixel_aspect"]

_WIDEST = 16
"""No real recording has pixels so many times as wide as high; broken headers have."""

_SLANT = 0.02
"""So much of a turn that is no quarter of a circle is rounding; more is a picture that stands askew."""


class Turn(NamedTuple):
    """One of the eight ways a picture can lie: rows and columns exchanged, then the order of each reversed.

    >>> Turn(exchanged=True, rows=False, columns=True).shown(480, 640)
    (640, 480)
    """

    exchanged: bool = False
    rows: bool = False
    columns: bool = False

    @classmethod
    def of(cls, path: str, frame: Any) -> Turn:
        """The way of a decoded frame, by its display matrix; `DataError` for one that stands askew.

        A pixel at (x, y) is shown at (a x + c y, b x + d y).
        """
        from av.sidedata.sidedata import Type

        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
        if matrix is None:
            return cls()
        a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
        straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
        if max(abs(b), abs(c)) <= _SLANT * straight:
            return cls(False, d < 0, a < 0)
        if max(abs(a), abs(d)) <= _SLANT * crossed:
            return cls(True, b < 0, c < 0)
        raise DataError(f"{path}: it is shown turned by {frame.rotation} degrees, and only quarters of a turn are read")

    def shown(self, height: int, width: int) -> tuple[int, int]:
        """The size as it is shown, of a picture that lies as height x width, and the other way round."""
        return (width, height) if self.exchanged else (height, width)

    def applied(self, picture: Picture) -> Picture:
        """A view of the picture (height, width, 3) as it is shown."""
        if self.exchanged:
            picture = picture.transpose(1, 0, 2)
        return picture[:: -1 if self.rows else 1, :: -1 if self.columns else 1]


def pixel_aspect(path: str, stream: Any) -> Fraction:
    """How many times as wide as high the pixels of a video are; 1 where the file does not say."""
    aspect = stream.sample_aspect_ratio
    if not aspect or aspect < 0:
        return Fraction(1)
    if not Fraction(1, _WIDEST) <= aspect <= _WIDEST:
        raise DataError(f"{path}: broken video: its pixels are {aspect} times as wide as high")
    return Fraction(aspect)
