"""`lc.evaluate` and `lc.predict`: the verbs' own figures, of a network, a folder, a file; and parts of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import leanconv as lc
from leanconv.cli import main
from leanconv.data.contract import InputContract, attach
from leanconv.errors import DataError, LeanconvError, UnknownName

NAMES = ("blue", "green", "red")
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def painted(root: Path, count: int) -> None:
    """`count` pictures of every class, each of its colour."""
    for number, name in enumerate(reversed(NAMES)):
        (root / name).mkdir(parents=True)
        for shade in range(count):
            pixel = tuple(200 - 5 * shade if channel == number else 0 for channel in range(3))
            Image.new("RGB", (12, 10), pixel).save(root / name / f"{shade:02}.png")


def by_colour() -> nn.Module:
    """A network that tells the three colours apart by their mean: its outputs are blue, green, red."""
    net = lc.create_model("timm/test_resnet", num_classes=3)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    attach(net, InputContract(size=(3, 8, 8), **HALVES, class_names=NAMES))
    net.forward = lambda x: x.mean(dim=(2, 3)).flip(1)  # type: ignore[method-assign]
    return net.eval()


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in (*arguments, "--json")])
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    return json.loads(told.out)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        painted(root / part, count)
    # One test picture is of another colour than its folder says, and one cannot be read.
    Image.new("RGB", (9, 9), (0, 200, 0)).save(root / "test" / "red" / "00.png")
    (root / "val" / "red" / "broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = lc.create_model("resnet20", num_classes=3)
    attach(net, InputContract(size=(3, 8, 8), **HALVES, class_names=NAMES))
    return lc.save(net, tmp_path_factory.mktemp("net") / "model")


def test_a_network_is_evaluated_as_it_is(photos: Path) -> None:
    tested = lc.evaluate(by_colour(), f"folder:{photos}")
    assert (tested.part, tested.top1, tested.class_names, tested.result.images) == ("test", 5 / 6, NAMES, 6)
    assert tested.interval == pytest.approx((0.436497, 0.969947), abs=1e-6)
    wrong = [item.name for item in tested.result.predictions if not item.right]
    assert wrong == [str(photos / "test" / "red" / "00.png")]


@pytest.mark.parametrize(
    ("part", "images", "right", "unreadable"), [("test", 6, 5, 0), ("validation", 9, 9, 1), ("train", 15, 15, 0)]
)
def test_every_part_can_be_tested_on(photos: Path, part: str, images: int, right: int, unreadable: int) -> None:
    tested = lc.evaluate(by_colour(), f"folder:{photos}", part=part)
    assert (tested.part, tested.result.images, len(tested.unreadable)) == (part, images, unreadable)
    assert round(tested.top1 * images) == right
    folder = {"validation": "val"}.get(part, part)
    assert {Path(item.name).parent.parent.name for item in tested.result.predictions} == {folder}


def test_parts_are_those_of_training(photos: Path) -> None:
    """Of one folder that is not split: without a part all of it; with one what training would make of it."""
    counts = {part: lc.evaluate(by_colour(), f"folder:{photos / 'train'}", part=part).result.images
              for part in (None, "train", "validation", "test")}  # fmt: skip
    assert counts == {None: 15, "train": 9, "validation": 3, "test": 3}
    names = {part: {item.name for item in lc.evaluate(by_colour(), f"folder:{photos / 'train'}", part=part)
             .result.predictions} for part in ("train", "validation", "test")}  # fmt: skip
    assert sum(map(len, names.values())) == len(set.union(*names.values()))


def test_a_part_that_is_not_there(photos: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / part).symlink_to(photos / part)
    data = f"folder:{tmp_path}"
    with pytest.raises(DataError, match=r"has no test part, only validation and train: .* \(--part\)"):
        lc.evaluate(by_colour(), data, part="test")
    assert lc.evaluate(by_colour(), data).part == "validation"
    with pytest.raises(DataError, match="has no validation part, only test and train"):
        lc.evaluate(by_colour(), "digits", part="validation", size=(3, 8, 8))
    with pytest.raises(UnknownName, match="unknown part 'val': expected one of test, train, validation"):
        lc.evaluate(by_colour(), data, part="val")


def test_the_verb_prints_what_the_function_gives(photos: Path, saved: Path, capsys: Any) -> None:
    for part in ("validation", "train"):
        told = said(capsys, "eval", saved, "--data", f"folder:{photos}", "--part", part)
        assert told == json.loads(json.dumps(lc.evaluate(saved, f"folder:{photos}", part=part).figures(str(saved))))
        assert (told["part"], told["unreadable"]) == (part, int(part == "validation"))
    told = said(capsys, "predict", saved, photos / "val")
    got = lc.predict(saved, [photos / "val"])
    assert told["predictions"] == got.rows()
    assert [one["name"] for one in told["unreadable"]] == [problem.name for problem in got.unreadable]


def test_files_are_predicted_by_name(photos: Path) -> None:
    got = lc.predict(by_colour(), [photos / "test" / "red", str(photos / "train" / "blue" / "0[01].png")], top=2)
    assert [row["classes"] for row in got.rows()] == [["green", "blue"], ["red", "blue"], *[["blue", "green"]] * 2]
    inputs = torch.tensor([[195 / 255, 0, 0]]) * 2 - 1
    expected = inputs.flip(1).softmax(dim=1)[0]
    assert got.rows()[1]["probabilities"] == pytest.approx([float(expected[2]), float(expected[0])], abs=1e-6)


def test_a_network_without_a_contract(photos: Path) -> None:
    net = lc.create_model("resnet20", num_classes=3)
    for call in (lambda: lc.evaluate(net, f"folder:{photos}", size=(3, 8, 8)),
                 lambda: lc.predict(net, [photos / "val"], size=(3, 8, 8))):  # fmt: skip
        with pytest.raises(LeanconvError, match=r"this CifarResNet: nothing says how the inputs .* --mean R,G,B"):
            call()
    with pytest.raises(LeanconvError, match="its input size is not known"):
        lc.evaluate(net, f"folder:{photos}", given=HALVES)
    tested = lc.evaluate(net, f"folder:{photos}", size=(3, 8, 8), given=HALVES)
    assert tested.result.images == 6
    got = lc.predict(net, [photos / "val"], size=(3, 8, 8), given=HALVES)
    assert len(got.predictions) == 9
    assert got.rows()[0]["classes"][0] in ("0", "1", "2")
    with pytest.raises(LeanconvError, match="is a network, not a run folder: say which images"):
        lc.evaluate(net, given=HALVES)


def test_what_a_rewrite_returns_and_an_elastic_network(photos: Path) -> None:
    net = lc.create_model("resnet20", num_classes=3)
    attach(net, InputContract(size=(3, 16, 16), **HALVES, class_names=NAMES))
    rewritten = lc.rewrite(net, lc.OptimizedSeparable(overlap=1.0), size=(3, 16, 16))
    assert lc.evaluate(rewritten, f"folder:{photos}").top1 == lc.evaluate(rewritten.model, f"folder:{photos}").top1
    elastic = lc.make_elastic(net, resolutions=(16, 8), size=(3, 16, 16))
    lc.calibrate(elastic, [(torch.rand(16, 3, 16, 16), torch.zeros(16, dtype=torch.int64))] * 2)
    tested = lc.evaluate(elastic, f"folder:{photos}", width=0.5, resolution=8)
    assert tested.configuration == " at width 0.5, resolution 8"
    with pytest.raises(LeanconvError, match="width and resolution are for elastic networks"):
        lc.evaluate(net, f"folder:{photos}", width=0.5)
    assert net.training  # as it was
