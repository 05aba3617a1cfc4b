"""A chain of a grouped k x k and a grouped 1 x 1 in one pass over channels-last maps, its middle in registers.

A program makes BM positions of all output channels. For each block of the first stage it sums the taps into a tile of
the middle, by matrix products or, where it is depthwise, number by number; rounds it to the type of the maps,
multiplies it by the block's rows of the second stage and adds that to the output tile. Bias, residual and the clip at
zero come before the one store.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["run"]


@triton.jit  # type: ignore[untyped-decorator]
def _chain(  # type: ignore[no-untyped-def]
    x, first, second, bias, residual, y, P, H, W, C, HO, WO, CO, STEP, BLOCKS,
    STRIDE: tl.constexpr, PAD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    KI: tl.constexpr, M: tl.constexpr, N: tl.constexpr, BM: tl.constexpr,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, EXACT: tl.constexpr, UNIT: tl.constexpr,
    DEPTHWISE: tl.constexpr,
):  # fmt: skip
    C, CO, STEP = C * UNIT, CO * UNIT, STEP * UNIT  # so that the compiler sees what divides them, and reads 16 bytes
    p = tl.program_id(0) * BM + tl.arange(0, BM)
    wo, ho = p % WO, p // WO % HO
    image = (p // (WO * HO)).to(tl.int64) * H * W
    k, m, o = tl.arange(0, KI), tl.arange(0, M), tl.arange(0, N)
    total = tl.zeros([BM, N], tl.float32)
    for block in range(BLOCKS):
        middle = tl.zeros([BM, M], tl.float32)
        c = block * STEP + k
        for tap in range(KH * KW):
            h, v = ho * STRIDE - PAD + tap // KW, wo * STRIDE - PAD + tap % KW
            ok = (p < P) & (h >= 0) & (h < H) & (v >= 0) & (v < W)
            value = tl.load(
                x + ((image + h * W + v) * C)[:, None] + c[None, :], mask=ok[:, None] & (c < C)[None, :], other=0.0
            )
            if DEPTHWISE:
                weight = tl.load(first + (block * KH * KW + tap) * KI + k).to(tl.float32)
                middle += value.to(tl.float32) * weight[None, :]
            else:
                weight = tl.load(first + ((block * KH * KW + tap) * KI + k)[:, None] * M + m[None, :])
            if DEPTHWISE:
                pass
            elif EXACT:
                middle = tl.dot(value, weight, middle, input_precision="ieee")
            else:
                middle = tl.dot(value, weight, middle)
        last = tl.load(second + (block * M + m)[:, None] * CO + o[None, :], mask=(o < CO)[None, :], other=0.0)
        if EXACT:
            total = tl.dot(middle, last, total, input_precision="ieee")
        else:
            total = tl.dot(middle.to(last.dtype), last, total)
    inside = (p < P)[:, None] & (o < CO)[None, :]
    at = (p.to(tl.int64) * CO)[:, None] + o[None, :]
    if BIAS:
        total += tl.load(bias + o, mask=o < CO, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        total = tl.maximum(total, 0.0)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


def run(
    x: Tensor,
    first: Tensor,
    second: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    kernel_size: Sequence[int],
    stride: int,
    padding: int,
    step: int,
    relu: bool,
) -> None:
    """Fill y (B, C_out, h', w'); x and the residual channels last, `first` and `second` as `kernels.chained` says."""
    depthwise = first.ndim == 3
    blocks, _, inputs = first.shape[:3]
    middle = second.shape[1]
    positions = y.shape[0] * y.shape[2] * y.shape[3]
    wide = max(16, triton.next_power_of_2(y.shape[1]))
    exact = x.dtype is torch.float32
    tile = 64 if exact or wide > 128 else 128
    given: Any = x
    unit = gcd(8, x.shape[1], y.shape[1], step)
    _chain[(triton.cdiv(positions, tile),)](
        x, first.contiguous(), second.contiguous(), given if bias is None else bias,
        given if residual is None else residual, y,
        positions, x.shape[2], x.shape[3], x.shape[1] // unit, y.shape[2], y.shape[3], y.shape[1] // unit,
        step // unit, blocks,
        STRIDE=stride, PAD=padding, KH=kernel_size[0], KW=kernel_size[1], KI=inputs, M=middle, N=wide, BM=tile,
        BIAS=bias is not None, RESIDUAL=residual is not None, RELU=relu, EXACT=exact, UNIT=unit, DEPTHWISE=depthwise,
        num_warps=4 if wide <= 64 else 8, num_stages=3,
    )  # fmt: skip
