"""How large a picture may be that is decoded: a file of a few bytes may claim any size, and a decoder believes it."""

from __future__ import annotations

import os
from threading import Lock
from typing import IO, TYPE_CHECKING

from leanconv.errors import LeanconvError, shown

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

__all__ = ["MAX_MEGAPIXELS", "check_pixels", "most_pixels", "open_image"]

MAX_MEGAPIXELS = "LEANCONV_MAX_MEGAPIXELS"
"""The variable that sets another limit, here and in the processes that load; `leanconv --max-megapixels` sets it."""

_MEGAPIXELS = 100.0
"""What an image or a frame may have: 300 MB in three channels, a few times of that on the way there."""

_opening = Lock()


def most_pixels() -> int:
    """How many pixels an image, or a frame of a video, may have; `LeanconvError` where the variable is no number.

    >>> most_pixels()
    100000000
    """
    text = os.environ.get(MAX_MEGAPIXELS, "")
    try:
        megapixels = float(text) if text else _MEGAPIXELS
    except ValueError:
        megapixels = 0.0
    if not 0 < megapixels <= 1e6:
        raise LeanconvError(f"{MAX_MEGAPIXELS}={shown(text)}: expected millions of pixels, for example 400")
    return int(megapixels * 1e6)


def check_pixels(width: int, height: int) -> None:
    """Raise `ValueError` for a picture of more pixels than are decoded."""
    if width * height > (most := most_pixels()):
        raise ValueError(
            f"{width} x {height} pixels, more than the {most / 1e6:g} million that are decoded (leanconv"
            " --max-megapixels N allows more)"
        )


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """An image whose header has been read and is within the limit; its pixels are decoded when they are asked for.

    Raises `ValueError` beyond the limit, and whatever Pillow raises for what is no image.
    """
    from PIL import Image

    with _opening:  # Pillow's own limit is one number for the whole process, and only warns at first
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    try:
        check_pixels(*image.size)
    except ValueError:
        image.close()
        raise
    return image
