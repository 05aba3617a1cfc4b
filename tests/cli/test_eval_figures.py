"""`eval` says how sure an accuracy is, who is taken for whom, and what could not be read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from leanconv.build import save
from leanconv.cli import main
from leanconv.data import InputContract, attach
from leanconv.intervals import wilson

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


class Reddest(nn.Module):
    """Takes an image for the class of its strongest channel, and anything with much red for red."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.0, 0, 1], [0, 1, 0], [2, 0, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((2, 3)) + 1) @ self.weight.T


def build() -> nn.Module:
    return Reddest()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = build()
    attach(net, InputContract(size=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, class_names=tuple(COLOURS)))
    return save(net, tmp_path_factory.mktemp("model") / "net", source="test_eval_figures:build", size=(3, 8, 8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blue, green and red ones; one that is called blue is violet; one is broken, one a link to nothing."""
    root = tmp_path_factory.mktemp("pictures")
    for name, count in (("blue", 4), ("green", 5), ("red", 3)):
        (root / name).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), COLOURS[name]).save(root / name / f"{number}.png")
    Image.new("RGB", (8, 8), (255, 0, 255)).save(root / "blue" / "violet.png")
    (root / "green" / "broken.png").write_bytes(b"nothing")
    (root / "red" / "gone.png").symlink_to(root / "nowhere.png")
    return root


@pytest.fixture
def tell(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `eval` prints."""

    def call(*arguments: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["eval", str(model), "--trust-code", "--data", f"folder:{pictures}", *map(str, arguments)])
        told = capsys.readouterr()
        assert int(caught.value.code or 0) == code, told.err
        return told.err if code else told.out

    return call


def test_an_accuracy_has_its_interval_and_its_denominator(tell: Callable[..., str], pictures: Path) -> None:
    figures = json.loads(tell("--json"))
    assert (figures["images"], figures["unreadable"], figures["missing"]) == (13, 2, 1)
    assert figures["top1"] == 12 / 13
    assert figures["top1_interval"] == list(wilson(12, 13))
    lines = tell().splitlines()
    assert lines[0].endswith("top-1 92.31 % (66.7-98.6) on 13 images; 2 more could not be read (1 broken, 1 missing)")
    assert lines[1].startswith("2 images could not be read: ")
    assert {name for name in ("broken.png", "gone.png") if name in lines[1]} == {"broken.png", "gone.png"}


def test_classes_and_who_is_taken_for_whom(tell: Callable[..., str], tmp_path: Path) -> None:
    rows = json.loads(tell("--json", "--per-class"))["per_class"]
    assert [(row["class"], row["count"], row["right"]) for row in rows] == [
        ("blue", 5, 4),
        ("green", 5, 5),
        ("red", 3, 3),
    ]
    assert (rows[0]["share"], rows[0]["interval"]) == (0.8, list(wilson(4, 5)))
    assert [(row["confused_with"], row["confused"]) for row in rows] == [("red", 1), (None, 0), (None, 0)]
    text = tell("--per-class", "--confusions", tmp_path / "confusions.json")
    (line,) = (line for line in text.splitlines() if line.startswith("blue"))
    assert line.split() == ["blue", "5", "4", "80.00", "37.6-96.4", "red", "(1)"]
    kept = json.loads((tmp_path / "confusions.json").read_text())
    assert kept["class_names"] == ["blue", "green", "red"]
    assert kept["counts"] == [[4, 0, 1], [0, 5, 0], [0, 0, 3]]
    tell("--confusions", tmp_path / "confusions.png")
    with Image.open(tmp_path / "confusions.png") as picture:
        assert min(picture.size) > 300
    assert "expected a name that ends in .png or .json" in tell("--confusions", tmp_path / "a.gif", code=2)


def test_predictions_and_a_contact_sheet_of_images(tell: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    table, sheet = tmp_path / "predictions.csv", tmp_path / "sheet.png"
    assert f"written: {sheet}" in tell("--predictions", table, "--contact-sheet", sheet)
    with open(table, newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert len(rows) == 13
    (wrong,) = (row for row in rows if row["label"] != row["prediction"])
    assert (wrong["name"], wrong["label"], wrong["prediction"]) == (str(pictures / "blue/violet.png"), "blue", "red")
    assert wrong["top5"].startswith("red|blue|")
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    shown = {tuple(map(int, colour)): int(count) for colour, count in zip(colours, counts, strict=True)}
    area = 96 * 96
    wanted = {(0, 0, 255): 4, (0, 255, 0): 5, (255, 0, 0): 3, (255, 0, 255): 1}
    assert {colour: shown[colour] / area for colour in wanted} == wanted
    assert shown[(26, 127, 55)] > shown[(196, 38, 38)] > 0  # twelve titles in green, one in red


def test_what_training_could_not_read_is_not_of_the_test(model: Path, pictures: Path, tmp_path: Path) -> None:
    from leanconv.data import open_images

    (tmp_path / "val").symlink_to(pictures)
    (tmp_path / "train").mkdir()
    for name in COLOURS:
        (tmp_path / "train" / name).mkdir()
        (tmp_path / "train" / name / "bad.png").write_bytes(b"")
        Image.new("RGB", (8, 8), COLOURS[name]).save(tmp_path / "train" / name / "good.png")
    data = open_images(f"folder:{tmp_path}", resolution=8)
    list(data.train_loader())
    list(data.eval_loader())
    assert len(data.problems) == 5
    assert sorted(Path(problem.name).name for problem in data.test_problems) == ["broken.png", "gone.png"]


def test_several_sizes_are_rows_of_one_table(tell: Callable[..., str]) -> None:
    """Table 4 of the octave paper is such a call."""
    rows = json.loads(tell("--size", "3,8,8", "--size", "3,16,16", "--crop", "1", "--json"))
    assert [row["size"] for row in rows] == [[3, 8, 8], [3, 16, 16]]
    alone = json.loads(tell("--size", "3,16,16", "--crop", "1", "--json"))
    assert rows[1] == {**alone, "size": [3, 16, 16]}
    assert [(row["top1"], row["images"], row["unreadable"]) for row in rows] == [(12 / 13, 13, 2)] * 2
    text = tell("--size", "3,8,8", "--size", "3,16,16")
    assert "3x16x16" in text
    assert "13 images; 2 more could not be read." in text
    refused = tell("--size", "3,8,8", "--size", "3,16,16", "--per-class", code=2)
    assert "are for one --size" in refused
