"""A model and something that does not belong to it: one line that names both, exit code 2, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image

import leanconv as lc
from leanconv.cli import main
from leanconv.data.contract import InputContract, attach

CONTRACT = InputContract(size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, class_names=("cat", "dog", "fox"))

Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Run the command line in an empty folder, expect it to refuse and to leave nothing, and give its one line."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert (ended.value.code, told.out) == (2, "")
        assert told.err.count("\n") == 1
        assert list(here.iterdir()) == []
        return told.err

    return call


def pictures(root: Path, **parts: tuple[str, ...]) -> Path:
    """Three pictures for every class of every part."""
    for part, names in parts.items():
        for name in names:
            (root / part / name).mkdir(parents=True)
            for shade in range(3):
                Image.new("RGB", (20, 18), (80 * shade, 90, 10)).save(root / part / name / f"{shade}.png")
    return root


@pytest.fixture
def model(tmp_path: Path) -> Path:
    net = lc.create_model("resnet20", num_classes=3)
    attach(net, CONTRACT)
    return lc.save(net.eval(), tmp_path / "net")


def with_contract(model: Path, contract: Any) -> None:
    """Write `contract` into the story, as one who copies files about would."""
    record = json.loads((model / "story.json").read_text())
    record["story"]["contract"] = contract
    (model / "story.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("contract", "told"),
    [
        (
            replace(CONTRACT, class_names=("cat", "dog", "fox", "hen")),
            "3 outputs, and its input contract names 4 classes",
        ),
        (replace(CONTRACT, size=(1, 16, 16), mean=(0.5,), std=(0.25,), class_names=None), "1"),
        ({**CONTRACT.to_json(), "resize": "stretched"}, "unknown resize rule 'stretched'"),
        ({"mean": [0.5]}, "story.json is damaged: story.contract.size is missing"),
        ("none", "contract"),
    ],
)
def test_another_models_contract(refuse: Refuse, model: Path, tmp_path: Path, contract: Any, told: str) -> None:
    data = pictures(tmp_path / "data", test=("cat", "dog", "fox"))
    with_contract(model, contract.to_json() if isinstance(contract, InputContract) else contract)
    assert told in refuse("eval", model, "--data", f"folder:{data}")
    assert told in refuse("predict", model, data / "test" / "cat")
    assert told in refuse("export", model, "net.onnx")
    if not isinstance(contract, InputContract) or contract.class_names is None:
        assert told in refuse("train", "--model", model, "--data", f"folder:{data / 'test'}", "--out", "run")


def test_classes_that_differ_are_named(refuse: Refuse, model: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", train=("cat", "dog", "hen"), test=("cat", "hen"))
    told = refuse("eval", model, "--data", f"folder:{data}")
    assert "the class 'hen' (1 of 3)" in told
    assert "is none of the 3 that the network knows (cat, dog, fox)" in told
    other = lc.create_model("resnet20", num_classes=3)
    attach(other, replace(CONTRACT, class_names=("cat", "dog", "hen")))
    lc.save(other, tmp_path / "other")
    told = refuse("compare", model, tmp_path / "other", "--data", f"folder:{data}")
    assert "'hen'" in told


def test_a_folder_with_one_class(refuse: Refuse, model: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", all=("cat",))
    told = refuse("train", "--model", model, "--data", f"folder:{data / 'all'}", "--out", "run")
    assert "expected one folder per class and at least two of them, found 1: cat" in told


def test_a_part_that_is_missing(refuse: Refuse, model: Path, tmp_path: Path) -> None:
    names = ("cat", "dog", "fox")
    data = pictures(tmp_path / "data", train=names, val=names)
    told = refuse("eval", model, "--data", f"folder:{data}", "--part", "test")
    assert "has no test part, only validation and train" in told
    (tmp_path / "alone").mkdir()
    (data / "train").rename(tmp_path / "alone" / "train")
    told = refuse("train", "--model", model, "--data", f"folder:{tmp_path / 'alone'}", "--out", "run")
    assert "found train/ but none of val, valid, validation, test beside it" in told


@pytest.mark.parametrize("text", ["{", "[]", '{"dtype": "float32"}', '{"dtype": "int4", "layout": "NCHW"}'])
def test_metadata_that_cannot_be_read(refuse: Refuse, model: Path, tmp_path: Path, text: str) -> None:
    data = pictures(tmp_path / "data", test=("cat",))
    path = tmp_path / "net.onnx"
    lc.export(lc.load(model), path)
    content = onnx.load(path)
    (entry,) = [entry for entry in content.metadata_props if entry.key == "leanconv.input"]
    entry.value = text
    onnx.save(content, path)
    told = refuse("predict", path, data)
    assert f"{path}: what it says about its input (leanconv.input) cannot be read" in told
    assert "export it again" in told


def test_a_prefix_that_is_not_common(refuse: Refuse, tmp_path: Path) -> None:
    state = {f"model.{name}": value for name, value in lc.create_model("resnet20").state_dict().items()}
    torch.save({**state, "head.weight": torch.ones(3)}, tmp_path / "her.pth")
    told = refuse("import-weights", tmp_path / "her.pth", "resnet20", "--out", "hers")
    assert "names have the prefix 'model.', but not head.weight" in told


def test_another_number_of_classes(refuse: Refuse, model: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", train=("cat", "dog", "fox", "hen"), test=("cat", "dog"))
    told = refuse("train", "--model", model, "--data", f"folder:{data}", "--out", "run")
    assert "has 3 outputs, but the data has 4 classes" in told
    assert "--new-classifier" in told
    torch.save(lc.create_model("resnet20", num_classes=4).state_dict(), tmp_path / "her.pth")
    told = refuse("import-weights", tmp_path / "her.pth", "resnet20", "--set", "num_classes=3", "--out", "hers")
    assert "has a classifier (fc) of 4 classes, the network one of 3: build it with num_classes=4" in told
