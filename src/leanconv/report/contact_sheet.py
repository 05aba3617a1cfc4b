"""A contact sheet: clips as rows of their frames, each with its label and the prediction.

Green where the network is right, red where it is wrong; the words differ too ("hug" against "hug -> push"), so that
nobody needs the colours. Frames are enlarged by whole factors and not otherwise touched: what stands on the sheet is
what the network saw.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leanconv.errors import LeanconvError
from leanconv.files import unwritable, whole_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import ImageDraw

__all__ = ["ContactRow", "save_contact_sheet"]

_RIGHT = (26, 127, 55)
_WRONG = (196, 38, 38)
_GREY = (110, 110, 110)
_SMALL = 96
"""Frames smaller than this many pixels are enlarged until they are not."""
_GAP = 2
_MARGIN = 10
_TITLE = 24
_FONT = 14
_NOTE = 11


@dataclass(frozen=True, kw_only=True)
class ContactRow:
    """A clip: `frames` are uint8 (frames, h, w, 3); `probability` is that of the prediction."""

    frames: NDArray[np.uint8]
    name: str
    label: str
    prediction: str
    probability: float

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.prediction == self.label

    @property
    def title(self) -> str:
        """What is written over the frames."""
        text = self.label if self.right else f"{self.label} -> {self.prediction}"
        return f"{text}  {100 * self.probability:.0f} %"


def save_contact_sheet(rows: Sequence[ContactRow], path: str | os.PathLike[str], *, columns: int = 8) -> Path:
    """Write the PNG `path` with one row per clip, of at most `columns` evenly spaced frames.

    Raises `LeanconvError` without clips, for clips of different sizes, and for a file that cannot be written.
    """
    path = Path(path)
    if not rows:
        raise LeanconvError(f"{path}: there is no clip to show")
    shapes = sorted({row.frames.shape for row in rows})
    if len(shapes) > 1 or shapes[0][-1:] != (3,) or len(shapes[0]) != 4:
        raise LeanconvError(f"{path}: expected clips of one size (frames, h, w, 3), got {', '.join(map(str, shapes))}")
    if columns < 1:
        raise LeanconvError(f"{path}: columns must be at least 1, got {columns}")
    from PIL import Image, ImageDraw

    length, height, width, _ = shapes[0]
    chosen = evenly_spaced(length, columns)
    factor = max(1, -(-_SMALL // min(height, width)))
    across, down = factor * width, factor * height
    sheet_width = max(2 * _MARGIN + len(chosen) * (across + _GAP) - _GAP, 400)
    sheet = Image.new("RGB", (sheet_width, 2 * _MARGIN + len(rows) * (_TITLE + down + _MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = _MARGIN + number * (_TITLE + down + _MARGIN)
        _write_title(draw, row, top, sheet_width)
        for place, index in enumerate(chosen):
            frame = Image.fromarray(row.frames[index]).resize((across, down), Image.Resampling.NEAREST)
            sheet.paste(frame, (_MARGIN + place * (across + _GAP), top + _TITLE))
    with whole_file(path, lambda reason: unwritable(path, reason)) as draft:
        sheet.save(draft, format="PNG")
    return path


def evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, evenly spaced, the first and the last among them.

    >>> evenly_spaced(32, 4), evenly_spaced(3, 8), evenly_spaced(9, 1)
    ([0, 10, 21, 31], [0, 1, 2], [4])
    """
    if count >= total:
        return list(range(total))
    if count == 1:
        return [total // 2]
    return [round(place * (total - 1) / (count - 1)) for place in range(count)]


def _write_title(draw: ImageDraw.ImageDraw, row: ContactRow, top: int, sheet_width: int) -> None:
    """The title on the left; the clip's name in grey on the right, its beginning cut where there is no room."""
    from PIL import ImageFont

    font, small = ImageFont.load_default(_FONT), ImageFont.load_default(_NOTE)
    draw.text((_MARGIN, top + 2), row.title, fill=_RIGHT if row.right else _WRONG, font=font)
    room = sheet_width - 2 * _MARGIN - draw.textlength(row.title, font=font) - 2 * _MARGIN
    name = row.name
    while name and draw.textlength(name, font=small) > room:
        name = f"...{name[4:]}" if len(name) > 4 else ""
    left = int(sheet_width - _MARGIN - draw.textlength(name, font=small))
    draw.text((left, top + 5), name, fill=_GREY, font=small)
