"""The ImageNet ResNet family with every option that octave networks need, dense and without an idea of ours.

    stem - 4 stages of bottlenecks  x + conv1x1(conv3x3(conv1x1(x)))  - average pool - linear

Post-activation has a BatchNorm after each convolution and a ReLU after the sum; pre-activation (He et al., ECCV 2016)
has BatchNorm and ReLU before each convolution, the projection's included, and a last pair before the pool.
Groups make it ResNeXt (Xie et al., CVPR 2017), `se` SE-ResNet (Hu et al., CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from leanconv.errors import LeanconvError
from leanconv.nets._shared import at_least_one, init_he

__all__ = ["LAYERS", "Bottleneck", "ResNet", "SqueezeExcite"]

LAYERS = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
"""Depth -> bottlenecks per stage."""

Stem = Literal["plain", "plain_residual", "plain_conv", "deep_residual", "deep"]
StrideAt = Literal["conv2", "conv3"]


class SqueezeExcite(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x))), with C / 16 channels between."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(channels // reduction, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to the same shape."""
        scaled: Tensor = x * self.gate(self.expand(self.relu(self.reduce(self.squeeze(x)))))
        return scaled


class ConvUnit(nn.Sequential):
    """Convolution with its BatchNorm and, if asked for, ReLU: behind it, or with `pre` before it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        *,
        pre: bool = False,
        relu: bool = True,
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        layers: list[tuple[str, nn.Module]]
        if pre:  # not in place: the residual stream is read by the shortcut, too
            layers = [("bn", nn.BatchNorm2d(in_channels)), ("relu", nn.ReLU()), ("conv", conv)]
        else:
            layers = [("conv", conv), ("bn", nn.BatchNorm2d(out_channels))]
            layers += [("relu", nn.ReLU(inplace=True))] if relu else []
        super().__init__()
        for name, layer in layers:
            self.add_module(name, layer)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a projection where the shape changes."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        stride: int = 1,
        *,
        groups: int = 1,
        se: bool = False,
        pre_activation: bool = False,
        stride_at: StrideAt = "conv2",
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        pre = pre_activation
        at_2, at_3 = (stride, 1) if stride_at == "conv2" else (1, stride)
        self.norm = nn.BatchNorm2d(in_channels, affine=False) if input_norm else nn.Identity()
        self.conv1 = ConvUnit(in_channels, width, 1, pre=pre)
        self.conv2 = ConvUnit(width, width, 3, at_2, groups, pre=pre)
        self.conv3 = ConvUnit(width, out_channels, 1, at_3, pre=pre, relu=False)
        self.se = SqueezeExcite(out_channels) if se else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            project = ConvUnit(in_channels, out_channels, 1, stride, pre=pre, relu=False)
            affine_free = nn.BatchNorm2d(in_channels, affine=False)
            self.shortcut = nn.Sequential(affine_free, project) if input_norm else project
        self.relu = nn.Identity() if pre else nn.ReLU(inplace=True)
        self.after: nn.Module = nn.Identity()  # a place for what some networks put behind a block

    def forward(self, x: Tensor) -> Tensor:
        """(b, in, h, w) to (b, out, h / stride, w / stride), rounded up."""
        y = self.se(self.conv3(self.conv2(self.conv1(self.norm(x)))))
        out: Tensor = self.after(self.relu(y + self.shortcut(x)))
        return out


class ResNet(nn.Module):
    """`layers` bottlenecks in each of four stages.

    Args:
        groups, width_per_group: of the 3x3 convolutions; 32 and 4 make ResNeXt 32x4d.
        se: squeeze-and-excitation in every block.
        pre_activation: see the head of this file.
        stem: "plain" is 7x7/2 and a max pool, in whose place "plain_residual" has a bottleneck of stride 2 and
            "plain_conv" a 3x3 of stride 2; "deep" three 3x3 of 32, 32 and 64 channels and a max pool;
            "deep_residual" three 3x3 of 8, 32 and 64 with the stride in the second, then a bottleneck of stride 2.
        stride_at: which convolution of a block has the stride.
        input_norm: a BatchNorm without parameters at the start of each residual function and projection.
        dropout: share of the pooled features that training drops.

    >>> import torch
    >>> ResNet((1, 1, 1, 1), num_classes=10)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        num_classes: int = 1000,
        groups: int = 1,
        width_per_group: int = 64,
        se: bool = False,
        pre_activation: bool = False,
        stem: Stem = "plain",
        stride_at: StrideAt = "conv2",
        input_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise LeanconvError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        if len(layers) != 4 or any(count < 1 for count in layers):
            raise LeanconvError(f"layers must be four counts of at least 1, got {list(layers)}")
        self.stem = _stem(stem)
        channels = 64
        stages: list[nn.Module] = []
        for stage, count in enumerate(layers):
            width = 64 * 2**stage
            inner = width * width_per_group // 64 * groups
            blocks = []
            for block in range(count):
                blocks.append(
                    Bottleneck(
                        channels,
                        inner,
                        width * Bottleneck.expansion,
                        2 if stage and not block else 1,
                        groups=groups,
                        se=se,
                        pre_activation=pre_activation,
                        stride_at=stride_at,
                        input_norm=input_norm,
                    )
                )
                channels = width * Bottleneck.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        tail: list[nn.Module] = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)] if pre_activation else []
        self.tail = nn.Sequential(*tail)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, at_least_one("num_classes", num_classes))
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, h, w) to class scores (b, num_classes)."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        scores: Tensor = self.fc(self.dropout(self.flatten(self.pool(self.tail(x)))))
        return scores


def _stem(kind: Stem) -> nn.Sequential:
    """From the image to 64 channels at a quarter of its size."""
    if kind == "plain":
        return nn.Sequential(ConvUnit(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
    if kind == "plain_residual":
        return nn.Sequential(ConvUnit(3, 64, 7, 2), Bottleneck(64, 32, 64, 2))
    if kind == "plain_conv":
        return nn.Sequential(ConvUnit(3, 64, 7, 2), ConvUnit(64, 64, 3, 2))
    if kind == "deep":
        return nn.Sequential(ConvUnit(3, 32, 3, 2), ConvUnit(32, 32, 3), ConvUnit(32, 64, 3), nn.MaxPool2d(3, 2, 1))
    if kind == "deep_residual":
        return nn.Sequential(ConvUnit(3, 8, 3), ConvUnit(8, 32, 3, 2), ConvUnit(32, 64, 3), Bottleneck(64, 32, 64, 2))
    raise LeanconvError(f"stem must be one of {', '.join(get_args(Stem))}, got {kind!r}")
