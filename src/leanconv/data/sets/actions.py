"""`ucf101:PATH`, `hmdb51:PATH` and `something:PATH`: sets of actions, by the lists that their authors publish.

UCF101       classInd.txt "1 ApplyEyeMakeup"; trainlist01.txt "ApplyEyeMakeup/v_...avi 1"; testlist01.txt without 1
HMDB51       brush_hair_test_split1.txt "NAME.avi 1", for every class: 1 is training, 2 is test, 0 is neither
Something    *labels.json {"Holding something": "7"}; *train.json, *validation.json [{"id": .., "template": ..}]
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import Problem
from leanconv.data.sets.video_files import VideoSet, by_stem, existing, read_text
from leanconv.errors import DataError, shown, unknown
from leanconv.plain_text import BadText, read_json

__all__ = ["hmdb51", "something", "ucf101"]


def ucf101(text: str) -> VideoSet:
    """UCF101 in `PATH` or `PATH?split=2`: the lists (at any depth, such as `ucfTrainTestlist/`) and the videos.

    Labels are the folders of the listed paths, in the order of `classInd.txt`.
    Raises `DataError` for missing or malformed lists, and where none of the listed videos is there.
    """
    root, split = _root_and_split(text, "ucf101")
    index = _only(root, "classInd.txt", "ucf101")
    names = {}
    for line, row in _lines(index):
        match = re.fullmatch(r"(\d+)\s+(\S+)", row)
        if match is None:
            raise DataError(f"{index}: line {line} is {row[:80]!r}, expected the number and the name of a class")
        names[match[2]] = int(match[1])
    order = tuple(sorted(names, key=lambda name: names[name]))
    videos = by_stem(root)
    problems: list[Problem] = []
    halves = []
    for part in ("train", "test"):
        file = _only(root, f"{part}list{split:02d}.txt", "ucf101")
        found = []
        for line, row in _lines(file):
            match = re.fullmatch(r"([^/\\]+)[/\\](\S+)(?:\s+(\d+))?", row)
            if match is None or match[1] not in names:
                raise DataError(
                    f"{file}: line {line} is {row[:80]!r}, expected CLASS/VIDEO with a class of {index.name}"
                )
            if match[3] is not None and int(match[3]) != names[match[1]]:
                raise DataError(
                    f"{file}: line {line} gives {match[1]} the number {match[3]}, {index.name} {names[match[1]]}"
                )
            found.append((f"{match[1]}/{match[2]}", videos.get(Path(match[2]).stem), order.index(match[1])))
        halves.append(existing(root, file, found, problems))
    return VideoSet(train=halves[0], test=halves[1], class_names=order, problems=tuple(problems))


def hmdb51(text: str) -> VideoSet:
    """HMDB51 in `PATH` or `PATH?split=2`: the lists (at any depth) and the videos in folders of their classes.

    Raises as `ucf101`.
    """
    root, split = _root_and_split(text, "hmdb51")
    files = sorted(root.rglob(f"*_test_split{split}.txt"))
    if not files:
        raise DataError(f"hmdb51:{text}: no list CLASS_test_split{split}.txt there, unpack the published lists")
    names = tuple(file.name.removesuffix(f"_test_split{split}.txt") for file in files)
    if len(set(names)) < len(names):
        raise DataError(f"hmdb51:{text}: two lists of one class, keep one: {', '.join(map(str, files[:3]))}")
    videos = by_stem(root, with_folder=True)
    problems: list[Problem] = []
    found: dict[str, list[tuple[str, str | None, int]]] = {"1": [], "2": [], "0": []}
    for number, (name, file) in enumerate(zip(names, files, strict=True)):
        for line, row in _lines(file):
            match = re.fullmatch(r"(\S.*?)\s+([012])", row)
            if match is None:
                raise DataError(f"{file}: line {line} is {row[:80]!r}, expected a video and 0, 1 or 2")
            video = videos.get(f"{name}/{Path(match[1]).stem}")
            found[match[2]].append((f"{name}/{match[1]}", video, number))
    halves = [existing(root, files[0].parent, found[part], problems) for part in "12"]
    return VideoSet(train=halves[0], test=halves[1], class_names=names, problems=tuple(problems))


def something(text: str) -> VideoSet:
    """Something-Something in `text`: its three JSON lists (at any depth) and the videos, by their ids.

    A class such as "Pushing [something] from left to right" is another one in a mirror, so clips are never mirrored.
    Raises as `ucf101`.
    """
    root = user_path(text)
    numbers = _json(_only(root, "*labels.json", "something"), dict)
    wrong = [name for name, number in numbers.items() if not re.fullmatch(r"[0-9]{1,9}", str(number))]
    if wrong:
        raise DataError(
            f"{root}: the label {shown(wrong[0])} has {shown(numbers[wrong[0]])} where a number is expected"
        )
    names = tuple(sorted(numbers, key=lambda name: int(numbers[name])))
    place = {_plain(name): number for number, name in enumerate(names)}
    videos = by_stem(root)
    problems: list[Problem] = []
    halves = []
    for part in ("train", "validation"):
        file = _only(root, f"*{part}.json", "something")
        found = []
        for number, entry in enumerate(_json(file, list)):
            label = _plain(str(entry.get("template", ""))) if isinstance(entry, dict) else ""
            if "id" not in entry or label not in place:
                raise DataError(f"{file}: entry {number} is {shown(entry)}, expected an id and a known template")
            found.append((str(entry["id"]), videos.get(str(entry["id"])), place[label]))
        halves.append(existing(root, file, found, problems))
    return VideoSet(train=halves[0], test=halves[1], class_names=names, problems=tuple(problems), mirror=False)


def _root_and_split(text: str, kind: str) -> tuple[Path, int]:
    path, _, query = text.partition("?")
    name, _, value = query.partition("=")
    if query and name != "split":
        raise unknown(f"option of {kind}", name, ["split"])
    if query and value not in ("1", "2", "3"):
        raise DataError(f"{kind}:{text}: split must be 1, 2 or 3, got {value!r}")
    return user_path(path), int(value or 1)


def _only(root: Path, pattern: str, kind: str) -> Path:
    """The only file of that name below `root`."""
    found = sorted(root.rglob(pattern)) if root.is_dir() else []
    if len(found) != 1:
        what = "no file" if not found else f"{len(found)} files"
        raise DataError(f"{kind}:{root}: {what} {pattern} there, expected the published lists beside the videos, once")
    return found[0]


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    rows = [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1)]
    return [(number, row) for number, row in rows if row]


def _json(path: Path, kind: type) -> Any:
    try:
        content = read_json(read_text(path))
    except BadText as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(content, kind):
        raise DataError(f"{path}: expected a JSON {kind.__name__}, found a {type(content).__name__}")
    return content


def _plain(template: str) -> str:
    """A class as the list of labels writes it: without the brackets around what is done with."""
    return template.replace("[", "").replace("]", "")
