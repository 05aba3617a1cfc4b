"""Where videos and their labels come from: class folders, lists, and the layouts of Kinetics and Sports1M.

A list may name files that are not there (of the published sets some are always gone): they are left out and reported as
problems, and the set is refused only when nothing is left.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from leanconv.data.folder import Files, Kind, split_folders
from leanconv.data.splits import Problem, check_labels, held_out
from leanconv.errors import DataError

__all__ = ["VideoList", "VideoSet", "kinetics", "sports1m", "video_csv", "video_folder"]

_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")
)


@dataclass(frozen=True)
class VideoList:
    """Video files and their labels (n,)."""

    paths: tuple[str, ...]
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class VideoSet:
    """Training and test videos over the same classes; labels index `class_names`.

    `problems` are listed files that are not there; `mirror` says whether a mirrored video keeps its label.
    """

    train: VideoList
    test: VideoList
    class_names: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    mirror: bool = True


def video_folder(path: str) -> VideoSet:
    """Videos in `PATH/train/<class>/` and `PATH/val/<class>/`, or in `PATH/<class>/`, as `folder` finds images.

    Raises `DataError` as `folder` does.
    """
    return _in_folders(path, "video-folder")


def video_csv(text: str) -> VideoSet:
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


def kinetics(path: str) -> VideoSet:
    """Kinetics-400, -600 or -700 in `path`: with its annotation files, or sorted into class folders.

    The annotation files (`train.csv`, `val.csv` or `validate.csv`, also with a prefix such as `kinetics-400_`, in
    `path` or its folder `annotations`) have the columns label, youtube_id, time_start and time_end; the clips are found
    at any depth as `<id>_<start>_<end>.mp4` with six digits each, or `<id>.mp4`. Without annotations `path` holds
    `train/<class>/` and `val/<class>/`. Classes are the training labels in alphabetical order.
    Raises `DataError` for a folder that is neither, and where none of the listed clips is there.
    """
    root = Path(path).expanduser()
    train_file, test_file = (_annotation(root, names) for names in (("train",), ("val", "validate", "validation")))
    if train_file is None or test_file is None:
        return _in_folders(path, "kinetics")
    columns = ("label", "youtube_id", "time_start", "time_end")
    train, test = (_table(file, columns) for file in (train_file, test_file))
    names = tuple(sorted({row["label"] for _, row in train}))
    numbers = {name: number for number, name in enumerate(names)}
    videos = _by_stem(root)
    problems: list[Problem] = []

    def half(file: Path, rows: list[tuple[int, dict[str, str]]]) -> VideoList:
        found = []
        for line, row in rows:
            if row["label"] not in numbers:
                raise DataError(f"{file}: line {line} has the label {row['label']!r}, which no training clip has")
            start, end = (_whole(file, line, row[name]) for name in ("time_start", "time_end"))
            stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            found.append((stem, videos.get(stem) or videos.get(row["youtube_id"]), numbers[row["label"]]))
        return _there(root, file, found, problems)

    halves = half(train_file, train), half(test_file, test)
    return VideoSet(train=halves[0], test=halves[1], class_names=names, problems=tuple(problems))


def sports1m(path: str) -> VideoSet:
    """Sports1M in `path`: `labels.txt`, the published partitions, and the videos at any depth as `<youtube id>.mp4`.

    The partitions `train_partition.txt` and `test_partition.txt` are in `path` or its folder `original`; a line is an
    address and the numbers of the labels, of which the first counts.
    Raises `DataError` for a missing or malformed file, and where none of the listed videos is there.
    """
    root = Path(path).expanduser()
    names = tuple(line.strip() for line in _text(root / "labels.txt").splitlines() if line.strip())
    videos = _by_stem(root)
    problems: list[Problem] = []
    halves = []
    for name in ("train_partition.txt", "test_partition.txt"):
        file = next((place for place in (root / name, root / "original" / name) if place.is_file()), root / name)
        found = []
        for line, text in enumerate(_text(file).splitlines(), 1):
            match = re.fullmatch(r"\S*[?&/](?:v=)?([\w-]{11})\S*\s+(\d+)(?:,\d+)*\s*", text)
            if match is None or int(match[2]) >= len(names):
                raise DataError(
                    f"{file}: line {line} is {text[:80]!r}, expected an address with the id of a video and labels from"
                    f" 0 to {len(names) - 1}"
                )
            found.append((match[1], videos.get(match[1]), int(match[2])))
        halves.append(_there(root, file, found, problems))
    return VideoSet(train=halves[0], test=halves[1], class_names=names, problems=tuple(problems))


def _in_folders(path: str, prefix: str) -> VideoSet:
    train, test, names = split_folders(path, Kind("video", prefix, _SUFFIXES))
    return VideoSet(train=_of_files(train), test=_of_files(test), class_names=names)


def _of_files(files: Files) -> VideoList:
    return VideoList(tuple(files.name(index) for index in range(len(files.paths))), files.labels)


def _some(whole: VideoList, indices: tuple[int, ...]) -> VideoList:
    return VideoList(tuple(whole.paths[index] for index in indices), whole.labels[list(indices)])


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    name: str | None


def _labelled(path: Path) -> list[_Row]:
    """The rows of a list of paths and labels."""
    lines = _text(path).splitlines()
    first = next((line for line in lines if line.strip()), "")
    if not first:
        raise DataError(f"{path}: an empty list, expected a path and a label per line")
    names = [cell.strip().lower() for cell in first.split(",")]
    if {"path", "label"} <= set(names):
        table = _table(path, ("path", "label"))
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
        label = _whole(path, row.line, row.label)
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
    return _there(path.parent, path, found, problems)


def _range(names: tuple[str, ...]) -> str:
    return f"0 to {len(names) - 1}" if all(name.isdigit() for name in names) else f"one of {', '.join(names[:5])}, ..."


def _there(root: Path, file: Path, found: Iterable[tuple[str, str | None, int]], problems: list[Problem]) -> VideoList:
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
    return VideoList(tuple(paths), torch.tensor(labels, dtype=torch.int64))


def _by_stem(root: Path) -> dict[str, str]:
    """Every video below `root` by its name without suffix; a replacement (for a broken one) is preferred."""
    if not root.is_dir():
        raise DataError(
            f"{root}: expected a folder with videos, found {'a file' if root.exists() else 'nothing'} there"
        )
    found: dict[str, str] = {}
    for folder, _, files in sorted(os.walk(root, followlinks=True)):
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in _SUFFIXES and (stem not in found or "replacement" in folder):
                found[stem] = os.path.join(folder, file)
    return found


def _annotation(root: Path, endings: tuple[str, ...]) -> Path | None:
    """The annotation file of a split, `None` where there is none."""
    for folder in (root, root / "annotations"):
        for ending in endings:
            files = sorted(folder.glob(f"*{ending}.csv"))
            if len(files) > 1:
                raise DataError(f"{folder}: {len(files)} files end in {ending}.csv, keep the one that is meant")
            if files:
                return files[0]
    return None


def _table(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a line of names, with their line numbers; `DataError` where a column is missing."""
    reader = csv.reader(_text(path).splitlines())
    names = [name.strip().lower() for name in next(reader, [])]
    missing = [name for name in columns if name not in names]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}, found {', '.join(names)}")
    rows = []
    for cells in reader:
        if not cells:
            continue
        if len(cells) < len(names):
            raise DataError(f"{path}: line {reader.line_num} has {len(cells)} cells, expected {len(names)}")
        rows.append((reader.line_num, {name: cell.strip() for name, cell in zip(names, cells, strict=False)}))
    return rows


def _whole(path: Path, line: int, text: str) -> int:
    try:
        return int(float(text))
    except ValueError:
        raise DataError(f"{path}: line {line} has {text!r} where a whole number is expected") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file: {' '.join(str(error).split())}") from error
