"""The ResNet for small images (He et al., CVPR 2016, section 4.2), at any depth 6n + 2 and width, convolution injected.

    3x3 stem - 3 stages of n blocks, each  relu(x + BN(conv3x3(relu(BN(conv3x3(x))))))  - average pool - linear

Shortcut at a stage change, where the map halves and the width doubles:
    A   every second pixel, missing channels filled with zeros, no parameters (the ResNet paper on CIFAR)
    B   a plain 1x1 convolution of stride 2, without BatchNorm and bias (as the optimized-separable networks count)
Deviation: option A appends its zero channels at the end, not half on each side, so that channel i stays channel i at
every width of an elastic network.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.errors import LeanconvError
from leanconv.nets._shared import ConvMaker, at_least_one, init_he, positive

__all__ = ["BasicBlock", "CifarResNet", "Subsample"]


class Subsample(nn.Module):
    """Shortcut A: (b, c, h, w) to (b, channels, ceil(h / stride), ceil(w / stride)), new channels zero."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, channels: int) -> Tensor:
        """`channels` is given at run time, so that the shortcut follows its block when the width changes."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, channels - x.shape[1]))

    def extra_repr(self) -> str:
        """The stride."""
        return f"stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the stride in the first, and a shortcut around them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        conv: ConvMaker = nn.Conv2d,
        shortcut: Literal["A", "B"] = "A",
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = Subsample(stride)
        else:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, ceil(h / stride), ceil(w / stride))."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if isinstance(self.shortcut, Subsample):
            x = self.shortcut(x, y.shape[1])
        else:
            x = self.shortcut(x)
        out: Tensor = self.relu(y + x)
        return out


class CifarResNet(nn.Module):
    """`depth` = 6n + 2 layers; stage i is round(base_width * multiplier * 2^i) channels wide.

    `conv` makes the 3x3 convolutions inside the blocks; stem, shortcut and classifier stay ordinary.
    Raises `LeanconvError` for a depth that is not 6n + 2 and for widths, strides or counts below 1.

    >>> import torch
    >>> CifarResNet(20)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int = 10,
        multiplier: float = 1.0,
        base_width: int = 16,
        stem_stride: int = 1,
        shortcut: Literal["A", "B"] = "A",
        conv: ConvMaker = nn.Conv2d,
    ) -> None:
        super().__init__()
        if at_least_one("depth", depth) < 8 or depth % 6 != 2:
            raise LeanconvError(f"depth must be 6n + 2 (8, 14, 20, 32, 56, 110, ...), got {depth}")
        if shortcut not in ("A", "B"):
            raise LeanconvError(f"shortcut must be 'A' (subsample) or 'B' (1x1 convolution), got {shortcut!r}")
        at_least_one("num_classes", num_classes)
        scale = at_least_one("base_width", base_width) * positive("multiplier", multiplier)
        widths = [round(scale * 2**i) for i in range(3)]
        if widths[0] < 1:
            raise LeanconvError(f"multiplier={multiplier} leaves round({scale:g}) = 0 channels in the first stage")
        self.conv1 = nn.Conv2d(3, widths[0], 3, stride=at_least_one("stem_stride", stem_stride), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)

        def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
            first = BasicBlock(in_channels, out_channels, stride, conv=conv, shortcut=shortcut)
            rest = (BasicBlock(out_channels, out_channels, conv=conv) for _ in range(depth // 6 - 1))
            return nn.Sequential(first, *rest)

        self.layer1 = stage(widths[0], widths[0], 1)
        self.layer2 = stage(widths[0], widths[1], 2)
        self.layer3 = stage(widths[1], widths[2], 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[2], num_classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, h, w) to class scores (b, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.fc(self.flatten(self.pool(x)))
        return scores
