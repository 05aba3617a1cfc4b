"""Time of one mutual learning step against the steps of its sub-networks as networks of their own, and its memory.

    python benchmarks/elastic_step.py > benchmarks/elastic_step.md

The separate steps are those of the extracted networks, one after the other, on images that have their resolution
already; the elastic step slices, resizes and distills as well. Both zero the gradients, run forward and backward, and
leave out the optimizer. Memory that is freed is kept, as by `leanconv train`, unless --system-allocator is given. For
every plan of a few steps all candidates run interleaved; what is shown is the ratio within a round. Memory is what
autograd keeps for the backward at its peak, weights apart.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.build import create_model
from leanconv.cost import Latency, compare_latency
from leanconv.elastic import ElasticNet, MutualObjective
from leanconv.elastic.inputs import resized
from leanconv.machine import keep_freed_memory, this_machine

CASES = (
    ("elastic_resnet20", {"widths": (0.25, 1.0), "resolutions": (32, 28, 24, 20)}, 128),
    ("elastic_mobilenet_v2", {}, 8),
    ("elastic_resnet50", {"widths": (0.25, 1.0)}, 4),
)
"""Network, options, batch."""


def elastic_step(objective: MutualObjective, images: Tensor, labels: Tensor, step: int) -> Callable[[], None]:
    def run() -> None:
        objective.zero_grad()
        objective(images, labels, step)["loss"].backward()

    return run


def separate_steps(net: ElasticNet, plan: tuple, images: Tensor, labels: Tensor) -> Callable[[], None]:
    nets = [net.extract(*config, calibrated=False).train() for config in plan]
    inputs = [resized(images, config.resolution).contiguous() for config in plan]

    def run() -> None:
        for static, x in zip(nets, inputs, strict=True):
            static.zero_grad()
            functional.cross_entropy(static(x), labels).backward()

    return run


@contextmanager
def kept(net: nn.Module) -> Iterator[list[int]]:
    """[now, peak] bytes that autograd keeps, weights apart."""
    count = [0, 0]
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            self.size = 0 if tensor.untyped_storage().data_ptr() in weights else tensor.nbytes
            count[0] += self.size
            count[1] = max(count)

        def __del__(self) -> None:
            count[0] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        yield count


def measured(name: str, settings: dict, batch: int, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    net = create_model(name, **settings).train().to(options.device)
    assert isinstance(net, ElasticNet)
    images = torch.randn(batch, *net.settings["size"], device=options.device)
    labels = torch.randint(10, (batch,), device=options.device)
    objectives = {low: MutualObjective(net, low_memory=low) for low in (False, True)}
    names = {False: "elastic", True: "elastic, low memory"}
    found: dict[str, list[Latency]] = {}
    peaks: dict[str, list[float]] = {}
    for step in range(options.plans):
        candidates = {"separate": separate_steps(net, objectives[False].plan(step), images, labels)}
        for low, objective in objectives.items():
            candidates[names[low]] = elastic_step(objective, images, labels, step)
            with kept(net) as count:
                candidates[names[low]]()
            peaks.setdefault(names[low], []).append(count[1] / 2**20)
        timed = compare_latency(
            candidates, rounds=options.rounds, warmup=1, threads=options.threads, min_sample_ms=0, seed=step
        )
        for candidate, latency in timed.items():
            found.setdefault(candidate, []).append(latency)
    print(f"\n## {name}, batch {batch}, widths {net.widths}, resolutions {net.resolutions}\n")
    print("| step | median ms | ratio to separate | lowest and highest plan | overhead | kept for backward [MiB] |")
    print("|---|---:|---:|---:|---:|---:|")
    for candidate, latencies in found.items():
        ratios = [latency.ratio for latency in latencies]
        ratio = statistics.median(ratios)
        memory = f"{statistics.mean(peaks[candidate]):.1f}" if candidate in peaks else ""
        print(
            f"| {candidate} | {statistics.median(latency.median_ms for latency in latencies):.1f} | {ratio:.3f} |"
            f" {min(ratios):.3f} - {max(ratios):.3f} | {100 * (ratio - 1):+.1f} % | {memory} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the networks whose name has this in it")
    parser.add_argument("--plans", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--system-allocator", action="store_true", help="as in a program that does not keep memory")
    options = parser.parse_args()
    kept = "as the system does" if options.system_allocator or not keep_freed_memory() else "kept"
    gpu = f"{torch.cuda.get_device_name()}, " if options.device.startswith("cuda") else ""
    print(f"{gpu}{this_machine()}, {options.threads} threads, torch {torch.__version__}, freed memory: {kept}")
    for name, settings, batch in CASES:
        if options.only in name:
            measured(name, settings, batch, options)


if __name__ == "__main__":
    main()
