"""`imagenet:PATH`: the 2012 challenge as published: `train/n01440764/*.JPEG`, and `val/` in one of two forms.

Either `val/` has one folder per class, as most people sort it, or it is flat, as its archive unpacks
(`ILSVRC2012_val_00000001.JPEG`, ...), and the development kit beside it has the classes:
`ILSVRC2012_validation_ground_truth.txt` (a number per image) and `meta.mat` (number -> folder name).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from leanconv.data.sets.folder import FolderFiles, class_folders, files_of, image_folder
from leanconv.data.sets.mat_file import read_mat
from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import ImageSet
from leanconv.errors import DataError, shown

__all__ = ["imagenet"]

_KIT = ("", "ILSVRC2012_devkit_t12/data", "devkit/data")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def imagenet(path: str) -> ImageSet:
    """The images in `path`. Raises `DataError` for missing folders, images or labels."""
    root = user_path(path)
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise DataError(f"imagenet:{path}: expected the folders train/ and val/ there")
    if any(entry.is_dir() for entry in (root / "val").iterdir()):
        return image_folder(path)
    names = class_folders(root / "train")
    train, remarks = files_of(root / "train", names)
    files = sorted(entry.name for entry in (root / "val").iterdir() if entry.suffix.lower() in (".jpeg", ".jpg"))
    labels = _labels(root, names)
    if len(files) != len(labels):
        raise DataError(f"{root / 'val'}: {len(files)} images, but {_TRUTH} has {len(labels)} numbers: incomplete?")
    test = FolderFiles(root / "val", tuple(files), torch.tensor(labels, dtype=torch.int64))
    return ImageSet(train=train, test=test, class_names=tuple(names), remarks=remarks)


def _labels(root: Path, names: list[str]) -> list[int]:
    """The place in `names` of every validation image, in file order."""
    kit = next((root / place for place in _KIT if (root / place / _TRUTH).is_file()), None)
    if kit is None:
        raise DataError(
            f"{root / 'val'}: no class folders in it and no {_TRUTH} beside it: unpack the development kit into "
            f"{root}, or sort val/ into class folders"
        )
    folders = _folder_names(kit / "meta.mat")
    place = {name: index for index, name in enumerate(names)}
    labels = []
    for line, text in enumerate((kit / _TRUTH).read_text().split(), 1):
        name = folders.get(int(text[:12])) if text.isdecimal() else None
        if name not in place:
            raise DataError(f"{kit / _TRUTH}: line {line} is {shown(text)}, which is no class of {root / 'train'}")
        labels.append(place[name])
    return labels


def _folder_names(path: Path) -> dict[int, str]:
    """The number of each class in the challenge and its folder name."""
    try:
        synsets = read_mat(path, ("synsets",))["synsets"]
    except DataError as error:
        raise DataError(f"{path}: not the development kit's meta.mat: {error}") from error
    fields = synsets if isinstance(synsets, dict) else {}
    numbers, names = fields.get("ILSVRC2012_ID", []), fields.get("WNID", [])
    legal = all(isinstance(number, np.ndarray) and number.size == 1 for number in numbers)
    if not numbers or len(numbers) != len(names) or not legal or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: not the development kit's meta.mat: expected ILSVRC2012_ID and WNID of every class")
    return {int(number.item()): name for number, name in zip(numbers, names, strict=True)}
