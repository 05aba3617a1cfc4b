"""What every reader of videos gives: files and labels, and what of a published list is really there.

A list may name files that are not there (of the published sets some are always gone): they are left out and reported as
problems, and the set is refused only when nothing is left.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from leanconv.data.sets.splits import Problem
from leanconv.data.sets.tree import Tree
from leanconv.errors import DataError, shown

__all__ = ["SUFFIXES", "VideoList", "VideoSet", "by_stem", "existing", "read_table", "read_text", "whole_number"]

SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")
)


_LONGEST_LIST = 2**27


@dataclass(frozen=True)
class VideoList:
    """Video files and their labels (n,); `missing` are those that are listed and not there."""

    paths: tuple[str, ...]
    labels: Tensor
    missing: tuple[Problem, ...] = ()

    def some(self, indices: tuple[int, ...]) -> VideoList:
        """The videos at `indices` only."""
        return VideoList(tuple(self.paths[index] for index in indices), self.labels[list(indices)])


@dataclass(frozen=True, kw_only=True)
class VideoSet:
    """Training and test videos over the same classes; labels index `class_names`.

    A set opened to be tested on alone has no training videos; `val` and `part` are as those of an `ImageSet`.
    `problems` are listed files that are not there, `remarks` sentences about what was found and may surprise; `mirror`
    says whether a mirrored video keeps its label.
    """

    train: VideoList | None
    test: VideoList
    class_names: tuple[str, ...]
    val: VideoList | None = None
    part: str = "test"
    problems: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()
    mirror: bool = True


def existing(
    root: Path, file: Path, found: Iterable[tuple[str, str | None, int]], problems: list[Problem]
) -> VideoList:
    """The videos of (name, path or None, label) that exist; the others are added to `problems`."""
    paths, labels = [], []
    missing: list[Problem] = []
    for name, path, label in found:
        if path is None:
            missing.append(Problem(name, f"no such file, but {file} lists it"))
        else:
            paths.append(path)
            labels.append(label)
    if not paths:
        example = f", for example {missing[0].name}" if missing else ""
        raise DataError(f"{file}: none of its {len(missing)} videos is in {root}{example}")
    problems += missing
    return VideoList(tuple(paths), torch.tensor(labels, dtype=torch.int64), tuple(missing))


def by_stem(root: Path, *, with_folder: bool = False) -> dict[str, str]:
    """Every video below `root` by its name without suffix, or by folder/name; a replacement (for a broken one) is
    preferred."""
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder with videos, found {'a file' if root.exists() else 'nothing'} there"
        )
    found: dict[str, str] = {}
    for path, _ in Tree(root, SUFFIXES).names():
        folder, file = os.path.split(os.path.join(root, path))
        stem = os.path.splitext(file)[0]
        stem = f"{os.path.basename(folder)}/{stem}" if with_folder else stem
        if stem not in found or "replacement" in folder:
            found[stem] = os.path.join(folder, file)
    return found


def read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a line of names, with their line numbers; `DataError` where a column is missing."""
    reader = csv.reader(read_text(path).splitlines())
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in columns if name not in names]
        if missing:
            raise DataError(f"{path}: no column {missing[0]!r}, found {shown(', '.join(names))[1:-1]}")
        twice = [name for name in columns if names.count(name) > 1]
        if twice:
            raise DataError(f"{path}: the column {twice[0]!r} is there {names.count(twice[0])} times, expected it once")
        rows = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) < len(names):
                raise DataError(f"{path}: line {reader.line_num} has {len(cells)} cells, expected {len(names)}")
            rows.append((reader.line_num, {name: cell.strip() for name, cell in zip(names, cells, strict=False)}))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} cannot be read: {error}") from error
    return rows


def whole_number(path: Path, line: int, text: str) -> int:
    """The number in a cell, which may be written as 3.0; `DataError` for NaN, fractions and what no count can be."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) < 2**31 or not number.is_integer():
        raise DataError(f"{path}: line {line} has {shown(text)} where a whole number is expected")
    return int(number)


def read_text(path: Path) -> str:
    """The whole text of a list, of at most 128 MB."""
    try:
        if path.stat().st_size > _LONGEST_LIST:
            raise DataError(f"{path}: a list of more than {_LONGEST_LIST / 1e6:.0f} MB, which is none")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file: {' '.join(str(error).split())}") from error
