"""What is wrong with network and data is said before the first step, and before there is a run folder."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_nets
import torch
from torch import Tensor, nn

import leanconv as lc
from leanconv.elastic.mutual import MutualObjective
from leanconv.errors import DataError, LeanconvError
from leanconv.train import Classify, FitSettings, fit
from leanconv.train.check import check_inputs, check_training, outputs_of
from leanconv.train.runfolder import prepare_run_folder


def net(channels: int = 3, classes: int = 10, *, pool: bool = True) -> nn.Sequential:
    layers = [
        nn.Conv2d(channels, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if pool else [nn.Flatten(), nn.LazyLinear(4)]
    return nn.Sequential(*layers, *head, nn.Linear(4, classes))


class Flat(nn.Module):
    """Made for one size of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


class ReadsValues(nn.Module):
    """A forward that no run without values can follow."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        return self.fc(pooled * 2 if float(pooled.sum()) > 0 else pooled)


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        (net(1), (3, 8, 8), "takes 1 channel, and the data have 3 .* in_chans=3"),
        (net(4), (3, 8, 8), "takes 4 channels, and the data have 3"),
        (net(classes=9), (3, 8, 8), "has 9 outputs, and the data has 10 classes: give it 10"),
        (Flat(), (3, 16, 16), r"fails on an input of shape \(3, 16, 16\) in .*'fc'.*3x16x16"),
        (nn.Conv3d(3, 4, 3), (3, 8, 8), "fails on an input of shape"),
        (nn.Sequential(nn.Conv2d(3, 10, 1)), (3, 8, 8), "returns a tensor of shape .* give it a classifier"),
        (ReadsValues(9), (3, 8, 8), "has 9 outputs"),
    ],
)
def test_networks_that_the_data_do_not_fit(tmp_path: Path, given: nn.Module, size, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check_training(Classify(given), size, 10, 4, sample="image")
    assert "\n" not in str(caught.value)
    data = tiny_nets.tiny_data(resolution=size[-1])
    with pytest.raises(DataError, match=message):
        fit(Classify(given), data, FitSettings(epochs=1), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_networks_that_fit_pass() -> None:
    for given in (net(), net(classes=12), Flat(), ReadsValues()):
        state = {name: value.clone() for name, value in given.state_dict().items()}
        random = torch.random.get_rng_state()
        check_training(Classify(given), (3, 8, 8), 10, 4, sample="image")
        assert torch.equal(random, torch.random.get_rng_state())
        assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())
        assert given.training


def test_outputs_that_nobody_has_named_must_be_as_many_as_classes() -> None:
    assert outputs_of(net(classes=12), (3, 8, 8)) == 12
    check_inputs(net(classes=12), (3, 8, 8), 10)
    with pytest.raises(DataError, match="nothing says which output is which class"):
        check_inputs(net(classes=12), (3, 8, 8), 10, named=False)


@pytest.mark.parametrize(("batch", "side"), [(1, 4), (1, 1)])
def test_one_value_a_channel(batch: int, side: int) -> None:
    with pytest.raises(DataError, match=rf"batches of 1 image of 3x{side}x{side}, of which .* single value a channel"):
        check_training(Classify(net()), (3, side, side), 10, batch, sample="image")
    check_training(Classify(net()), (3, 16, 16), 10, batch, sample="image")
    check_training(Classify(net()), (3, side, side), 10, 2, sample="image")
    check_training(Classify(net(), frozen_norms=True), (3, side, side), 10, batch, sample="image")


def test_one_value_a_channel_at_the_smallest_resolution() -> None:
    elastic = lc.make_elastic(net(), widths=(0.5, 1.0), resolutions=(8, 4), divisor=2, size=(3, 8, 8))
    objective = MutualObjective(elastic)
    with pytest.raises(DataError, match=r"1 image of 3x4x4, of which .* single value a channel"):
        check_training(objective, (3, 8, 8), 10, 1, sample="image")
    check_training(objective, (3, 8, 8), 10, 2, sample="image")


# ---------------------------------------------------------------------------------------------------------- run folders


def begun(out: Path, process: int, host: str = "") -> Path:
    """A run folder as a run leaves it that was killed before its first epoch had ended."""
    out.mkdir()
    (out / "config.yaml").write_text("lr: 1\n")
    started = {"event": "started", "process": process, "host": host or platform.node()}
    (out / "environment.json").write_text(json.dumps([started]))
    return out


def test_a_run_that_never_began_blocks_nothing(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    out = begun(tmp_path / "run", gone.pid)
    assert prepare_run_folder(out, {"lr": 2}, resume=False) is None
    assert (out / "config.yaml").read_text() == "lr: 2\n"
    assert [note["event"] for note in json.loads((out / "environment.json").read_text())] == ["started"]
    older = tmp_path / "older"  # of a leanconv that wrote no process
    older.mkdir()
    (older / "config.yaml").write_text("lr: 1\n")
    assert prepare_run_folder(older, {"lr": 2}, resume=False) is None


@pytest.mark.parametrize("left", ["last.ckpt", "metrics.csv", "model"])
def test_a_run_that_has_something_to_lose_is_kept(tmp_path: Path, left: str) -> None:
    out = begun(tmp_path / "run", 1, host="another machine")
    (out / left).touch()
    with pytest.raises(LeanconvError, match="already holds a run"):
        prepare_run_folder(out, {"lr": 2}, resume=False)
