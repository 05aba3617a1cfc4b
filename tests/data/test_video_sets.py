"""Where videos and labels come from. Only names are looked at here, so the files are empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanconv.data.sets.folder import video_folder
from leanconv.data.sets.kinetics import kinetics
from leanconv.data.sets.splits import Problem
from leanconv.data.sets.sports1m import sports1m
from leanconv.data.sets.video_csv import video_csv
from leanconv.data.sets.video_files import VideoList
from leanconv.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def lines(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def held(videos: VideoList, root: Path) -> list[tuple[str, int]]:
    return [
        (str(Path(path).relative_to(root)), label)
        for path, label in zip(videos.paths, videos.labels.tolist(), strict=True)
    ]


def test_class_folders_split_or_not(tmp_path: Path) -> None:
    split = tmp_path / "split"
    touch(split, "train/hug/b.mp4", "train/hug/deep/a.MKV", "train/push/c.avi", "val/push/d.webm", "val/push/notes.txt")
    touch(split, "val/hug/e.mp4")
    found = video_folder(str(split))
    assert found.class_names == ("hug", "push")
    assert held(found.train, split) == [("train/hug/b.mp4", 0), ("train/hug/deep/a.MKV", 0), ("train/push/c.avi", 1)]
    assert held(found.test, split) == [("val/hug/e.mp4", 0), ("val/push/d.webm", 1)]
    whole = tmp_path / "whole"
    touch(whole, *(f"{name}/{number}.mp4" for name in ("hug", "push") for number in range(10)))
    found = video_folder(str(whole))
    assert (len(found.train.paths), len(found.test.paths)) == (16, 4)
    assert not set(found.train.paths) & set(found.test.paths)


def test_class_folders_are_refused_as_those_of_images_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"video-folder:.*: expected a folder with one folder of videos per class"):
        video_folder(str(tmp_path / "nowhere"))
    touch(tmp_path, "hug/a.mp4", "push/a.txt")
    with pytest.raises(DataError, match=r"push: empty class, no file with a video's suffix \(\.3gp, \.avi"):
        video_folder(str(tmp_path))


@pytest.mark.parametrize(
    "rows",
    [
        ["a.mp4,0", "sub/b c.mp4,1"],
        ["path,label,class,sequence", "a.mp4,0,0,9", "sub/b c.mp4,1,1,10"],
        ["label,path", "0,a.mp4", "1,sub/b c.mp4"],
        ["a.mp4\t0", "sub/b c.mp4\t1"],
        ["a.mp4 0", "", "sub/b c.mp4 1"],
        ['"a.mp4",0', '"sub/b c.mp4",1'],
    ],
)
def test_lists_of_every_form(tmp_path: Path, rows: list[str]) -> None:
    touch(tmp_path, "a.mp4", "sub/b c.mp4")
    path = lines(tmp_path / "list.csv", *rows)
    found = video_csv(f"{path},{path}")
    assert held(found.train, tmp_path) == held(found.test, tmp_path) == [("a.mp4", 0), ("sub/b c.mp4", 1)]
    assert found.class_names == ("0", "1")


def test_classes_have_the_names_that_the_list_gives_them(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    numbered = lines(tmp_path / "one.csv", "path,label,class", "a.mp4,1,hug", "b.mp4,0,push")
    assert video_csv(f"{numbered},{numbered}").class_names == ("push", "hug")
    named = lines(tmp_path / "two.csv", "a.mp4,push", "b.mp4,hug")
    found = video_csv(f"{named},{named}")
    assert found.class_names == ("hug", "push")
    assert held(found.train, tmp_path) == [("a.mp4", 1), ("b.mp4", 0)]


def test_one_list_is_split_class_by_class(tmp_path: Path) -> None:
    names = [f"{number}.mp4" for number in range(20)]
    touch(tmp_path, *names)
    path = lines(tmp_path / "list.csv", *(f"{name},{number % 2}" for number, name in enumerate(names)))
    found = video_csv(str(path))
    assert (found.train.labels.bincount().tolist(), found.test.labels.bincount().tolist()) == ([8, 8], [2, 2])


def test_listed_files_that_are_missing_are_named_and_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    path = lines(tmp_path / "list.csv", "a.mp4,0", "gone.mp4,0", "b.mp4,1")
    found = video_csv(f"{path},{path}")
    assert held(found.train, tmp_path) == [("a.mp4", 0), ("b.mp4", 1)]
    problem = Problem(str(tmp_path / "gone.mp4"), f"no such file, but {path} lists it")
    assert found.problems == (problem, problem)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a.mp4,0", "b.mp4,1"], ["a.mp4,2"], r"test\.csv: line 1 has label 2, expected 0 to 1 \(2 classes in the"),
        (["a.mp4,0", "b.mp4,-1"], ["a.mp4,0"], r"train\.csv: line 2 has label -1, expected numbers from 0"),
        (["a.mp4,0", "b.mp4,9999"], ["a.mp4,0"], r"train\.csv: label 9999 in a list of 2 videos"),
        (["a.mp4,0", "b.mp4,x"], ["a.mp4,0"], r"train\.csv: line 2 has 'x' where a whole number is expected"),
        (["a.mp4,hug", "b.mp4,push"], ["a.mp4,pull"], r"test\.csv: line 1 has label pull, expected one of hug, push"),
        (["a.mp4,0", "b.mp4,2"], ["a.mp4,0"], r"train\.csv: empty class '1' \(1 of 3 classes have no video\)"),
        (["a.mp4,0", "b.mp4,0"], ["a.mp4,0"], r"train\.csv: every label is 0, expected at least two classes"),
        (["x.mp4,0", "y.mp4,1"], ["a.mp4,0"], r"train\.csv: none of its 2 videos is in .*, for example .*x\.mp4"),
        (["a.mp4"], ["a.mp4,0"], r"train\.csv: line 1 is 'a\.mp4', expected a path and a label"),
        ([""], ["a.mp4,0"], r"train\.csv: an empty list"),
        (["path,label", "a.mp4"], ["a.mp4,0"], r"train\.csv: line 2 has 1 cells, expected 2"),
        (["path,label,class", "a.mp4,0,hug", "b.mp4,0,push"], ["a.mp4,0"], "line 3 calls label 0 'push', a line above"),
    ],
)
def test_lists_that_are_wrong(tmp_path: Path, train: list[str], test: list[str], message: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    one, other = lines(tmp_path / "train.csv", *train), lines(tmp_path / "test.csv", *test)
    with pytest.raises(DataError, match=message):
        video_csv(f"{one},{other}")


def test_lists_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        video_csv(str(tmp_path / "nowhere.csv"))
    with pytest.raises(DataError, match=r"expected video-csv:TRAIN\.csv,TEST\.csv"):
        video_csv("a,b,c")
    (tmp_path / "film.mp4").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"film\.mp4: not a readable text file"):
        video_csv(str(tmp_path / "film.mp4"))


HEAD = "label,youtube_id,time_start,time_end,split"


@pytest.mark.parametrize("place", [".", "annotations"])
@pytest.mark.parametrize(
    ("train_name", "val_name"), [("train", "val"), ("kinetics_600_train", "kinetics_600_validate")]
)
def test_kinetics_with_its_annotations(tmp_path: Path, place: str, train_name: str, val_name: str) -> None:
    lines(
        tmp_path / place / f"{train_name}.csv",
        HEAD,
        "zumba,aaaaaaaaaaa,1,11,train",
        '"hugging (not ""him"")",bbbbbbbbbbb,0,10,train',
        "zumba,ccccccccccc,125,135,train",
    )
    lines(tmp_path / place / f"{val_name}.csv", HEAD, "zumba,ddddddddddd,5,15,validate")
    touch(tmp_path, "train/aaaaaaaaaaa_000001_000011.mp4", "train/bbbbbbbbbbb_000000_000010.mkv", "val/ddddddddddd.mp4")
    touch(tmp_path, "replacement/aaaaaaaaaaa_000001_000011.mp4")
    found = kinetics(str(tmp_path))
    assert found.class_names == ('hugging (not "him")', "zumba")
    assert held(found.train, tmp_path) == [
        ("replacement/aaaaaaaaaaa_000001_000011.mp4", 1),
        ("train/bbbbbbbbbbb_000000_000010.mkv", 0),
    ]
    assert held(found.test, tmp_path) == [("val/ddddddddddd.mp4", 1)]
    assert [problem.name for problem in found.problems] == ["ccccccccccc_000125_000135"]


def test_kinetics_in_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/hug/a_000001_000011.mp4", "train/zumba/b.mp4", "val/hug/c.mp4", "val/zumba/d.mp4")
    assert held(kinetics(str(tmp_path)).test, tmp_path) == [("val/hug/c.mp4", 0), ("val/zumba/d.mp4", 1)]


def test_kinetics_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"kinetics:.*: expected a folder with one folder of videos per class"):
        kinetics(str(tmp_path / "nowhere"))
    touch(tmp_path, "a_000001_000011.mp4")
    lines(tmp_path / "train.csv", HEAD, "hug,a,1,11,train", "zumba,b,1,11,train")
    lines(tmp_path / "val.csv", HEAD, "pull,a,1,11,val")
    with pytest.raises(DataError, match=r"val\.csv: line 2 has the label 'pull', which no training clip has"):
        kinetics(str(tmp_path))
    lines(tmp_path / "val.csv", HEAD, "hug,c,1,11,val")
    with pytest.raises(DataError, match=r"val\.csv: none of its 1 videos is in .*, for example c_000001_000011"):
        kinetics(str(tmp_path))
    lines(tmp_path / "val.csv", "id,label", "c,hug")
    with pytest.raises(DataError, match=r"val\.csv: no column 'youtube_id', found id, label"):
        kinetics(str(tmp_path))
    lines(tmp_path / "mini_train.csv", HEAD)
    with pytest.raises(DataError, match=r"2 files end in train\.csv, keep the one that is meant"):
        kinetics(str(tmp_path))


@pytest.mark.parametrize("place", [".", "original"])
def test_sports1m(tmp_path: Path, place: str) -> None:
    lines(tmp_path / "labels.txt", "boomerang", "hurling", "model aircraft")
    lines(
        tmp_path / place / "train_partition.txt",
        "https://www.youtube.com/watch?v=UDqivjS-lpI 2,1",
        "http://www.youtube.com/watch?v=gone_gone-g 0",
        "https://youtu.be/aaaaaaaaaaa 1",
    )
    lines(tmp_path / place / "test_partition.txt", "https://www.youtube.com/watch?v=bbbbbbbbbbb&t=3 0")
    touch(tmp_path, "videos/U/UDqivjS-lpI.mp4", "videos/aaaaaaaaaaa.flv", "videos/bbbbbbbbbbb.mp4")
    found = sports1m(str(tmp_path))
    assert found.class_names == ("boomerang", "hurling", "model aircraft")
    assert held(found.train, tmp_path) == [("videos/U/UDqivjS-lpI.mp4", 2), ("videos/aaaaaaaaaaa.flv", 1)]
    assert held(found.test, tmp_path) == [("videos/bbbbbbbbbbb.mp4", 0)]
    assert [problem.name for problem in found.problems] == ["gone_gone-g"]
    lines(tmp_path / place / "test_partition.txt", "https://www.youtube.com/watch?v=bbbbbbbbbbb 3")
    with pytest.raises(
        DataError, match=r"line 1 is '.* 3', expected an address with the id of a video and labels from"
    ):
        sports1m(str(tmp_path))
    (tmp_path / "labels.txt").unlink()
    with pytest.raises(DataError, match=r"labels\.txt: no such file"):
        sports1m(str(tmp_path))
