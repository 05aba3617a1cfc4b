"""What a query table is filled with: accuracies over all processes, costs, latencies, and where they were measured."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from leanconv.cost import compare_latency, measure
from leanconv.elastic.calibrate import evaluating, inputs_of
from leanconv.elastic.width import Config
from leanconv.errors import DataError
from leanconv.query.rows import Setting, Time
from leanconv.ranks import rank_and_world, summed
from leanconv.story import story_of

if TYPE_CHECKING:
    from leanconv.elastic.net import ElasticNet

__all__ = ["Costs", "accuracies", "costs", "describe", "elsewhere", "fingerprint", "input_size", "latencies"]

TOGETHER = 2 << 30
"""Bytes of weights that are extracted at the same time for timing; more configurations are timed in several runs."""


class Costs(NamedTuple):
    """Of one image through one configuration."""

    macs: int
    params: int
    peak_bytes: int


def input_size(net: ElasticNet, config: Config) -> tuple[int, ...]:
    """The input of one image or clip in that configuration: the last one or two axes are the resolution."""
    example: Sequence[int] = net.settings["size"]
    spatial = min(len(example) - 1, 2)
    frames = () if len(example) < 4 else (config.frames or example[1],)
    return (example[0], *frames, *(config.resolution,) * spatial)


def accuracies(net: ElasticNet, loader: Iterable[Any], configs: Sequence[Config]) -> tuple[dict[Config, float], int]:
    """Top-1 accuracies over the loaders of all processes, each read once, and the number of their images."""
    device = next(net.parameters()).device
    counts = torch.zeros(len(configs) + 1, dtype=torch.int64, device=device)  # right per configuration, and images
    with torch.no_grad(), evaluating(net):
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


def costs(net: ElasticNet, config: Config) -> Costs:
    """Counted on the extracted network; statistics are weights too, where memory is concerned."""
    static = net.extract(*config, calibrated=False).eval()
    cost = measure(static, input_size(net, config))
    weights = sum(tensor.nbytes for tensor in static.state_dict().values())
    return Costs(cost.macs, cost.params, weights + cost.peak_activation_bytes)


def latencies(net: ElasticNet, configs: Sequence[Config], setting: Setting, *, rounds: int) -> dict[Config, Time]:
    """Milliseconds of `setting.batch` images through every extracted network in torch, interleaved."""
    like = next(net.parameters())
    found: dict[Config, Time] = {}
    waiting: dict[Config, Callable[[], object]] = {}

    def run() -> None:
        candidates = {str(config): candidate for config, candidate in waiting.items()}
        with torch.inference_mode():
            times = compare_latency(candidates, threads=setting.threads, rounds=rounds)
        for config in waiting:
            time = times[str(config)]
            found[config] = Time(time.median_ms, time.low_ms, time.high_ms)
        waiting.clear()

    size = 0
    for config in configs:
        static = net.extract(*config, calibrated=False).eval()
        size += sum(p.numel() * p.element_size() for p in static.parameters())
        shape = (setting.batch, *input_size(net, config))
        waiting[config] = _caller(static, torch.zeros(shape, device=like.device, dtype=like.dtype))
        if size > TOGETHER:
            run()
            size = 0
    if waiting:
        run()
    return found


def _caller(module: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: module(x)


def describe(net: ElasticNet, images: int) -> dict[str, Any]:
    """What a table says about itself: the model, the machine, the images, the date."""
    story = story_of(net)
    return {
        "model": type(net.model).__name__,
        "story": None if story is None else story.to_json(),
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
    """16 hexadecimal digits that tell these weights from others."""
    total = hashlib.sha256()
    for name, weight in net.named_parameters():
        total.update(name.encode())
        total.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def machine(device: torch.device) -> dict[str, str]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line)
        name = next(models, name)
    found = {"cpu": name, "system": platform.platform(), "torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def elsewhere(about: Mapping[str, Any]) -> str | None:
    """How the machine of a table differs from this one; None if it does not, or if the table does not tell."""
    there = about.get("machine") or {}
    gpu = torch.cuda.is_available() and str(there.get("device", "")).startswith("cuda")
    here = machine(torch.device("cuda" if gpu else "cpu"))
    for part in ("gpu", "cpu"):
        if part in there and there[part] != here.get(part):
            return f"{there[part]}, here is {here.get(part, 'none')}"
    return None
