"""`sports1m:PATH`: Sports1M by its published partitions."""

from __future__ import annotations

import re

from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import Problem
from leanconv.data.sets.video_files import VideoSet, by_stem, existing, read_text
from leanconv.errors import DataError

__all__ = ["sports1m"]


def sports1m(path: str) -> VideoSet:
    """Sports1M in `path`: `labels.txt`, the published partitions, and the videos at any depth as `<youtube id>.mp4`.

    The partitions `train_partition.txt` and `test_partition.txt` are in `path` or its folder `original`; a line is an
    address and the numbers of the labels, of which the first counts.
    Raises `DataError` for a missing or malformed file, and where none of the listed videos is there.
    """
    root = user_path(path)
    names = tuple(line.strip() for line in read_text(root / "labels.txt").splitlines() if line.strip())
    videos = by_stem(root)
    problems: list[Problem] = []
    halves = []
    for name in ("train_partition.txt", "test_partition.txt"):
        file = next((place for place in (root / name, root / "original" / name) if place.is_file()), root / name)
        found = []
        for line, text in enumerate(read_text(file).splitlines(), 1):
            match = re.fullmatch(r"\S*[?&/](?:v=)?([\w-]{11})\S*\s+(\d+)(?:,\d+)*\s*", text)
            if match is None or int(match[2]) >= len(names):
                raise DataError(
                    f"{file}: line {line} is {text[:80]!r}, expected an address with the id of a video and labels from"
                    f" 0 to {len(names) - 1}"
                )
            found.append((match[1], videos.get(match[1]), int(match[2])))
        halves.append(existing(root, file, found, problems))
    return VideoSet(train=halves[0], test=halves[1], class_names=names, problems=tuple(problems))
