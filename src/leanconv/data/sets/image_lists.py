"""`food101:PATH` and `indoor67:PATH`: sets of photographs, by the lists that their authors publish beside the folders.

Food-101       images/CLASS/NUMBER.jpg; meta/train.txt, test.txt: "CLASS/NUMBER", or .json {"CLASS": ["CLASS/NUMBER"]}
MIT-Indoor67   Images/CLASS/NAME.jpg; TrainImages.txt, TestImages.txt: "CLASS/NAME.jpg"
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from leanconv.data.sets.folder import FolderFiles
from leanconv.data.sets.splits import ImageSet
from leanconv.errors import DataError

__all__ = ["food101", "indoor67"]


def food101(path: str) -> ImageSet:
    """Food-101 in `path`, or in the folder food-101 in it: 75,750 pictures to train on and 25,250 to test on.

    The text lists are read, or the JSON lists where there are no others. Raises `DataError` for missing or malformed
    lists, a test class that is not trained on, and where none of the listed pictures is there.
    """
    root = _root(path, "food101", "food-101", "meta")
    meta = root / "meta"
    texts = all((meta / f"{part}.txt").is_file() for part in ("train", "test"))
    lists = [meta / f"{part}.{'txt' if texts else 'json'}" for part in ("train", "test")]
    train, test = ((_lines if texts else _json)(file) for file in lists)
    return _set(root / "images", lists, [f"{name}.jpg" for name in train], [f"{name}.jpg" for name in test])


def indoor67(path: str) -> ImageSet:
    """MIT's indoor scenes in `path`: 67 classes with 80 pictures each to train on and 20 to test on.

    Raises `DataError` as `food101`.
    """
    root = _root(path, "indoor67", "indoorCVPR_09", "Images")
    lists = [root / "TrainImages.txt", root / "TestImages.txt"]
    train, test = map(_lines, lists)
    return _set(root / "Images", lists, train, test)


def _root(path: str, kind: str, inner: str, needed: str) -> Path:
    """The folder that has the folder `needed`: the one that was named, or `inner` in it."""
    root = Path(path).expanduser()
    found = next((folder for folder in (root, root / inner) if (folder / needed).is_dir()), None)
    if found is None:
        raise DataError(f"{kind}:{path}: expected the folder {needed}/ there, as the set is unpacked")
    return found


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such list, and it says which pictures are in that part") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _json(file: Path) -> list[str]:
    try:
        content = json.loads("\n".join(_lines(file)))
        return [str(name) for names in content.values() for name in names]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file}: expected {{CLASS: [CLASS/NUMBER, ...]}}: {error}") from error


def _set(images: Path, lists: list[Path], train: list[str], test: list[str]) -> ImageSet:
    """The set of the pictures below `images` that the two `lists` name."""
    if not images.is_dir():
        raise DataError(f"{images}: there is no such folder, and {lists[0].name} lists its pictures")
    names: list[str] = []
    remarks: list[str] = []
    parts: list[FolderFiles] = []
    for file, listed in zip(lists, (train, test), strict=True):
        classes = [_class_of(file, line, name) for line, name in enumerate(listed, 1)]
        names = names or sorted(set(classes))
        if foreign := next((name for name in classes if name not in set(names)), None):
            raise DataError(f"{file}: the class {foreign!r} is none of the {len(names)} of {lists[0].name}")
        chosen = dict(zip(listed, classes, strict=True))  # what is listed twice is used once
        if len(chosen) < len(listed):
            remarks.append(f"{file}: lines that name a picture again: {len(listed) - len(chosen)}, each is used once")
        place = {name: number for number, name in enumerate(names)}
        labels = torch.tensor([place[name] for name in chosen.values()], dtype=torch.int64)
        if not chosen or not any((images / name).is_file() for name in chosen):
            raise DataError(f"{file}: none of its {len(chosen)} pictures is in {images}")
        parts.append(FolderFiles(images, tuple(chosen), labels))
    used = [set(part.paths) for part in parts]
    if both := sorted(used[0] & used[1]):
        remarks.append(f"pictures in both lists, so also trained on: {len(both)}, for example {both[0]}")
    unlisted = sum(len(files) for _, _, files in os.walk(images)) - sum(
        (images / name).is_file() for name in used[0] | used[1]
    )
    if unlisted:
        remarks.append(f"{images}: files in neither list, not used: {unlisted}")
    return ImageSet(train=parts[0], test=parts[1], class_names=tuple(names), remarks=tuple(remarks))


def _class_of(file: Path, line: int, name: str) -> str:
    """The folder of a listed picture, which stays below the folder of all pictures."""
    parts = name.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise DataError(f"{file}: entry {line} is {name[:80]!r}, expected CLASS/PICTURE")
    return parts[0]
