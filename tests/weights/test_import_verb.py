"""`leanconv import-weights`: from a released file to a saved model, and one clear line for whatever does not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from foreign_csn import build
from foreign_mutual import Slimmable, mobilenet_v1

from leanconv.build import create_model, load
from leanconv.cli import app, main
from leanconv.data import contract_of
from leanconv.weights import FORMATS

LAYERS = (3, 4, 6, 3)


def verb() -> Any:
    return typer.main.get_command(app).commands["import-weights"]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "csn.pyth"
    torch.save({"model_state": build("pytorchvideo", "ir", LAYERS, 7).state_dict()}, path)
    return path


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["import-weights", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_import_saves_a_model_that_computes_the_same(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The eps of the project comes along without being asked for."""
    out = tmp_path / "model"
    assert call(file, "ir_csn_50", "--set", "num_classes=7", "--out", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["classifier"], told["saved"]) == ("pytorchvideo", True, str(out))
    assert (told["entry"], told["prefix"], told["passed_over"]) == ("model_state", "", [])
    assert told["classifier_layers"] == ["fc"]
    net, foreign = load(out), build("pytorchvideo", "ir", LAYERS, 7)
    foreign.load_state_dict(torch.load(file, weights_only=True)["model_state"])
    assert not net.training
    x = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), foreign(x), rtol=1e-3, atol=1e-4)


def test_new_classifier_and_named_format(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--format", "pytorchvideo", "--new-classifier", "--set", "num_classes=3")
    assert call(file, "ir_csn_50", *options, "--out", tmp_path / "m") == 0
    printed = capsys.readouterr().out
    assert "ir with 3, 4, 6, 3 bottlenecks (50 layers), a fresh classifier (fc); saved to" in printed
    assert "no file says whether the stem ends in a max pool (pool1); the network was built with it" in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ir_csn_50"], "num_classes=7 (--set num_classes=7)"),
        (["ir_csn_26", "--set", "num_classes=7"], "is ir with 3, 4, 6, 3 bottlenecks (50 layers), but the network"),
        (["ip_csn_50", "--set", "num_classes=7"], "pytorchvideo has ir networks only"),
        (["ir_csn_50", "--format", "vmz"], "is no vmz file: its names are those of pytorchvideo"),
        (["ir_csn_50", "--format", "caffe2"], "unknown weight format 'caffe2': did you mean 'vmz-caffe2'?"),
        (["ir_csn_50", "--format", "mxnet"], "unknown weight format 'mxnet': expected one of gluoncv, igc, mmaction2"),
        (["ir_csn_50", "--entry", "state_dict"], "has no entry 'state_dict' with tensors in it: it has model_state"),
        (["ir_csn_50", "--ema"], "holds no moving average of the weights"),
        (["ir_csn_50", "--ignore", "head.*"], "ignore='head.*' (--ignore) matches none of its tensors"),
        (["resnet3d_18"], "hold channel-separated networks, and this is none"),
        (["timm/resnet18"], "hold channel-separated networks, and this is none"),
        (["ir_csn_50", "--set", "classes=7"], "has no option 'classes'"),
    ],
)
def test_refused_in_one_line_and_nothing_written(
    arguments: list[str], told: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(file, *arguments, "--out", tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "model").exists()


# ------------------------------------------------------------------------------------------------ one's own checkpoint


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training script leaves: wrapped weights under state_dict, their average, an optimizer, a preprocessor."""
    torch.manual_seed(5)
    state = create_model("timm/resnet18", num_classes=10).state_dict()
    content = {
        "state_dict": {f"module.{k}": v for k, v in state.items()} | {"data_preprocessor.mean": torch.zeros(3)},
        "state_dict_ema": {k: torch.ones_like(v) for k, v in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 3,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("own") / "her.pth"
    torch.save(content, path)
    return path


OWN = ("timm/resnet18", "--set", "num_classes=10", "--ignore", "data_preprocessor.*")


def test_ones_own_checkpoint(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(own, *OWN, "--out", tmp_path / "hers") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"{own}: 122 tensors (entry state_dict, prefix 'module.' taken off) of a plain file, ResNet; saved to "
        f"{tmp_path / 'hers'}",
        "  passed over: data_preprocessor.mean (ignored)",
        "  not taken, though it holds weights, too: state_dict_ema",
    ]
    state = torch.load(own, weights_only=True)["state_dict"]
    assert torch.equal(load(tmp_path / "hers").conv1.weight, state["module.conv1.weight"])


def test_its_average_and_its_report(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(own, *OWN[:3], "--ema", "--json", "--out", tmp_path / "hers") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "format": "plain", "network": "ResNet", "tensors": 122, "classifier": True, "classifier_layers": [],
        "entry": "state_dict_ema", "prefix": "", "passed_over": [], "other_weights": ["state_dict"], "notes": [],
        "saved": str(tmp_path / "hers"),
    }  # fmt: skip
    assert bool((load(tmp_path / "hers").conv1.weight == 1).all())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["timm/resnet18", *OWN[3:]],
            "has a classifier (fc) of 10 classes, the network one of 1000: build it with num_classes=10",
        ),
        (
            OWN[:3],
            "122 of 123 names have the prefix 'module.', but not data_preprocessor.mean: leave out what belongs to no",
        ),
        (["timm/resnet26", *OWN[1:]], "is no file of this network: 45 missing: layer1.0.conv3.weight"),
        (["timm/densenet121", *OWN[1:]], "nor as the network does (features.conv0.weight"),
        ([*OWN[:3], "--entry", "optimizer"], "is named as none of plain"),
        ([*OWN, "--new-classifier"], "which layer of this network is the classifier cannot be found"),
    ],
)
def test_what_is_wrong_with_ones_own_is_said_in_one_line(
    arguments: list[str], told: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(own, *arguments, "--out", tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_cut_file_is_called_truncated(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.pth").write_bytes(own.read_bytes()[:100_000])
    assert call(tmp_path / "cut.pth", *OWN, "--out", tmp_path / "model") == 2
    assert "cut.pth is truncated, copy or download it again" in capsys.readouterr().err


def test_statistics_per_width_are_saved_with_the_network(tmp_path: Path) -> None:
    theirs = Slimmable((0.5, 1.0))
    for theirs.width in (1.0, 0.5):
        mobilenet_v1(theirs, torch.randn(1, 3, 64, 64), 7)
    torch.save({"model": {f"module.{k}": v for k, v in theirs.tensors.items()}}, tmp_path / "mutual.pt")
    options = ("--set", "num_classes=7", "--set", "resolutions=[64,48]")
    assert call(tmp_path / "mutual.pt", "elastic_mobilenet_v1", *options, "--out", tmp_path / "net") == 0
    net = load(tmp_path / "net")
    assert [tuple(config) for config in net.calibrated] == [(0.5, 64)]


def test_the_help_names_every_format() -> None:
    (option,) = [one for one in verb().params if one.name == "format"]
    named = re.findall(
        r"[a-z0-9-]+", option.help.partition(":")[2].partition(";")[0].replace("(the model's own names)", "")
    )
    assert [name for name in named if name != "or"] == list(FORMATS)


def test_how_inputs_were_made_is_kept_with_the_model(tmp_path: Path) -> None:
    """No file says it, so whoever imports the file does, once, and every verb obeys."""
    torch.save(create_model("resnet20").state_dict(), tmp_path / "her.pth")
    known = ("--mean", ".5,.4,.3", "--std", ".2,.2,.2", "--crop", ".875", "--interpolation", "bicubic")
    assert call(tmp_path / "her.pth", "resnet20", "--out", tmp_path / "hers", *known) == 0
    contract = contract_of(load(tmp_path / "hers"))
    assert contract is not None
    assert (contract.size, contract.mean, contract.crop) == ((3, 32, 32), (0.5, 0.4, 0.3), 0.875)
    assert (contract.resize, contract.interpolation) == ("shorter_side", "bicubic")
    assert call(tmp_path / "her.pth", "resnet20", "--out", tmp_path / "plain") == 0
    assert contract_of(load(tmp_path / "plain")) is None
    assert call(tmp_path / "her.pth", "resnet20", "--out", tmp_path / "half", "--mean", ".5,.4,.3") == 2
    assert not (tmp_path / "half").exists()
