"""Files that vanish or change while training are counted and named, and training goes on."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import tiny_nets
from PIL import Image
from torch import Tensor

from leanconv.data import open_images
from leanconv.errors import DataError
from leanconv.train import Classify, FitSettings, fit

ASIDE = 24
"""Images of each of two classes."""


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for part, count in (("train", ASIDE), ("val", 4)):
        for label in range(2):
            folder = tmp_path / "set" / part / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (16, 16), (7 * number, 99 * label, 0)).save(folder / f"{number:02d}.png")
    return tmp_path / "set"


class Meanwhile(Classify):
    """The plain objective; something happens to the files after the first step."""

    def __init__(self, happens) -> None:
        super().__init__(tiny_nets.tiny_net())
        self.happens = happens

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        if step == 1:
            self.happens()
        return super().forward(inputs, targets, step)


def run(photographs: Path, happens, epochs: int = 2):
    # Random crops are taken from the file itself, so files are read again in every epoch.
    data = open_images(f"folder:{photographs}", resolution=8, batch_size=8, augment="imagenet")
    assert not data.in_memory
    out = photographs.parent / "run"
    result = fit(Meanwhile(happens), data, FitSettings(epochs=epochs), out, progress=False)
    with open(out / "problems.csv", newline="") as file:
        assert [(row["image"], row["reason"]) for row in csv.DictReader(file)] == list(result.problems)
    return result


def test_some_vanish_some_are_cut_and_some_become_others(photographs: Path) -> None:
    train = photographs / "train"

    def happens() -> None:
        (train / "0" / "03.png").unlink()
        (train / "0" / "04.png").write_bytes((train / "0" / "04.png").read_bytes()[:30])
        (train / "1" / "05.png").write_text("no image")
        Image.new("RGB", (300, 9), (1, 2, 3)).save(train / "1" / "06.png")  # another image, which is one
        (photographs / "val" / "0" / "00.png").unlink()

    result = run(photographs, happens)
    assert result.epochs == 2
    names = sorted(Path(name).relative_to(photographs).as_posix() for name, _ in result.problems)
    assert names == ["train/0/03.png", "train/0/04.png", "train/1/05.png", "val/0/00.png"]
    reasons = {Path(name).name: reason for name, reason in result.problems}
    assert "No such file" in reasons["03.png"]


def test_a_whole_folder_goes(photographs: Path) -> None:
    """More images in a row than are tried one after the other: the others are in another class."""
    result = run(photographs, lambda: shutil.rmtree(photographs / "train" / "0"))
    gone = {Path(name).parent.name for name, _ in result.problems}
    assert (gone, len(result.problems)) == ({"0"}, ASIDE)


def test_nothing_is_left(photographs: Path) -> None:
    with pytest.raises(DataError, match=r"48 images in a row cannot be used for training, the last is .*No such"):
        run(photographs, lambda: shutil.rmtree(photographs / "train"))
