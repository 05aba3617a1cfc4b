"""What a query table is filled with: accuracies over all processes, costs, latencies, and where they were measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanconv.cost import compare_latency, measure
from leanconv.cost.latency import torch_threads
from leanconv.deploy.bench import BACKENDS, prepared
from leanconv.deploy.fold import eval_copy
from leanconv.deploy.verify import random_inputs
from leanconv.elastic.calibrate import inputs_of
from leanconv.elastic.net import ElasticNet
from leanconv.elastic.width import Config
from leanconv.errors import DataError, LeanconvError, unknown
from leanconv.files import scratch_folder
from leanconv.intervals import of_share
from leanconv.machine import this_machine
from leanconv.modes import eval_mode
from leanconv.query.rows import EAGER, Row, Time, TimingSetup
from leanconv.ranks import rank_and_world, summed
from leanconv.story import Story, story_of

__all__ = ["accuracies", "describe", "elsewhere", "fingerprint", "latencies", "row_of"]

TOGETHER = 2 << 30
"""Bytes of weights that are extracted at the same time for timing; more configurations are timed in several runs."""


def accuracies(net: ElasticNet, loader: Iterable[Any], configs: Sequence[Config]) -> tuple[dict[Config, float], int]:
    """Top-1 accuracies over the loaders of all processes, each read once, and the number of their images."""
    with eval_mode(net) as device:
        counts = torch.zeros(len(configs) + 1, dtype=torch.int64, device=device)  # right per configuration, and images
        for batch in loader:
            if isinstance(batch, Tensor) or len(batch) < 2:
                raise DataError("a query table needs labels: its loader must yield (inputs, labels)")
            inputs, labels = inputs_of(batch).to(device), torch.as_tensor(batch[1]).to(device)
            counts[-1] += len(labels)
            for index, config in enumerate(configs):
                with net.at(*config):
                    counts[index] += (net(inputs).argmax(1) == labels).sum()
    *right, images = summed(counts).tolist()
    if not images:
        raise DataError("the loader yields no images, so there is no accuracy to measure: check the data set and split")
    return {config: count / images for config, count in zip(configs, right, strict=True)}, images


def row_of(net: ElasticNet, config: Config, accuracy: float, images: int) -> Row:
    """With the interval of an accuracy on so many `images`, and the costs of one image.

    Both are of the extracted network, whose memory holds the statistics too.
    """
    static = net.extract(*config, calibrated=False).eval()
    cost = measure(static, net.inputs.at(config))
    interval = of_share(accuracy, images)
    weights = sum(tensor.nbytes for tensor in static.state_dict().values())
    return Row(
        width=float(config.width),
        resolution=config.resolution,
        frames=config.frames,
        accuracy=accuracy,
        accuracy_low=interval.low,
        accuracy_high=interval.high,
        macs=cost.macs,
        params=cost.params,
        share_not_counted=cost.share_not_counted,
        peak_bytes=weights + cost.peak_activation_bytes,
    )


def latencies(
    net: ElasticNet, configs: Sequence[Config], setups: Sequence[TimingSetup], *, rounds: int
) -> dict[TimingSetup, dict[Config, Time]]:
    """Milliseconds of every extracted network in each setup: torch as it is where `net` is, the others on the CPU.

    All of the same number of threads are measured interleaved, in several runs where their weights are more than
    `TOGETHER`. Raises `UnknownName` for a back-end that `bench` does not have, and `LeanconvError` for one that fails
    on a configuration, with the reason.
    """
    for setup in setups:
        if setup.backend not in BACKENDS:
            raise unknown("backend", setup.backend, BACKENDS)
    found: dict[TimingSetup, dict[Config, Time]] = {setup: {} for setup in setups}
    for threads in dict.fromkeys(setup.threads for setup in setups):
        waiting: dict[tuple[TimingSetup, Config], Callable[[], object]] = {}
        size = 0
        with torch_threads(threads), scratch_folder() as folder:
            for number, config in enumerate(configs):
                static = net.extract(*config, calibrated=False).eval()
                for setup in (setup for setup in found if setup.threads == threads):
                    onnx = folder / f"{number}_{setup.batch}.onnx"
                    waiting[setup, config] = _call(static, config, net.inputs.at(config), setup, onnx)
                    size += sum(p.nbytes for p in static.parameters())
                if size > TOGETHER or number == len(configs) - 1:
                    calls = {str(index): call for index, call in enumerate(waiting.values())}
                    times = compare_latency(calls, threads=threads, rounds=rounds).values()
                    for (setup, done), time in zip(waiting, times, strict=True):
                        found[setup][done] = Time(time.median_ms, time.low_ms, time.high_ms)
                    waiting, size = {}, 0
    return found


def _call(
    static: nn.Module, config: Config, size: tuple[Any, ...], setup: TimingSetup, path: Path
) -> Callable[[], object]:
    """One call of `setup.batch` inputs of `size`."""
    if setup.backend == EAGER:
        like = next(static.parameters())
        inputs = pytree.tree_map(lambda x: torch.zeros_like(x).to(like), random_inputs(static, size, setup.batch, 0))
        return torch.inference_mode()(partial(static, *inputs))
    model = eval_copy(static)
    runner, _, problem = prepared(model, setup.backend, path, size, setup.batch, setup.threads)
    if runner is None:
        raise LeanconvError(f"{config} cannot be timed with {setup.backend}: {problem}")
    return partial(runner, *random_inputs(model, size, setup.batch, 0))


def describe(net: ElasticNet, images: int) -> dict[str, Any]:
    """What a table says about itself: the model, the machine, the images, the date."""
    return {
        "model": type(net.model).__name__,
        "story": (story_of(net) or Story()).to_json(),
        "weights": fingerprint(net),
        "widths": list(net.widths),
        "resolutions": list(net.resolutions),
        "images": images,
        "processes": rank_and_world()[1],
        "counts": "macs are multiply-adds of convolution and linear layers for one image",
        "machine": machine(next(net.parameters()).device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def fingerprint(net: nn.Module) -> str:
    """16 hexadecimal digits that are those of these weights alone."""
    total = hashlib.sha256()
    for name, weight in net.named_parameters():
        total.update(name.encode())
        total.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def machine(device: torch.device) -> dict[str, str]:
    """What the numbers were measured on."""
    here = this_machine()
    found = {"cpu": here.cpu, "vectors": here.vectors, "system": here.system}
    found |= {"torch": torch.__version__, "device": str(device)}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def elsewhere(about: Mapping[str, Any]) -> str | None:
    """How the machine of a table differs from this one; None if it does not, or if the table does not say."""
    there = about.get("machine") or {}
    gpu = torch.cuda.is_available() and str(there.get("device", "")).startswith("cuda")
    here = machine(torch.device("cuda" if gpu else "cpu"))
    for part in ("gpu", "cpu", "vectors"):
        if part in there and there[part] != here.get(part):
            return f"{there[part]}, here is {here.get(part, 'none')}"
    return None
