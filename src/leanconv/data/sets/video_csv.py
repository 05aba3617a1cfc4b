"""`video-csv:TRAIN.csv,TEST.csv`: lists of videos and their labels, or one list to be split."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import NamedTuple

from leanconv.data.sets.splits import Problem, check_labels, held_out
from leanconv.data.sets.video_files import VideoList, VideoSet, existing, read_table, read_text, whole_number
from leanconv.errors import DataError

__all__ = ["video_csv"]


def video_csv(text: str, *, testing: bool = False) -> VideoSet:
    """The lists `TRAIN,TEST`, or one list of which a fixed fifth of every class is held out.

    A list has a path and a label per line, with a comma, a tab or a space between; paths are relative to the list's own
    folder. With a first line of names (`path` and `label`) there may be other columns, and `class` names the labels.
    Labels are numbers from 0, or names.
    Raises `DataError` for a list that is missing or malformed, a label out of range and a class without training
    videos.
    """
    files = [Path(part.strip()).expanduser() for part in text.split(",")]
    if not 1 <= len(files) <= 2 or not text.strip(" ,"):
        raise DataError(f"video-csv:{text}: expected video-csv:TRAIN.csv,TEST.csv or one list to be split")
    lists = [_labelled(path) for path in files]
    names = _class_names(files[0], lists[0])
    problems: list[Problem] = []
    halves = [_present(path, rows, names, problems) for path, rows in zip(files, lists, strict=True)]
    check_labels(str(files[0]), halves[0].labels, names, every_class=True, what="video")
    if len(names) < 2:
        raise DataError(f"{files[0]}: every label is {names[0]}, expected at least two classes")
    if len(halves) == 1:
        whole = halves[0]
        keys = [os.path.relpath(path, files[0].parent) for path in whole.paths]
        train, test = held_out(whole.labels, keys, whole.paths.__getitem__, what="video")
        halves = [_some(whole, train), _some(whole, test)]
    return VideoSet(train=halves[0], test=halves[1], class_names=names, problems=tuple(problems))


def _some(whole: VideoList, indices: tuple[int, ...]) -> VideoList:
    return VideoList(tuple(whole.paths[index] for index in indices), whole.labels[list(indices)])


class _Row(NamedTuple):
    line: int
    path: str
    label: str
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
        cells = (
            next(csv.reader([line])) if "," in first else line.split("\t") if "\t" in first else line.rsplit(None, 1)
        )
        if len(cells) < 2:
            raise DataError(f"{path}: line {number} is {line[:80]!r}, expected a path and a label")
        rows.append(_Row(number, cells[0].strip(), cells[1].strip(), None))
    return rows


def _class_names(path: Path, rows: list[_Row]) -> tuple[str, ...]:
    """The classes of a training list: names where labels are names, else as many numbers as the largest says."""
    if not any(re.fullmatch(r"-?\d+", row.label) for row in rows):
        return tuple(sorted({row.label for row in rows}))
    names: dict[int, str] = {}
    for row in rows:
        label = whole_number(path, row.line, row.label)
        if label < 0:
            raise DataError(f"{path}: line {row.line} has label {label}, expected numbers from 0")
        name = row.name or str(label)
        if names.setdefault(label, name) != name:
            raise DataError(f"{path}: line {row.line} calls label {label} {name!r}, a line above {names[label]!r}")
    top = max(names)
    if top >= 10 * len(rows) + 1000:
        raise DataError(f"{path}: label {top} in a list of {len(rows)} videos: expected the numbers of classes from 0")
    return tuple(names.get(label, str(label)) for label in range(top + 1))


def _present(path: Path, rows: list[_Row], names: tuple[str, ...], problems: list[Problem]) -> VideoList:
    by_name = {name: number for number, name in enumerate(names)}
    found = []
    for row in rows:
        number = int(row.label) if re.fullmatch(r"-?\d+", row.label) else by_name.get(row.label, -1)
        if not 0 <= number < len(names):
            raise DataError(
                f"{path}: line {row.line} has label {row.label}, expected {_range(names)} ({len(names)} classes in the"
                " training list)"
            )
        file = path.parent / Path(row.path).expanduser()
        found.append((str(file), str(file) if file.is_file() else None, number))
    return existing(path.parent, path, found, problems)


def _range(names: tuple[str, ...]) -> str:
    return f"0 to {len(names) - 1}" if all(name.isdigit() for name in names) else f"one of {', '.join(names[:5])}, ..."
