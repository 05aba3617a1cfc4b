"""A K x K x K convolution as a spatial and a temporal one: R(2+1)D, which the channel-separated paper compares with.

    1 x k x k to M channels, BatchNorm, ReLU, k x 1 x 1        M = floor(t d d N' N / (d d N' + t N))

with N' channels in and N out, so that both together have about as many weights as the K x K x K (Tran et al. 2018,
section 3.5); as released the stem has M = 45, networks take 112 x 112 pixels and have no pool behind the stem.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from leanconv.errors import LeanconvError

__all__ = ["Decomposed3d"]


class Decomposed3d(nn.Sequential):
    """Shapes as `nn.Conv3d` of the same arguments; `middle` is M.

    Raises `LeanconvError` for a kernel that has no time or no space to it.

    >>> Decomposed3d(64, 64, 3, padding=1).spatial.out_channels
    144
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        *,
        bias: bool = False,
        middle: int | None = None,
    ) -> None:
        (t, h, w), (st, sh, sw), (pt, ph, pw) = map(_three, (kernel_size, stride, padding))
        if min(t, h * w) == 1:
            raise LeanconvError(f"a kernel of {t} x {h} x {w} is one of space or of time already: nothing to decompose")
        super().__init__()
        if middle is None:
            middle = t * h * w * in_channels * out_channels // (h * w * in_channels + t * out_channels)
        self.spatial = nn.Conv3d(in_channels, middle, (1, h, w), (1, sh, sw), (0, ph, pw), bias=False)
        self.bn = nn.BatchNorm3d(middle)
        self.relu = nn.ReLU(inplace=True)
        self.temporal = nn.Conv3d(middle, out_channels, (t, 1, 1), (st, 1, 1), (pt, 0, 0), bias=bias)


def _three(value: int | Sequence[int]) -> tuple[int, int, int]:
    return (value, value, value) if isinstance(value, int) else (value[0], value[1], value[2])
