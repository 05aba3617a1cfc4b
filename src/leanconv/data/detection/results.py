"""COCO's files of results: what somebody's detector found in the images of an annotation file, read and checked."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from leanconv.data.detection.data import DetectionData
from leanconv.data.detection.masks import as_rle
from leanconv.errors import DataError, shown

__all__ = ["answers_of", "read_results"]


def read_results(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a file of results. Raises `DataError` for one that is missing, cut short or of another form."""
    path = Path(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: no results there ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON, or cut short ({' '.join(str(error).split())}): copy it again") from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: not in COCO's format of results: expected a list of answers, got {shown(rows)}")
    for place, row in enumerate(rows):
        if reason := _wrong(row):
            raise DataError(f"{path}: answer {place} {reason}")
    return rows


def _wrong(row: Any) -> str | None:
    """Why a row is no answer, None where it is one."""
    if not isinstance(row, dict):
        return f"is {shown(row)}, expected image_id, category_id, bbox and score"
    for name in ("image_id", "category_id"):
        if type(row.get(name)) is not int:
            return f"has no number as its {name}, got {shown(row.get(name))}"
    if not _number(row.get("score")):
        return f"has no number as its score, got {shown(row.get('score'))}"
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)) or min(box[2:]) < 0:
        return f"has the bbox {shown(box)}, expected [x, y, width, height]"
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def answers_of(
    path: str | os.PathLike[str], rows: list[dict[str, Any]], data: DetectionData, *, masks: bool
) -> dict[int, list[dict[str, Any]]]:
    """By image the answers `rows` of the file `path`, their categories as the labels of `data`, in the file's order.

    Raises `DataError` for images and categories that `data` does not have, and for masks of other images.
    """
    images = {one.id: one for one in data.test_images}
    labels = {number: label for label, number in enumerate(data.class_ids, 1)}
    found: dict[int, list[dict[str, Any]]] = {}
    for place, row in enumerate(rows):
        if row["image_id"] not in images:
            raise DataError(
                f"{path}: answer {place} is for image {row['image_id']}, which is none of the {len(images)} images of"
                f" the {data.part} part: name the annotations that it was made for"
            )
        if row["category_id"] not in labels:
            raise DataError(
                f"{path}: answer {place} is of category {row['category_id']}, which the annotations do not declare"
            )
        answer = {name: row[name] for name in ("bbox", "score")}
        answer["category_id"] = labels[row["category_id"]]
        if masks:
            image = images[row["image_id"]]
            try:
                answer["segmentation"] = as_rle(row["segmentation"], image.height, image.width)
            except DataError as error:
                raise DataError(f"{path}: answer {place}: its mask {error}") from error
        found.setdefault(row["image_id"], []).append(answer)
    return found
