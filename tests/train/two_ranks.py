"""One process of a distributed elastic run, for `test_distributed.py`; to be started by torchrun, twice.

python -m torch.distributed.run --nproc-per-node 2 two_ranks.py steps OUT
python -m torch.distributed.run --nproc-per-node 2 two_ranks.py fit OUT [--resume] [--kill-at STEP] [--low-memory]
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import tiny_nets
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leanconv.elastic import ElasticNet, MutualObjective, calibrate, make_elastic
from leanconv.query import QueryTable
from leanconv.train import FitSettings, OptimSettings, fit

CONFIGS = ((1.0, 16), (0.5, 16), (0.25, 12))
STEPS = (0, 5)
SIZES = (16, 12, 20, 8)


def elastic_net(*, synced: bool = False) -> ElasticNet:
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
    mine = loader(rank, world)
    found["state"], table = measured([mine, mine], latency=True)
    found["state of one"], _ = measured([[] if rank else mine, mine], latency=False)
    torch.save(found, out / f"rank{rank}.pt")
    table.save(out / f"rank{rank}.json")
    dist.destroy_process_group()


class KilledAt(MutualObjective):
    """Mutual learning, whose last process is killed as by the kernel at the given step."""

    kill_at: int | None = None

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        if step == self.kill_at and int(os.environ["RANK"]) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(inputs, targets, step)


def run(out: Path, *, resume: bool, kill_at: int | None, low_memory: bool) -> str:
    objective = KilledAt(elastic_net(), seed=1, low_memory=low_memory)
    objective.kill_at = kill_at
    settings = FitSettings(epochs=3, optim=OptimSettings(lr=0.05))
    data = tiny_nets.tiny_data(resolution=16, batch_size=256)
    fit(objective, data, settings, out, resume=resume, progress=False)
    return tiny_nets.digest(objective.net)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("steps", "fit"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--low-memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "steps":
        steps(options.out)
    else:
        digest = run(options.out, resume=options.resume, kill_at=options.kill_at, low_memory=options.low_memory)
        (options.out / f"digest{os.environ['RANK']}").write_text(digest)
