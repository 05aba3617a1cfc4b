"""Annotation files in COCO's format: what is read, and what cannot be used, one line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference

from leanconv.data.detection.coco import read_coco
from leanconv.data.detection.data import open_detection
from leanconv.data.detection.masks import as_rle, from_pixels, pixels_of
from leanconv.errors import DataError, UnknownName

SQUARE = [[10, 10, 30, 10, 30, 25, 10, 25]]


def thing(number: int, image: int = 1, **changed: Any) -> dict[str, Any]:
    plain = {"id": number, "image_id": image, "category_id": 7, "bbox": [10, 10, 20, 15], "area": 300}
    return {**plain, "segmentation": SQUARE, "iscrowd": 0, **changed}


def written(folder: Path, things: list[Any], images: list[Any] | None = None, **others: Any) -> Path:
    images = images or [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in (1, 2)]
    for entry in images:
        draws = np.random.default_rng(entry["id"])
        if not str(entry["file_name"]).startswith("gone"):
            Image.fromarray(draws.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / entry["file_name"])
    categories = [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": things, "categories": categories, **others}))
    return path


def test_boxes_masks_crowds_and_classes(tmp_path: Path) -> None:
    inside = np.zeros((40, 60), dtype=np.uint8)
    inside[5:20, 3:9] = 1
    counts = [3 * 40 + 5, *[15, 25] * 5, 15, 60 * 40 - 3 * 40 - 5 - 6 * 15 - 5 * 25]
    packed = reference.encode(np.asfortranarray(inside))
    things = [
        thing(1),
        thing(2, category_id=9, segmentation={"size": [40, 60], "counts": counts}, bbox=[3, 5, 6, 15]),
        thing(3, iscrowd=1, segmentation={"size": [40, 60], "counts": packed["counts"].decode()}, bbox=[3, 5, 6, 15]),
    ]
    path = written(tmp_path, things)
    found = read_coco(path, tmp_path)
    assert (found.class_names, found.class_ids, found.problems) == (("cat", "dog"), (7, 9), ())
    one, other = found.images
    assert [(t.label, t.crowd) for t in one.things] == [(1, False), (2, False), (1, True)]
    assert other.things == ()
    masks = pixels_of([t.mask for t in one.things if t.mask], 40, 60)
    assert int(masks[0].sum()) == 20 * 15
    assert torch.equal(masks[1], torch.from_numpy(inside))
    assert torch.equal(masks[2], masks[1])
    assert from_pixels(masks[1:2])[0]["counts"] == packed["counts"]

    data = open_detection(f"coco:{path},{tmp_path}", batch_size=1, mirror=False)
    assert data.dropped == 1  # the image without objects
    [(images, [target])] = list(data.train_loader())
    assert images[0].shape == (3, 40, 60)
    assert float(images[0].max()) <= 1
    assert target["boxes"].tolist() == [[10, 10, 30, 25], [3, 5, 9, 20]]  # no crowds in training
    assert target["labels"].tolist() == [1, 2]
    tested = list(data.val_loader())
    assert len(tested) == 2
    assert tested[0][1][0]["iscrowd"].tolist() == [0, 0, 1]
    assert tested[1][1][0]["masks"].shape == (0, 40, 60)
    kept = open_detection(f"coco:{path},{tmp_path}", empty="keep", batch_size=2)
    assert len(next(iter(kept.train_loader()))[0]) == 2


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    images = [
        {"id": 1, "file_name": "1.png", "width": 60, "height": 40},
        {"id": 2, "file_name": "2.png", "width": 60, "height": 40},
        {"id": 3, "file_name": "3.png", "width": 60, "height": 40},
        {"id": 3, "file_name": "4.png", "width": 60, "height": 40},
        {"id": 5, "file_name": "gone.png", "width": 60, "height": 40},
    ]
    things = [
        thing(1),
        thing(2, segmentation=[[10, 10, 90, 10, 90, 25, 10, 25]]),
        thing(3, category_id=8),
        thing(4, bbox=[10, 10, 0, 15]),
        thing(5, bbox=[30, 10, -20, 15]),
        thing(6, image=77),
        thing(7, segmentation=[[1, 2, 3, 4]]),
        thing(8, segmentation={"size": [40, 60], "counts": [7]}),
        thing(9, image=3),
        thing(10, bbox=[50, 10, 20, 15]),
        thing(11, segmentation=[]),
        thing(12, image=2),
    ]
    path = written(tmp_path, things, images)
    found = read_coco(path, tmp_path)
    reasons = {problem.name.partition(": ")[2]: problem.reason for problem in found.problems}
    expected = {
        "annotation 2": "its mask has a polygon that reaches outside the image of 60 x 40",
        "annotation 3": "its category 8 is not declared",
        "annotation 4": "its box has no area",
        "annotation 5": "its box ends before it begins: x 30 to 10",
        "annotation 6": "it is of image 77, which the file does not name",
        "annotation 7": "its mask has a polygon of fewer than three points",
        "annotation 8": "its mask has run lengths that do not add up to the 2400 pixels",
        "annotation 10": "its box reaches outside the image of 60 x 40",
        "annotation 11": "its mask is empty",
        "image 4.png": "it has the id 3, which 3.png has already",
        "image gone.png": "no such file in",
    }
    assert reasons.keys() == expected.keys()
    assert all(reasons[name].startswith(reason) for name, reason in expected.items())
    assert [(one.id, len(one.things)) for one in found.images] == [(1, 1), (2, 1)]
    (tmp_path / "2.png").write_bytes(b"no picture")
    data = open_detection(f"coco:{path},{tmp_path}", batch_size=2)
    [(images_read, _)] = list(data.train_loader())
    assert len(images_read) == 1
    assert len(data.problems) == len(expected) + 1
    assert "12 images and annotations cannot be used" in data.remarks[-2]


def test_errors_that_nothing_goes_on_from(tmp_path: Path) -> None:
    path = written(tmp_path, [thing(1)])
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not JSON, or cut short"):
        read_coco(path, tmp_path)
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(
        DataError, match="expected lists of images, annotations and categories, and annotations is None"
    ):
        read_coco(path, tmp_path)
    with pytest.raises(DataError, match="no annotations there"):
        read_coco(tmp_path / "none.json", tmp_path)
    written(tmp_path, [thing(1)], categories=[{"id": 7, "name": "a"}, {"id": 7, "name": "b"}])
    with pytest.raises(DataError, match="has no number and name of its own"):
        read_coco(path, tmp_path)
    written(tmp_path, [thing(1)])
    with pytest.raises(UnknownName, match="choice for images without objects"):
        open_detection(f"coco:{path},{tmp_path}", empty="maybe")
    with pytest.raises(DataError, match="is of \\[4, 4\\]"):
        as_rle({"size": [4, 4], "counts": [16]}, 5, 5)


def test_epochs_mirror_and_come_back_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, [thing(1), thing(2, image=2)])

    def epoch(number: int, passes: int = 4) -> list[list[list[float]]]:
        data = open_detection(f"coco:{path},{tmp_path}", batch_size=1, passes=passes)
        data.set_epoch(number)
        loader = data.train_loader()
        whole = [target["boxes"].tolist() for _, [target] in loader]
        assert [target["boxes"].tolist() for _, [target] in loader.after(3)] == whole[3:]
        return whole

    first = epoch(0)
    assert first == epoch(0)
    assert len(first) == 8
    assert {tuple(box) for [box] in first} == {(10, 10, 30, 25), (30, 10, 50, 25)}
