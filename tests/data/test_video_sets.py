"""Where videos and labels come from. Only names are looked at here, so the files are empty."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanconv.data.sets.actions import hmdb51, something, ucf101
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


# ------------------------------------------------------------------------------------------------ lists of the field


def test_lists_from_one_and_test_lists_without_labels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{number}.avi" for name in ("Hug", "Push") for number in range(3)))
    train = lines(tmp_path / "train.txt", "Hug/0.avi 1", "Hug/1.avi 1", "Push/0.avi 2", "Push/1.avi 2")
    test = lines(tmp_path / "test.txt", "Hug/2.avi", "Push/2.avi")
    found = video_csv(f"{train},{test}")
    assert found.class_names == ("1", "2")
    assert found.train.labels.tolist() == [0, 0, 1, 1]
    assert held(found.test, tmp_path) == [("Hug/2.avi", 0), ("Push/2.avi", 1)]
    with pytest.raises(DataError, match=r"test\.txt: line 1 has label 0, expected 1 to 2"):
        video_csv(f"{train},{lines(tmp_path / 'test.txt', 'Hug/2.avi 0')}")
    with pytest.raises(DataError, match=r"line 1 is 'Kick/2\.avi', without a label, and its folder says none"):
        video_csv(f"{train},{lines(tmp_path / 'test.txt', 'Kick/2.avi')}")


def test_lists_are_matched_by_the_names_of_their_classes(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    train = lines(tmp_path / "train.csv", "path,label,class", "a.mp4,0,hug", "b.mp4,1,push")
    test = lines(tmp_path / "test.csv", "path,label,class", "c.mp4,1,hug", "d.mp4,0,push")
    assert held(video_csv(f"{train},{test}").test, tmp_path) == [("c.mp4", 0), ("d.mp4", 1)]
    by_name = lines(tmp_path / "names.csv", "c.mp4,push", "d.mp4,hug")
    assert held(video_csv(f"{train},{by_name}").test, tmp_path) == [("c.mp4", 1), ("d.mp4", 0)]
    with pytest.raises(DataError, match=r"test\.csv: line 2 has the class 'kick', expected one of hug, push"):
        video_csv(f"{train},{lines(tmp_path / 'test.csv', 'path,label,class', 'c.mp4,1,kick')}")


def test_a_video_in_both_lists_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    path = lines(tmp_path / "list.csv", "a.mp4,0", "b.mp4,1")
    [told] = video_csv(f"{path},{path}").remarks
    assert told.startswith("2 test videos are also used for training, for example ")


def test_one_list_to_test_on_is_used_whole(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.mp4" for number in range(10)))
    path = lines(tmp_path / "list.csv", *(f"{number}.mp4,{number % 2}" for number in range(10)))
    found = video_csv(str(path), testing=True)
    assert (found.train, len(found.test.paths)) == (None, 10)
    touch(tmp_path / "set", "hug/a.mp4", "push/b.mp4", "push/c.mp4")
    assert len(video_folder(str(tmp_path / "set"), testing=True).test.paths) == 3


def ucf_files(root: Path) -> Path:
    touch(root, *(f"UCF-101/{name}/v_{name}_g0{number}_c01.avi" for name in ("Yo", "Archery") for number in range(4)))
    lists = root / "ucfTrainTestlist"
    lines(lists / "classInd.txt", "1 Yo", "2 Archery")  # not in the order of the alphabet
    for split in (1, 2):
        lines(
            lists / f"trainlist0{split}.txt",
            *(f"{n}/v_{n}_g0{k}_c01.avi {i}" for i, n in ((1, "Yo"), (2, "Archery")) for k in range(split, 4)),
        )
        lines(lists / f"testlist0{split}.txt", *(f"{n}/v_{n}_g00_c01.avi" for n in ("Yo", "Archery")))
    return root


def test_ucf101_as_published(tmp_path: Path) -> None:
    root = ucf_files(tmp_path)
    found = ucf101(str(root))
    assert found.class_names == ("Yo", "Archery")
    assert held(found.test, root / "UCF-101") == [("Yo/v_Yo_g00_c01.avi", 0), ("Archery/v_Archery_g00_c01.avi", 1)]
    assert found.train.labels.tolist() == [0] * 3 + [1] * 3
    assert len(ucf101(f"{root}?split=2").train.paths) == 4
    (root / "UCF-101" / "Yo" / "v_Yo_g00_c01.avi").unlink()
    assert [problem.name for problem in ucf101(str(root)).problems] == ["Yo/v_Yo_g00_c01.avi"]


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("trainlist01.txt", "Yo/v_Yo_g01_c01.avi 2", "gives Yo the number 2, classInd.txt 1"),
        ("testlist01.txt", "Kick/v_Kick_g01_c01.avi", "expected CLASS/VIDEO with a class of classInd.txt"),
        ("classInd.txt", "Yo", "expected the number and the name of a class"),
    ],
)
def test_ucf101_lists_that_contradict_each_other(tmp_path: Path, file: str, row: str, message: str) -> None:
    root = ucf_files(tmp_path)
    lines(root / "ucfTrainTestlist" / file, row)
    with pytest.raises(DataError, match=message):
        ucf101(str(root))


def test_hmdb51_as_published(tmp_path: Path) -> None:
    for name in ("brush_hair", "cartwheel"):
        touch(tmp_path, *(f"videos/{name}/same ({number})_name.avi" for number in range(4)))
        rows = [f"same ({number})_name.avi {mark}" for number, mark in enumerate((1, 2, 0, 1))]
        lines(tmp_path / "testTrainMulti_7030_splits" / f"{name}_test_split1.txt", *rows)
    found = hmdb51(str(tmp_path))
    assert found.class_names == ("brush_hair", "cartwheel")
    assert found.train.labels.tolist() == [0, 0, 1, 1]
    expected = [("brush_hair/same (1)_name.avi", 0), ("cartwheel/same (1)_name.avi", 1)]
    assert held(found.test, tmp_path / "videos") == expected, "the same name in two classes is two videos"
    with pytest.raises(DataError, match="no list CLASS_test_split3"):
        hmdb51(f"{tmp_path}?split=3")
    lines(tmp_path / "testTrainMulti_7030_splits" / "cartwheel_test_split1.txt", "a.avi 3")
    with pytest.raises(DataError, match="expected a video and 0, 1 or 2"):
        hmdb51(str(tmp_path))


def test_something_as_published(tmp_path: Path) -> None:
    touch(tmp_path, *(f"20bn-something-something-v2/{number}.webm" for number in range(4)))
    labels = {"Holding something": "1", "Pushing something from left to right": "0"}
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps(labels))
    held_, pushed = "Holding [something]", "Pushing [something] from left to right"
    for part, entries in (("train", [("0", held_), ("1", pushed)]), ("validation", [("3", pushed), ("9", held_)])):
        content = [{"id": number, "label": "holding a cup", "template": template} for number, template in entries]
        (tmp_path / f"something-something-v2-{part}.json").write_text(json.dumps(content))
    found = something(str(tmp_path))
    assert found.class_names == ("Pushing something from left to right", "Holding something")
    assert held(found.train, tmp_path / "20bn-something-something-v2") == [("0.webm", 1), ("1.webm", 0)]
    assert held(found.test, tmp_path / "20bn-something-something-v2") == [("3.webm", 0)]
    assert [problem.name for problem in found.problems] == ["9"]
    assert not found.mirror, "left to right is another class in a mirror"
    (tmp_path / "something-something-v2-train.json").write_text('[{"id": "0", "template": "Juggling"}]')
    with pytest.raises(DataError, match=r"entry 0 is .* expected an id and a known template"):
        something(str(tmp_path))


def test_videos_behind_links_that_lead_around_are_found_once(tmp_path: Path) -> None:
    root = ucf_files(tmp_path)
    (root / "UCF-101" / "Yo" / "up").symlink_to(root, target_is_directory=True)
    assert len(ucf101(str(root)).train.paths) == 6
