"""One process of a distributed elastic run, for `test_distributed.py`; to be started by torchrun, twice.

python -m torch.distributed.run --nproc-per-node 2 two_ranks.py steps OUT
python -m torch.distributed.run --nproc-per-node 2 two_ranks.py fits OUT
python -m torch.distributed.run --nproc-per-node 2 two_ranks.py fit OUT [--resume] [--kill-at STEP] [--stop-at STEP]
    [--low-memory]
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType

import tiny_nets
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leanconv.elastic import ElasticNet, MutualObjective, calibrate, make_elastic
from leanconv.query import QueryTable
from leanconv.train import Classify, FitSettings, OptimSettings, fit

CONFIGS = ((1.0, 16), (0.5, 16), (0.25, 12))
STEPS = (0, 5)
SIZES = (16, 12, 20, 8)
PARTS = (16, 5)
"""Images of the batches that are accumulated; the last one is not full."""

FITS: dict[str, dict[str, object]] = {
    "plain": {},
    "plain accumulated": {"accumulate": 3},  # the last group of an epoch of eleven steps has two
    "mutual": {},
    "mutual accumulated": {"accumulate": 3},
    "plain bf16-mixed": {"precision": "bf16-mixed"},
    "mutual bf16-mixed": {"precision": "bf16-mixed"},
}
"""Runs of one epoch that two processes and one do."""


def elastic_net(*, synced: bool = False, normed: bool = True) -> ElasticNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, 2, 1),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(48, 10),
        )
        if not normed:
            model = nn.Sequential(*(layer for layer in model if not isinstance(layer, nn.BatchNorm2d)))
        if synced:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return make_elastic(model, widths=(0.25, 1.0), resolutions=(16, 12))


def batch(number: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(size, 3, 16, 16, generator=generator) + number
    return images, torch.randint(10, (size,), generator=generator)


def loader(rank: int, world: int) -> list[tuple[Tensor, Tensor]]:
    """Every `world`-th of four batches of different sizes."""
    return [batch(number, size) for number, size in enumerate(SIZES)][rank::world]


def measured(loaders: list[list[tuple[Tensor, Tensor]]], *, latency: bool) -> tuple[dict[str, Tensor], QueryTable]:
    """The state and the table of a network that is calibrated and measured on this process's loaders."""
    net = elastic_net()
    calibrate(net, loaders[0], CONFIGS)
    table = QueryTable.measure(net, loaders[1], configs=CONFIGS, latency=latency, rounds=2)
    return net.state_dict(), table


def steps(out: Path) -> None:
    """What one rank computes: gradients in both modes, statistics, the table."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    found: dict[str, object] = {}
    for low_memory in (False, True):
        objective = MutualObjective(elastic_net().train(), seed=3, low_memory=low_memory)
        parallel = DistributedDataParallel(objective)
        for step in STEPS:
            objective.zero_grad()
            parallel(*batch(10 * step + rank), step)["loss"].backward()
            found[f"{low_memory} {step}"] = {name: p.grad for name, p in objective.net.named_parameters()}
            found[f"plan {step}"] = [
                (float(config[0]), *config[1:]) for config in objective.plan(step)
            ]  # plain numbers
    for accumulated in (1, 2):
        plain = DistributedDataParallel(Classify(elastic_net().model.train()))
        for part in range(accumulated):
            with nullcontext() if part == accumulated - 1 else plain.no_sync():
                plain(*batch(10 * part + rank, PARTS[part]), part)["loss"].backward()
        found[f"plain {accumulated}"] = {name: p.grad for name, p in plain.module.net.named_parameters()}
    mine = loader(rank, world)
    found["state"], table = measured([mine, mine], latency=True)
    found["state of one"], _ = measured([[] if rank else mine, mine], latency=False)
    torch.save(found, out / f"rank{rank}.pt")
    table.save(out / f"rank{rank}.json")
    dist.destroy_process_group()


def fitted(out: Path, name: str) -> dict[str, Tensor]:
    """The weights after one of `FITS`, of a network without statistics, which two processes would not share."""
    net = elastic_net(normed=False)
    objective: nn.Module = MutualObjective(net, seed=1) if name.startswith("mutual") else Classify(net.model)
    settings = FitSettings(epochs=1, optim=OptimSettings(lr=0.05), **FITS[name])  # type: ignore[arg-type]
    fit(objective, tiny_nets.tiny_data(resolution=16), settings, out / name, progress=False)
    return {name: value.clone() for name, value in net.state_dict().items()}


class SignalledAt(MutualObjective):
    """Mutual learning, to whose last process a signal comes at the given step."""

    signals: Mapping[int | None, signal.Signals] = MappingProxyType({})

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        if step in self.signals and int(os.environ["RANK"]) == 1:
            os.kill(os.getpid(), self.signals[step])
        return super().forward(inputs, targets, step)


def run(out: Path, signals: Mapping[int | None, signal.Signals], *, resume: bool, low_memory: bool) -> str:
    objective = SignalledAt(elastic_net(), seed=1, low_memory=low_memory)
    objective.signals = signals
    settings = FitSettings(epochs=3, optim=OptimSettings(lr=0.05))
    data = tiny_nets.tiny_data(resolution=16, batch_size=256)
    fit(objective, data, settings, out, resume=resume, progress=False)
    return tiny_nets.digest(objective.net)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("steps", "fits", "fit"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--stop-at", type=int)
    parser.add_argument("--low-memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "steps":
        steps(options.out)
    elif options.what == "fits":
        for name in FITS:
            torch.save(fitted(options.out, name), options.out / f"{name} {os.environ['RANK']}.pt")
    else:
        signals = {options.kill_at: signal.SIGKILL, options.stop_at: signal.SIGTERM}
        digest = run(options.out, signals, resume=options.resume, low_memory=options.low_memory)
        (options.out / f"digest{os.environ['RANK']}").write_text(digest)
