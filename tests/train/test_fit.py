"""What a run leaves and says, and that it learns."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tiny_nets
import torch
from torch import Tensor, nn

from leanconv.errors import DataError, LeanconvError
from leanconv.train import Classify, FitSettings, Objective, OptimSettings, ScheduleSettings, evaluate, fit


def quick(out: Path, objective: nn.Module | None = None, **settings: object):
    options = FitSettings(**{"epochs": 2, "optim": OptimSettings(lr=0.1), **settings})  # type: ignore[arg-type]
    return fit(objective or Classify(tiny_nets.tiny_net()), tiny_nets.tiny_data(), options, out)


def test_the_run_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = quick(tmp_path / "deep" / "run")
    out = tmp_path / "deep" / "run"
    assert [str(warning.message) for warning in caught] == []
    assert {entry.name for entry in out.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "tensorboard",
        "last.ckpt",
        "best.ckpt",
    }
    assert "lr: 0.1" in (out / "config.yaml").read_text()
    note = json.loads((out / "environment.json").read_text())[0]
    assert note["event"] == "started"
    assert note["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert note["threads"] >= 1
    with open(out / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["11", "22"]
    rates = [0.05 * (1 + math.cos(math.pi * step / 22)) for step in (10, 21)]
    assert [float(row["lr"]) for row in rows] == pytest.approx(rates)  # of the last of its steps
    assert float(rows[1]["val_accuracy"]) == result.accuracy == result.history[-1]["val_accuracy"]
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    # Piped: one line per epoch, nothing from Lightning, nothing on stderr.
    said = capfd.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  loss ")
    assert re.fullmatch(r"epoch 1/2  loss \d\.\d{4}  val \d+\.\d\d % \(\d+\.\d-\d+\.\d\)  \d+\.\d s", lines[0])
    assert len(lines[0]) <= 60


def test_the_accuracy_on_a_fixed_training_sample(tmp_path: Path) -> None:
    """That of the weights after the epoch, on images as the test has them."""
    net = tiny_nets.tiny_net()
    result = quick(tmp_path / "run", Classify(net), train_sample=200)
    data = tiny_nets.tiny_data()
    found = evaluate(net, data.train_sample_loader(200))
    assert found.images == 200
    assert result.history[-1]["train_accuracy"] == pytest.approx(found.top1)
    assert result.history[-1]["train_low"] < found.top1 < result.history[-1]["train_high"]
    assert result.history[-1]["val_accuracy"] == pytest.approx(evaluate(net, data.val_loader()).top1)
    same = [labels.tolist() for _, labels in data.train_sample_loader(200)]
    data.set_epoch(3)
    assert [labels.tolist() for _, labels in data.train_sample_loader(200)] == same
    with pytest.raises(LeanconvError, match="train_sample is a number of training images, 0 for none, got -1"):
        FitSettings(train_sample=-1)


def test_tensorboard_has_the_same_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = quick(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [event.value for event in events.Scalars("val_accuracy")]
    assert found == pytest.approx([row["val_accuracy"] for row in result.history])


def test_it_learns_and_the_accuracy_is_that_of_the_network(tmp_path: Path) -> None:
    net = tiny_nets.tiny_net()
    result = quick(tmp_path / "run", Classify(net), epochs=6)
    assert result.accuracy > 0.5
    net.eval()
    right = total = 0
    with torch.no_grad():
        for images, labels in tiny_nets.tiny_data().val_loader():
            right += int((net(images).argmax(1) == labels).sum())
            total += len(labels)
    assert right / total == result.accuracy
    best = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)
    assert best["epoch"] + 1 == result.best_epoch
    assert result.best_accuracy == max(row["val_accuracy"] for row in result.history)


def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    result = quick(tmp_path / "run", epochs=1, accumulate=4)
    assert result.history[0]["step"] == 3  # 11 batches by 4


def test_short_epochs(tmp_path: Path) -> None:
    result = quick(tmp_path / "run", steps_per_epoch=2)
    assert [row["step"] for row in result.history] == [2, 4]


def test_mixed_precision_and_clipping(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    net = tiny_nets.tiny_net()

    def look(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if type(output) is torch.Tensor:  # not in the dry run before
            seen.append(output.dtype)

    net[0].register_forward_hook(look)
    result = quick(tmp_path / "run", Classify(net), precision="bf16-mixed", clip=0.5, steps_per_epoch=2)
    assert set(seen) == {torch.bfloat16}
    assert result.history[-1]["train_loss"] > 0


def test_averaging_changes_what_is_tested_and_kept(tmp_path: Path) -> None:
    one, other = tiny_nets.tiny_net(), tiny_nets.tiny_net()
    plain = quick(tmp_path / "plain", Classify(one))
    averaged = quick(tmp_path / "ema", Classify(other), ema=0.9)
    assert plain.history[-1]["train_loss"] == averaged.history[-1]["train_loss"]  # training itself is the same
    assert plain.history[-1]["val_loss"] != averaged.history[-1]["val_loss"]
    assert tiny_nets.digest(one) != tiny_nets.digest(other)


class Parts(nn.Module):
    """An objective of two parts with its own way to predict, as an elastic one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_nets.tiny_net()
        self.steps: list[int] = []

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        self.steps.append(step)
        first = nn.functional.cross_entropy(self.net(inputs), targets)
        second = self.net[-1].weight.square().mean()
        return {"loss": first + second, "first": first, "second": second}

    def predict(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) * 0 + torch.nn.functional.one_hot(torch.tensor(3), 10)


def test_an_objective_of_parts(tmp_path: Path) -> None:
    objective = Parts()
    assert isinstance(objective, Objective)
    result = quick(tmp_path / "run", objective, steps_per_epoch=3)
    assert objective.steps == [0, 1, 2, 3, 4, 5]
    row = result.history[0]
    assert row["train_loss"] == pytest.approx(row["train_first"] + row["train_second"])
    data = tiny_nets.tiny_data()
    labels = torch.cat([labels for _, labels in data.val_loader(limit=3 * 128)])
    assert row["val_accuracy"] == pytest.approx(float((labels == 3).double().mean()))


class Diverges(Classify):
    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        losses = super().forward(inputs, targets, step)
        return {"loss": losses["loss"] * (float("nan") if step >= 11 else 1)}


def test_a_lost_run_stops_before_it_spoils_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        LeanconvError, match=r"epoch 2, step 1 of 11: the training loss is not a finite .* lower optim.lr"
    ):
        quick(tmp_path / "run", Diverges(tiny_nets.tiny_net()), epochs=3)
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 0
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def test_broken_images_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from leanconv.data import open_images

    for split in ("train", "val"):
        for number, name in enumerate(("a", "b")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (8, 8), (60 * index, 99 * number, 0)).save(tmp_path / split / name / f"{index}.png")
    (tmp_path / "train" / "a" / "0.png").write_text("no image")
    data = open_images(f"folder:{tmp_path}", resolution=8, batch_size=4)
    result = fit(Classify(tiny_nets.tiny_net()), data, FitSettings(epochs=1), tmp_path / "run")
    assert [Path(name).name for name, _ in result.problems] == ["0.png"]
    assert "1 image could not be read and was skipped" in capsys.readouterr().out
    assert "a/0.png" in (tmp_path / "run" / "problems.csv").read_text()


def test_data_that_cannot_be_read_leaves_no_run_folder(tmp_path: Path) -> None:
    from leanconv.data import open_images

    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(2):
            (tmp_path / "set" / name / f"{index}.png").write_text("no")
    data = open_images(f"folder:{tmp_path / 'set'}", resolution=8)
    with pytest.raises(LeanconvError, match="none of the 2 images could be read"):
        fit(Classify(tiny_nets.tiny_net()), data, FitSettings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_devices_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LeanconvError, match=r"cannot train with accelerator=cuda, devices=1, nodes=1: ") as caught:
        quick(tmp_path / "run", accelerator="cuda")
    assert "\n" not in str(caught.value)
    with pytest.raises(LeanconvError, match=r"precision=16-mixed is not possible on a CPU"):
        quick(tmp_path / "run", accelerator="cpu", precision="16-mixed")
    assert not (tmp_path / "run").exists()


def test_evaluate(tmp_path: Path) -> None:
    net = tiny_nets.tiny_net()
    result = quick(tmp_path / "run", Classify(net), epochs=1)
    net.train()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    found = evaluate(net, tiny_nets.tiny_data().val_loader())
    assert (found.images, found.top1) == (30, result.accuracy)
    assert found.loss == pytest.approx(result.history[-1]["val_loss"])
    assert found.top5 is not None
    assert found.top1 < found.top5 < 1
    assert [module.training for module in net.modules()] == modes
    assert evaluate(nn.Flatten(), [(torch.eye(3), torch.tensor([0, 1, 0]))]).top1 == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="a label is 9, but the network has 4 outputs"):
        evaluate(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), tiny_nets.tiny_data().eval_loader())
    with pytest.raises(DataError, match="no images to evaluate on"):
        evaluate(net, [])


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(LeanconvError, match="expected a folder for the run, found a file"):
        quick(tmp_path / "run")


class Interrupts(Classify):
    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        if step == 3:
            raise KeyboardInterrupt
        return super().forward(inputs, targets, step)


def test_ctrl_c_stays_ctrl_c(tmp_path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "run", Interrupts(tiny_nets.tiny_net()))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    quick(tmp_path / "run")
    said = capsys.readouterr().out
    assert "epoch 2/2  loss" in said
    assert "\x1b[" in said  # the bar moves the cursor


def test_lightning_is_imported_by_fit_only() -> None:
    code = "import sys, leanconv.train, leanconv.recipes, leanconv.data; print([m for m in sys.modules if m in %r])"
    heavy = ("lightning", "timm", "torchvision", "sklearn", "pyarrow", "yaml", "rich", "PIL")
    done = subprocess.run([sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Data-parallel: the same batches shared by two processes, up to BatchNorm, give the same figures."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import tiny_nets, torch\n"
        "from torch import nn\n"
        "from leanconv.train import *\n"
        "torch.set_num_threads(1)\n"
        "torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))\n"
        "settings = FitSettings(epochs=2, accelerator='cpu', devices=int(sys.argv[3]))\n"
        "fit(Classify(net), tiny_nets.tiny_data(), settings, sys.argv[2], progress=False)\n"
    )
    rows = []
    for devices in (1, 2):
        out = tmp_path / f"run{devices}"
        command = [sys.executable, str(program), str(Path(tiny_nets.__file__).parent), str(out), str(devices)]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
        with open(out / "metrics.csv") as file:
            rows.append(list(csv.DictReader(file)))
    assert len(rows[0]) == len(rows[1]) == 2
    for one, two in zip(*rows, strict=True):
        assert one["step"] == two["step"]
        for key in ("train_loss", "val_loss", "val_accuracy"):
            assert float(one[key]) == pytest.approx(float(two[key]), rel=1e-4)


def test_settings_out_of_range() -> None:
    for settings, message in (
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"precision": "16"}, "unknown precision '16'"),
        ({"ema": 1.5}, "ema is a decay between 0 and 1"),
        ({"clip": 0.0}, "clip must be a positive norm"),
        ({"seed": -1}, "seed must not be negative"),
        ({"accelerator": "cpus"}, "did you mean 'cpu'"),
    ):
        with pytest.raises(LeanconvError, match=message):
            FitSettings(**settings)
    with pytest.raises(LeanconvError, match="unknown schedule 'cosin': did you mean 'cosine'"):
        ScheduleSettings("cosin")
    with pytest.raises(LeanconvError, match="milestones are fractions of the run"):
        ScheduleSettings("step", milestones=(100,))
