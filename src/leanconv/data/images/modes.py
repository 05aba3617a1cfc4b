"""Pixels as a viewer shows them: every mode that Pillow opens in three 8-bit channels, and the way up that EXIF says.

Pillow converts most modes itself. It does not scale those that are wider than 8 bits, and of some a file does not say
which value is white; these are refused, as any guess would be black or white pictures for somebody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["orientation", "to_rgb", "upright"]

_ORIENTATION = 0x112
_BITS, _WHITE_IS_ZERO, _SIGNED = 258, 262, 339
"""Numbers of TIFF's fields: bits per sample, photometric interpretation, sample format."""

_UNKNOWN_RANGE = {"F": "floating-point grey", "I": "32-bit grey"}


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in three 8-bit channels: grey repeated, transparency dropped, 16-bit grey scaled to 8 bits.

    Raises `ValueError` for modes without a known range of values: floats, 32-bit integers, signed pixels.
    """
    mode = image.mode
    if mode == "RGB":
        return image
    field = getattr(image, "tag_v2", {}).get
    if field(_SIGNED) in (2, (2,)):
        raise ValueError(f"its pixels are signed numbers, of which none is known to be black: {_advice(image)}")
    if mode.startswith("I;16"):
        top = 2 ** int(np.max(field(_BITS, 16))) - 1  # of 12-bit files Pillow leaves the values as they are
        return _scaled(image, top, negative=field(_WHITE_IS_ZERO) == 0)
    if mode == "I" and image.format in ("PNG", "PPM"):  # which hold 16 bits, brought to their full range
        return _scaled(image, 65535)
    if mode in _UNKNOWN_RANGE:
        raise ValueError(f"{_UNKNOWN_RANGE[mode]} has no fixed range of values from black to white: {_advice(image)}")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None  # not in place
        return converted
    if mode in ("P", "PA"):
        image = image.convert("RGBA")
    elif mode in ("La", "RGBa"):  # colours that were multiplied by their opacity
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """The number 1 to 8 by which EXIF says how the image is shown; 1, as it is, where it says nothing that can be read.

    It must be asked before the pixels are: a TIFF file is turned by Pillow while they are read.
    """
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken record raises anything, and a viewer shows the picture all the same
        return 1
    return found if found in range(1, 9) else 1


def upright(image: Image.Image, number: int) -> Image.Image:
    """The image as it is shown where its orientation is `number`."""
    from PIL.Image import Transpose

    if number == 1 or image.format == "TIFF":  # Pillow has done it
        return image
    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(steps[number])


def _scaled(image: Image.Image, top: int, *, negative: bool = False) -> Image.Image:
    """Grey from 0 to `top`, or with `negative` from `top` to 0, as 8-bit RGB."""
    from PIL import Image as images

    table = np.clip(np.arange(65536) * (255 / top), 0, 255).round().astype(np.uint8)
    grey = table[np.asarray(image)]  # 16 bits a pixel, or as many in a wider type
    return images.fromarray(255 - grey if negative else grey).convert("RGB")


def _advice(image: Image.Image) -> str:
    shown = ""
    if image.mode in ("F", "I"):
        low, high = image.getextrema()
        shown = f" (here {low:g} to {high:g})"
    return f"store it with 8 or 16 unsigned bits a channel, or as RGB{shown}"
