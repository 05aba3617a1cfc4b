"""`folder:PATH` and `video-folder:PATH`: one folder per class, already split (`train/` and `val/`) or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanconv.data.limits import open_image
from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import ImageSet, check_labels, held_out
from leanconv.data.sets.tree import Identity, Tree, shared_files
from leanconv.data.sets.video_files import SUFFIXES, VideoList, VideoSet
from leanconv.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FolderFiles", "class_folders", "files_of", "image_folder", "image_suffixes", "video_folder"]

_NO_PIXELS = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"))
"""Formats of which Pillow knows the name alone, or for which it would start another program."""


@cache
def image_suffixes() -> frozenset[str]:
    """Every suffix, in lower case, of the formats whose pixels Pillow reads here.

    >>> {".jpg", ".jfif", ".tiff", ".webp", ".jp2", ".tga"} <= image_suffixes(), ".txt" in image_suffixes()
    (True, False)
    """
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NO_PIXELS)


@dataclass(frozen=True)
class _Kind:
    """What is looked for in the folders: its name in messages, the beginning of the name of the set, the suffixes."""

    what: str
    prefix: str
    suffixes: frozenset[str]


_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "valid", "validation")
_TEST_NAMES = ("test", *_VAL_NAMES)
"""The first of these that is there is reported on."""


@dataclass(frozen=True)
class FolderFiles:
    """Files below `root` and their labels."""

    root: Path
    paths: tuple[str, ...]
    labels: Tensor

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def read(self, index: int) -> Image.Image:
        return open_image(self.root / self.paths[index])

    def some(self, indices: tuple[int, ...]) -> FolderFiles:
        """The files at `indices` only."""
        return FolderFiles(self.root, tuple(self.paths[index] for index in indices), self.labels[list(indices)])


@dataclass(frozen=True)
class _Halves:
    """Training files (None where there are none), test files, class names, remarks, and files to choose by."""

    train: FolderFiles | None
    test: FolderFiles
    names: tuple[str, ...]
    remarks: tuple[str, ...]
    val: FolderFiles | None = None


def image_folder(path: str, *, testing: bool = False) -> ImageSet:
    """Read `PATH/train/<class>/*`, `PATH/val/<class>/*` (or `valid`, `validation`) and `PATH/test/<class>/*`, or split
    `PATH/<class>/*`. One of the last two may be absent.

    Classes are the folder names in alphabetical order; files below a class folder are found at any depth, each once
    whatever links lead to it. Without a `train` folder a fixed fifth of every class is held out, chosen by a hash of
    the file names; with `testing` nothing is trained on, and all of it is test.
    Raises `DataError` for a missing folder, an empty class, and a test class that training does not have.
    """
    found = _halves(path, _Kind("image", "folder", image_suffixes()), testing)
    return ImageSet(train=found.train, test=found.test, val=found.val, class_names=found.names, remarks=found.remarks)


def video_folder(path: str, prefix: str = "video-folder", *, testing: bool = False) -> VideoSet:
    """Videos in `PATH/train/<class>/` and `PATH/val/<class>/`, or in `PATH/<class>/`, as `image_folder` finds images.

    `prefix` begins the messages. Raises `DataError` as `image_folder` does.
    """
    found = _halves(path, _Kind("video", prefix, SUFFIXES), testing)
    train = None if found.train is None else _as_videos(found.train)
    test = _as_videos(found.test)
    val = None if found.val is None else test if found.val is found.test else _as_videos(found.val)
    return VideoSet(train=train, test=test, val=val, class_names=found.names, remarks=found.remarks)


def _halves(path: str, kind: _Kind, testing: bool) -> _Halves:
    root = user_path(path)
    if not root.is_dir():
        came = "a file" if root.exists() else "nothing"
        raise DataError(
            f"{kind.prefix}:{path}: expected a folder with one folder of {kind.what}s per class, found {came} there"
        )
    folders = {entry.name.lower(): entry for entry in sorted(root.iterdir()) if entry.is_dir()}
    tests = [folders[name] for name in _TEST_NAMES if name in folders]
    train_root = next((folders[name] for name in _TRAIN_NAMES[: 2 if tests else 1] if name in folders), None)
    unused = [f"{folder} is not used, {tests[0].name}/ is" for folder in tests[1:]]
    if train_root is not None:
        if not tests:
            raise DataError(
                f"{kind.prefix}:{path}: found {train_root.name}/ but none of {', '.join((*_VAL_NAMES, 'test'))} beside"
                f" it, and accuracy must be measured on other {kind.what}s; add one, or name the train folder itself to"
                " have it split (a class cannot be called train)"
            )
        names = class_folders(train_root)
        test, test_ids, remarks = _part(tests[0], train_root, names, kind)
        chosen_by = test if tests[0].name.lower() in _VAL_NAMES else None  # there is nothing else to report on
        if testing:
            return _Halves(None, test, tuple(names), (*unused, *remarks), chosen_by)
        train, train_ids, more = _files(train_root, names, names, kind)
        remarks = [*more, *remarks, *shared_files(train_ids, test_ids, f"test {kind.what}")]
        val = chosen_by
        if val is None and len(tests) > 1:  # beside the test a part to choose by
            val, val_ids, told = _part(tests[1], train_root, names, kind)
            remarks += [*told, *shared_files(train_ids, val_ids, f"validation {kind.what}")]
            unused = unused[1:]
        return _Halves(train, test, tuple(names), (*unused, *remarks), val)
    visible = [name for name in folders if not name.startswith(".")]
    if tests and len(tests) == len(visible):  # nothing else: they are no classes
        if not testing:
            raise DataError(
                f"{kind.prefix}:{path}: found {tests[0].name}/ but no train/ beside it: there is nothing to train on"
            )
        root = tests[0]
    names = class_folders(root, least=1 if testing else 2)
    whole, _, told = _files(root, names, names, kind)
    told = [*(unused if root in tests else []), *told]
    if testing:
        return _Halves(None, whole, tuple(names), tuple(told))
    keys = [Path(item).as_posix() for item in whole.paths]
    halves = held_out(whole.labels, keys, whole.name, what=kind.what, class_names=names)
    return _Halves(whole.some(halves[0]), whole.some(halves[1]), tuple(names), tuple(told))


def _part(
    root: Path, train_root: Path, names: Sequence[str], kind: _Kind
) -> tuple[FolderFiles, dict[Identity, str], list[str]]:
    """The files of a part that is not trained on, as `_files` gives them; `DataError` for a class foreign to it."""
    present = class_folders(root, least=1)
    if foreign := sorted(set(present) - set(names)):
        raise DataError(
            f"{root}: class {foreign[0]!r} is not a class of {train_root} (expected among {len(names)}:"
            f" {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}); rename or remove it"
        )
    files, identities, told = _files(root, present, names, kind)
    return files, identities, [*_absent(root, names, present), *told]


def _absent(root: Path, names: Sequence[str], present: Sequence[str]) -> list[str]:
    """A sentence where not all classes are tested."""
    absent = [name for name in names if name not in present]
    if not absent:
        return []
    return [f"{root}: {len(absent)} of {len(names)} classes are not tested: {', '.join(absent[:5])}"]


def _as_videos(files: FolderFiles) -> VideoList:
    return VideoList(tuple(files.name(index) for index in range(len(files.paths))), files.labels)


def class_folders(root: Path, *, least: int = 2) -> list[str]:
    """The names of the class folders in `root`, sorted; `DataError` for fewer than `least`."""
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < least:
        wanted = "at least two of them" if least == 2 else "at least one of them"
        raise DataError(
            f"{root}: expected one folder per class and {wanted}, found {len(names)}{': ' + names[0] if names else ''}"
        )
    return names


def files_of(root: Path, names: Sequence[str]) -> tuple[FolderFiles, tuple[str, ...]]:
    """The images of the classes `names`, labelled by their place, and remarks; none of them may be empty."""
    files, _, remarks = _files(root, names, names, _Kind("image", "folder", image_suffixes()))
    return files, tuple(remarks)


def _files(
    root: Path, present: Sequence[str], names: Sequence[str], kind: _Kind
) -> tuple[FolderFiles, dict[Identity, str], list[str]]:
    """The files of the classes `present`, labelled by their place in `names`; their identities; remarks."""
    tree = Tree(root, kind.suffixes)
    for name in present:
        if not tree.add(name):
            raise DataError(
                f"{root / name}: empty class, no file with {_an(kind.what)}'s suffix"
                f" ({', '.join(sorted(kind.suffixes))}); add {kind.what}s or remove the folder"
            )
    tree.beside(present)
    place = {name: number for number, name in enumerate(names)}
    labels = torch.tensor([place[name] for _, name, _ in tree.files], dtype=torch.int64)
    files = FolderFiles(root, tuple(path for path, _, _ in tree.files), labels)
    check_labels(str(root), files.labels, names, every_class=False, what=kind.what)
    identities = {identity: str(root / path) for path, _, identity in tree.files}
    return files, identities, tree.remarks(kind.what)


def _an(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"
