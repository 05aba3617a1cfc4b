"""Folders as they lie on disks: links, loops, one file under two names, suffixes, parts by other names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_images import folder_set, picture

from leanconv.data import ImageData, open_images
from leanconv.data.sets.folder import image_suffixes
from leanconv.errors import DataError


def two_classes(root: Path, count: int = 5) -> Path:
    for number, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(100 * number + index).save(root / name / f"{index}.png")
    return root


def opened(root: Path, **how: object) -> ImageData:
    return open_images(f"folder:{root}", **{"resolution": 8, "batch_size": 2, **how})  # type: ignore[arg-type]


def counts(data: ImageData) -> tuple[int, int]:
    return data.train_size, data.test_size


@pytest.mark.parametrize("target", [".", "..", "../..", "a-itself"])
def test_links_to_folders_above_end(tmp_path: Path, target: str) -> None:
    root = two_classes(tmp_path / "set")
    os.symlink(root / "a" if target == "a-itself" else target, root / "a" / "again")
    data = opened(root)
    assert counts(data) == (8, 2)
    assert "1 link to folders that were read already, not followed" in data.remarks[0]


def test_links_that_lead_around_end(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "set")
    for one, other in (("x", "y"), ("y", "x")):
        (tmp_path / one).mkdir()
        os.symlink(tmp_path / other, tmp_path / one / "on")
        picture(ord(one)).save(tmp_path / one / "picture.png")
    os.symlink(tmp_path / "x", root / "a" / "outside")
    assert sum(counts(opened(root))) == 12


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_with_two_names_in_its_class_is_used_once(tmp_path: Path, link) -> None:
    root = two_classes(tmp_path)
    for name in ("again.png", "AND AGAIN.PNG"):
        link(root / "a" / "0.png", root / "a" / name)
    data = opened(root)
    assert sum(counts(data)) == 10
    assert "2 names of images that have another name in the same class" in data.remarks[0]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_in_two_classes_is_said(tmp_path: Path, link) -> None:
    root = two_classes(tmp_path)
    link(root / "a" / "0.png", root / "b" / "9.png")
    data = opened(root)
    assert sum(counts(data)) == 11
    assert "in several classes, for example" in data.remarks[0]
    assert "in a and b" in data.remarks[0]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_test_file_that_is_trained_on_is_said(tmp_path: Path, link) -> None:
    root = folder_set(tmp_path)
    link(root / "train" / "cat" / "0.png", root / "val" / "cat" / "leak.png")
    [told] = opened(root).remarks
    assert told.startswith("1 test image also used for training, under this or another name: ")
    assert told.endswith("leak.png")


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    root = folder_set(tmp_path)
    os.symlink("nowhere.png", root / "val" / "cat" / "gone.png")
    data = opened(root)
    assert sum(len(labels) for _, labels in data.eval_loader()) == 8
    assert [Path(problem.name).name for problem in data.problems] == ["gone.png"]


# ------------------------------------------------------------------------------------------------------------ suffixes


def test_every_suffix_that_pillow_reads_is_an_image_in_any_case(tmp_path: Path) -> None:
    writable = sorted(
        suffix for suffix in image_suffixes() if Image.EXTENSION[suffix] in ("JPEG", "PNG", "TIFF", "PPM")
    )
    assert {".jfif", ".jpe", ".jpg", ".apng", ".pnm", ".tif"} <= set(writable)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number, suffix in enumerate(writable):
            suffix = "".join(letter.upper() if (place + number) % 2 else letter for place, letter in enumerate(suffix))
            kind = Image.EXTENSION[suffix.lower()]
            picture(number).save(tmp_path / name / f"{number}{suffix}", kind)
    data = opened(tmp_path)
    assert sum(counts(data)) == 2 * len(writable)
    assert (data.problems, data.remarks) == ((), ())


def test_what_has_no_pixels_is_passed_over(tmp_path: Path) -> None:
    names = {".mpg", ".eps", ".ps", ".h5", ".wmf", ".grib", ".txt", ".json", ".pdf", ""}
    assert not names & image_suffixes()


def test_files_passed_over_are_counted_by_suffix(tmp_path: Path) -> None:
    root = folder_set(tmp_path)
    for name in ("train/cat/a.txt", "train/cat/b.TXT", "train/dog/c.json", "train/README", "val/cat/d.mp4"):
        (root / name).write_text("x")
    picture(1).save(root / "train" / "stray.png")
    (root / "train" / "cat" / ".DS_Store").write_text("x")
    train, test = opened(root).remarks
    assert (
        train == f"{root / 'train'}: 5 files passed over, no class's images: 2 .txt, 1 .json, 1 without suffix, 1 .png"
        or (train.startswith(f"{root / 'train'}: 5 files passed over, no class's images: 2 .txt"))
    )
    assert test == f"{root / 'val'}: 1 file passed over, no class's images: 1 .mp4"


# --------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Val"), ("TRAIN", "TEST"), ("training", "valid"), ("train", "Valid")]
)
def test_parts_by_other_names_are_no_classes(tmp_path: Path, train: str, test: str) -> None:
    root = folder_set(tmp_path)
    (root / "train").rename(root / train)
    (root / "val").rename(root / test)
    data = opened(root)
    assert (data.class_names, *counts(data)) == (("cat", "dog"), 8, 8)


def test_a_class_may_be_called_training(tmp_path: Path) -> None:
    root = folder_set(tmp_path) / "train"
    (root / "cat").rename(root / "training")
    assert opened(root).class_names == ("dog", "training")


def test_a_part_that_is_not_used_is_said(tmp_path: Path) -> None:
    root = folder_set(tmp_path)
    shutil.copytree(root / "val", root / "test")
    data = opened(root)
    assert data.has_validation
    assert (data.val_size, data.test_size, data.remarks) == (8, 8, ())
    assert opened(root, testing=True).remarks == (f"{root / 'val'} is not used, test/ is",)
    shutil.copytree(root / "val", root / "valid")
    assert opened(root).remarks == (f"{root / 'valid'} is not used, test/ is",)


def test_only_a_test_part_is_nothing_to_train_on(tmp_path: Path) -> None:
    root = folder_set(tmp_path)
    (root / "train").rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    with pytest.raises(DataError, match="found val/ but no train/ beside it"):
        opened(root)
    with pytest.raises(DataError, match="no training part"):
        opened(root, testing=True, mean=(0.5,) * 3, std=(0.5,) * 3).train_loader()


def test_classes_that_the_test_lacks_are_said_by_name(tmp_path: Path) -> None:
    root = folder_set(tmp_path, classes=("ant", "bee", "cat"))
    for file in (root / "val" / "ant").iterdir():
        file.unlink()
    (root / "val" / "ant").rmdir()
    data = opened(root)
    assert torch.cat([labels for _, labels in data.eval_loader()]).tolist() == [1] * 4 + [2] * 4
    assert data.remarks == (f"{root / 'val'}: 1 of 3 classes are not tested: ant",)


def test_data_to_test_on_is_used_whole(tmp_path: Path) -> None:
    root, known = two_classes(tmp_path / "set", count=7), {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert counts(opened(root)) == (12, 2)
    assert opened(root, testing=True, **known).test_size == 14
    one = tmp_path / "one"
    (one / "a").mkdir(parents=True)
    picture(3).save(one / "a" / "x.png")
    assert opened(one, testing=True, **known).test_size == 1, "one class is enough to be tested on"
    both = folder_set(tmp_path / "both")
    assert opened(both, testing=True, **known).test_size == 8, "of a set with parts the test part"
    with pytest.raises(DataError, match="with which mean and std"):
        list(opened(root, testing=True).eval_loader())
