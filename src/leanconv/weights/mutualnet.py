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
from typing import Any, Protocol, cast

from torch import Tensor, nn

from leanconv.errors import CheckpointError
from leanconv.weights.formats import Extra, Renamed, Source

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


def _layer(name: str, own: Mapping[str, Tensor]) -> str | None:
    """Their name of a layer of ours, without what stands before all our names."""
    if name in ("fc", "classifier"):
        return "classifier.0"
    if name in ("conv1", "bn1"):
        return f"features.0.{int(name == 'bn1')}"
    if found := _MOBILE.fullmatch(name):
        inside = found[2] is None and found[1] != "0" and not any(".body." in ours for ours in own)
        return f"features.{found[1]}.{'body.' if inside else found[2] or ''}{found[3]}"
    if found := _BLOCK.fullmatch(name):
        stage, block, kind, number, shortcut = found.groups()
        home = f"features.{1 + sum(_count(own, before) for before in range(1, int(stage))) + int(block)}"
        if shortcut is not None:
            return f"{home}.shortcut.{shortcut}"
        return f"{home}.body.{3 * int(number) - 3 + int(kind == 'bn')}"
    return None


def _count(own: Mapping[str, Tensor], stage: int) -> int:
    """Blocks of a stage of a ResNet."""
    found = (re.search(rf"(?:^|\.)layer{stage}\.(\d+)\.", name) for name in own)
    return 1 + max((int(one[1]) for one in found if one), default=-1)


def _rename(name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Source | None:
    layer, _, tensor = name.removeprefix("model.").rpartition(".")
    home = _layer(layer, own)
    if home is None or tensor not in _STATISTICS or (theirs and f"{home}.running_mean" in theirs):
        return None if home is None else f"{home}.{tensor}"
    return f"{home}.bn.{_full_set(theirs)}.{tensor}"


def _sets(theirs: Mapping[str, Tensor]) -> dict[int, dict[str, int]]:
    """For every set of statistics the channels it has in each layer."""
    sets: dict[int, dict[str, int]] = {}
    for name, value in theirs.items():
        found = _SET.fullmatch(name)
        if found and found["tensor"] == "running_mean" and value.ndim == 1:
            sets.setdefault(int(found["set"]), {})[found["layer"]] = len(value)
    return sets


def _full_set(theirs: Mapping[str, Tensor]) -> int:
    """The number of the set that has all channels of every layer."""
    for number, channels in sorted(_sets(theirs).items(), reverse=True):
        if all(
            f"{layer}.weight" in theirs and theirs[f"{layer}.weight"].shape == (n,) for layer, n in channels.items()
        ):
            return number
    return 0


class _MutualNet(Renamed):
    def extra(self, model: nn.Module, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], source: str) -> Extra:
        """Statistics of the narrower widths, into an elastic network's places for them."""
        sets = _sets(theirs)
        full = _full_set(theirs)
        if full in sets and any(theirs[f"{layer}.weight"].shape != (n,) for layer, n in sets[full].items()):
            raise CheckpointError(f"{source} holds no statistics of the full width: no set has all channels")
        others = {number: channels for number, channels in sets.items() if number != full}
        if not hasattr(model, "reserve"):
            return Extra(
                notes=("statistics of other widths than the full one are for elastic networks",) if others else ()
            )
        elastic = cast(_Elastic, model)
        rooms = _rooms(elastic, own) if others else {}
        taken: dict[str, Tensor] = {}
        sources: dict[str, Source] = {}
        widths, unknown = [elastic.widths[1]], []
        for number, channels in sorted(others.items()):
            fitting = (width for width, room in rooms.items() if _fits(room, channels, own, theirs))
            width = next(fitting, None)
            if width is None:
                unknown.append(number)
                continue
            widths.append(width)
            for name, room in rooms[width].items():
                home, statistic = _bank(name, own)
                one = f"{home}.bn.{number}" if home in channels else home
                taken[name], sources[name] = room, f"{one}.running_{statistic}"
        return Extra(taken, sources, self._said(sorted(widths), unknown, elastic))

    def _said(self, widths: Sequence[float], unknown: Sequence[int], elastic: _Elastic) -> tuple[str, ...]:
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

    def idle(self, name: str, value: Tensor) -> str | None:
        """Statistics that no configuration of the network has, and counters."""
        found = _SET.fullmatch(name)
        if found is None:
            return None
        return "a counter" if found["tensor"] == _STATISTICS[-1] else "statistics of another width"


def _rooms(elastic: _Elastic, own: Mapping[str, Tensor]) -> dict[float, dict[str, Tensor]]:
    """For every width below the largest the tensors that hold its statistics at the native resolution, by name."""
    low, high = elastic.widths
    scratch = cast(Any, copy.deepcopy(elastic))
    rooms: dict[float, dict[str, Tensor]] = {}
    for step in range(round((high - low) / _GRID)):
        width = round(low + _GRID * step, 4)
        scratch.load_state_dict(dict(own))  # without any statistics of configurations
        scratch.reserve([(width, elastic.resolutions[0])])
        rooms[width] = {name: value for name, value in scratch.state_dict().items() if name not in own}
    return rooms


def _bank(name: str, own: Mapping[str, Tensor]) -> tuple[str | None, str]:
    """Their layer, and "mean" or "var", of a tensor that holds the statistics of a configuration."""
    layer, _, tensor = name.removeprefix("model.").rpartition(".")
    return _layer(layer, own), tensor.partition("_")[0]


def _fits(
    room: Mapping[str, Tensor], channels: Mapping[str, int], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> bool:
    """Whether a set of statistics has the `channels` that a width has; layers without sets have ordinary statistics."""
    counts = {home: len(value) for name, value in room.items() for home, kind in [_bank(name, own)] if kind == "mean"}
    return all(counts.get(home) == count for home, count in channels.items()) and all(
        home in channels or f"{home}.running_mean" in theirs for home in counts
    )


MUTUALNET = _MutualNet(
    name="mutualnet",
    files="MutualNet's and US-Net's elastic networks",
    markers=(("features.0.1.bn.0.running_mean",),),
    heads=("fc", "classifier", "model.fc", "model.classifier"),
    norm_eps=1e-5,
    holds="MobileNetV1, MobileNetV2 and ResNet-50 (elastic_mobilenet_v1, elastic_mobilenet_v2, elastic_resnet50)",
    rename=_rename,
)
