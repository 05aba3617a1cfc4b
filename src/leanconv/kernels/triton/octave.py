"""Two maps, perhaps of two resolutions, convolved into one in one pass: an octave convolution's high or low output.

    y = relu(A * a + up(B * b) + bias + residual)          a and y at one resolution, b at the same or at half of it

An implicit matrix product over channels-last maps: for each tap and block of channels of `a`, then of `b`, whose rows
are read at half the coordinates, so that neither the convolved low map nor the up-sampled one is ever written.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["run"]


@triton.jit  # type: ignore[untyped-decorator]
def _two(  # type: ignore[no-untyped-def]
    a, b, wa, wb, bias, residual, y, P, H, W, HB, WB, CA, CB, N, KBA, KBB,
    PAD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, UP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    RELU: tl.constexpr, EXACT: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    CA, CB, N = CA * UNIT, CB * UNIT, N * UNIT  # so that the compiler sees what divides them, and reads 16 bytes
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    p = tl.program_id(1) * BM + tl.arange(0, BM)
    wo, ho = p % W, p // W % H
    image = (p // (W * H)).to(tl.int64)
    k = tl.arange(0, BK)
    total = tl.zeros([BM, BN], tl.float32)
    for i in range(KH * KW * KBA):
        tap, c = i // KBA, i % KBA * BK + k
        h, v = ho - PAD + tap // KW, wo - PAD + tap % KW
        ok = (p < P) & (h >= 0) & (h < H) & (v >= 0) & (v < W)
        value = tl.load(
            a + (((image * H + h) * W + v) * CA)[:, None] + c[None, :], mask=ok[:, None] & (c < CA)[None, :], other=0.0
        )
        weight = tl.load(
            wa + ((tap * CA + c) * N)[:, None] + n[None, :], mask=(c < CA)[:, None] & (n < N)[None, :], other=0.0
        )
        if EXACT:
            total = tl.dot(value, weight, total, input_precision="ieee")
        else:
            total = tl.dot(value, weight, total)
    for i in range(KH * KW * KBB):
        tap, c = i // KBB, i % KBB * BK + k
        h, v = ho // UP - PAD + tap // KW, wo // UP - PAD + tap % KW
        ok = (p < P) & (h >= 0) & (h < HB) & (v >= 0) & (v < WB)
        value = tl.load(
            b + (((image * HB + h) * WB + v) * CB)[:, None] + c[None, :],
            mask=ok[:, None] & (c < CB)[None, :],
            other=0.0,
        )
        weight = tl.load(
            wb + ((tap * CB + c) * N)[:, None] + n[None, :], mask=(c < CB)[:, None] & (n < N)[None, :], other=0.0
        )
        if EXACT:
            total = tl.dot(value, weight, total, input_precision="ieee")
        else:
            total = tl.dot(value, weight, total)
    inside = (p < P)[:, None] & (n < N)[None, :]
    at = (p.to(tl.int64) * N)[:, None] + n[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        total += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        total = tl.maximum(total, 0.0)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


def run(
    a: Tensor,
    b: Tensor,
    weights: Tensor,
    other: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    kernel_size: int,
    padding: int,
    up: int,
    relu: bool,
) -> None:
    """Fill y (B, N, h, w) from a (B, C_a, h, w) and b (B, C_b, ceil(h/up), ceil(w/up)), all channels last.

    Weights are (k * k, C, N), contiguous.
    """
    positions = y.shape[0] * y.shape[2] * y.shape[3]
    channels = y.shape[1]
    exact = a.dtype is torch.float32
    wide = max(16, min(64 if exact else 128, triton.next_power_of_2(channels)))
    deep = 32 if exact or min(a.shape[1], b.shape[1]) < 64 else 64
    tile = 64 if exact else 128
    unit = 8 if a.shape[1] % 8 == b.shape[1] % 8 == channels % 8 == 0 else 1
    given: Any = a
    _two[(triton.cdiv(channels, wide), triton.cdiv(positions, tile))](
        a, b, weights, other, given if bias is None else bias, given if residual is None else residual, y,
        positions, a.shape[2], a.shape[3], b.shape[2], b.shape[3], a.shape[1] // unit, b.shape[1] // unit,
        channels // unit, triton.cdiv(a.shape[1], deep), triton.cdiv(b.shape[1], deep),
        PAD=padding, KH=kernel_size, KW=kernel_size, UP=up, BM=tile, BN=wide, BK=deep,
        BIAS=bias is not None, RESIDUAL=residual is not None, RELU=relu, EXACT=exact, UNIT=unit,
        num_warps=4 if wide <= 64 else 8, num_stages=3,
    )  # fmt: skip
