"""A chain of two stages as `kernels.chained` takes it: blocks of the first stage, the second with both shuffles in."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.kernels.chained import LEAST
from leanconv.ops.chain import ConvChain

__all__ = ["ChainUnit", "ConvUnit", "fits_unit", "pays"]


def fits_unit(chain: ConvChain) -> bool:
    """Whether a chain is a grouped k x k and a grouped 1 x 1 with nothing between, in 2D, of the usual settings."""
    plan = chain.plan
    if len(plan.stages) != 2 or plan.spec.ndim != 2 or not chain.is_linear or not chain.fits_plan:
        return False
    first, second = (stage.conv for stage in plan.stages)
    return (
        second.kernel_size == (1, 1)
        and second.stride == (1, 1)
        and not isinstance(first.padding, str)
        and first.padding_mode == "zeros"
        and set(first.dilation) == {1}
        and len(set(first.stride)) == len(set(first.padding)) == 1
    )


class ChainUnit(nn.Module):
    """A chain, the sum with a residual and a clip at zero, for inference: weights are packed once.

    (B, C_in, h, w) and perhaps a residual (B, C_out, h', w') -> (B, C_out, h', w'). With `multiple` both channel
    counts come filled up to it.
    """

    def __init__(self, chain: ConvChain, *, relu: bool, multiple: int = 1) -> None:
        super().__init__()
        dense = chain.dense_conv()
        kernel = dense.weight.detach()
        spare = -len(kernel) % multiple
        first, second, self.step = packed(chain, len(kernel) + spare)
        wide = (0, 0, 0, 0, 0, -kernel.shape[1] % multiple, 0, spare)
        self.register_buffer("first", first)
        self.register_buffer("second", second)
        self.register_buffer("kernel", functional.pad(kernel, wide))
        self.register_buffer("bias", None if dense.bias is None else functional.pad(dense.bias.detach(), (0, spare)))
        self.position_macs, self.interactions = chain.plan.params, chain.plan.interactions
        self.kernel_size, self.stride = dense.kernel_size, dense.stride[0]
        self.padding, self.channels, self.relu = cast(int, dense.padding[0]), len(kernel) + spare, relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """See the class."""
        inputs = cast(Tensor, self.kernel).shape[1]
        if x.shape[1] < inputs:
            x = functional.pad(x, (0, 0, 0, 0, 0, inputs - x.shape[1]))
        made: Tensor = torch.ops.leanconv.chain_conv(
            x, self.first, self.second, self.bias, residual, self.kernel, self.kernel_size, self.stride, self.padding,
            self.step, self.channels, self.relu, self.position_macs, self.interactions,
        )  # fmt: skip
        return made


@torch.no_grad()
def packed(chain: ConvChain, channels: int) -> tuple[Tensor, Tensor, int]:
    """`first`, `second` and `step` of `kernels.chained`, for `channels` outputs (the chain's, filled up)."""
    plan = chain.plan
    one, two = (conv.weight.double() for conv in chain.convs)
    conv = plan.stages[0].conv
    groups, ins, outs = conv.groups, conv.in_channels // conv.groups, conv.out_channels // conv.groups
    depthwise = ins == outs == 1
    per = (LEAST if groups <= 4 * LEAST else 2 * LEAST) if depthwise else _together(groups, ins, outs)
    blocks = -(-groups // per)
    inputs, middle = (max(LEAST, 1 << (per * n - 1).bit_length()) for n in (ins, outs))
    taps = one.shape[2:].numel()
    first = one.new_zeros(blocks, taps, inputs, middle)
    for group in range(groups):
        block, place = divmod(group, per)
        part = one[group * outs : (group + 1) * outs].flatten(2).clone()  # (outs, ins, taps)
        part[:, max(0, plan.spec.in_channels - group * ins) :] = 0  # spare slots read nothing
        first[block, :, place * ins : (place + 1) * ins, place * outs : (place + 1) * outs] = part.permute(2, 1, 0)
    # The second stage as a matrix (mid channel, output): slot k reads channel wiring_1[k], output j row wiring_2[j].
    last = plan.stages[1].conv
    rows, per_in, per_out = (
        torch.arange(last.out_channels),
        last.in_channels // last.groups,
        two.shape[0] // last.groups,
    )
    slots = two.new_zeros(last.out_channels, last.in_channels)
    for place in range(per_in):
        slots[rows, rows // per_out * per_in + place] = two[:, place, 0, 0]
    matrix = two.new_zeros(conv.out_channels, plan.spec.out_channels)
    matrix.index_add_(0, torch.tensor(plan.wiring(0)), slots[list(plan.wiring(1))].t().contiguous())
    second = two.new_zeros(blocks, middle, channels)
    for block in range(blocks):
        part = matrix[block * per * outs : (block + 1) * per * outs]
        second[block, : len(part), : plan.spec.out_channels] = part
    if depthwise:
        first = first.diagonal(dim1=2, dim2=3).contiguous()
    weight = chain.convs[0].weight
    return first.to(weight), second.to(weight), per * ins


def _together(groups: int, ins: int, outs: int) -> int:
    """How many groups make a block: as many as fill 64 channels, the depth at which matrix units are busy.

    Where there is a choice, blocks begin where 16 bytes may be read at once.
    """
    choices = [n for n in range(1, groups + 1) if n * max(ins, outs) <= _DEEP] or [1]
    return max([n for n in choices if n * ins % 8 == 0] or choices)


_DEEP = 64


def pays(chain: ConvChain) -> bool:
    """Whether a chain in blocks has less than .6 of the products of the one dense convolution that it equals.

    With more the dense one, which libraries run best, is as fast. A depthwise first stage takes no products at all.
    """
    first, second = (stage.conv for stage in chain.plan.stages)
    ins, outs = first.in_channels // first.groups, first.out_channels // first.groups
    if ins == outs == 1:
        return True
    per = _together(first.groups, ins, outs)
    inputs, middle = (max(LEAST, 1 << (per * n - 1).bit_length()) for n in (ins, outs))
    taps = first.kernel_size[0] * first.kernel_size[1]
    mine = -(-first.groups // per) * middle * (inputs * taps + second.out_channels)
    return mine < 0.6 * first.in_channels * second.out_channels * taps


class ConvUnit(nn.Module):
    """A convolution, the sum with a residual and a clip at zero: (B, C_in, *size) -> (B, C_out, *out_size)."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, *, relu: bool) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """See the class."""
        conv: Any = self.conv
        made: Tensor = torch.ops.leanconv.conv_unit(
            x, conv.weight, conv.bias, residual, conv.stride, conv.padding, conv.dilation, conv.groups, self.relu
        )
        return made
