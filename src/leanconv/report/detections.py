"""Pictures with what a detector found in them: boxes, masks, classes and scores; and sheets of several."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from leanconv.files import whole_file
from leanconv.files.whole import unwritable

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["draw_detections", "save_picture", "save_sheet"]

_TILE = 320
"""Pixels of a picture's longer side on a sheet."""


def draw_detections(
    image: Tensor, found: Mapping[str, Tensor], class_names: Sequence[str], *, least: float = 0.5
) -> Image.Image:
    """An image (3, h, w) of values from 0 to 1 with the detections whose score is at least `least`.

    `found` has boxes (n, 4), labels (n,) from 1, scores (n,) and, for masks, masks (n, 1, h, w) from 0 to 1.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    kept = [number for number, score in enumerate(found["scores"].tolist()) if score >= least]
    canvas: Any = pixels.astype("float32")
    for number in reversed(kept):  # the surest on top
        if "masks" in found:
            inside = (found["masks"][number, 0] > 0.5).cpu().numpy()
            canvas[inside] = 0.55 * canvas[inside] + 0.45 * np.array(_colour(number), dtype="float32")
    picture = Image.fromarray(canvas.round().astype("uint8"))
    pen = ImageDraw.Draw(picture)
    for number in reversed(kept):
        x1, y1, x2, y2 = found["boxes"][number].tolist()
        colour = _colour(number)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        label = int(found["labels"][number])
        name = class_names[label - 1] if label <= len(class_names) else str(label)
        text = f"{name} {100 * float(found['scores'][number]):.0f}"
        left, top, right, bottom = pen.textbbox((x1 + 2, y1 + 1), text)
        pen.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=colour)
        pen.text((x1 + 2, y1 + 1), text, fill=(0, 0, 0))
    return picture


def save_sheet(pictures: Sequence[Image.Image], path: str | os.PathLike[str], *, columns: int = 4) -> Path:
    """All pictures, made smaller, in one file, row by row."""
    from PIL import Image

    small = []
    for picture in pictures:
        scale = min(1.0, _TILE / max(picture.size))
        small.append(picture.resize((round(picture.width * scale), round(picture.height * scale))))
    rows = [small[start : start + columns] for start in range(0, len(small), columns)]
    heights = [max(picture.height for picture in row) + 4 for row in rows]
    sheet = Image.new("RGB", (columns * (_TILE + 4), sum(heights)), (255, 255, 255))
    for number, row in enumerate(rows):
        for place, picture in enumerate(row):
            sheet.paste(picture, (place * (_TILE + 4), sum(heights[:number])))
    return save_picture(sheet, path)


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """The picture in a file of the kind that its name says, complete or not there."""
    path = Path(path)
    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    with whole_file(path, partial(unwritable, path, what="the picture")) as draft:
        picture.save(draft, format=kind)
    return path


def _colour(number: int) -> tuple[int, int, int]:
    """One that differs from its neighbours'."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
