"""Slow-only and SlowFast networks (Feichtenhofer et al., ICCV 2019), for the video version of mutual learning.

    slow    every alpha-th frame; ResNet bottlenecks whose first 1x1x1 is a 3x1x1 in the last two stages alone
    fast    all frames, an eighth of the channels, a 3x1x1 in every block and a stem that reaches over five frames
    lateral behind the stem and the first three stages: K x 1 x 1 over time with stride alpha, to twice the fast
            channels, joined to the slow ones

    stem 1 (5) x 7x7, stride 2, and a max pool 1x3x3; stages of 3, 4, 6, 3 bottlenecks, 64 to 512 channels wide inside;
    strides in space alone, in the 1x3x3 of the first block of stages 2 to 4; averages, joined, one linear layer

Clips are given once, at the fast rate: the slow pathway takes its frames out of them. T frames give it T / alpha,
rounded up, as many as a lateral convolution of stride alpha leaves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leanconv.errors import LeanconvError
from leanconv.nets._shared import at_least_one
from leanconv.nets.resnet3d import LAYERS_3D, WIDTHS, ConvUnit3d

__all__ = ["SlowFast", "SlowOnly"]

EXPANSION = 4


class Bottleneck(nn.Module):
    """t x 1 x 1, 1 x 3 x 3 with the stride in space, 1 x 1 x 1."""

    def __init__(self, in_channels: int, width: int, out_channels: int, time: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvUnit3d(in_channels, width, (time, 1, 1), 1, (time // 2, 0, 0))
        self.conv2 = ConvUnit3d(width, width, (1, 3, 3), (1, stride, stride), (0, 1, 1))
        self.conv3 = ConvUnit3d(width, out_channels, 1, relu=False)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = ConvUnit3d(in_channels, out_channels, 1, (1, stride, stride), relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in, t, h, w) to (b, out, t, h / stride, w / stride), rounded up."""
        out: Tensor = self.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))
        return out


class Pathway(nn.Module):
    """A stem that reaches over `stem` frames and four stages; channels are the usual ones divided by `part`.

    Blocks begin with a kernel over `times` frames, by stage. Every stage takes more channels than the one before it
    gives, `beside` times as many, for what is joined to them.
    """

    def __init__(self, layers: Sequence[int], part: int, stem: int, times: Sequence[int], beside: float = 0) -> None:
        super().__init__()
        channels = WIDTHS[0] // part
        self.stem = nn.Sequential(
            ConvUnit3d(3, channels, (stem, 7, 7), (1, 2, 2), (stem // 2, 3, 3)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        for stage, (width, count, time) in enumerate(zip(WIDTHS, layers, times, strict=True)):
            inner, out = width // part, EXPANSION * width // part
            given = channels + round(channels * beside)
            blocks = [
                Bottleneck(out if block else given, inner, out, time, 2 if stage and not block else 1)
                for block in range(count)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = out
        self.channels = channels

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """The four, in order."""
        return tuple(self.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4))


class _Classifier(nn.Module):
    """What both end in: averages over all of time and space, dropout, one linear layer."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise LeanconvError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, at_least_one("num_classes", num_classes))


class SlowOnly(_Classifier):
    """The slow pathway alone; clips hold the frames that it sees.

    Raises `LeanconvError` for other than four stages, counts below 1 and a dropout outside 0 to 1.

    >>> SlowOnly((1, 1, 1, 1), num_classes=10)(torch.zeros(2, 3, 4, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, layers: Sequence[int] = LAYERS_3D[50], *, num_classes: int = 400, dropout: float = 0.5) -> None:
        super().__init__(EXPANSION * WIDTHS[-1], num_classes, dropout)
        self.slow = Pathway(_four(layers), 1, 1, (1, 1, 3, 3))
        _draw(self)

    def forward(self, x: Tensor) -> Tensor:
        """Clips (b, 3, t, h, w) to class scores (b, num_classes)."""
        x = self.slow.stem(x)
        for stage in self.slow.stages:
            x = stage(x)
        scores: Tensor = self.fc(self.dropout(self.flatten(self.pool(x))))
        return scores


class SlowFast(_Classifier):
    """Both pathways; `alpha` and the `lateral` kernel are 8 and 5 for 4 x 16, 4 and 7 for 8 x 8, as published.

    Raises `LeanconvError` as `SlowOnly`, and for an even `lateral`.

    >>> SlowFast((1, 1, 1, 1), num_classes=10)(torch.zeros(2, 3, 8, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        layers: Sequence[int] = LAYERS_3D[50],
        *,
        num_classes: int = 400,
        alpha: int = 4,
        lateral: int = 7,
        part: int = 8,
        dropout: float = 0.5,
    ) -> None:
        if at_least_one("lateral", lateral) % 2 == 0:
            raise LeanconvError(f"lateral must be odd, so that its kernel has a middle, got {lateral}")
        if WIDTHS[0] % at_least_one("part", part):
            raise LeanconvError(f"part must divide {WIDTHS[0]}, the channels of the slow stem, got {part}")
        slow = Pathway(_four(layers), 1, 1, (1, 1, 3, 3), beside=2 / part)
        fast = Pathway(layers, part, 5, (3, 3, 3, 3))
        super().__init__(slow.channels + fast.channels, num_classes, dropout)
        self.alpha = at_least_one("alpha", alpha)
        self.slow, self.fast = slow, fast
        given = [WIDTHS[0] // part, *(EXPANSION * width // part for width in WIDTHS[:3])]
        self.lateral = nn.ModuleList(
            ConvUnit3d(channels, 2 * channels, (lateral, 1, 1), (alpha, 1, 1), (lateral // 2, 0, 0))
            for channels in given
        )
        _draw(self)

    def forward(self, x: Tensor) -> Tensor:
        """Clips (b, 3, t, h, w) at the fast rate to class scores (b, num_classes)."""
        slow, fast = self.slow.stem(x[:, :, :: self.alpha]), self.fast.stem(x)
        for join, slower, faster in zip(self.lateral, self.slow.stages, self.fast.stages, strict=True):
            slow, fast = slower(torch.cat([slow, join(fast)], 1)), faster(fast)
        pooled = torch.cat([self.flatten(self.pool(slow)), self.flatten(self.pool(fast))], 1)
        scores: Tensor = self.fc(self.dropout(pooled))
        return scores


def _four(layers: Sequence[int]) -> Sequence[int]:
    if len(layers) != 4:
        raise LeanconvError(f"layers must be the number of blocks of four stages, got {list(layers)}")
    for index, count in enumerate(layers):
        at_least_one(f"layers[{index}]", count)
    return layers


def _draw(net: nn.Module) -> None:
    """Every convolution from N(0, 2 / fan_in), the classifier from N(0, 0.01)."""
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
