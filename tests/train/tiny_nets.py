"""A small network, small data and a run of both, for the tests of this folder; also run as a program, to be killed.

python tiny_nets.py OUT [--resume] [--kill-at STEP | --kill-in-save EPOCH] [--ema] [--epochs N]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from leanconv.data import ImageData, open_images
from leanconv.train import Classify, FitResult, FitSettings, OptimSettings, fit


def tiny_net(seed: int = 0) -> nn.Module:
    """Convolutions, BatchNorm and dropout: everything that could make a resumed run differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )


def tiny_data(**settings: object) -> ImageData:
    """The digits at 8x8 in batches of 128: 11 steps an epoch, also without the validation part."""
    usual = {"resolution": 8, "augment": "shift", "batch_size": 128, "validation": 0.02}
    return open_images("digits", **{**usual, **settings})  # type: ignore[arg-type]


def digest(module: nn.Module) -> str:
    """A hash of every bit of the weights and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


class KilledAt(Classify):
    """The plain objective, whose process is killed as by the kernel at the given step."""

    def __init__(self, net: nn.Module, step: int | None) -> None:
        super().__init__(net)
        self.step = step

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(inputs, targets, step)


def run(out: Path, *, resume: bool = False, epochs: int = 3, ema: float | None = None, kill_at: int | None = None):
    """Train the tiny network and return (result, digest of its weights)."""
    net = tiny_net()
    settings = FitSettings(epochs=epochs, optim=OptimSettings(lr=0.1), ema=ema)
    result: FitResult = fit(KilledAt(net, kill_at), tiny_data(), settings, out, resume=resume, progress=False)
    return result, digest(net)


def _kill_in_save(epoch: int) -> None:
    """Make the writing of `last.ckpt` after `epoch` epochs die with half of the file written."""
    save = torch.save

    def half(checkpoint, file) -> None:
        save(checkpoint, file)
        if checkpoint["epoch"] + 1 == epoch and "last.ckpt" in file.name:
            file.flush()
            os.truncate(file.name, os.path.getsize(file.name) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--kill-in-save", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.kill_in_save:
        _kill_in_save(options.kill_in_save)
    print(run(options.out, resume=options.resume, ema=0.9 if options.ema else None, kill_at=options.kill_at)[1])
