"""X3D (Feichtenhofer, CVPR 2020): a small network of channelwise 3x3x3 kernels, grown along six axes.

    stem     1x3x3, stride 2, to 24 channels, and a channelwise 5x1x1; BatchNorm, ReLU behind both
    stages   24, 48, 96, 192 channels; 1, 2, 5, 3 blocks times the depth factor 2.2, rounded up: 3, 5, 11, 7
    block    1x1x1 to 2.25 times as many, channelwise 3x3x3 (with the stride, 2 in space in every first block),
             squeeze-and-excitation of a 16th in every second block, Swish, 1x1x1; + shortcut, ReLU
    head     1x1x1 to 432, average, 1x1x1 to 2048, ReLU, dropout, linear

X3D-M is this at 16 frames of 224 x 224; S and XS are the same network at 13 and 4 frames of 160 x 160 (182 in tests).
A shortcut that changes the size and not the channels (stage 1) has no BatchNorm, as in the authors' code.
"""

from __future__ import annotations

from math import ceil
from typing import cast

from torch import Tensor, nn

from leanconv.errors import LeanconvError
from leanconv.nets._shared import at_least_one, positive

__all__ = ["X3D"]

_CHANNELS = (24, 48, 96, 192)
_BLOCKS = (1, 2, 5, 3)


def _eights(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, not below 9 tenths of it, and at least 8."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near


class Gate(nn.Module):
    """Squeeze-and-excitation: x * sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool3d(1)
        self.reduce = nn.Conv3d(channels, _eights(channels / 16), 1)
        self.relu = nn.ReLU(inplace=True)
        self.expand = nn.Conv3d(_eights(channels / 16), channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) to the same shape."""
        scaled: Tensor = x * self.gate(self.expand(self.relu(self.reduce(self.squeeze(x)))))
        return scaled


class Block(nn.Module):
    """1x1x1, channelwise 3x3x3, gate or not, Swish, 1x1x1."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int, *, gated: bool) -> None:
        super().__init__()
        strides = (1, stride, stride)
        self.conv1 = nn.Conv3d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(inner, inner, 3, strides, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm3d(inner)
        self.gate = Gate(inner) if gated else nn.Identity()
        self.swish = nn.SiLU()
        self.conv3 = nn.Conv3d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels or stride != 1:
            self.shortcut.add_module("conv", nn.Conv3d(in_channels, out_channels, 1, strides, bias=False))
        if in_channels != out_channels:
            self.shortcut.add_module("bn", nn.BatchNorm3d(out_channels))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in, t, h, w) to (b, out, t, h / stride, w / stride), rounded up."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.swish(self.gate(self.bn2(self.conv2(y))))))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


class X3D(nn.Module):
    """See the head of this file; every size of clip of at least 32 x 32 pixels.

    Args:
        depth: factor of the blocks per stage.
        inner: how many times wider a block is inside.
        dropout: share of the 2048 features that training drops.

    Raises `LeanconvError` for factors that are not above 0 and a dropout outside 0 to 1.

    >>> import torch
    >>> X3D(num_classes=10, depth=1.0)(torch.zeros(2, 3, 4, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, *, num_classes: int = 400, depth: float = 2.2, inner: float = 2.25, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise LeanconvError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        positive("depth", depth)
        positive("inner", inner)
        channels = _CHANNELS[0]
        self.stem = nn.Sequential(
            nn.Conv3d(3, channels, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
            nn.Conv3d(channels, channels, (5, 1, 1), 1, (2, 0, 0), groups=channels, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        )
        for stage, (width, count) in enumerate(zip(_CHANNELS, _BLOCKS, strict=True), 1):
            blocks = []
            for block in range(ceil(depth * count)):
                stride, gated = 1 if block else 2, block % 2 == 0
                blocks.append(Block(channels, int(inner * width), width, stride, gated=gated))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        wide = int(inner * channels)
        self.conv5 = nn.Sequential(
            nn.Conv3d(channels, wide, 1, bias=False), nn.BatchNorm3d(wide), nn.ReLU(inplace=True)
        )
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.features = nn.Sequential(nn.Conv3d(wide, 2048, 1, bias=False), nn.ReLU(inplace=True), nn.Flatten())
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, at_least_one("num_classes", num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Clips (b, 3, t, h, w) to class scores (b, num_classes)."""
        x = self.stem(x)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return cast(Tensor, self.fc(self.dropout(self.features(self.pool(self.conv5(x))))))
