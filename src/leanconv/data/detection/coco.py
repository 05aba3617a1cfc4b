"""COCO's annotation files, read once and checked: what cannot be used is left out, named and counted.

What cannot be used is an object (an undeclared category, a box or mask that is none) or an image (no file, an id that
another one has). A file that is no JSON of this form is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanconv.data.detection.masks import Rle, as_rle
from leanconv.data.sets.splits import Problem
from leanconv.errors import DataError, shown

__all__ = ["Annotated", "CocoSet", "Thing", "read_coco"]

_EDGE = 1.0
"""Pixels by which a box may reach out of its image, of which it is cut: annotators round."""


@dataclass(frozen=True)
class Thing:
    """One object: its class from 1 (0 is the background), its box (x1, y1, x2, y2) in pixels, its mask or None.

    `crowd` are many objects under one mask, which nobody is to find one by one. `area` is COCO's, of the mask.
    """

    label: int
    box: tuple[float, float, float, float]
    mask: Rle | None
    crowd: bool
    area: float


@dataclass(frozen=True)
class Annotated:
    """One image: its number and file, its size in pixels and the objects in it."""

    id: int
    path: Path
    width: int
    height: int
    things: tuple[Thing, ...] = ()


@dataclass(frozen=True)
class CocoSet:
    """The images of a file, its classes by name and by COCO's own number, and what was left out."""

    images: tuple[Annotated, ...]
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    problems: tuple[Problem, ...] = field(repr=False, default=())


def read_coco(annotations: str | os.PathLike[str], folder: str | os.PathLike[str], *, masks: bool = True) -> CocoSet:
    """The annotation file `annotations` of the images in `folder`, which are not opened yet.

    Without `masks` objects may be without; with them, an object without one is left out.
    Raises `DataError` for a file that is missing, cut short or of another form, and where no image is left.
    """
    path, folder = Path(annotations), Path(folder)
    data = _json(path)
    names, ids = _categories(path, data["categories"])
    label_of = {number: label for label, number in enumerate(ids, 1)}
    problems: list[Problem] = []

    def leave_out(what: str, reason: str) -> None:
        problems.append(Problem(f"{path.name}: {what}", reason))

    images: dict[int, dict[str, Any]] = {}
    twice: set[int] = set()
    for place, entry in enumerate(data["images"]):
        number = entry.get("id") if isinstance(entry, Mapping) else None
        if type(number) is not int:
            leave_out(f"image {place}", f"it has no number as its id, got {shown(number)}")
        elif number in images:
            twice.add(number)
            leave_out(
                f"image {shown(entry.get('file_name'))[1:-1]}",
                f"it has the id {number}, which {images[number]['file_name']} has already: whose objects are whose is"
                " not known, and neither is used",
            )
        elif reason := _unusable(entry, folder):
            leave_out(f"image {shown(entry.get('file_name', number))[1:-1]}", reason)
        else:
            images[number] = entry
    for number in twice:
        images.pop(number, None)
    things: dict[int, list[Thing]] = {number: [] for number in images}
    known = {entry.get("id") for entry in data["images"] if isinstance(entry, Mapping)}
    for place, entry in enumerate(data["annotations"]):
        called = f"annotation {entry.get('id', place)}" if isinstance(entry, Mapping) else f"annotation {place}"
        number = entry.get("image_id") if isinstance(entry, Mapping) else None
        if number not in images:
            if number not in known:
                leave_out(called, f"it is of image {shown(number)}, which the file does not name")
            continue
        try:
            things[number].append(_thing(entry, images[number], label_of, masks))
        except DataError as error:
            leave_out(called, str(error))
    if not images:
        first = f", for example {problems[0].name}: {problems[0].reason}" if problems else ""
        raise DataError(f"{path}: none of its {len(data['images'])} images can be used{first}")
    return CocoSet(
        images=tuple(
            Annotated(number, folder / entry["file_name"], entry["width"], entry["height"], tuple(things[number]))
            for number, entry in images.items()
        ),
        class_names=names,
        class_ids=ids,
        problems=tuple(problems),
    )


def _json(path: Path) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: no annotations there ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON, or cut short ({' '.join(str(error).split())}): copy it again") from error
    for part in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(part), list):
            raise DataError(
                f"{path}: not in COCO's format: expected lists of images, annotations and categories, and"
                f" {part} is {shown(data.get(part)) if isinstance(data, dict) else 'not there'}"
            )
    return data


def _categories(path: Path, given: list[Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and numbers of the classes, in the order of the numbers."""
    found: dict[int, str] = {}
    for entry in given:
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, Mapping) else (None, None)
        if type(number) is not int or not isinstance(name, str) or number in found or name in found.values():
            raise DataError(
                f"{path}: the category {shown(entry)} has no number and name of its own, so objects of it cannot be"
                " told from others"
            )
        found[number] = name
    if not found:
        raise DataError(f"{path}: it declares no categories")
    ids = tuple(sorted(found))
    return tuple(found[number] for number in ids), ids


def _unusable(entry: Mapping[str, Any], folder: Path) -> str | None:
    """Why an image cannot be used, None where it can."""
    name, width, height = entry.get("file_name"), entry.get("width"), entry.get("height")
    if not isinstance(name, str) or not name:
        return "it has no file_name"
    if any(type(side) is not int or not 0 < side < 2**16 for side in (width, height)):
        return f"its width and height are {shown(width)} and {shown(height)}, expected pixels"
    if not (folder / name).is_file():
        return f"no such file in {folder}"
    return None


def _thing(entry: Mapping[str, Any], image: Mapping[str, Any], label_of: Mapping[int, int], masks: bool) -> Thing:
    """One object; `DataError` in words that follow its name where it cannot be used."""
    label = label_of.get(entry.get("category_id"))  # type: ignore[arg-type]
    if label is None:
        raise DataError(f"its category {shown(entry.get('category_id'))} is not declared")
    box, (width, height) = entry.get("bbox"), (image["width"], image["height"])
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) and v == v for v in box):
        raise DataError(f"its bbox {shown(box)} is not [x, y, width, height]")
    x, y, across, down = (float(value) for value in box)
    if across < 0 or down < 0:
        raise DataError(f"its box ends before it begins: x {x:g} to {x + across:g}, y {y:g} to {y + down:g}")
    if across == 0 or down == 0:
        raise DataError(f"its box has no area: {across:g} x {down:g} pixels")
    if x < -_EDGE or y < -_EDGE or x + across > width + _EDGE or y + down > height + _EDGE:
        raise DataError(
            f"its box reaches outside the image of {width} x {height}: x {x:g} to {x + across:g}, y {y:g} to"
            f" {y + down:g}"
        )
    corners = (max(x, 0.0), max(y, 0.0), min(x + across, float(width)), min(y + down, float(height)))
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        raise DataError("its box has no area inside the image")
    segmentation, crowd = entry.get("segmentation"), bool(entry.get("iscrowd", 0))
    rle: Rle | None = None
    if segmentation or masks:
        try:
            rle = as_rle(segmentation, height, width)
        except DataError as error:
            raise DataError(f"its mask {error}") from error
    area = entry.get("area")
    if not isinstance(area, int | float):
        area = across * down
    if area <= 0:
        raise DataError(f"its area is {area:g}")
    return Thing(label, corners, rle, crowd, float(area))
