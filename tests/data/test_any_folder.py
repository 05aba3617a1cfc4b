"""A property of folders: whatever they are called and hold, each picture is used once, by the name of its folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from leanconv.data.sets.folder import FolderFiles, image_folder
from leanconv.errors import DataError
from random_trials import tried

NAMES = st.text(st.sampled_from("aZ09é ßж中\u0301😀_-.,;#%&'()[]{}$!~+=@^"), min_size=1, max_size=8).filter(
    lambda name: name.strip(" .") and not name.startswith(".")
)
PARTS = ("train", "training", "val", "valid", "validation", "test")
PICTURES = (".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".webp", ".bmp", ".TIF", ".jfif")
OTHERS = (".txt", ".json", "", ".xml", ".mp4")


@st.composite
def classes(draw: st.DrawFn, names: list[str]) -> dict[str, list[str]]:
    """Paths of pictures in each class, at any depth, unique without their case."""
    held = {}
    for name in names:
        paths = draw(
            st.lists(
                st.tuples(st.lists(NAMES, max_size=2), NAMES, st.sampled_from(PICTURES)),
                min_size=1, max_size=6, unique_by=lambda one: "/".join([*one[0], one[1]]).lower(),
            )
        )  # fmt: skip
        held[name] = ["/".join([*folders, stem]) + suffix for folders, stem, suffix in paths]
    return held


def build(root: Path, held: dict[str, list[str]], others: list[str]) -> set[tuple[str, str]]:
    """Write the pictures of each class and other files beside them; returns what was written, with its class."""
    for name, paths in held.items():
        for path in paths:
            (root / name / path).parent.mkdir(parents=True, exist_ok=True)
            (root / name / path).write_bytes(b"x")
        for number, suffix in enumerate(others):
            (root / name / f"_other{number}{suffix}").write_bytes(b"x")
    return {(f"{root}/{name}/{path}", name) for name, paths in held.items() for path in paths}


def found(files: FolderFiles, names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(files.name(index), names[int(label)]) for index, label in enumerate(files.labels)]


def conflicts(held: dict[str, list[str]]) -> bool:
    """Whether one path is to be a file and a folder."""
    return any(
        other.startswith(f"{path}/") for paths in held.values() for path in paths for other in paths if other != path
    )


@tried(30, "LEANCONV_FILES")
@given(data=st.data())
def test_a_folder_of_classes_is_split_whole(data: st.DataObject) -> None:
    names = data.draw(st.lists(NAMES.filter(lambda n: n.lower() not in PARTS), min_size=1, max_size=4, unique=True))
    assume(len({name.lower() for name in names}) == len(names))
    held = data.draw(classes(names))
    assume(not conflicts(held))
    with tempfile.TemporaryDirectory() as place:
        written = build(Path(place), held, data.draw(st.lists(st.sampled_from(OTHERS), max_size=3)))
        tested = image_folder(place, testing=True)
        assert tested.class_names == tuple(sorted(names))
        assert sorted(found(tested.test, tested.class_names)) == sorted(written)
        few = [name for name in names if len(held[name]) < 2]
        if len(names) < 2 or few:  # nothing to tell apart, or nothing to hold out
            with pytest.raises(DataError):
                image_folder(place)
            return
        halves = image_folder(place)
        train, test = (found(half, halves.class_names) for half in (halves.train, halves.test))
        assert sorted([*train, *test]) == sorted(written)
        assert {name for _, name in test} == {name for _, name in train} == set(names)
        again = image_folder(place)
        assert found(again.test, again.class_names) == test


@tried(30, "LEANCONV_FILES")
@given(data=st.data())
def test_parts_stay_apart(data: st.DataObject) -> None:
    names = data.draw(st.lists(NAMES, min_size=2, max_size=4, unique_by=str.lower))
    some = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    train, test = data.draw(classes(names)), data.draw(classes(some))
    assume(not conflicts(train) and not conflicts(test))
    called = (
        data.draw(st.sampled_from(("train", "Train", "training"))),
        data.draw(st.sampled_from(("test", "val", "valid", "validation", "Val"))),
    )
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        wanted = [build(here / part, held, []) for part, held in zip(called, (train, test), strict=True)]
        halves = image_folder(place)
        assert halves.class_names == tuple(sorted(names))
        assert sorted(found(halves.train, halves.class_names)) == sorted(wanted[0])
        assert sorted(found(halves.test, halves.class_names)) == sorted(wanted[1])
        assert (halves.val is halves.test) == (called[1].lower() != "test")
        only = image_folder(place, testing=True)
        assert sorted(found(only.test, only.class_names)) == sorted(wanted[1])
        assert only.train is None
