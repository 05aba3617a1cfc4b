"""Food-101 and MIT-Indoor67 as they are published: small trees of the same layout, lists in the same form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_images import picture

from leanconv.cli import main
from leanconv.data import open_images
from leanconv.errors import DataError

FOOD = {
    "train": ["apple_pie/1005649", "apple_pie/1014775", "waffles/1001377"],
    "test": ["apple_pie/1011328", "waffles/1005755", "waffles/1041201"],
}


def drawn(root: Path, names: list[str]) -> None:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, 12, 9).save(root / name, "JPEG")


def food(root: Path, kind: str = "txt") -> Path:
    """food-101/ as its archive unpacks, with the lists in one of the forms that it has."""
    (root / "meta").mkdir(parents=True)
    for part, names in FOOD.items():
        drawn(root / "images", [f"{name}.jpg" for name in names])
        by_class = {name: [one for one in names if one.startswith(f"{name}/")] for name in ("waffles", "apple_pie")}
        text = "\n".join(names) + "\n" if kind == "txt" else json.dumps(by_class)
        (root / "meta" / f"{part}.{kind}").write_text(text)
    (root / "meta" / "classes.txt").write_text("apple_pie\nwaffles\n")
    (root / "meta" / "labels.txt").write_text("Apple pie\nWaffles\n")
    return root


def indoor(root: Path, train: str, test: str) -> Path:
    root.mkdir()
    (root / "TrainImages.txt").write_text(train)
    (root / "TestImages.txt").write_text(test)
    names = [line.strip() for line in (train + "\n" + test).splitlines() if line.strip()]
    drawn(root / "Images", sorted({name for name in names if "/" in name and ".." not in name}))
    return root


def parts(data: object) -> list[list[tuple[str, int]]]:
    """Names below the folder of the pictures, and labels, of both parts."""
    images = data._images  # type: ignore[attr-defined]
    return [list(zip(half.paths, half.labels.tolist(), strict=True)) for half in (images.train, images.test)]


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_food_101_is_split_as_published(tmp_path: Path, kind: str) -> None:
    food(tmp_path / "food-101", kind)
    for path in (tmp_path, tmp_path / "food-101"):
        data = open_images(f"food101:{path}", resolution=8, batch_size=2)
        assert data.class_names == ("apple_pie", "waffles")
        train, test = map(sorted, parts(data))
        assert train == [("apple_pie/1005649.jpg", 0), ("apple_pie/1014775.jpg", 0), ("waffles/1001377.jpg", 1)]
        assert test == [("apple_pie/1011328.jpg", 0), ("waffles/1005755.jpg", 1), ("waffles/1041201.jpg", 1)]
        assert (data.train_size, data.test_size, data.remarks) == (3, 3, ())


def test_indoor_67_is_split_as_published(tmp_path: Path) -> None:
    # Its lists have spaces, both kinds of line ends, and no end after the last line.
    train = "gameroom/bt_90294gameroom2.jpg\r\npoolinside/inside pool.jpg\n"
    root = indoor(tmp_path / "set", train, "gameroom/bt_27311gameroom2.jpg\npoolinside/a.b.jpg")
    data = open_images(f"indoor67:{root}", resolution=8)
    assert data.class_names == ("gameroom", "poolinside")
    assert parts(data) == [
        [("gameroom/bt_90294gameroom2.jpg", 0), ("poolinside/inside pool.jpg", 1)],
        [("gameroom/bt_27311gameroom2.jpg", 0), ("poolinside/a.b.jpg", 1)],
    ]
    images, labels = next(iter(data.eval_loader()))
    assert (tuple(images.shape), labels.tolist()) == ((2, 3, 8, 8), [0, 1])


def test_what_the_lists_and_the_folders_do_not_agree_on(tmp_path: Path) -> None:
    root = indoor(tmp_path / "set", "bar/1.jpg\nbar/1.jpg\nbar/2.jpg\nzoo/1.jpg\n", "bar/2.jpg\nbar/3.jpg\n")
    picture(0).save(root / "Images" / "zoo" / "never_listed.png")
    (root / "Images" / "bar" / "3.jpg").unlink()
    data = open_images(f"indoor67:{root}", resolution=8)
    assert data.remarks == (
        f"{root / 'TrainImages.txt'}: lines that name a picture again: 1, each is used once",
        "pictures in both lists, so also trained on: 1, for example bar/2.jpg",
        f"{root / 'Images'}: files in neither list, not used: 1",
    )
    assert (data.train_size, data.test_size) == (3, 1)
    (problem,) = data.test_problems
    assert problem.is_missing
    assert problem.name.endswith("bar/3.jpg")


@pytest.mark.parametrize(
    ("train", "test", "complaint"),
    [
        ("bar/1.jpg\nno_folder.jpg\n", "bar/1.jpg", "entry 2 is 'no_folder.jpg', expected CLASS/PICTURE"),
        ("bar/1.jpg\nbar/../../../etc/x.jpg\n", "bar/1.jpg", "entry 2 is 'bar/../../../etc/x.jpg', expected CLASS"),
        ("/etc/1.jpg\n", "bar/1.jpg", "entry 1 is '/etc/1.jpg', expected CLASS/PICTURE"),
        ("bar/1.jpg\nzoo/1.jpg", "pub/1.jpg", "TestImages.txt: the class 'pub' is none of the 2 of TrainImages.txt"),
        ("bar/1.jpg\nzoo/1.jpg", "\n", "TestImages.txt: none of its 0 pictures is in"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be(tmp_path: Path, train: str, test: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        open_images(f"indoor67:{indoor(tmp_path / 'set', train, test)}", resolution=8)


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"food101:.*: expected the folder meta/ there, as the set is unpacked"):
        open_images(f"food101:{tmp_path}")
    root = food(tmp_path / "food-101")
    (root / "meta" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"train.json: there is no such list"):
        open_images(f"food101:{root}")
    (root / "meta" / "train.json").write_text("[1]")
    with pytest.raises(DataError, match=r"train.json: expected \{CLASS: \[CLASS/NUMBER, ...\]\}"):
        open_images(f"food101:{root}")
    with pytest.raises(SystemExit) as ended:
        main(["train", "--model", "resnet20", "--data", f"indoor67:{tmp_path}", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told == f"leanconv: indoor67:{tmp_path}: expected the folder Images/ there, as the set is unpacked\n"
