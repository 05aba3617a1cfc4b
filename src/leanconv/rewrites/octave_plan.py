"""Which convolutions emit pairs, and how many of their channels are low: decided before the graph is touched."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from leanconv.errors import RewriteError
from leanconv.ops.octave import low_channels
from leanconv.rewrites.capture import Captured
from leanconv.rewrites.chains import layers_of
from leanconv.rewrites.changes import Skipped
from leanconv.rewrites.guards import not_plain, not_replaceable
from leanconv.rewrites.order import Order
from leanconv.rewrites.select import Layer, parse

if TYPE_CHECKING:
    from leanconv.rewrites.octave import Octave

__all__ = ["Decision", "decide", "is_depthwise", "is_octave_shaped"]


@dataclass
class Decision:
    """For every convolution node: `low` output channels, if it emits; `groups` its channels are cut by.

    `full` are the nodes of the last stage, which read merged maps where they would have to emit; `blocked` maps the
    nodes that cannot become octave convolutions at all to the reason.
    """

    low: dict[fx.Node, int] = field(default_factory=dict)
    groups: dict[fx.Node, int] = field(default_factory=dict)
    full: set[fx.Node] = field(default_factory=set)
    blocked: dict[fx.Node, str] = field(default_factory=dict)
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


def decide(
    captured: Captured,
    step: Octave,
    order: Order,
    tied: dict[int, tuple[str, ...]],
    keep: Collection[str],
) -> Decision:
    """The decision for `step`; raises `RewriteError` for groups or alphas that leave a layer without channels."""
    root = captured.root
    where = parse(step.where)
    layers = {layer.name: layer for layer in layers_of(root, order)}
    by_module = {id(layer.module): layer for layer in layers.values()}
    nodes = {node: root.get_submodule(str(node.target)) for node in captured.graph.nodes if node.op == "call_module"}
    convs = {node: module for node, module in nodes.items() if isinstance(module, _ConvNd)}
    maps = [node for node in convs if _area(node) > 1]
    stem = next(iter(sorted(layers.values(), key=lambda layer: layer.depth)), None)
    decision = Decision()
    after_stem = {_area(node) for node in maps if convs[node] is not (stem and stem.module)}
    if not step.last and len(after_stem) > 1:  # a network with one resolution has no last stage
        decision.full = _last_stage(maps, convs)
    skipped: list[Skipped] = []
    kept: list[str] = []
    counts = {"stem": 0, "last stage": 0, "outside where": 0, "depthwise": 0, "on 1x1 maps": len(convs) - len(maps)}
    calls = [str(node.target) for node in convs]

    for node, module in convs.items():
        layer = by_module[id(module)]
        reason = _blocked(node, module, layer, calls, keep, tied, kept)
        if reason is not None:
            decision.blocked[node] = reason
    for node in maps:
        module = convs[node]
        layer = by_module[id(module)]
        if not where(layer):
            counts["outside where"] += 1
        elif layer is stem and not step.first:
            counts["stem"] += 1
        elif node in decision.full:
            counts["last stage"] += 1
        elif is_depthwise(module):
            counts["depthwise"] += 1  # follows its input
        elif node in decision.blocked:
            skipped.append(Skipped(layer.name, decision.blocked[node]))
        else:
            alpha = step.alpha_of(*layer.names)
            decision.low[node] = _low(layer.name, alpha, int(module.out_channels))
    _fit_groups(decision, by_module, convs)
    seen = {id(module) for module in convs.values()}
    for layer in layers.values():
        if where(layer) and isinstance(layer.module, nn.Conv2d | nn.Conv3d) and id(layer.module) not in seen:
            skipped.append(Skipped(layer.name, _why_not_seen(layer.name, captured)))
    decision.low = {node: low for node, low in decision.low.items() if low}
    decision.skipped, decision.kept = tuple(skipped), tuple(kept)
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    decision.why_none = f"{len(convs)} convolutions seen ({told})" if told else f"{len(convs)} convolutions seen"
    return decision


def _why_not_seen(name: str, captured: Captured) -> str:
    for path, reason in captured.opaque.items():
        if name.startswith(f"{path}."):
            return f"torch.fx cannot look into {path}: {reason}"
    for node in captured.graph.nodes:
        if node.op == "call_module" and name.startswith(f"{node.target}."):
            return f"torch.fx does not look into {node.target}, whose author says that it cannot be traced"
    return "the forward pass does not call it as a module"


def _area(node: fx.Node) -> int:
    shape = node.meta.get("shape")
    return int(shape[-1] * shape[-2]) if shape is not None and len(shape) in (4, 5) else 0


def _blocked(
    node: fx.Node,
    module: _ConvNd,
    layer: Layer,
    calls: list[str],
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
    if len(layer.names) > 1 or calls.count(str(node.target)) > 1:
        return "it is used at several places, which would have to agree on what is low"
    attached = "kept as the story says" if layer.name in keep else not_replaceable(module, tied)
    if attached is not None:
        kept.append(layer.name)
    return attached


def _low(name: str, alpha: float, channels: int) -> int:
    low = low_channels(alpha, channels)
    if alpha and not low:
        raise RewriteError(
            f"octave: alpha={alpha} leaves {name} without low channels (floor({alpha} x {channels}) = 0): take an "
            f"alpha of at least {1 / channels:.4g}, or leave the layer out with where='... !{name}'"
        )
    return low


def _fit_groups(decision: Decision, by_module: dict[int, Layer], convs: dict[fx.Node, _ConvNd]) -> None:
    """Low channels of grouped convolutions, and of what feeds them, must be equally many in every group."""
    for node in list(decision.low):
        module = convs[node]
        wanted = {node: module} if module.groups > 1 else {}
        readers, _ = _readers(node, convs, through_depthwise=True)
        wanted |= {
            reader: convs[reader]
            for reader in readers
            if convs[reader].groups > 1
            and not is_depthwise(convs[reader])
            and convs[reader].in_channels == module.out_channels
            and reader not in decision.blocked
            and reader not in decision.full
        }
        for other in wanted.values():
            low, groups = decision.low[node], other.groups
            if 0 < low < groups:
                raise _too_few(by_module[id(other)].name, low, module.out_channels, groups)
            if decision.groups.setdefault(node, groups) == groups:
                decision.low[node] = low // groups * groups


def _too_few(name: str, low: int, channels: int, groups: int) -> RewriteError:
    return RewriteError(
        f"octave: {name} would have {low} low channels of {channels} for its {groups} groups, and every group needs "
        f"at least one: take an alpha of at least {groups / channels:.4g}, or give the layer and what feeds it an "
        f"alpha of 0: alphas=(({name!r}, 0), ...)"
    )


def _last_stage(maps: list[fx.Node], convs: dict[fx.Node, _ConvNd]) -> set[fx.Node]:
    """The convolutions with the smallest output map, and those before them that belong to the same stage.

    A convolution that feeds only these is one of them, unless something is added to its output on the way: so the
    transition is where the authors have it, at a bottleneck's reduction before the stride, at a transition layer of
    DenseNet, at the last pointwise convolution before MobileNet's last stride. Where the stride is at the end of a
    residual branch, the whole branch belongs to the last stage.
    """
    smallest = min(map(_area, maps))
    small = {node for node in maps if _area(node) == smallest}
    last, branch = set(small), set()
    for node in reversed(maps):
        readers, summed = _readers(node, convs, through_depthwise=False)
        readers &= set(maps)
        if node in small:
            branch |= {node} if summed else set()
        elif readers and not summed and (readers <= small or readers <= branch):
            last.add(node)
            branch |= {node} if readers <= branch else set()
    return last


def _readers(node: fx.Node, convs: dict[fx.Node, _ConvNd], *, through_depthwise: bool) -> tuple[set[fx.Node], bool]:
    """The convolutions that read `node` through other operations, and whether one of these adds something to it."""
    seen: set[fx.Node] = set()
    found: set[fx.Node] = set()
    summed = False
    queue = list(node.users)
    while queue:
        user = queue.pop()
        if user in seen:
            continue
        seen.add(user)
        if user in convs:
            found.add(user)
            if not (through_depthwise and is_depthwise(convs[user])):
                continue
        summed = summed or _is_sum(user)
        queue += user.users
    return found, summed


def _is_sum(node: fx.Node) -> bool:
    if node.op == "call_function":
        adds: bool = node.target in (operator.add, operator.iadd, torch.add)
    else:
        adds = node.op == "call_method" and node.target in ("add", "add_")
    return adds and len(node.all_input_nodes) > 1
