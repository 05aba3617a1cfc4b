"""`folder:PATH` and `video-folder:PATH`: one folder per class, already split (`train/` and `val/`) or not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanconv.data.sets.splits import ImageSet, check_labels, held_out
from leanconv.data.sets.video_files import SUFFIXES, VideoList, VideoSet
from leanconv.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FolderFiles", "class_folders", "files_of", "image_folder", "video_folder"]


@dataclass(frozen=True)
class _Kind:
    """What is looked for in the folders: its name in messages, the beginning of the name of the set, the suffixes."""

    what: str
    prefix: str
    suffixes: frozenset[str]


_IMAGES = _Kind(
    "image",
    "folder",
    frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")),
)
_TEST_NAMES = ("val", "validation", "test")


@dataclass(frozen=True)
class FolderFiles:
    """Files below `root` and their labels."""

    root: Path
    paths: tuple[str, ...]
    labels: Tensor

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def read(self, index: int) -> Image.Image:
        from PIL import Image

        return Image.open(self.root / self.paths[index])

    def some(self, indices: tuple[int, ...]) -> FolderFiles:
        """The files at `indices` only."""
        return FolderFiles(self.root, tuple(self.paths[index] for index in indices), self.labels[list(indices)])


def image_folder(path: str) -> ImageSet:
    """Read `PATH/train/<class>/*` and `PATH/val/<class>/*` (or `validation`, `test`), or split `PATH/<class>/*`.

    Classes are the folder names in alphabetical order; files below a class folder are found at any depth. Without a
    `train` folder a fixed fifth of every class is held out, chosen by a hash of the file names.
    Raises `DataError` for a missing folder, an empty class, and a test class that training does not have.
    """
    train, test, names = _halves(path, _IMAGES)
    return ImageSet(train=train, test=test, class_names=names)


def video_folder(path: str, prefix: str = "video-folder") -> VideoSet:
    """Videos in `PATH/train/<class>/` and `PATH/val/<class>/`, or in `PATH/<class>/`, as `image_folder` finds images.

    `prefix` begins the messages. Raises `DataError` as `image_folder` does.
    """
    train, test, names = _halves(path, _Kind("video", prefix, SUFFIXES))
    return VideoSet(train=_as_videos(train), test=_as_videos(test), class_names=names)


def _halves(path: str, kind: _Kind) -> tuple[FolderFiles, FolderFiles, tuple[str, ...]]:
    """Training files, test files and class names."""
    root = Path(path).expanduser()
    if not root.is_dir():
        came = "a file" if root.exists() else "nothing"
        raise DataError(
            f"{kind.prefix}:{path}: expected a folder with one folder of {kind.what}s per class, found {came} there"
        )
    if (root / "train").is_dir():
        names = class_folders(root / "train")
        train = files_of(root / "train", names, kind=kind)
        test_root = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
        if test_root is None:
            raise DataError(
                f"{kind.prefix}:{path}: found train/ but none of {', '.join(_TEST_NAMES)} beside it, and accuracy must"
                f" be measured on other {kind.what}s; add one, or name the train folder itself to have it split"
            )
        foreign = sorted(set(class_folders(test_root)) - set(names))
        if foreign:
            raise DataError(
                f"{test_root}: class {foreign[0]!r} is not a class of {root / 'train'} (expected among {len(names)}:"
                f" {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}); rename or remove it"
            )
        test = files_of(test_root, [name for name in names if (test_root / name).is_dir()], names, kind=kind)
        return train, test, tuple(names)
    names = class_folders(root)
    whole = files_of(root, names, kind=kind)
    keys = [Path(item).as_posix() for item in whole.paths]
    halves = held_out(whole.labels, keys, whole.name, what=kind.what)
    return whole.some(halves[0]), whole.some(halves[1]), tuple(names)


def _as_videos(files: FolderFiles) -> VideoList:
    return VideoList(tuple(files.name(index) for index in range(len(files.paths))), files.labels)


def class_folders(root: Path) -> list[str]:
    """The names of the class folders in `root`, sorted; `DataError` for fewer than two."""
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise DataError(
            f"{root}: expected one folder per class and at least two of them, found {len(names)}"
            f"{': ' + names[0] if names else ''}"
        )
    return names


def files_of(root: Path, present: list[str], names: list[str] | None = None, *, kind: _Kind = _IMAGES) -> FolderFiles:
    """The files of the classes `present`, labelled by their place in `names`; none of them may be empty."""
    names = present if names is None else names
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        found = sorted(
            os.path.relpath(os.path.join(folder, file), root)
            for folder, _, files in os.walk(root / name, followlinks=True)
            for file in files
            if os.path.splitext(file)[1].lower() in kind.suffixes and not file.startswith(".")
        )
        if not found:
            raise DataError(
                f"{root / name}: empty class, no file with {_an(kind.what)}'s suffix"
                f" ({', '.join(sorted(kind.suffixes))}); add {kind.what}s or remove the folder"
            )
        paths += found
        labels += [names.index(name)] * len(found)
    files = FolderFiles(root, tuple(paths), torch.tensor(labels, dtype=torch.int64))
    check_labels(str(root), files.labels, names, every_class=False, what=kind.what)
    return files


def _an(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"
