"""A contact sheet: clips as rows of their frames, or images in a grid, each with its label and the prediction.

Green where the network is right, red where it is wrong; the words differ too ("hug" against "hug -> push"), so that
nobody needs the colours. Where nobody has said the label the prediction stands alone, in black. Frames are enlarged by
whole factors and not otherwise touched: what stands on the sheet is what the network saw.
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
    from PIL import ImageDraw, ImageFont

__all__ = ["ContactRow", "evenly_spaced", "save_contact_sheet", "save_image_sheet"]

_RIGHT = (26, 127, 55)
_WRONG = (196, 38, 38)
_BLACK = (30, 30, 30)
_GREY = (110, 110, 110)
_SMALL = 96
"""Frames smaller than this many pixels are enlarged until they are not."""
_GAP = 2
_MARGIN = 10
_TITLE = 24
_CARD = 150
"""The least width of an image's place, so that its title has room."""
_FONT = 14
_NOTE = 11


@dataclass(frozen=True, kw_only=True)
class ContactRow:
    """A clip, or an image as a clip of one frame: `frames` are uint8 (frames, h, w, 3); `probability` is that of the
    prediction; `label` is None where nobody has said it."""

    frames: NDArray[np.uint8]
    name: str
    label: str | None
    prediction: str
    probability: float

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.prediction == self.label

    @property
    def title(self) -> str:
        """What is written over the frames."""
        known = self.right or self.label is None
        text = self.prediction if known else f"{self.label} -> {self.prediction}"
        return f"{text}  {100 * self.probability:.0f} %"

    @property
    def colour(self) -> tuple[int, int, int]:
        """In which the title is written."""
        return _BLACK if self.label is None else _RIGHT if self.right else _WRONG


def save_contact_sheet(rows: Sequence[ContactRow], path: str | os.PathLike[str], *, columns: int = 8) -> Path:
    """Write the PNG `path` with one row per clip, of at most `columns` evenly spaced frames.

    Raises `LeanconvError` without clips, for clips of different sizes, and for a file that cannot be written.
    """
    path = Path(path)
    length, height, width = _checked(rows, path, columns, "clip")
    from PIL import Image, ImageDraw

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


def save_image_sheet(rows: Sequence[ContactRow], path: str | os.PathLike[str], *, columns: int = 6) -> Path:
    """Write the PNG `path` with the first frame of each of `rows`, `columns` in a line, each with title and name.

    Raises as `save_contact_sheet`.
    """
    path = Path(path)
    _, height, width = _checked(rows, path, columns, "image")
    from PIL import Image, ImageDraw

    factor = max(1, -(-_SMALL // min(height, width)))
    across, down = factor * width, factor * height
    step_across, step_down = max(across, _CARD) + _MARGIN, _TITLE + down + _NOTE + 2 * _MARGIN
    columns = min(columns, len(rows))
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (_MARGIN + columns * step_across, _MARGIN + lines * step_down), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        left = _MARGIN + number % columns * step_across
        top = _MARGIN + number // columns * step_down
        room = step_across - _MARGIN
        draw.text(
            (left, top + 2), _shortened(draw, row.title, _FONT, room, end=True), fill=row.colour, font=_font(_FONT)
        )
        image = Image.fromarray(row.frames[0]).resize((across, down), Image.Resampling.NEAREST)
        sheet.paste(image, (left, top + _TITLE))
        name = _shortened(draw, row.name, _NOTE, room)
        draw.text((left, top + _TITLE + down + 2), name, fill=_GREY, font=_font(_NOTE))
    with whole_file(path, lambda reason: unwritable(path, reason)) as draft:
        sheet.save(draft, format="PNG")
    return path


def _checked(rows: Sequence[ContactRow], path: Path, columns: int, what: str) -> tuple[int, int, int]:
    """Frames, height and width that all of `rows` have."""
    if not rows:
        raise LeanconvError(f"{path}: there is no {what} to show")
    shapes = sorted({row.frames.shape for row in rows})
    if len(shapes) > 1 or shapes[0][-1:] != (3,) or len(shapes[0]) != 4:
        raise LeanconvError(
            f"{path}: expected {what}s of one size (frames, h, w, 3), got {', '.join(map(str, shapes))}"
        )
    if columns < 1:
        raise LeanconvError(f"{path}: columns must be at least 1, got {columns}")
    return shapes[0][:3]


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
    font, small = _font(_FONT), _font(_NOTE)
    draw.text((_MARGIN, top + 2), row.title, fill=row.colour, font=font)
    room = sheet_width - 2 * _MARGIN - draw.textlength(row.title, font=font) - 2 * _MARGIN
    name = _shortened(draw, row.name, _NOTE, room)
    left = int(sheet_width - _MARGIN - draw.textlength(name, font=small))
    draw.text((left, top + 5), name, fill=_GREY, font=small)


def _shortened(draw: ImageDraw.ImageDraw, text: str, size: int, room: float, *, end: bool = False) -> str:
    """The text with its beginning, or its `end`, replaced by dots where there is no room."""
    font = _font(size)
    while text and draw.textlength(text, font=font) > room:
        text = "" if len(text) <= 4 else f"{text[:-4]}..." if end else f"...{text[4:]}"
    return text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
