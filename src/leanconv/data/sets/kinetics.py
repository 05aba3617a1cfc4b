"""`kinetics:PATH`: Kinetics-400, -600 or -700, with its annotation files or sorted into class folders."""

from __future__ import annotations

from pathlib import Path

from leanconv.data.sets.folder import video_folder
from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import Problem
from leanconv.data.sets.video_files import VideoList, VideoSet, by_stem, existing, read_table, whole_number
from leanconv.errors import DataError

__all__ = ["kinetics"]


def kinetics(path: str) -> VideoSet:
    """Kinetics-400, -600 or -700 in `path`: with its annotation files, or sorted into class folders.

    The annotation files (`train.csv`, `val.csv` or `validate.csv`, also with a prefix such as `kinetics-400_`, in
    `path` or its folder `annotations`) have the columns label, youtube_id, time_start and time_end; the clips are found
    at any depth as `<id>_<start>_<end>.mp4` with six digits each, or `<id>.mp4`. Without annotations `path` holds
    `train/<class>/` and `val/<class>/`. Classes are the training labels in alphabetical order.
    Raises `DataError` for a folder that is neither, and where none of the listed clips is there.
    """
    root = user_path(path)
    train_file, test_file = (_annotation(root, names) for names in (("train",), ("val", "validate", "validation")))
    if train_file is None or test_file is None:
        return video_folder(path, "kinetics")
    columns = ("label", "youtube_id", "time_start", "time_end")
    train, test = (read_table(file, columns) for file in (train_file, test_file))
    names = tuple(sorted({row["label"] for _, row in train}))
    numbers = {name: number for number, name in enumerate(names)}
    videos = by_stem(root)
    problems: list[Problem] = []

    def half(file: Path, rows: list[tuple[int, dict[str, str]]]) -> VideoList:
        found = []
        for line, row in rows:
            if row["label"] not in numbers:
                raise DataError(f"{file}: line {line} has the label {row['label']!r}, which no training clip has")
            start, end = (whole_number(file, line, row[name]) for name in ("time_start", "time_end"))
            stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            found.append((stem, videos.get(stem) or videos.get(row["youtube_id"]), numbers[row["label"]]))
        return existing(root, file, found, problems)

    halves = half(train_file, train), half(test_file, test)
    return VideoSet(train=halves[0], test=halves[1], class_names=names, problems=tuple(problems))


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
