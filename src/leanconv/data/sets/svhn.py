"""`svhn:PATH`: the cropped digits of Street View House Numbers, `train_32x32.mat` and `test_32x32.mat`.

`svhn:PATH?extra=true` trains on what the papers train on: the training and the extra images without 400 and 200 of each
class (604,388 are left), which earlier work held out to tune on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from leanconv.data.sets.arrays import ArrayImages, Pixels, first_folder
from leanconv.data.sets.mat_file import read_mat
from leanconv.data.sets.splits import ImageSet, check_labels
from leanconv.errors import DataError, unknown
from leanconv.seeds import mix

__all__ = ["svhn"]

_HELD_OUT = {"train": 400, "extra": 200}

# Of the 604,388 training images, as published with the interleaved-group networks.
_MEAN = (111.609 / 255, 113.161 / 255, 120.565 / 255)
_STD = (50.498 / 255, 51.259 / 255, 50.244 / 255)


def svhn(text: str) -> ImageSet:
    """The digits in the folder `text`; `DataError` for missing or broken files.

    Which images are held out with `?extra=true` is decided by a hash of their numbers; the papers do not print theirs.
    """
    path, _, query = text.partition("?")
    name, _, value = query.partition("=")
    if query and name != "extra":
        raise unknown("option of svhn", name, ["extra"])
    if query and value not in ("true", "false"):
        raise DataError(f"svhn:{text}: extra must be true or false, got {value!r}")
    folder = first_folder(path, ("svhn", "SVHN"), "train_32x32.mat", "svhn")
    parts = [_read(folder, "train")]
    if value == "true":
        parts = [_without_held_out("train", *parts[0]), _without_held_out("extra", *_read(folder, "extra"))]
    pixels, labels = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    train = ArrayImages.of("svhn training", pixels, labels)
    test = ArrayImages.of("svhn test", *_read(folder, "test"))
    names = tuple(map(str, range(10)))
    check_labels(train.where, train.labels, names, every_class=True)
    check_labels(test.where, test.labels, names, every_class=False)
    return ImageSet(train=train, test=test, class_names=names, mean=_MEAN, std=_STD)


def _read(folder: Path, split: str) -> tuple[Pixels, Any]:
    """Pixels (n, 32, 32, 3) and labels (n,), where the file's label 10 is the digit 0."""
    path = folder / f"{split}_32x32.mat"
    if not path.is_file():
        raise DataError(f"{path}: missing, download it beside the others")
    content = read_mat(path, ("X", "y"))
    pixels, labels = content["X"], content["y"].reshape(-1)
    if not bool(np.isin(labels, range(11)).all()):
        raise DataError(f"{path}: y must be digits from 0, or 1 to 10, found others")
    labels = labels.astype(np.int64)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X must be (32, 32, 3, n) bytes, found {pixels.dtype} of shape {pixels.shape}")
    return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), labels % 10


def _without_held_out(split: str, pixels: Pixels, labels: Any) -> tuple[Pixels, Any]:
    keep = np.ones(len(labels), dtype=bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        if len(members) <= _HELD_OUT[split]:
            raise DataError(
                f"svhn {split}: digit {digit} has {len(members)} images, {_HELD_OUT[split]} of which would be held out"
            )
        ranked = sorted(members.tolist(), key=lambda index: mix(f"svhn {split} {index}"))
        keep[ranked[: _HELD_OUT[split]]] = False
    return pixels[keep], labels[keep]
