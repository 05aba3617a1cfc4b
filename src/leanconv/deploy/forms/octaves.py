"""An octave convolution with what follows it, for inference: each output in one kernel, `kernels.octave`."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.deploy.forms.chains import ConvUnit
from leanconv.kernels import octave as _operator  # noqa: F401  # registers the operator
from leanconv.ops.octave import OctConv
from leanconv.ops.octave_map import OctaveMap, settled
from leanconv.ops.octave_parts import halve

__all__ = ["OctaveUnit", "Output", "fits_octave_unit"]

Output = Callable[[Any, Any, int, bool], "nn.Module | None"]
"""(convolution at the resolution of the output or None, the other or None, up, relu) -> a module, or None for neither.

The module takes the two maps and perhaps a residual."""


def fits_octave_unit(layer: nn.Module) -> bool:
    """Whether an octave convolution is one of images, without groups, of a square and odd kernel in its middle."""
    if not isinstance(layer, OctConv) or layer.ndim != 2 or layer.groups > 1 or not layer.centred:
        return False
    paths = [path for path in (layer.conv_hh, layer.conv_hl, layer.conv_lh, layer.conv_ll) if path is not None]
    plain = all(type(path) is nn.Conv2d and set(path.stride) == set(path.dilation) == {1} for path in paths)
    alone = layer.conv_hh is None and layer.conv_lh is not None  # there is nothing at the resolution of its output
    return (
        plain
        and not alone
        and len(set(layer.kernel_size)) == 1
        and layer.padding_mode == "zeros"
        and layer.downsample == "pool"
        and (layer.stride_mode == "pool" or not layer.halves)
    )


class OctaveUnit(nn.Module):
    """An octave convolution, the sum with a residual and a clip at zero; maps in and out as the convolution's.

    `output` makes what computes one of its two outputs: of the convolution at the output's resolution, the one from
    the other resolution, by how much that is up-sampled, and whether it clips. By default on our GPU kernel.
    """

    def __init__(self, conv: OctConv, *, relu: bool, output: Output | None = None) -> None:
        super().__init__()
        output = output or _output
        self.conv, self.relu = conv, relu
        self.high = output(conv.conv_hh, conv.conv_lh, 1 if conv.halves else 2, relu)
        self.low = output(conv.conv_ll, conv.conv_hl, 1, relu)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """See the class."""
        conv = self.conv
        high, low, runs = conv._parts(x)
        beside: tuple[Tensor | None, Tensor | None] = (None, None)
        if residual is not None:
            residual = cast(Tensor, settled(residual))
            beside = (residual.high, residual.low) if isinstance(residual, OctaveMap) else (residual, None)
            if not isinstance(residual, OctaveMap) and self.high is None:
                beside = (None, residual)
        rising = low
        if conv.halves:
            high = None if high is None else halve(high)
            low = None if low is None or conv.conv_ll is None else halve(low)
        out_high = None if self.high is None else self.high(high, rising, beside[0])
        falling = None if high is None or conv.conv_hl is None else halve(high)
        out_low = None if self.low is None else self.low(low, falling, beside[1])
        if out_low is None or out_high is None:
            return cast(Tensor, out_high if out_low is None else out_low)
        return OctaveMap(out_high, out_low, conv._runs_out(out_high, out_low, runs))


def _output(main: Any, other: Any, up: int, relu: bool) -> nn.Module | None:
    if main is None and other is None:
        return None
    if main is not None and other is not None:
        return _Both(main, other, up, relu)
    return _One(main if main is not None else other, main is not None, relu)


class _One(nn.Module):
    """One path alone."""

    def __init__(self, conv: nn.Conv2d, is_main: bool, relu: bool) -> None:
        super().__init__()
        self.unit = ConvUnit(conv, relu=relu)
        self.is_main = is_main

    def forward(self, main: Tensor | None, other: Tensor | None, residual: Tensor | None) -> Tensor:
        x = cast(Tensor, main if self.is_main else other)
        made: Tensor = self.unit(x, residual)
        return made


class _Both(nn.Module):
    """Two paths summed, by the operator."""

    def __init__(self, main: nn.Conv2d, other: nn.Conv2d, up: int, relu: bool) -> None:
        super().__init__()
        biases = [conv.bias.detach() for conv in (main, other) if conv.bias is not None]
        self.register_buffer("weights", _packed(main))
        self.register_buffer("other", _packed(other))
        self.register_buffer("bias", sum(biases[1:], biases[0]) if biases else None)
        self.kernel_size, self.padding = main.kernel_size[0], cast(int, main.padding[0])
        self.up, self.relu = up, relu
        self.sizes = main.weight.numel(), other.weight.numel()
        self.interactions = sum(conv.out_channels * comb(conv.in_channels, 2) for conv in (main, other))

    def forward(self, main: Tensor, other: Tensor, residual: Tensor | None) -> Tensor:
        positions = [x.shape[2] * x.shape[3] for x in (main, other)]
        macs = positions[0] * self.sizes[0] + positions[1] * self.sizes[1]
        made: Tensor = torch.ops.leanconv.octave_conv(
            main, other, self.weights, self.other, self.bias, residual, self.kernel_size, self.padding, self.up,
            self.relu, macs, self.interactions,
        )  # fmt: skip
        return made


def _packed(conv: nn.Conv2d) -> Tensor:
    """(C_out, C_in, k, k) as (k * k, C_in, C_out)."""
    return conv.weight.detach().flatten(2).permute(2, 1, 0).contiguous()
