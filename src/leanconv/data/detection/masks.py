"""Masks in COCO's three forms (polygons, run lengths, compressed run lengths) to pixels and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanconv.errors import DataError, need

__all__ = ["Rle", "as_rle", "from_pixels", "pixels_of"]

Rle = dict[str, Any]
"""Compressed run lengths: {"size": [height, width], "counts": bytes}."""


def as_rle(segmentation: Any, height: int, width: int) -> Rle:
    """One object's `segmentation` as a COCO file has it, compressed; polygons are united.

    Raises `DataError` in words that follow "its mask" where it is none of the three forms, or of another image.

    >>> int(pixels_of([as_rle([[1, 1, 5, 1, 5, 4, 1, 4]], 6, 8)], 6, 8).sum())
    12
    """
    tool = _tool()
    if isinstance(segmentation, Mapping):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        if list(size or ()) != [height, width]:
            raise DataError(f"is of {size} (height, width), the image of [{height}, {width}]")
        if isinstance(counts, list):
            if any(type(n) is not int or n < 0 for n in counts) or sum(counts) != height * width:
                raise DataError(f"has run lengths that do not add up to the {height * width} pixels of the image")
            return dict(tool.frPyObjects({"size": [height, width], "counts": counts}, height, width))
        if not isinstance(counts, str | bytes) or not counts:
            raise DataError("has no counts")
        raw = counts.encode() if isinstance(counts, str) else counts
        if any(not 48 <= byte < 112 for byte in raw) or raw[-1] - 48 & 0x20:
            raise DataError("has run lengths that are no compressed ones")
        if _total(raw) != height * width:
            raise DataError(f"has run lengths that do not add up to the {height * width} pixels of the image")
        return {"size": [height, width], "counts": raw}
    polygons = segmentation if isinstance(segmentation, list) else []
    if not polygons:
        raise DataError("is empty")
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise DataError("has a polygon of fewer than three points, or half a point")
        if not all(isinstance(value, int | float) and abs(value) < 1e6 for value in polygon):
            raise DataError("has a polygon with something else than numbers")
        xs, ys = polygon[::2], polygon[1::2]
        if min(xs) < -1 or min(ys) < -1 or max(xs) > width + 1 or max(ys) > height + 1:
            raise DataError(
                f"has a polygon that reaches outside the image of {width} x {height}: from ({min(xs):g}, {min(ys):g})"
                f" to ({max(xs):g}, {max(ys):g})"
            )
    clipped = [[float(v) for v in polygon] for polygon in polygons]
    return dict(tool.merge(tool.frPyObjects(clipped, height, width)))


def _total(raw: bytes) -> int:
    """How many pixels compressed run lengths cover."""
    counts: list[int] = []
    place = 0
    while place < len(raw):
        value, shift, more = 0, 0, True
        while more:
            byte = raw[place] - 48
            value |= (byte & 0x1F) << shift
            more = bool(byte & 0x20)
            place, shift = place + 1, shift + 5
            if not more and byte & 0x10:
                value |= -1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return sum(counts) if all(count >= 0 for count in counts) else -1


def pixels_of(masks: Sequence[Rle], height: int, width: int) -> Tensor:
    """Masks as uint8 (n, height, width), 1 inside."""
    if not masks:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    decoded = _tool().decode(list(masks))
    return torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1)))


def from_pixels(masks: Tensor) -> list[Rle]:
    """Compressed run lengths of masks (n, height, width), of which everything above 0 is inside."""
    flat = np.asfortranarray((masks > 0).to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    return [dict(one) for one in _tool().encode(flat)] if masks.shape[0] else []


def _tool() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise need("faster-coco-eval", "detect", "masks in COCO's format") from error
    return mask
