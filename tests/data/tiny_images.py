"""Tiny real image files for the tests of this folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    """A random RGB image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(seed: int, side: int = 8) -> bytes:
    """The PNG bytes of a random image."""
    buffer = io.BytesIO()
    picture(seed, side, side).save(buffer, "PNG")
    return buffer.getvalue()


def folder_set(root: Path, *, per_class: int = 4, side: int = 8, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write train/ and val/ with `per_class` images in each class and return the folder."""
    for number, (split, name) in enumerate((split, name) for split in ("train", "val") for name in classes):
        (root / split / name).mkdir(parents=True)
        for index in range(per_class):
            picture(1000 * number + index, side, side).save(root / split / name / f"{index}.png")
    return root
