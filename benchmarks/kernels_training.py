"""Training on leanconv's own kernels against torch's grouped convolutions, on this machine's CPU, one thread.

    OMP_NUM_THREADS=1 python benchmarks/kernels_training.py --data parquet:TRAIN,TEST >> benchmarks/kernels.md

Networks take whole training steps (batch 64, forward, cross-entropy, backward, SGD) both ways by turns. Then the recipe
o_resnet20_cifar10 as `leanconv train` runs it, with its data read and augmented: by turns so many batches of an epoch
each way, from the same weights on the same images, with the loss of each batch; an epoch is that many times longer.
Medians of the rounds; in brackets the least and the greatest ratio of a round.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

NETWORKS: dict[str, dict[str, float]] = {
    "o_resnet20": {"multiplier": 3.625},
    "d_resnet20": {"multiplier": 2.75},
    "igc_l24m2": {},
    "igc_l4m8": {},
}
SIZE = (3, 32, 32)


def step(network: Any, optimizer: Any, x: Any, labels: Any) -> float:
    """One step; its loss."""
    from torch.nn.functional import cross_entropy

    optimizer.zero_grad()
    loss = cross_entropy(network(x), labels)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def spread(torch_s: list[float], own_s: list[float]) -> str:
    """How many times as fast: the ratio of medians, and the least and the greatest of a round."""
    ratios = [a / b for a, b in zip(torch_s, own_s, strict=True)]
    return f"{median(torch_s) / median(own_s):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def pair(name: str, options: dict[str, float], rate: float) -> tuple[list[Any], list[Any]]:
    """The network as torch trains it and as the library does, with the same weights, and their optimizers."""
    import torch

    from leanconv.build import create_model
    from leanconv.deploy.forms.trained import train_by_kernels_

    torch.manual_seed(0)
    plain = create_model(name, **options).train()
    own = copy.deepcopy(plain)
    train_by_kernels_(own)
    networks = [plain, own]
    return networks, [torch.optim.SGD(one.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4) for one in networks]


def steps(name: str, options: dict[str, float], rounds: int, batch: int = 64) -> str:
    """A row of the first table."""
    import torch
    from torch.nn.functional import cross_entropy

    from leanconv.deploy.kept import kept_bytes

    networks, optimizers = pair(name, options, 1e-3)
    x, labels = torch.randn(batch, *SIZE), torch.randint(10, (batch,))
    taken: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for which in range(2):
            start = time.perf_counter()
            step(networks[which], optimizers[which], x, labels)
            if turn:
                taken[which].append(time.perf_counter() - start)
    kept = [kept_bytes(net, lambda net=net: cross_entropy(net(x), labels)) / batch / 1e6 for net in networks]
    ms = [1e3 * median(times) for times in taken]
    return f"| {name} | {ms[0]:.0f} | {ms[1]:.0f} | {spread(*taken)} | {kept[0]:.1f} | {kept[1]:.1f} |"


def epoch(spec: str, rounds: int, batches: int) -> list[str]:
    """Part of an epoch of the recipe, both ways."""
    from leanconv.recipes import get_recipe
    from leanconv.recipes.run import open_data

    recipe = get_recipe("o_resnet20_cifar10")
    recipe = replace(recipe, data=replace(recipe.data, spec=spec))
    data = open_data(recipe)

    def endless() -> Iterator[Any]:
        while True:
            yield from data.train_loader()

    networks, optimizers = pair(recipe.model, recipe.model_args, recipe.optim.lr / 10)
    streams = [endless(), endless()]
    taken: list[list[float]] = [[], []]
    losses: list[list[float]] = [[], []]
    images = 0
    for turn in range(rounds + 1):
        for which in range(2):
            start = time.perf_counter()
            for _ in range(batches if turn else 1):
                x, labels = next(streams[which])[:2]
                losses[which].append(step(networks[which], optimizers[which], x, labels))
            if turn:
                taken[which].append(time.perf_counter() - start)
                images = batches * len(x)
    whole = len(data.train_loader()) * recipe.data.batch_size
    minutes = [whole / images * median(times) / 60 for times in taken]
    worst = max(abs(a - b) / a for a, b in zip(losses[0][:5], losses[1][:5], strict=True))
    late = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    first = [", ".join(f"{loss:.5f}" for loss in found[:5]) for found in losses]
    return [
        "| | torch | our kernels | times as fast |",
        "|---|---:|---:|---:|",
        f"| an epoch of {whole} images, minutes | {minutes[0]:.1f} | {minutes[1]:.1f} | {spread(*taken)} |",
        "",
        f"Losses of the first five batches: {first[0]} by torch, {first[1]} by our kernels. They differ by at most"
        f" {worst:.0e}; over all {len(losses[0])} batches by {late:.0e}, as rounding grows in training.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10, as `leanconv train --data` takes it; without it, no epoch is timed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=1, help="of 128 images, each way in every round of the epoch")
    args = parser.parse_args()

    import torch

    from leanconv.deploy.forms.measured import vectors_used
    from leanconv.machine import this_machine, versions

    torch.set_num_threads(1)
    print("\n## Training\n")
    packages = ", ".join(f"{name} {version}" for name, version in versions(["torch"]).items())
    where = "--data SPEC " if args.data else ""
    print(
        f"`OMP_NUM_THREADS=1 python benchmarks/kernels_training.py {where}--rounds {args.rounds}`, "
        f"{time.strftime('%Y-%m-%d')}. {this_machine()}; {packages}; the library computes with {vectors_used()}."
    )
    print("One thread, float32; in brackets the least and the greatest ratio of a round.\n")
    print("| network | ms a step of 64, torch | our kernels | times as fast | MB kept an image, torch | our kernels |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, options in NETWORKS.items():
        print(steps(name, options, args.rounds), flush=True)
    if args.data:
        print(f"\nThe recipe o_resnet20_cifar10 with its data, {args.batches} x 128 images a round and way.")
        print("No whole epoch is run: minutes are the median round times the rounds of an epoch, no validation.\n")
        print("\n".join(epoch(args.data, args.rounds, args.batches)))
    print(f"\nLoad of the machine after the run: {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
