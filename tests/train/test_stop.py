"""SIGTERM and Ctrl-C stop training after the step at hand, and the run then ends as if it had not been stopped."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import tiny_nets
import torch
from torch import Tensor, nn

from leanconv.data import open_images
from leanconv.ends import Terminated
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.train import Classify, FitSettings, OptimSettings, fit


@pytest.fixture(autouse=True)
def signals_as_on_a_terminal() -> Iterator[None]:
    """What runs in the background of a shell ignores SIGINT, and hands that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


KINDS = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}


class Signalled(Classify):
    """The plain objective, to whose process the signal comes in the given steps."""

    def __init__(self, net: nn.Module, at: dict[int, signal.Signals]) -> None:
        super().__init__(net)
        self.at = at

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        if step in self.at:
            os.kill(os.getpid(), self.at.pop(step))
        return super().forward(inputs, targets, step)


def run(out: Path, at: dict[int, signal.Signals] | None = None, **options: object) -> str:
    """Two epochs of eleven steps, stopped and resumed where `at` says; the digest of the weights."""
    net = tiny_nets.tiny_net()
    usual = {"epochs": 2, "optim": OptimSettings(lr=0.1), **options}
    settings = FitSettings(**usual)  # type: ignore[arg-type]
    objective = Signalled(net, dict(at or {}))
    for resume in range(len(objective.at)):
        with pytest.raises((KeyboardInterrupt, Terminated), match="to go on: the same call with resume=True"):
            fit(objective, tiny_nets.tiny_data(), settings, out, resume=resume > 0, progress=False)
        for value in net.state_dict().values():  # nothing but the checkpoint brings it back
            value.detach().zero_()
    fit(objective, tiny_nets.tiny_data(), settings, out, resume=bool(at), progress=False)
    return tiny_nets.digest(net)


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv") as file:
        found = csv.DictReader(file)
        return [
            {key: cell for key, cell in row.items() if key not in ("seconds", "images_per_second")} for row in found
        ]


@pytest.mark.parametrize(
    ("at", "options"),
    [
        ({0: signal.SIGTERM}, {}),
        ({4: signal.SIGTERM, 15: signal.SIGINT, 16: signal.SIGTERM}, {}),
        ({10: signal.SIGINT}, {}),  # the last step of an epoch: the test comes first
        ({21: signal.SIGTERM}, {}),  # that of the run
        ({3: signal.SIGTERM, 15: signal.SIGTERM}, {"accumulate": 3}),
        ({4: signal.SIGTERM, 17: signal.SIGTERM}, {"ema": 0.9}),
        ({2: signal.SIGTERM}, {"steps_per_epoch": 5}),
    ],
    ids=str,
)
def test_a_stopped_run_ends_as_a_whole_one(
    tmp_path: Path, at: dict[int, signal.Signals], options: dict[str, object]
) -> None:
    whole = run(tmp_path / "whole", **options)
    assert run(tmp_path / "run", at, **options) == whole
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "run"))
    assert one["loops"] == other["loops"]
    assert one["global_step"] == other["global_step"]


@pytest.mark.parametrize("number", KINDS)
def test_where_it_stopped(tmp_path: Path, number: signal.Signals) -> None:
    before = {kind: signal.getsignal(kind) for kind in KINDS}
    out = tmp_path / "run"
    net = tiny_nets.tiny_net()
    with pytest.raises(KINDS[number]) as caught:
        fit(Signalled(net, {4: number}), tiny_nets.tiny_data(), FitSettings(epochs=2), out, progress=False)
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    assert str(caught.value) == (
        f"{word} in epoch 1, and everything is in {out / 'last.ckpt'}; to go on: the same call with resume=True"
    )
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    assert {kind: signal.getsignal(kind) for kind in KINDS} == before
    stopped = torch.load(out / "last.ckpt", weights_only=True)
    assert stopped["leanconv_mid_epoch"]["batch"] == 5
    assert stopped["global_step"] == 5
    assert not (out / "metrics.csv").exists()
    assert sorted(entry.name for entry in out.iterdir()) == [
        "config.yaml", "environment.json", "last.ckpt", "tensorboard"
    ]  # fmt: skip


def test_as_many_processes_go_on(tmp_path: Path) -> None:
    with pytest.raises(Terminated):
        fit(
            Signalled(tiny_nets.tiny_net(), {4: signal.SIGTERM}),
            tiny_nets.tiny_data(),
            FitSettings(epochs=2),
            tmp_path / "run",
            progress=False,
        )
    path = tmp_path / "run" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["leanconv_mid_epoch"]["ranks"] *= 2
    torch.save(content, path)
    again = partial(fit, data=tiny_nets.tiny_data(), settings=FitSettings(epochs=2), out=tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="2 processes were stopped in the middle of an epoch, and 1 cannot go on"):
        again(Classify(tiny_nets.tiny_net()))
    for wrong in ({}, {"batch": 3, "ranks": [{}]}, {"batch": "x", "ranks": []}, 7):
        torch.save({**content, "leanconv_mid_epoch": wrong}, path)
        with pytest.raises(
            CheckpointError, match=r"last.ckpt: what it says of the epoch that was stopped in its middle"
        ):
            again(Classify(tiny_nets.tiny_net()))


class NotANumber(Classify):
    """The plain objective, with that loss in the given step."""

    def __init__(self, net: nn.Module, step: int, factor: float) -> None:
        super().__init__(net)
        self.step, self.factor = step, factor

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        loss = super().forward(inputs, targets, step)["loss"]
        return {"loss": loss * self.factor if step == self.step else loss}


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_at_its_step(tmp_path: Path, factor: float) -> None:
    settings = FitSettings(epochs=2, optim=OptimSettings(lr=0.1))
    out = tmp_path / "run"
    with pytest.raises(LeanconvError) as caught:
        fit(NotANumber(tiny_nets.tiny_net(), 13, factor), tiny_nets.tiny_data(), settings, out, progress=False)
    assert str(caught.value) == (
        "epoch 2, step 3 of 11: the training loss is not a finite number (learning rate 0.0359), so the weights are"
        " lost; lower optim.lr, add schedule.warmup_epochs or set clip;"
        f" {out / 'last.ckpt'} holds the last good state, the end of epoch 1"
    )
    assert torch.load(out / "last.ckpt", weights_only=True)["epoch"] == 0
    with pytest.raises(LeanconvError, match=r"epoch 1, step 2 of 11: .*; there is no checkpoint yet"):
        fit(
            NotANumber(tiny_nets.tiny_net(), 1, factor), tiny_nets.tiny_data(), settings, tmp_path / "b", progress=False
        )


class Spoils(Classify):
    """A loss that is a number, and a gradient that is none, in the last step of the first epoch."""

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        loss = super().forward(inputs, targets, step)["loss"]
        weight = self.net[0].weight
        return {"loss": loss + (weight[0, 0, 0, 0] * 0).sqrt() if step == 10 else loss}


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(LeanconvError, match=r"epoch 1: after its last step net\.0\.weight holds numbers that are not"):
        fit(Spoils(tiny_nets.tiny_net()), tiny_nets.tiny_data(), FitSettings(epochs=2), out, progress=False)
    assert not (out / "last.ckpt").exists()


# --------------------------------------------------------------------------------------------------- the command line

CLI = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from leanconv.cli import main; main()"


def started(out: Path, *options: str) -> subprocess.Popen[str]:
    """A training that takes long enough to be stopped, once it trains."""
    long = ["--set", "epochs=500", "--set", "accelerator=cpu", "--set", "data.resolution=8", "--set", "model=resnet20"]
    command = [sys.executable, "-c", CLI, "train", "o_resnet20_cifar10", "--data", "digits", *long, *options]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    begin = time.monotonic()
    while not (out / "last.ckpt").exists() and process.poll() is None and time.monotonic() - begin < 300:
        time.sleep(0.1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", KINDS)
def test_the_command_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = started(out)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    word, code = ("terminated", 143) if number == signal.SIGTERM else ("interrupted", 130)
    assert (process.returncode, len(said.splitlines())) == (code, 1), said
    where = re.escape(str(out))  # the signal may come before or after the next epoch has begun
    told = rf"leanconv: {word} in epoch [1-9]\d*, and everything is in {where}/last\.ckpt; to go on: "
    assert re.fullmatch(rf"{told}leanconv train --resume --out {where}\n", said), said
    assert not (out / ".lock").exists()


@pytest.mark.slow
def test_a_signal_to_the_whole_group_with_workers(tmp_path: Path) -> None:
    """As a terminal and SLURM send it: the workers end first, and no batch comes any more."""
    from PIL import Image

    for number in range(64):
        folder = tmp_path / "photos" / "train" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number}.png")
    images = [
        "--set",
        f"data.spec=folder:{tmp_path / 'photos' / 'train'}",
        "--set",
        "data.workers=1",
        "--set",
        "data.batch_size=4",
    ]
    out = tmp_path / "run"
    process = started(out, *images, "--set", "data.augment=imagenet")
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert said.splitlines()[-1].endswith(f"to go on: leanconv train --resume --out {out}")
    assert (out / "last.ckpt").exists()


def test_what_is_not_read_again(tmp_path: Path) -> None:
    """A loader goes on behind the batches that were done, and gives what it would have given."""
    data = open_images("digits", resolution=8, batch_size=256, augment="shift")
    data.set_epoch(3)
    loader = data.train_loader()
    for (images, labels), (others, same) in zip(list(loader)[3:], loader.after(3), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, same)
