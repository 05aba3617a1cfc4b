"""The two parts of a map as plain tensors: from one resolution to the other, and channels into their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanconv.errors import PlanError

__all__ = [
    "Runs",
    "are_same_channels",
    "channels_of",
    "double",
    "halve",
    "interleave",
    "join_runs",
    "low_channels",
    "match",
    "take",
]

Runs = tuple[int, ...]
"""How many channels in a row are high, then low, then high, and so on, in the order of the map that is stood for.

(32, 32) is 32 high channels before 32 low ones; a concatenation may give (32, 32, 8, 8); (0, 16) has low ones only.
"""


def low_channels(alpha: float, channels: int) -> int:
    """floor(alpha * channels), the size of the low part; the small term keeps 0.29 * 100 from falling to 28."""
    if not 0 <= alpha <= 1:
        raise PlanError(f"alpha must be between 0 (all high) and 1 (all low), got {alpha}")
    return int(alpha * channels + 1e-9)


def halve(x: Tensor) -> Tensor:
    """Average pooling 2 x 2 over the last two axes, (B, C, *, h, w) -> (B, C, *, ceil(h/2), ceil(w/2))."""
    if x.ndim == 5:
        return _in_its_type(
            functional.avg_pool3d, x, kernel_size=(1, 2, 2), stride=(1, 2, 2), ceil_mode=True, count_include_pad=False
        )
    return _in_its_type(functional.avg_pool2d, x, kernel_size=2, stride=2, ceil_mode=True, count_include_pad=False)


def _in_its_type(function: Callable[..., Tensor], x: Tensor, **settings: Any) -> Tensor:
    """`function(x)`, in the type of `x` under autocast too.

    Autocast takes up-sampling to float32 on GPUs, and pooling on CPUs. Sums, norms and activations behind it would stay
    there: twice the bytes for every map at full resolution, and none of the memory that the low maps save.
    """
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return function(x, **settings)
    if not x.is_cuda:
        return function(x, **settings).to(x.dtype)  # a CPU has no pooling of clips in bfloat16
    with torch.autocast(x.device.type, enabled=False):
        return function(x, **settings)


def double(x: Tensor, like: Tensor | None) -> Tensor:
    """Nearest up-sampling of the last two axes by two, cut to the size of `like` where that is odd."""
    if x.is_cuda:
        x = _repeat(x)
    elif x.is_floating_point():
        scale = (1.0, 2.0, 2.0) if x.ndim == 5 else (2.0, 2.0)
        x = _in_its_type(functional.interpolate, x, scale_factor=scale, mode="nearest")
    else:  # masks
        x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return x if like is None else x[..., : like.shape[-2], : like.shape[-1]]


def _repeat(x: Tensor) -> Tensor:
    """Every number twice along the last two axes; as views and one copy, whose gradient is a plain sum.

    For GPUs: compilers make of the gradient of `interpolate` a scatter, and autocast runs it in float32.
    """
    height, width = x.shape[-2:]
    if x.is_contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d):
        last = x.movedim(1, -1)  # so that the copy lies channels last, too
        wide = last[..., :, None, :, None, :].expand(*last.shape[:-3], height, 2, width, 2, last.shape[-1])
        return wide.reshape(*last.shape[:-3], 2 * height, 2 * width, last.shape[-1]).movedim(-1, 1)
    wide = x[..., :, None, :, None].expand(*x.shape[:-2], height, 2, width, 2)
    return wide.reshape(*x.shape[:-2], 2 * height, 2 * width)


def match(low: Tensor, high: Tensor) -> Tensor:
    """`low` cropped to ceil(h/2) x ceil(w/2), half the size of `high`, for operations that round up twice.

    Time is never at two resolutions: a clip is cropped to the frames of `high`.
    """
    low = low[..., : (high.shape[-2] + 1) // 2, : (high.shape[-1] + 1) // 2]
    return low if low.ndim < 5 or low.shape[2] == high.shape[2] else low[:, :, : high.shape[2]]


def interleave(high: Tensor, low: Tensor, runs: Runs) -> Tensor:
    """High and low channels of maps of one size, in their order."""
    if len(runs) == 2:
        return torch.cat([high, low], dim=1) if runs[0] else low
    if groups := _groups(runs):
        parts = [part.unflatten(1, (groups, -1)) for part in (high, low)]  # type: ignore[no-untyped-call]
        return torch.cat(parts, dim=2).flatten(1, 2)
    pieces = [torch.split(part, list(runs[position::2]), 1) for position, part in enumerate((high, low))]
    return torch.cat([pieces[position % 2][position // 2] for position in range(len(runs))], dim=1)


def take(x: Tensor, runs: Runs, axis: int = 1) -> tuple[Tensor, Tensor]:
    """The high channels of `x`, and the low ones; views where each are in a row."""
    if len(runs) == 2:
        high, low = torch.split(x, list(runs), axis)
        return high, low
    if groups := _groups(runs):
        grouped = x.unflatten(axis, (groups, -1))  # type: ignore[no-untyped-call]
        high, low = torch.split(grouped, list(runs[:2]), axis + 1)
        return high.flatten(axis, axis + 1), low.flatten(axis, axis + 1)
    pieces = torch.split(x, list(runs), axis)
    return torch.cat(pieces[::2], axis), torch.cat(pieces[1::2], axis)


def _groups(runs: Runs) -> int:
    """How many groups of channels follow each other, where all have as many high and as many low ones; or 0."""
    alike = len(set(runs[::2])) == 1 and len(set(runs[1::2])) == 1 and len(runs) % 2 == 0
    return len(runs) // 2 if alike else 0


def channels_of(runs: Runs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers of the high channels, and of the low ones.

    >>> channels_of((2, 1, 1))
    ((0, 1, 3), (2,))
    """
    parts: tuple[list[int], list[int]] = ([], [])
    start = 0
    for position, count in enumerate(runs):
        parts[position % 2].extend(range(start, start + count))
        start += count
    return tuple(parts[0]), tuple(parts[1])


def are_same_channels(runs: Runs, planned: Runs) -> bool:
    """Whether the low channels are the planned ones; in a network at another width by their pattern alone."""
    if runs == planned or sum(runs) == sum(planned):
        return runs == planned
    return len(runs) == len(planned) or bool(_groups(runs) and _groups(planned))


def join_runs(pieces: Sequence[Runs]) -> Runs:
    """The runs of a concatenation.

    >>> join_runs([(4, 4), (2,), (0, 3)])
    (4, 4, 2, 3)
    """
    flat = [(position % 2, count) for runs in pieces for position, count in enumerate(runs) if count]
    joined = [(part, sum(count for _, count in run)) for part, run in groupby(flat, key=lambda pair: pair[0])]
    counts = tuple(count for _, count in joined)
    return (0, *counts) if joined and joined[0][0] else counts
