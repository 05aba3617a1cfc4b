"""The rule for convolutions in the octave layout: who emits a pair, who reads one, and the dense kernel cut to fit."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, fx, nn

from leanconv.ops.octave import OctConv, OctConv2d, OctConv3d
from leanconv.ops.operator import arguments_of
from leanconv.rewrites.changes import Change
from leanconv.rewrites.layout import Layout, Leave, Pair, Value
from leanconv.rewrites.octave_plan import Decision, is_depthwise

if TYPE_CHECKING:
    from leanconv.rewrites.octave import Octave

__all__ = ["ConvRule"]


class ConvRule:
    """Convolutions: those that the decision names emit pairs, those that read one become octave convolutions."""

    def __init__(self, step: Octave, decision: Decision) -> None:
        self.step, self.decision = step, decision
        self.changes: list[Change] = []

    def __call__(self, layout: Layout, node: fx.Node) -> Value:
        """A pair where the convolution emits one."""
        conv = cast("nn.Conv2d | nn.Conv3d", layout.module(node))
        source = layout.value(node.args[0] if node.args else node.kwargs["input"])
        pair = source if isinstance(source, Pair) else None
        low = self.decision.low.get(node, 0)
        if pair is None and not low:
            return layout.copy(node)
        if (reason := self.decision.blocked.get(node)) is not None:
            raise Leave(reason)
        inputs = (tuple(range(conv.in_channels)), ()) if pair is None else (pair.high_channels, pair.low_channels)
        if is_depthwise(conv):
            if node in self.decision.full:
                raise Leave("the last stage stays at full resolution")
            outputs = _follow(conv, inputs)
        else:
            if pair is not None and conv.groups > 1:
                pair = _by_groups(layout, pair, conv)
                inputs = (pair.high_channels, pair.low_channels)
                if not low:
                    raise Leave("a grouped convolution that emits no pair reads the merged map")
            groups = self.decision.groups.get(node, 1)
            outputs = _cut(conv.out_channels, low, groups)
        made = _octave(conv, inputs, outputs, self.step)
        self.changes.append(_change(str(node.target), conv, made))
        layout.put(node, made)
        reads = (pair.high, pair.low) if pair is not None else source
        called = layout.graph.call_module(str(node.target), (reads,))
        if not outputs[1]:
            layout.tell(node, "merge", "the convolution emits full resolution")
            return called
        if pair is None:
            layout.tell(node, "start", f"{len(outputs[1])} of {conv.out_channels} channels at half resolution")
        parts = [layout.graph.call_function(operator.getitem, (called, part)) for part in (0, 1)]
        return Pair(parts[0], parts[1], *outputs)


def _cut(channels: int, low: int, groups: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The last channels of every group are low."""
    size, part = channels // groups, low // groups
    high = tuple(start + k for start in range(0, channels, size) for k in range(size - part))
    return high, tuple(start + k for start in range(0, channels, size) for k in range(size - part, size))


def _follow(
    conv: nn.Conv2d | nn.Conv3d, inputs: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A depthwise convolution leaves every channel at its resolution."""
    per = conv.out_channels // conv.in_channels
    high, low = (tuple(channel * per + k for channel in part for k in range(per)) for part in inputs)
    return high, low


def _by_groups(layout: Layout, pair: Pair, conv: nn.Conv2d | nn.Conv3d) -> Pair:
    """The pair with each part's channels sorted by the group they belong to, equally many of each."""
    size = conv.in_channels // conv.groups
    for part in (pair.high_channels, pair.low_channels):
        counts = [0] * conv.groups
        for channel in part:
            counts[channel // size] += 1
        if len(set(counts)) > 1:
            raise Leave(f"its {conv.groups} groups have different numbers of low channels")
    high, low = tuple(sorted(pair.high_channels)), tuple(sorted(pair.low_channels))
    return Pair(
        layout.align(pair.high, pair.high_channels, high), layout.align(pair.low, pair.low_channels, low), high, low
    )


def _octave(
    conv: nn.Conv2d | nn.Conv3d,
    inputs: tuple[tuple[int, ...], tuple[int, ...]],
    outputs: tuple[tuple[int, ...], tuple[int, ...]],
    step: Octave,
) -> OctConv:
    """The octave convolution with `conv`'s weights, on its device, in its dtype, mode, layout and requires_grad."""
    kind = OctConv2d if isinstance(conv, nn.Conv2d) else OctConv3d
    made = kind(
        *arguments_of(conv),
        alpha_in=len(inputs[1]) / conv.in_channels,
        alpha_out=len(outputs[1]) / conv.out_channels,
        stride_mode=step.stride_mode,
        downsample=step.downsample,
        exchange=step.exchange,
    )
    if not conv.weight.is_meta:
        rows = _per_group(outputs, 1 if made.depthwise else conv.groups).to(conv.weight.device)
        weight = conv.weight.detach()[rows.flatten()]
        if not made.depthwise:
            columns = _per_group(inputs, conv.groups) % (conv.in_channels // conv.groups)
            blocks = weight.chunk(conv.groups)
            weight = torch.cat([block[:, own.to(block.device)] for block, own in zip(blocks, columns, strict=True)])
        made.load_kernel(weight, None if conv.bias is None else conv.bias.detach()[rows.flatten()])
    made.requires_grad_(conv.weight.requires_grad)
    if conv.bias is not None:
        for path in (made.conv_hh, made.conv_hl, made.conv_lh, made.conv_ll):
            if path is not None and path.bias is not None:
                path.bias.requires_grad_(conv.bias.requires_grad)
    for ndim, memory in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        weight = conv.weight
        if weight.ndim == ndim and weight.is_contiguous(memory_format=memory) and not weight.is_contiguous():
            made.to(memory_format=memory)
    return made.train(conv.training)


def _per_group(parts: tuple[tuple[int, ...], tuple[int, ...]], groups: int) -> Tensor:
    """(groups, channels per group): each group's high channels, then its low ones."""
    return torch.cat([torch.tensor(part, dtype=torch.long).reshape(groups, -1) for part in parts], dim=1)


def _change(name: str, conv: nn.Conv2d | nn.Conv3d, made: OctConv) -> Change:
    def low(part: int, of: int) -> str:
        return f"{of}" if not part else f"{of - part}+{part}"

    kernel = "x".join(map(str, conv.kernel_size))
    stride = f" /{'x'.join(map(str, conv.stride))}" if max(conv.stride) > 1 else ""
    groups = f" g{conv.groups}" if conv.groups > 1 else ""
    after = f"{low(made.low_in, conv.in_channels)}->{low(made.low_out, conv.out_channels)}"
    return Change(
        name=name,
        before=f"{kernel} {conv.in_channels}->{conv.out_channels}{groups}{stride}",
        after=f"octave: {kernel} {after}{groups}{stride}",
        weights="fresh" if conv.weight.is_meta else "cut",
        error=None,
        params_before=sum(p.numel() for p in conv.parameters()),
        params_after=sum(p.numel() for p in made.parameters()),
    )
