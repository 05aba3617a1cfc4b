"""Three deep networks for small images that the interleaved group paper's table 7 compares with.

    PreActResNet   3x3 stem, 16 channels - 3 stages of n bottlenecks  x + conv1x1(a(conv3x3(a(conv1x1(a(x))))))
                   with a = relu(BN), four times wider outside - a - average pool - linear      depth 9n + 2
    DenseNet       3x3 stem - 3 dense blocks, every layer reads all before it and adds k channels
                   plain: a, conv3x3 (depth 3n + 4);  BC: a, conv1x1 to 4k, a, conv3x3 (depth 6n + 4), and the
                   transitions (a, conv1x1, average pool of 2) halve the channels
    ResNeXt        3x3 stem, 64 channels - 3 stages of n bottlenecks, the 3x3 in groups of d channels    depth 9n + 2

(He et al. 2016, Identity mappings; Huang et al. 2017; Xie et al. 2017.) Stages halve the map; the first block of one
has a 1x1 shortcut where the channels change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leanconv.errors import LeanconvError
from leanconv.nets._shared import at_least_one

__all__ = ["DeepDenseNet", "DeepResNeXt", "PreActResNet"]


class _Classifier(nn.Module):
    """Features, their mean over the map, and a linear layer."""

    def __init__(self, features: nn.Sequential, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(channels, at_least_one("num_classes", num_classes))
        _draw(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, h, w) to class scores (b, num_classes)."""
        scores: Tensor = self.fc(self.flatten(self.pool(self.features(x))))
        return scores


class _PreActBlock(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), _conv(in_channels, width, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), _conv(width, width, 3, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), _conv(width, out, 1)
        self.relu = nn.ReLU()
        self.shortcut = None if in_channels == out and stride == 1 else _conv(in_channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        y: Tensor = self.conv3(self.relu(self.bn3(self.conv2(self.relu(self.bn2(self.conv1(active)))))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet(_Classifier):
    """Bottlenecks with BatchNorm and ReLU before every convolution; `depth` is 9n + 2.

    >>> sum(p.numel() for p in PreActResNet(164).parameters())
    1703258
    """

    def __init__(self, depth: int = 164, *, num_classes: int = 10) -> None:
        blocks = _blocks(depth, 9, 2, "pre-activation ResNet")
        layers: list[nn.Module] = [_conv(3, 16, 3)]
        channels = 16
        for stage in range(3):
            for block in range(blocks):
                layers.append(_PreActBlock(channels, 16 * 2**stage, 2 if stage and not block else 1))
                channels = 64 * 2**stage
        super().__init__(nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU()), channels, num_classes)


class _DenseLayer(nn.Module):
    def __init__(self, in_channels: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        steps = [nn.BatchNorm2d(in_channels), nn.ReLU()]
        if bottleneck:
            steps += [_conv(in_channels, 4 * growth, 1), nn.BatchNorm2d(4 * growth), nn.ReLU()]
        self.steps = nn.Sequential(*steps, _conv(4 * growth if bottleneck else in_channels, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.steps(x)], 1)


class DeepDenseNet(_Classifier):
    """Three dense blocks of growth `growth`; with `compact` bottlenecks and halved transitions, DenseNet-BC.

    >>> sum(p.numel() for p in DeepDenseNet(100, 12, compact=True).parameters())
    769162
    """

    def __init__(self, depth: int = 100, growth: int = 24, *, compact: bool = False, num_classes: int = 10) -> None:
        layers = _blocks(depth, 6 if compact else 3, 4, "DenseNet")
        channels = 2 * growth if compact else 16
        steps: list[nn.Module] = [_conv(3, channels, 3)]
        for block in range(3):
            for _ in range(layers):
                steps.append(_DenseLayer(channels, growth, compact))
                channels += growth
            steps += [nn.BatchNorm2d(channels), nn.ReLU()]
            if block < 2:
                kept = channels // 2 if compact else channels
                steps += [_conv(channels, kept, 1), nn.AvgPool2d(2)]
                channels = kept
        super().__init__(nn.Sequential(*steps), channels, num_classes)


class _GroupedBlock(nn.Module):
    def __init__(self, in_channels: int, width: int, out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride, groups), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, out, 1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out or stride != 1:
            self.shortcut = nn.Sequential(_conv(in_channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        out: Tensor = self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))
        return out


class DeepResNeXt(_Classifier):
    """ResNeXt for small images: `groups` groups of `width` channels in the first stage; `depth` is 9n + 2.

    >>> round(sum(p.numel() for p in DeepResNeXt(29, groups=8, width=64).parameters()) / 1e6, 1)
    34.4
    """

    def __init__(self, depth: int = 29, *, groups: int = 8, width: int = 64, num_classes: int = 10) -> None:
        blocks = _blocks(depth, 9, 2, "ResNeXt")
        at_least_one("groups", groups)
        at_least_one("width", width)
        layers: list[nn.Module] = [_conv(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()]
        channels = 64
        for stage in range(3):
            for block in range(blocks):
                out = 256 * 2**stage
                stride = 2 if stage and not block else 1
                layers.append(_GroupedBlock(channels, groups * width * 2**stage, out, stride, groups))
                channels = out
        super().__init__(nn.Sequential(*layers), channels, num_classes)


def _blocks(depth: int, each: int, rest: int, what: str) -> int:
    count, left = divmod(at_least_one("depth", depth) - rest, each)
    if count < 1 or left:
        raise LeanconvError(f"depth of a {what} for small images must be {each}n + {rest}, got {depth}")
    return count


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def _draw(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
