"""`leanconv import-weights`: from a released file to a saved model, and one clear line for whatever does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign_csn import build

from leanconv.build import load
from leanconv.cli import main

LAYERS = (3, 4, 6, 3)


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
    net, foreign = load(out), build("pytorchvideo", "ir", LAYERS, 7)
    foreign.load_state_dict(torch.load(file, weights_only=True)["model_state"])
    assert not net.training
    x = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), foreign(x), rtol=1e-3, atol=1e-4)


def test_new_classifier_and_named_format(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--format", "pytorchvideo", "--new-classifier", "--set", "num_classes=3")
    assert call(file, "ir_csn_50", *options, "--out", tmp_path / "m") == 0
    assert "ir with 3, 4, 6, 3 bottlenecks (50 layers), a fresh classifier; saved to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ir_csn_50"], "num_classes=7 (--set num_classes=7)"),
        (["ir_csn_26", "--set", "num_classes=7"], "is ir with 3, 4, 6, 3 bottlenecks (50 layers), but the network"),
        (["ip_csn_50", "--set", "num_classes=7"], "pytorchvideo has ir networks only"),
        (["ir_csn_50", "--format", "vmz"], "is no vmz file: its names are those of pytorchvideo"),
        (["ir_csn_50", "--format", "caffe2"], "unknown weight format 'caffe2'"),
        (["resnet3d_18"], "hold channel-separated networks, and this is none"),
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
