"""`predict` feeds a network as `eval` does, whatever it is kept in; one broken file is one broken file."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv.build import create_model, load, save
from leanconv.cli import main
from leanconv.data import InputContract, attach
from leanconv.deploy import export

NAMES = ("ape", "bat", "cow")
CONTRACT = InputContract(
    size=(3, 16, 16),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    resize="shorter_side",
    interpolation="bicubic",
    crop=0.8,
    class_names=NAMES,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    net = create_model("resnet20", num_classes=3)
    attach(net, CONTRACT)
    return save(net, tmp_path_factory.mktemp("models") / "net", size=(3, 16, 16))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of several shapes, by class; one is broken."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in NAMES:
        (root / name).mkdir()
        for number, shape in enumerate(((20, 30), (40, 25), (24, 24))):
            small = draw.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            image = Image.fromarray(small).resize(shape, Image.Resampling.BICUBIC)
            image.save(root / name / f"{number}.png")
    (root / "bat" / "broken.png").write_bytes(b"nothing")
    return root


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What a verb prints, with --json read; for a code other than 0 its line of refusal."""

    def call(*arguments: object, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as caught:
            main(list(map(str, arguments)))
        told = capsys.readouterr()
        assert int(caught.value.code or 0) == code, told.err
        if code:
            assert told.err.count("\n") == 1
            return told.err
        return json.loads(told.out) if "--json" in arguments else told.out

    return call


def test_it_predicts_what_eval_predicts(tell: Callable[..., Any], model: Path, pictures: Path, tmp_path: Path) -> None:
    tell("eval", model, "--data", f"folder:{pictures}", "--predictions", tmp_path / "eval.csv", "--json")
    tell("predict", model, pictures, "--predictions", tmp_path / "predict.csv", "--contact-sheet", tmp_path / "s.png")
    tables = []
    for name in ("eval", "predict"):
        with open(tmp_path / f"{name}.csv", newline="") as file:
            tables.append({row.pop("name"): row for row in csv.DictReader(file)})
    assert len(tables[0]) == 9
    assert len({row["prediction"] for row in tables[0].values()}) > 1
    assert all(row.pop("label") in NAMES for row in tables[0].values())
    assert {row.pop("label") for row in tables[1].values()} == {""}
    assert tables[0] == tables[1]
    with Image.open(tmp_path / "s.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize(
    ("suffix", "input_type"), [(".onnx", "float32"), (".onnx", "uint8"), (".xml", "float32"), (".pt2", "uint8")]
)
def test_an_exported_file_is_fed_the_same(
    tell: Callable[..., Any], model: Path, pictures: Path, tmp_path: Path, suffix: str, input_type: str
) -> None:
    path = tmp_path / f"net{suffix}"
    export(load(model), path, input_type=input_type, dynamic_batch=False)
    trust = ["--trust-code"] * (suffix == ".pt2")
    expected, found = (tell("predict", one, pictures, "--json", *trust) for one in (model, path))
    assert found["unreadable"] == expected["unreadable"]
    assert len(found["predictions"]) == 9
    for one, other in zip(expected["predictions"], found["predictions"], strict=True):
        assert (one["name"], one["classes"]) == (other["name"], other["classes"])
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-4)
    data = ("--data", f"folder:{pictures}", "--json", *trust)
    own, files = (tell("eval", one, *data) for one in (model, path))
    assert files.pop("loss") == pytest.approx(own.pop("loss"), abs=1e-4)
    assert files == {**own, "model": str(path)}


def test_what_an_exported_file_cannot_be_asked(
    tell: Callable[..., Any], model: Path, pictures: Path, tmp_path: Path
) -> None:
    path, data = tmp_path / "net.pt2", ("--data", f"folder:{pictures}")
    export(load(model), path, input_type="uint8", dynamic_batch=False)
    for verb, given in (("predict", (pictures,)), ("eval", data), ("compare", (model, *data))):
        assert "can run code that is in it: pass --trust-code" in tell(verb, path, *given, code=2)
    trusted = ("--trust-code", *data)
    own = ("--mean", ".5,.5,.5", "--std", ".5,.5,.5")
    assert "takes pixels and normalises them itself" in tell("eval", path, *trusted, *own, code=2)
    assert "it does not run on [3, 24, 24]" in tell("eval", path, *trusted, "--size", "3,24,24", code=2)
    assert "is an exported file, not a run folder: say which" in tell("eval", path, "--trust-code", code=2)
    assert "is one network as it is" in tell("table", path, *trusted, code=2)
    assert "net.pt2: torch cannot load it" in tell("eval", damaged(path), *trusted, code=2)


def damaged(path: Path) -> Path:
    """The same archive with its graph cut short."""
    where = path.parent / "damaged" / path.name
    where.parent.mkdir()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(where, "w") as copy:
        for name in archive.namelist():
            text = archive.read(name)
            copy.writestr(name, text[: len(text) // 2] if name.endswith(".json") else text)
    return where


def test_files_folders_and_patterns_each_file_once(tell: Callable[..., Any], model: Path, pictures: Path) -> None:
    told = tell("predict", model, pictures / "cow", pictures / "cow/1.png", f"{pictures}/*/0.png", "--json", "--top", 1)
    names = [str(Path(row["name"]).relative_to(pictures)) for row in told["predictions"]]
    assert names == ["cow/0.png", "cow/1.png", "cow/2.png", "ape/0.png", "bat/0.png"]
    assert {len(row["classes"]) for row in told["predictions"]} == {1}


def test_what_cannot_be_read_is_named_and_the_others_go_on(
    tell: Callable[..., Any], model: Path, pictures: Path, tmp_path: Path
) -> None:
    told = tell("predict", model, pictures / "bat", tmp_path / "gone.png")
    assert "2 of 5 files could not be read (1 broken, 1 missing): " in told
    assert str(tmp_path / "gone.png") in told
    line = tell("predict", model, pictures / "bat/broken.png", code=2)
    assert "none of the images could be read" in line
    (tmp_path / "empty").mkdir()
    assert "a folder without a file" in tell("predict", model, tmp_path / "empty", code=2)
    assert "no file matches this pattern" in tell("predict", model, f"{tmp_path}/*.jpg", code=2)


def test_nothing_is_guessed(tell: Callable[..., Any], pictures: Path, tmp_path: Path) -> None:
    bare = save(create_model("resnet20", num_classes=3), tmp_path / "bare", size=(3, 16, 16))
    assert "--mean R,G,B --std R,G,B" in tell("predict", bare, pictures, code=2)
    given = ("--mean", ".5,.5,.5", "--std", ".5,.5,.5")
    told = tell("predict", bare, pictures, *given, "--json")
    assert set(told["predictions"][0]["classes"]) == {"0", "1", "2"}
    assert "random weights" in tell("predict", "resnet20", pictures, *given, code=2)
    (tmp_path / "net.bin").write_bytes(b"x")
    assert "exported file that ends in .onnx, .xml or .pt2" in tell("predict", tmp_path / "net.bin", pictures, code=2)


def test_videos_are_predicted_by_their_clips(tell: Callable[..., Any], tmp_path: Path) -> None:
    from leanconv.data import ClipContract, open_videos
    from leanconv.recipes import score_videos

    open_videos(f"moving-digits:{tmp_path / 'set'}")
    files = sorted((tmp_path / "set").rglob("*.mp4")) + sorted((tmp_path / "set").rglob("*.avi"))
    assert files
    folder = tmp_path / "some" / "right"
    folder.mkdir(parents=True)
    for file in files[:2]:
        (folder / file.name).symlink_to(file)
    (folder / "broken.mp4").write_bytes(b"nothing")
    torch.manual_seed(0)
    net = create_model("ip_csn_26", num_classes=2, frames=4)
    clip = ClipContract(rate=2, fps=30.0, short_side=36, clips=2)
    size = (3, 4, 32, 32)
    contract = InputContract(size=size, mean=(0.4,) * 3, std=(0.2,) * 3, class_names=("left", "right"), clip=clip)
    attach(net, contract)
    save(net, tmp_path / "net", size=size)
    told = tell("predict", tmp_path / "net", tmp_path / "some", "--json", "--contact-sheet", tmp_path / "sheet.png")
    data = open_videos(f"video-folder:{tmp_path / 'some'}", contract=contract, testing=True)
    expected = score_videos(net, data, clips=2).predictions
    assert [row["name"] for row in told["predictions"]] == [item.name for item in expected]
    for row, item in zip(told["predictions"], expected, strict=True):
        assert row["probabilities"] == pytest.approx(item.probabilities)
    assert [Path(row["name"]).name for row in told["unreadable"]] == ["broken.mp4"]
