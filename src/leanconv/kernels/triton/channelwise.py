"""Channelwise convolutions of channels-last maps, bound by bytes: every map is read once from memory.

A program makes a tile of BP positions of a frame times BC channels; neighbours are read again, from the cache. Where
the stride in time is 1 and the kernel three frames deep it walks through the frames and keeps three sums, those of the
output before, at and after the frame in hand: 9 reads for an output, not 27.

The gradient of the input is the same convolution with the kernel turned around (stride 1), or gathers from where
outputs reach (stride 2). The gradient of the weight is a sum over all positions: programs take chunks of them and keep
nine sums of tiles for one depth of the kernel; their partial sums are added up behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["forward", "input_gradient", "weight_gradient"]


@triton.jit  # type: ignore[untyped-decorator]
def _walk(  # type: ignore[no-untyped-def]
    x, w, bias, y, T, H, W, C, HO, WO,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Kernels of 3 frames, stride 1 and padding 1 in time; w is (3, KH, KW, C)."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    n = tl.program_id(2).to(tl.int64)
    inside = (p < HO * WO)[:, None] & (c < C)[None, :]
    ho, wo = p // WO, p % WO
    cm = c < C
    shift = tl.zeros([BC], tl.float32)
    if BIAS:
        shift = tl.load(bias + c, mask=cm, other=0.0).to(tl.float32)
    before = tl.zeros([BP, BC], tl.float32) + shift[None, :]
    at = tl.zeros([BP, BC], tl.float32) + shift[None, :]
    frame = x + n * T * H * W * C
    out = y + n * T * HO * WO * C + (p * C)[:, None] + c[None, :]
    for t in range(T):
        after = tl.zeros([BP, BC], tl.float32) + shift[None, :]
        for kh in tl.static_range(KH):
            for kw in tl.static_range(KW):
                h, v = ho * SH - PH + kh, wo * SW - PW + kw
                ok = (h >= 0) & (h < H) & (v >= 0) & (v < W)
                value = tl.load(
                    frame + ((h * W + v) * C)[:, None] + c[None, :], mask=inside & ok[:, None], other=0.0
                ).to(tl.float32)
                k = w + (kh * KW + kw) * C + c
                before += value * tl.load(k + 2 * KH * KW * C, mask=cm, other=0.0).to(tl.float32)[None, :]
                at += value * tl.load(k + KH * KW * C, mask=cm, other=0.0).to(tl.float32)[None, :]
                after += value * tl.load(k, mask=cm, other=0.0).to(tl.float32)[None, :]
        if t > 0:
            done = tl.maximum(before, 0.0) if RELU else before
            tl.store(out, done.to(y.dtype.element_ty), mask=inside)
            out += HO * WO * C
        before = at
        at = after
        frame += H * W * C
    done = tl.maximum(before, 0.0) if RELU else before
    tl.store(out, done.to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gather(  # type: ignore[no-untyped-def]
    x, w, bias, y, T, H, W, C, TO, HO, WO,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Any kernel and stride. BACK: x is the gradient of the output, y that of the input, read where outputs reach."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    n, to = (tl.program_id(2) // TO).to(tl.int64), tl.program_id(2) % TO
    cm = c < C
    inside = (p < HO * WO)[:, None] & cm[None, :]
    ho, wo = p // WO, p % WO
    total = tl.zeros([BP, BC], tl.float32)
    if BIAS:
        total += tl.load(bias + c, mask=cm, other=0.0).to(tl.float32)[None, :]
    for kt in tl.static_range(KT):
        if BACK:
            t = (to + PT - kt) // ST
            t_ok = (to + PT - kt >= 0) & ((to + PT - kt) % ST == 0) & (t < T)
        else:
            t = to * ST - PT + kt
            t_ok = (t >= 0) & (t < T)
        if t_ok:
            frame = x + (n * T + t) * H * W * C
            for kh in tl.static_range(KH):
                for kw in tl.static_range(KW):
                    if BACK:
                        up, right = ho + PH - kh, wo + PW - kw
                        h, v = up // SH, right // SW
                        ok = (up >= 0) & (right >= 0) & (up % SH == 0) & (right % SW == 0) & (h < H) & (v < W)
                    else:
                        h, v = ho * SH - PH + kh, wo * SW - PW + kw
                        ok = (h >= 0) & (h < H) & (v >= 0) & (v < W)
                    value = tl.load(
                        frame + ((h * W + v) * C)[:, None] + c[None, :], mask=inside & ok[:, None], other=0.0
                    ).to(tl.float32)
                    k = tl.load(w + ((kt * KH + kh) * KW + kw) * C + c, mask=cm, other=0.0).to(tl.float32)
                    total += value * k[None, :]
    if RELU:
        total = tl.maximum(total, 0.0)
    out = y + (n * TO + to) * HO * WO * C + (p * C)[:, None] + c[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _read(x, rows, h, v, c, ok, H, W, C):  # type: ignore[no-untyped-def]
    """A tile of x at row h and column v of the frames `rows` of each position; zero outside."""
    good = ok & (h >= 0) & (h < H) & (v >= 0) & (v < W)
    return tl.load(
        x + ((rows * H + h) * W + v)[:, None] * C + c[None, :], mask=good[:, None] & (c < C)[None, :], other=0.0
    ).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _sum9(  # type: ignore[no-untyped-def]
    g, x, part, T, H, W, C, TO, HO, WO, P, CHUNK,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Kernels of KT x 3 x 3: the sums over CHUNK of the P positions of all outputs, for one depth of the kernel."""
    kt = tl.program_id(0) % KT
    c = (tl.program_id(0) // KT) * BC + tl.arange(0, BC)
    chunk = tl.program_id(1)
    a = tl.zeros([BP, BC], tl.float32)
    b, d, e, f, i, j, k, m = a, a, a, a, a, a, a, a
    for start in range(0, CHUNK, BP):
        p = chunk * CHUNK + start + tl.arange(0, BP)
        wo = p % WO
        ho = p // WO % HO
        frame = p // (WO * HO)
        n, t = (frame // TO).to(tl.int64), frame % TO * ST - PT + kt
        ok = (p < P) & (t >= 0) & (t < T)
        of = tl.load(g + (p.to(tl.int64) * C)[:, None] + c[None, :], mask=ok[:, None] & (c < C)[None, :], other=0.0).to(
            tl.float32
        )
        rows, h, v = n * T + t, ho * SH - PH, wo * SW - PW
        a += of * _read(x, rows, h, v, c, ok, H, W, C)
        b += of * _read(x, rows, h, v + 1, c, ok, H, W, C)
        d += of * _read(x, rows, h, v + 2, c, ok, H, W, C)
        e += of * _read(x, rows, h + 1, v, c, ok, H, W, C)
        f += of * _read(x, rows, h + 1, v + 1, c, ok, H, W, C)
        i += of * _read(x, rows, h + 1, v + 2, c, ok, H, W, C)
        j += of * _read(x, rows, h + 2, v, c, ok, H, W, C)
        k += of * _read(x, rows, h + 2, v + 1, c, ok, H, W, C)
        m += of * _read(x, rows, h + 2, v + 2, c, ok, H, W, C)
    to = part + (chunk * KT + kt) * 9 * C + c
    tl.store(to, tl.sum(a, 0), mask=c < C)
    tl.store(to + C, tl.sum(b, 0), mask=c < C)
    tl.store(to + 2 * C, tl.sum(d, 0), mask=c < C)
    tl.store(to + 3 * C, tl.sum(e, 0), mask=c < C)
    tl.store(to + 4 * C, tl.sum(f, 0), mask=c < C)
    tl.store(to + 5 * C, tl.sum(i, 0), mask=c < C)
    tl.store(to + 6 * C, tl.sum(j, 0), mask=c < C)
    tl.store(to + 7 * C, tl.sum(k, 0), mask=c < C)
    tl.store(to + 8 * C, tl.sum(m, 0), mask=c < C)


@triton.jit  # type: ignore[untyped-decorator]
def _sum1(  # type: ignore[no-untyped-def]
    g, x, part, T, H, W, C, TO, HO, WO, P, CHUNK,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Any kernel: one tap for each program."""
    tap = tl.program_id(0) % TAPS
    kt, kh, kw = tap // (KH * KW), tap // KW % KH, tap % KW
    c = (tl.program_id(0) // TAPS) * BC + tl.arange(0, BC)
    chunk = tl.program_id(1)
    total = tl.zeros([BP, BC], tl.float32)
    for start in range(0, CHUNK, BP):
        p = chunk * CHUNK + start + tl.arange(0, BP)
        frame = p // (WO * HO)
        n, t = (frame // TO).to(tl.int64), frame % TO * ST - PT + kt
        ok = (p < P) & (t >= 0) & (t < T)
        of = tl.load(g + (p.to(tl.int64) * C)[:, None] + c[None, :], mask=ok[:, None] & (c < C)[None, :], other=0.0).to(
            tl.float32
        )
        total += of * _read(x, n * T + t, p // WO % HO * SH - PH + kh, p % WO * SW - PW + kw, c, ok, H, W, C)
    tl.store(part + (chunk * TAPS + tap) * C + c, tl.sum(total, 0), mask=c < C)


def _three(values: Sequence[int], fill: int) -> tuple[int, int, int]:
    """Settings of two axes or three as those of three: an image is a clip of one frame."""
    found = (fill, *values) if len(values) == 2 else tuple(values)
    return found[0], found[1], found[2]


def _taps(weight: Tensor) -> Tensor:
    """(C, 1, *K) as (taps, C)."""
    return weight.flatten(1).t().contiguous()


def _tile(positions: int, channels: int) -> tuple[int, int, int]:
    """Positions and channels of a tile, and warps: 64 channels are whole lines of the cache in bfloat16."""
    wide = min(64, triton.next_power_of_2(channels))
    return max(8, min(1024 // wide, triton.next_power_of_2(positions))), wide, 4


def _run(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    y: Tensor,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    relu: bool,
    back: bool = False,
) -> None:
    frames, height, width = _three(x.shape[2:], 1)
    frames_out, height_out, width_out = _three(y.shape[2:], 1)
    channels = x.shape[1]
    tile, wide, warps = _tile(height_out * width_out, channels)
    grid: tuple[int, ...] = (triton.cdiv(height_out * width_out, tile), triton.cdiv(channels, wide))
    shift: Any = x if bias is None else bias
    flags = {"BP": tile, "BC": wide, "BIAS": bias is not None, "RELU": relu, "num_warps": warps}
    if not back and (kernel[0], stride[0], padding[0]) == (3, 1, 1) and frames > 1:
        sides = dict(zip(("SH", "SW", "PH", "PW", "KH", "KW"), (*stride[1:], *padding[1:], *kernel[1:]), strict=True))
        _walk[(*grid, x.shape[0])](
            x, taps, shift, y, frames, height, width, channels, height_out, width_out, **sides, **flags
        )
        return
    names = ("ST", "SH", "SW", "PT", "PH", "PW", "KT", "KH", "KW")
    sides = dict(zip(names, (*stride, *padding, *kernel), strict=True))
    _gather[(*grid, x.shape[0] * frames_out)](
        x, taps, shift, y, frames, height, width, channels, frames_out, height_out, width_out,
        **sides, **flags, BACK=back,
    )  # fmt: skip


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    relu: bool,
) -> None:
    """Fill y (B, C, *out_size) with the convolution of x (B, C, *size), both channels last."""
    kernel = _three(weight.shape[2:], 1)
    _run(x, _taps(weight), bias, y, kernel, _three(stride, 1), _three(padding, 0), relu)


def input_gradient(
    gradient: Tensor, weight: Tensor, made: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> None:
    """Fill `made` (B, C, *size) with what `gradient` (B, C, *out_size) makes of it, both channels last."""
    kernel, steps, pads = _three(weight.shape[2:], 1), _three(stride, 1), _three(padding, 0)
    if steps == (1, 1, 1):
        turned = (kernel[0] - 1 - pads[0], kernel[1] - 1 - pads[1], kernel[2] - 1 - pads[2])
        _run(gradient, _taps(weight).flip(0).contiguous(), None, made, kernel, steps, turned, False)
    else:
        _run(gradient, _taps(weight), None, made, kernel, steps, pads, False, back=True)


def weight_gradient(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """(C, 1, *K) in float32, of a `gradient` (B, C, *out_size) and an x (B, C, *size), both channels last."""
    size, steps, pads = _three(kernel, 1), _three(stride, 1), _three(padding, 0)
    frames, height, width = _three(x.shape[2:], 1)
    frames_out, height_out, width_out = _three(gradient.shape[2:], 1)
    channels = x.shape[1]
    positions = x.shape[0] * frames_out * height_out * width_out
    nine = size[1:] == (3, 3)
    wide = min(64, triton.next_power_of_2(channels))
    tile = 1024 // wide
    columns = triton.cdiv(channels, wide) * (size[0] if nine else size[0] * size[1] * size[2])
    chunks = max(1, min(triton.cdiv(positions, 4 * tile), triton.cdiv(2048, columns)))
    chunk = triton.cdiv(triton.cdiv(positions, chunks), tile) * tile
    chunks = triton.cdiv(positions, chunk)
    taps = size[0] * size[1] * size[2]
    part = torch.empty(chunks, taps, channels, dtype=torch.float32, device=x.device)
    sides = dict(zip(("ST", "SH", "SW", "PT", "PH", "PW"), (*steps, *pads), strict=True))
    given = (gradient, x, part, frames, height, width, channels, frames_out, height_out, width_out, positions, chunk)
    if nine:
        _sum9[(columns, chunks)](*given, **sides, KT=size[0], BP=tile, BC=wide, num_warps=4)
    else:
        _sum1[(columns, chunks)](*given, **sides, KH=size[1], KW=size[2], TAPS=taps, BP=tile, BC=wide, num_warps=4)
    found = torch.empty(channels, 1, *kernel, dtype=torch.float32, device=x.device)
    found.view(channels, taps).copy_(part.sum(0).t())
    return found
