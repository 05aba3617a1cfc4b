"""MutualNet's and US-Net's checkpoints: MobileNetV1, V2 and ResNet-50 with a set of BatchNorm statistics per width.

Names follow from their code (`model` in a .pt file, `module.` before all of them); no released file was opened.

    features.0.0.weight   features.0.1.weight   features.0.1.bn.{i}.running_mean     i counts the widths of the run
    features.3.body.4.weight (V1, V2; ResNet-50: blocks counted through, features.1 first)     classifier.0.weight

The widths themselves are in no file: they follow from the channels of each set, on a grid of 0.025. The set of the full
width becomes the network's own statistics, the others those of (width, native resolution) of an elastic network; other
resolutions want `calibrate`, as MutualNet does it. In a MutualNet file the sets are what training logged.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

from torch import Tensor, nn

from leanconv.errors import CheckpointError
from leanconv.weights.formats import NO_FILE, Extra, Format, Source

__all__ = ["MUTUALNET"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_SET = re.compile(r"(?P<layer>.+)\.bn\.(?P<set>\d{1,4})\.(?P<tensor>\w+)")
_MOBILE = re.compile(r"features\.(\d+)\.(body\.)?(\d)")
_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(?:(conv|bn)([123])|downsample\.([01]))")
_GRID = 0.025


class _Elastic(Protocol):
    """What is asked of an elastic network."""

    widths: tuple[float, float]
    resolutions: tuple[int, ...]

    def reserve(self, configs: Sequence[tuple[float, int]]) -> None:
        """Make room for the statistics of `configs`."""


class _Room(NamedTuple):
    """A tensor of an elastic network for the "mean" or "var" of a layer, called `home` by them, at one width."""

    home: str
    statistic: str
    tensor: Tensor


def _layers(own: Mapping[str, Tensor]) -> dict[str, str]:
    """Their name of every layer of ours that has one, both without what an elastic network puts before its names."""
    ours = dict.fromkeys(name.removeprefix("model.").rpartition(".")[0] for name in own)
    blocks = [found.group(1, 2) for found in map(_BLOCK.match, ours) if found]
    numbers = {at: 1 + index for index, at in enumerate(sorted(set(blocks), key=lambda at: (at[0], int(at[1]))))}
    is_v1 = not any(".body." in layer for layer in ours)
    return {layer: home for layer in ours if (home := _layer(layer, numbers, is_v1)) is not None}


def _layer(layer: str, numbers: Mapping[tuple[str | Any, ...], int], is_v1: bool) -> str | None:
    if layer in ("fc", "classifier"):
        return "classifier.0"
    if layer in ("conv1", "bn1"):
        return f"features.0.{int(layer == 'bn1')}"
    if found := _MOBILE.fullmatch(layer):
        body = "body." if is_v1 and found[1] != "0" else found[2] or ""
        return f"features.{found[1]}.{body}{found[3]}"
    if found := _BLOCK.fullmatch(layer):
        *at, kind, number, shortcut = found.groups()
        home = f"features.{numbers[tuple(at)]}"
        if shortcut is not None:
            return f"{home}.shortcut.{shortcut}"
        return f"{home}.body.{3 * int(number) - 3 + int(kind == 'bn')}"
    return None


def _sets(theirs: Mapping[str, Tensor]) -> dict[int, dict[str, int]]:
    """For every set of statistics the channels it has in each layer."""
    sets: dict[int, dict[str, int]] = {}
    for name, value in theirs.items():
        found = _SET.fullmatch(name)
        if found and found["tensor"] == "running_mean" and value.ndim == 1:
            sets.setdefault(int(found["set"]), {})[found["layer"]] = len(value)
    return sets


def _full_set(theirs: Mapping[str, Tensor]) -> int | None:
    """The number of the set that has all channels of every layer."""
    full = {name: len(value) for name, value in theirs.items() if name.endswith(".weight") and value.ndim == 1}
    for number, channels in sorted(_sets(theirs).items(), reverse=True):
        if all(full.get(f"{layer}.weight") == count for layer, count in channels.items()):
            return number
    return None


class _MutualNet(Format):
    def key_map(self, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor] = NO_FILE) -> dict[str, Source]:
        """See `Format.key_map`; statistics are those of the full width's set."""
        layers, full = _layers(own), _full_set(theirs) or 0
        found: dict[str, Source] = {}
        for name in own:
            layer, _, tensor = name.removeprefix("model.").rpartition(".")
            home = layers.get(layer)
            if home is None:
                raise CheckpointError(
                    f"{name} of this network has no counterpart in {self.name} files, which hold MobileNetV1, "
                    "MobileNetV2 and ResNet-50 (elastic_mobilenet_v1, elastic_mobilenet_v2, elastic_resnet50)"
                )
            in_set = tensor in _STATISTICS and f"{home}.running_mean" not in theirs
            found[name] = f"{home}.bn.{full}.{tensor}" if in_set else f"{home}.{tensor}"
        return found

    def extra(self, model: nn.Module, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], source: str) -> Extra:
        """Statistics of the narrower widths, into an elastic network's places for them."""
        full = _full_set(theirs)
        if full is None:
            raise CheckpointError(f"{source} holds no statistics of the full width: no set has all channels")
        others = {number: channels for number, channels in _sets(theirs).items() if number != full}
        if not hasattr(model, "reserve"):
            said = "statistics of other widths than the full one are for elastic networks"
            return Extra(notes=(said,) if others else ())
        elastic = cast(_Elastic, model)
        rooms = _rooms(elastic, own) if others else {}
        taken: dict[str, Tensor] = {}
        sources: dict[str, Source] = {}
        widths, unknown = [elastic.widths[1]], []
        for number, channels in sorted(others.items()):
            width = next((width for width, room in rooms.items() if _fits(room, channels, theirs)), None)
            if width is None:
                unknown.append(number)
                continue
            widths.append(width)
            for name, (home, statistic, tensor) in rooms[width].items():
                one = f"{home}.bn.{number}" if home in channels else home
                taken[name], sources[name] = tensor, f"{one}.running_{statistic}"
        return Extra(taken, sources, _said(sorted(widths), unknown, elastic))

    def idle(self, name: str, value: Tensor) -> str | None:
        """Statistics that no configuration of the network has, and counters."""
        found = _SET.fullmatch(name)
        if found is None:
            return None
        return "a counter" if found["tensor"] == _STATISTICS[-1] else "statistics of another width"


def _said(widths: Sequence[float], unknown: Sequence[int], elastic: _Elastic) -> tuple[str, ...]:
    told = ", ".join(f"{width:g}" for width in widths)
    lines = [
        f"statistics of the widths {told} at {elastic.resolutions[0]} pixels are the file's; every other configuration "
        "has to be calibrated"
    ]
    if unknown:
        lines.append(
            f"sets {', '.join(map(str, unknown))} of the statistics have the channels of no width of this network "
            f"({elastic.widths[0]:g} to {elastic.widths[1]:g} in steps of {_GRID}): another range, or another divisor"
        )
    return tuple(lines)


def _rooms(elastic: _Elastic, own: Mapping[str, Tensor]) -> dict[float, dict[str, _Room]]:
    """For every width below the largest the tensors that hold its statistics at the native resolution, by name."""
    low, high = elastic.widths
    layers = _layers(own)
    scratch = cast(Any, copy.deepcopy(elastic))
    scratch.load_state_dict(dict(own))  # which drops the statistics of configurations
    known = set(own)
    rooms: dict[float, dict[str, _Room]] = {}
    for step in range(round((high - low) / _GRID)):
        width = round(low + _GRID * step, 4)
        scratch.reserve([(width, elastic.resolutions[0])])
        new = {name: value for name, value in scratch.state_dict().items() if name not in known}
        known |= new.keys()
        rooms[width] = {}
        for name, value in new.items():
            layer, _, tensor = name.removeprefix("model.").rpartition(".")
            rooms[width][name] = _Room(layers[layer], tensor.partition("_")[0], value)
    return rooms


def _fits(room: Mapping[str, _Room], channels: Mapping[str, int], theirs: Mapping[str, Tensor]) -> bool:
    """Whether a set of statistics has the `channels` that a width has; layers without sets have ordinary statistics."""
    counts = {one.home: len(one.tensor) for one in room.values() if one.statistic == "mean"}
    return all(counts.get(home) == count for home, count in channels.items()) and all(
        home in channels or f"{home}.running_mean" in theirs for home in counts
    )


MUTUALNET = _MutualNet(
    name="mutualnet",
    files="MutualNet's and US-Net's elastic networks",
    markers=(("features.0.1.bn.0.running_mean",),),
    heads=("fc", "classifier", "model.fc", "model.classifier"),
    norm_eps=1e-5,
)
