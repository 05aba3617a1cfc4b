"""The layers of an octave network, made of those of the dense one: its kernels, norms and activations cut in two."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from leanconv.ops.octave import Exchange, OctConv, OctConv2d, OctConv3d, StrideMode
from leanconv.ops.octave_map import OctaveMap, full_map, settled
from leanconv.ops.octave_parts import Runs, channels_of, interleave, take
from leanconv.ops.operator import arguments_of
from leanconv.rewrites.changes import Change

__all__ = ["ConvOptions", "OctNorm", "cut_conv", "cut_norm", "describe"]


class ConvOptions(NamedTuple):
    """What all octave convolutions of a network have in common, see `OctConv`."""

    stride_mode: StrideMode = "pool"
    downsample: StrideMode = "pool"
    exchange: Exchange = "both"


class OctNorm(nn.Module):
    """A BatchNorm, or another layer with parameters per channel, as two: `high` and `low`, each for its part of a map.

    A plain map, which a forward may give it that takes another path than usual, is normed at full resolution.
    """

    def __init__(self, high: nn.Module, low: nn.Module, runs: Runs) -> None:
        super().__init__()
        self.high, self.low, self.runs = high, low, runs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *), at two resolutions or plain, to the same."""
        x = settled(x)
        if isinstance(x, OctaveMap):
            if len(x.runs) == len(self.runs):
                return OctaveMap(self.high(x.high), self.low(x.low), x.runs)
            x = full_map(x)
        high, low = take(x, self.runs)
        return interleave(self.high(high), self.low(low), self.runs)


def cut_norm(norm: nn.Module, runs: Runs) -> OctNorm:
    """`norm` in two; its hooks are the pair's, which is called once for both."""
    bare = copy.deepcopy(norm)
    for hooks in _HOOKS:
        getattr(bare, hooks).clear()
    high, low = (_share(bare, channels, sum(runs)) for channels in channels_of(runs))
    made = OctNorm(high, low, runs)
    for hooks in _HOOKS:
        setattr(made, hooks, getattr(norm, hooks))
    return made.train(norm.training)


_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)


def _share(module: nn.Module, channels: Sequence[int], of: int) -> nn.Module:
    """A copy of `module` for some of its channels."""
    part = copy.deepcopy(module)
    index = torch.tensor(channels, dtype=torch.long)
    for owner in part.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.shape[:1] == (of,):
                kept = parameter.detach()[index.to(parameter.device)].clone()
                owner._parameters[name] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.shape[:1] == (of,):
                owner._buffers[name] = buffer[index.to(buffer.device)].clone()
        for name in ("num_features", "num_parameters"):
            if getattr(owner, name, None) == of:
                setattr(owner, name, len(channels))
    return part


def cut_conv(
    conv: nn.Conv2d | nn.Conv3d, runs_in: Runs, runs_out: Runs, options: ConvOptions, *, out_groups: int = 1
) -> OctConv:
    """The octave convolution with `conv`'s weights, on its device, in its dtype, mode, layout and requires_grad.

    `runs_in` and `runs_out` say which channels are low; outputs are cut by `out_groups`.
    """
    kind = OctConv2d if isinstance(conv, nn.Conv2d) else OctConv3d
    inputs, outputs = channels_of(runs_in), channels_of(runs_out)
    made = kind(
        *arguments_of(conv),
        low_in=len(inputs[1]),
        low_out=len(outputs[1]),
        runs_in=runs_in,
        out_groups=out_groups,
        strict=False,
        **options._asdict(),
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


def describe(name: str, conv: nn.Conv2d | nn.Conv3d, made: OctConv) -> Change:
    """The line of the report about one convolution."""

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
