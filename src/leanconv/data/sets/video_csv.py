"""`video-csv:TRAIN.csv,TEST.csv`: lists of videos and their labels, or one list to be split."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import Problem, check_labels, held_out
from leanconv.data.sets.video_files import VideoList, VideoSet, existing, read_table, read_text, whole_number
from leanconv.errors import DataError, shown

__all__ = ["video_csv"]


def video_csv(text: str, *, testing: bool = False) -> VideoSet:
    """The lists `TRAIN,TEST`, or one list of which a fixed fifth of every class is held out (with `testing`: all test).

    A list has a path and a label per line, with a comma, a tab or a space between; paths are relative to the list's own
    folder. With a first line of names (`path` and `label`) there may be other columns, and `class` names the labels.
    Labels are numbers from 0, or from 1 where no video has 0, or names; both lists are matched by name where they have
    names. A test list may leave out labels where the training list has one label for every folder.
    Raises `DataError` for a list that is missing or malformed, a label out of range and a class without training
    videos.
    """
    files = [user_path(part.strip()) for part in text.split(",")]
    if not 1 <= len(files) <= 2 or not text.strip(" ,"):
        raise DataError(f"video-csv:{text}: expected video-csv:TRAIN.csv,TEST.csv or one list to be split")
    lists = [_labelled(path) for path in files]
    for row in lists[0]:
        if row.label is None:
            raise DataError(f"{files[0]}: line {row.line} is {row.path[:80]!r}, expected a path and a label")
    classes = _Classes.of(files[0], lists[0])
    names = classes.names
    problems: list[Problem] = []
    halves = [_present(path, rows, classes, problems) for path, rows in zip(files, lists, strict=True)]
    if testing:
        return VideoSet(train=None, test=halves[-1], class_names=names, problems=tuple(problems))
    check_labels(str(files[0]), halves[0].labels, names, every_class=True, what="video")
    if len(names) < 2:
        raise DataError(f"{files[0]}: every label is {shown(names[0])[1:-1]}, expected at least two classes")
    if len(halves) == 1:
        whole = halves[0]
        keys = [os.path.relpath(path, files[0].parent) for path in whole.paths]
        train, test = held_out(whole.labels, keys, whole.paths.__getitem__, what="video", class_names=names)
        halves = [whole.some(train), whole.some(test)]
    twice = sorted(set(halves[0].paths) & set(halves[1].paths))
    remarks = () if not twice else (f"{len(twice)} test videos are also used for training, for example {twice[0]}",)
    return VideoSet(train=halves[0], test=halves[1], class_names=names, problems=tuple(problems), remarks=remarks)


class _Row(NamedTuple):
    line: int
    path: str
    label: str | None
    name: str | None


def _labelled(path: Path) -> list[_Row]:
    """The rows of a list of paths and labels."""
    lines = read_text(path).splitlines()
    first = next((line for line in lines if line.strip()), "")
    if not first:
        raise DataError(f"{path}: an empty list, expected a path and a label per line")
    names = [cell.strip().lower() for cell in first.split(",")]
    if {"path", "label"} <= set(names):
        table = read_table(path, ("path", "label"))
        return [_Row(line, row["path"], row["label"], row.get("class")) for line, row in table]
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cells = (
                next(csv.reader([line]))
                if "," in first
                else line.split("\t")
                if "\t" in first
                else line.rsplit(None, 1)
            )
        except (csv.Error, StopIteration) as error:
            raise DataError(f"{path}: line {number} cannot be read: {error or 'it is empty'}") from error
        rows.append(_Row(number, cells[0].strip(), cells[1].strip() if len(cells) > 1 else None, None))
    return rows


@dataclass(frozen=True)
class _Classes:
    """The classes of a training list: their names, the number that it calls the first (None: it has names for labels),
    and the label that all of its videos in a folder have, by the folder's name."""

    names: tuple[str, ...]
    first: int | None
    of_folder: dict[str, int]

    @classmethod
    def of(cls, path: Path, rows: list[_Row]) -> _Classes:
        """Names where labels are names, else as many numbers as the largest says."""
        if not any(re.fullmatch(r"-?[0-9]+", str(row.label)) for row in rows):
            found = cls(tuple(sorted({str(row.label) for row in rows})), None, {})
        else:
            found = cls._numbered(path, rows)
        folders: dict[str, set[int]] = {}
        for row in rows:
            folders.setdefault(Path(row.path).parent.name, set()).add(found.number(row) or 0)
        return replace(found, of_folder={name: min(held) for name, held in folders.items() if name and len(held) == 1})

    @classmethod
    def _numbered(cls, path: Path, rows: list[_Row]) -> _Classes:
        names: dict[int, str] = {}
        for row in rows:
            label = whole_number(path, row.line, str(row.label))
            if label < 0:
                raise DataError(f"{path}: line {row.line} has label {label}, expected numbers from 0")
            name = row.name or str(label)
            if names.setdefault(label, name) != name:
                raise DataError(
                    f"{path}: line {row.line} calls label {label} {shown(name)}, a line above {shown(names[label])}"
                )
        top, first = max(names), min(min(names), 1)
        if top >= 10 * len(rows) + 1000:
            raise DataError(
                f"{path}: label {top} in a list of {len(rows)} videos: expected the numbers of classes from 0 or 1"
            )
        return cls(tuple(names.get(label, str(label)) for label in range(first, top + 1)), first, {})

    def number(self, row: _Row) -> int | None:
        """The number of the row's class, None where the training list has no such class."""
        if row.name is not None and self.first is not None and row.name in self.names:
            return self.names.index(row.name)
        if row.label is None:
            return self.of_folder.get(Path(row.path).parent.name)
        if self.first is None:
            return self.names.index(row.label) if row.label in self.names else None
        if not re.fullmatch(r"-?[0-9]+", row.label):
            return self.names.index(row.label) if row.label in self.names else None
        number = int(row.label[:12]) - self.first  # of more digits than any list has classes
        known = 0 <= number < len(self.names) and row.name in (None, self.names[number])
        return number if known else None

    def wanted(self) -> str:
        """What labels may be, in words."""
        if self.first is not None and all(name.isdigit() for name in self.names):
            return f"{self.first} to {len(self.names) - 1 + self.first}"
        return f"one of {shown(', '.join(self.names[:5]))[1:-1]}, ..."


def _present(path: Path, rows: list[_Row], classes: _Classes, problems: list[Problem]) -> VideoList:
    found = []
    for row in rows:
        number = classes.number(row)
        if number is None:
            what = f"has label {shown(row.label)[1:-1]}" if row.name is None else f"has the class {shown(row.name)}"
            if row.label is None:
                what = f"is {row.path[:80]!r}, without a label, and its folder says none"
            raise DataError(
                f"{path}: line {row.line} {what}, expected {classes.wanted()} ({len(classes.names)} classes in the"
                " training list)"
            )
        file = path.parent / user_path(row.path)
        found.append((str(file), str(file) if file.is_file() else None, number))
    return existing(path.parent, path, found, problems)
