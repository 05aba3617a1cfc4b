"""MobileNetV1 (Howard et al., 2017) and V2 (Sandler et al., CVPR 2018), as MutualNet trains them.

V1: a stem and 13 units  relu6(BN(pointwise(relu6(BN(depthwise(x))))))
V2: a stem, 17 inverted residuals  x + BN(project(relu6(BN(depthwise(relu6(BN(expand(x))))))))  and a last 1x1

Both end in an *adaptive* average pool, because one network must serve several resolutions, and have ReLU6 throughout
(V1's own paper has plain ReLU). Counts at 224: V1 4.23 M parameters and 568.7 M MACs, V2 3.50 M and 300.8 M.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from math import ceil

from torch import Tensor, nn

from leanconv.errors import LeanconvError
from leanconv.nets._shared import ConvMaker, at_least_one, init_he, positive

__all__ = ["InvertedResidual", "MobileNetV1", "MobileNetV2", "conv_unit", "depth_separable_unit"]

BlockMaker = Callable[[int, int, int], nn.Module]
"""Makes a unit from its input channels, output channels and stride."""


def conv_unit(
    in_channels: int,
    out_channels: int,
    stride: int = 1,
    *,
    kernel_size: int = 3,
    groups: int = 1,
    conv: ConvMaker = nn.Conv2d,
    activation: type[nn.Module] = nn.ReLU6,
) -> nn.Sequential:
    """Convolution, BatchNorm, activation: (b, in, h, w) to (b, out, h / stride, w / stride), rounded up."""
    layer = conv(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )
    return nn.Sequential(layer, nn.BatchNorm2d(out_channels), activation(inplace=True))


def depth_separable_unit(
    in_channels: int, out_channels: int, stride: int, *, activation: type[nn.Module] = nn.ReLU6
) -> nn.Sequential:
    """MobileNetV1's unit: depthwise 3x3 with the stride, then 1x1, each with BatchNorm and activation."""
    return nn.Sequential(
        *conv_unit(in_channels, in_channels, stride, groups=in_channels, activation=activation),
        *conv_unit(in_channels, out_channels, kernel_size=1, activation=activation),
    )


class MobileNetV1(nn.Module):
    """Widths are round(c * multiplier), the last one `last_width` when given; `block` makes the 13 units,
    `activation` is the stem's. With `depth` there are ceil(n * depth) units for the n of each width but the first, as
    EfficientNet's compound scaling has it.

    Raises `LeanconvError` for widths or counts below 1.
    """

    LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        multiplier: float = 1.0,
        last_width: int | None = None,
        depth: float = 1.0,
        block: BlockMaker = depth_separable_unit,
        activation: type[nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        positive("multiplier", multiplier)
        layers = _deeper(self.LAYERS, positive("depth", depth))
        stem, *widths = (round(width * multiplier) for width in (32, *(width for width, _ in layers)))
        if stem < 1:
            raise LeanconvError(f"multiplier={multiplier} leaves round({32 * multiplier:g}) = 0 channels in the stem")
        if last_width is not None:
            widths[-1] = at_least_one("last_width", last_width)
        units: list[nn.Module] = [conv_unit(3, stem, 2, activation=activation)]
        for in_channels, out_channels, (_, stride) in zip([stem, *widths], widths, layers, strict=False):
            units.append(block(in_channels, out_channels, stride))
        self.features = nn.Sequential(*units)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(widths[-1], at_least_one("num_classes", num_classes))
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, h, w) to class scores (b, num_classes)."""
        scores: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return scores


def _deeper(layers: Sequence[tuple[int, int]], depth: float) -> list[tuple[int, int]]:
    """(width, stride) of every unit, those of a width behind the first ceil(n * depth) times.

    >>> _deeper([(64, 1), (128, 2), (128, 1)], 1.4)
    [(64, 1), (128, 2), (128, 1), (128, 1)]
    """
    found: list[tuple[int, int]] = []
    for index, (width, members) in enumerate(groupby(layers, key=lambda layer: layer[0])):
        units = list(members)
        wanted = ceil(len(units) * depth - 1e-9) if index else len(units)
        found += (units + [(width, 1)] * wanted)[:wanted]
    return found


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3 with the stride, project 1x1 without activation; a residual add when shapes allow.

    With an expansion of 1 there is nothing to expand; `always_expand` keeps that 1x1 all the same.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, expansion: int = 6, always_expand: bool = False
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1 or always_expand:
            layers += conv_unit(in_channels, hidden, kernel_size=1)
        layers += conv_unit(hidden, hidden, stride, groups=hidden)
        layers += [nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(b, in, h, w) to (b, out, h / stride, w / stride), rounded up."""
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Widths are round(c * multiplier / divisor) * divisor, the last 1x1 never below 1280; `block` makes the
    17 residual units.

    Raises `LeanconvError` for widths or counts below 1.
    """

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    """Expansion, width, units and first stride of each stage (V2, table 2)."""

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        multiplier: float = 1.0,
        divisor: int = 8,
        block: Callable[..., nn.Module] = InvertedResidual,
    ) -> None:
        super().__init__()
        multiplier, divisor = positive("multiplier", multiplier), at_least_one("divisor", divisor)
        wide = partial(_multiple_of, multiplier=multiplier, divisor=divisor)
        channels = wide(32)
        units: list[nn.Module] = [conv_unit(3, channels, 2)]
        for expansion, width, count, first_stride in self.STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                units.append(block(channels, wide(width), stride, expansion=expansion))
                channels = wide(width)
        last = max(1280, wide(1280))
        units.append(conv_unit(channels, last, kernel_size=1))
        self.features = nn.Sequential(*units)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(last, at_least_one("num_classes", num_classes))
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, h, w) to class scores (b, num_classes)."""
        scores: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return scores


def _multiple_of(width: int, multiplier: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, one step up where that would lose more than a tenth of the width."""
    near = max(divisor, int(width * multiplier + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * width * multiplier else near
