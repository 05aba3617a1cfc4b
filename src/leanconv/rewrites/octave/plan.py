"""Which convolutions emit maps at two resolutions, and which of their channels are low: decided from a dry run.

The dense network is run once without computing, and its calls written down: who reads what which convolution made,
and where something is added. From these comes how many channels of each convolution are low; what the layers then read
is seen in a second run (`flows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from leanconv.dryrun import Call, Flow, record_flow
from leanconv.dryrun.flow import is_torch_layer
from leanconv.errors import RewriteError
from leanconv.ops.octave_parts import low_channels
from leanconv.ops.operator import ConvOperator
from leanconv.rewrites.changes import Skipped
from leanconv.rewrites.guards import not_plain, not_replaceable
from leanconv.rewrites.select import Layer, Where

__all__ = ["Decision", "Wishes", "decide", "is_depthwise"]


class Wishes(NamedTuple):
    """What was asked for: see the options of `Octave`."""

    where: Where
    alpha_of: Callable[..., float]
    first: bool = False
    last: bool = False


@dataclass
class Decision:
    """By layer name: `seen`, all convolutions that run; `low`, how many output channels are low, if any; `groups`, by
    which they are cut.

    `full` are the layers of the last stage, which read merged maps where they would have to emit; `blocked` maps those
    that cannot become octave convolutions at all to the reason; `selected` are those that `where` means, without the
    stem.
    """

    seen: set[str] = field(default_factory=set)
    low: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)
    blocked: dict[str, str] = field(default_factory=dict)
    selected: set[str] = field(default_factory=set)
    skipped: tuple[Skipped, ...] = ()
    kept: tuple[str, ...] = ()
    why_none: str = ""


def is_depthwise(conv: nn.Module) -> bool:
    """Whether every group has one input channel."""
    return isinstance(conv, _ConvNd) and conv.groups == conv.in_channels > 1


def is_octave_shaped(conv: nn.Conv2d | nn.Conv3d) -> str | None:
    """Why an octave convolution cannot stand for this plain one at every input size, or None."""
    stride = tuple(conv.stride[-2:])
    if stride not in ((1, 1), (2, 2)):
        return f"its stride in space is {stride[0]}x{stride[1]}, an octave convolution has 1 or 2"
    if isinstance(conv.padding, str):
        return None if conv.padding == "same" else "it has no padding: high and low maps would not stay aligned"
    for pad, dilation, kernel in zip(conv.padding[-2:], conv.dilation[-2:], conv.kernel_size[-2:], strict=True):
        if 2 * pad != dilation * (kernel - 1):
            return f"its padding {pad} is not half its kernel {kernel}: high and low maps would not stay aligned"
    return None


class _Calls:
    """The calls of convolutions in a dry run, by number, and how they are connected."""

    def __init__(self, flow: Flow, modules: Mapping[str, nn.Module]) -> None:
        self.convs: dict[int, tuple[str, _ConvNd]] = {}
        self.area: dict[int, int] = {}
        for call in flow.calls:
            module = modules.get(call.module)
            if call.function is None and isinstance(module, _ConvNd):
                self.convs[call.number] = call.module, module
                self.area[call.number] = _area(call)
        self.maps = [number for number in self.convs if self.area[number] > 1]
        self.names = Counter(name for name, _ in self.convs.values())
        self._flow = flow
        self._users = flow.readers()

    def readers(self, number: int, *, through_depthwise: bool) -> tuple[set[int], bool]:
        """The convolutions that read what one made, through other operations, and whether something is added to it."""
        seen: set[int] = set()
        found: set[int] = set()
        summed = False
        queue = list(self._users[number])
        while queue:
            user = queue.pop()
            if user in seen:
                continue
            seen.add(user)
            if user in self.convs:
                found.add(user)
                if not (through_depthwise and is_depthwise(self.convs[user][1])):
                    continue
            summed = summed or self._flow.calls[user].adds
            queue += self._users[user]
        return found, summed

    def last_stage(self) -> set[int]:
        """The convolutions with the smallest output map, and those before them that belong to the same stage.

        A convolution that feeds only these is one of them, unless something is added to its output on the way: so the
        transition is where the authors have it, at a bottleneck's reduction before the stride, at a transition layer of
        DenseNet, at the last pointwise convolution before MobileNet's last stride. Where the stride is at the end of a
        residual branch, the whole branch belongs to the last stage.
        """
        smallest = min(self.area[number] for number in self.maps)
        small = {number for number in self.maps if self.area[number] == smallest}
        last, branch = set(small), set()
        for number in reversed(self.maps):
            readers, summed = self.readers(number, through_depthwise=False)
            readers &= set(self.maps)
            if number in small:
                branch |= {number} if summed else set()
            elif readers and not summed and (readers <= small or readers <= branch):
                last.add(number)
                branch |= {number} if readers <= branch else set()
        return last


def _area(call: Call) -> int:
    shape = call.makes[0].shape if call.makes else ()
    return int(shape[-1] * shape[-2]) if len(shape) in (4, 5) else 0


def decide(
    model: nn.Module,
    size: tuple[int, ...],
    wishes: Wishes,
    layers: Collection[Layer],
    tied: dict[int, tuple[str, ...]],
    keep: Collection[str],
) -> Decision:
    """The decision for `model`; raises `RewriteError` for groups that the low channels cannot fill."""
    flow = record_flow(model, size, is_leaf=_is_leaf, error=RewriteError)
    calls = _Calls(flow, dict(model.named_modules()))
    by_name = {name: layer for layer in layers for name in layer.names}
    stem = min(layers, key=lambda layer: layer.depth, default=None)
    decision = Decision(seen=set(calls.names))
    after_stem = {calls.area[n] for n in calls.maps if by_name[calls.convs[n][0]] is not stem}
    full: set[int] = set()
    if not wishes.last and len(after_stem) > 1:  # a network with one resolution has no last stage
        full = calls.last_stage()
        decision.full = {calls.convs[number][0] for number in full}
    skipped: dict[str, str] = {}
    kept: list[str] = []
    counts = Counter({"on 1x1 maps": len(calls.convs) - len(calls.maps)})
    low: dict[int, int] = {}
    for name, module in calls.convs.values():
        reason = _blocked(name, module, by_name[name], calls.names, keep, tied, kept)
        if reason is not None:
            decision.blocked[name] = reason
    for number in calls.maps:
        name, module = calls.convs[number]
        layer = by_name[name]
        if not wishes.where(layer):
            counts["outside where"] += 1
        elif layer is stem and not wishes.first:
            counts["stem"] += 1
        elif number in full:
            counts["last stage"] += 1
            decision.selected.add(name)
        elif is_depthwise(module):
            counts["depthwise"] += 1  # follows its input
            decision.selected.add(name)
        elif name in decision.blocked:
            skipped[layer.name] = decision.blocked[name]
        else:
            decision.selected.add(name)
            alpha = wishes.alpha_of(*layer.names)
            low[number] = low_channels(alpha, int(module.out_channels))
            if alpha and not low[number]:
                skipped[layer.name] = (
                    f"alpha={alpha} leaves {layer.name} without low channels (floor({alpha} x {module.out_channels}) "
                    f"= 0): that takes an alpha of at least {1 / module.out_channels:.4g}"
                )
    _fit_groups(decision, low, calls, by_name)
    decision.low = {calls.convs[number][0]: count for number, count in low.items() if count}
    for layer in layers:
        if wishes.where(layer) and isinstance(layer.module, nn.Conv2d | nn.Conv3d) and layer.name not in calls.names:
            skipped[layer.name] = "the forward pass does not call it as a module"
    decision.skipped = tuple(Skipped(name, reason) for name, reason in skipped.items())
    decision.kept = tuple(dict.fromkeys(kept))
    seen = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    decision.why_none = f"{len(calls.convs)} convolutions seen ({seen})" if seen else f"{len(calls.convs)} convolutions"
    return decision


def _is_leaf(module: nn.Module) -> bool:
    return is_torch_layer(module) or isinstance(module, ConvOperator)


def _blocked(
    name: str,
    module: _ConvNd,
    layer: Layer,
    calls: Counter[str],
    keep: Collection[str],
    tied: dict[int, tuple[str, ...]],
    kept: list[str],
) -> str | None:
    """Why this convolution stays what it is."""
    if not isinstance(module, nn.Conv2d | nn.Conv3d):
        return f"{type(module).__name__} has no octave form"
    if (reason := not_plain(module)) is not None:
        return reason
    if (why := is_octave_shaped(module)) is not None:
        return why
    if len(layer.names) > 1 or calls[name] > 1:
        return "it is used at several places, which would have to agree on what is low"
    attached = "kept as the story says" if layer.name in keep else not_replaceable(module, tied)
    if attached is not None:
        kept.append(layer.name)
    return attached


def _fit_groups(decision: Decision, low: dict[int, int], calls: _Calls, by_name: Mapping[str, Layer]) -> None:
    """Low channels of grouped convolutions, and of what feeds them, must be equally many in every group."""
    for number in low:
        name, module = calls.convs[number]
        readers, _ = calls.readers(number, through_depthwise=True)
        wanted = [number] if module.groups > 1 else []
        for reader in sorted(readers):
            other, conv = calls.convs[reader]
            if conv.groups == 1 or is_depthwise(conv) or conv.in_channels != module.out_channels:
                continue
            if other not in decision.blocked and other not in decision.full:
                wanted.append(reader)
        for grouped in wanted:
            other, conv = calls.convs[grouped]
            groups = conv.groups
            if 0 < low[number] < groups:
                raise _too_few(by_name[other].name, low[number], module.out_channels, groups)
            if decision.groups.setdefault(name, groups) == groups:
                low[number] = low[number] // groups * groups


def _too_few(name: str, low: int, channels: int, groups: int) -> RewriteError:
    return RewriteError(
        f"octave: {name} would have {low} low channels of {channels} for its {groups} groups, and every group needs "
        f"at least one: take an alpha of at least {groups / channels:.4g}, or give the layer and what feeds it an "
        f"alpha of 0: alphas=(({name!r}, 0), ...)"
    )
