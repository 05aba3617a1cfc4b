"""The video ResNet of the channel-separated-networks paper, its block and its K x K x K convolution injected.

    conv1   3x7x7, 64 channels, stride 1x2x2;  pool1  max 1x3x3, stride 1x2x2
    conv2..5  blocks  relu(x' + f(x)), 64, 128, 256, 512 channels wide inside; conv3, 4, 5 halve time and space
    pool5   average over all that is left, fc                                                            (Table 1)

    simple      f = 3x3x3, 3x3x3                   bottleneck  f = 1x1x1, 3x3x3, 1x1x1 (4 times wider outside)
    simple-G    both in groups                     bottleneck-G   the 3x3x3 in groups        -D   the 3x3x3 depthwise
    simple-D    both depthwise, a 1x1x1 before     bottleneck-DG  the 3x3x3 depthwise and both 1x1x1 in groups
                where the channels change                                                    (Figures 3 and 4)

BatchNorm and ReLU follow every convolution (the ReLU of the last stands behind the sum); the shortcut x' is the
identity or a dense 1x1x1 with BatchNorm. As released: BatchNorm with eps 1e-3, every convolution drawn from
N(0, 2 / fan_in), the 1x1x1 of table 1 as wide as the 3x3x3 (the 256, 512, ... printed there are the block's width), and
clips of fewer than 8 frames are not halved in time at conv5, of fewer than 4 not at conv4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.errors import LeanconvError, unknown
from leanconv.nets._shared import ConvMaker, at_least_one, positive

__all__ = ["LAYERS_3D", "BlockMaker", "Bottleneck3d", "ConvUnit3d", "ResNet3D", "Simple3d", "resnet3d"]

LAYERS_3D = {
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Depth -> blocks per stage; simple ones at 18 and 34, bottlenecks elsewhere, at 26 without expansion."""

WIDTHS = (64, 128, 256, 512)

Stride = tuple[int, int, int]

BlockMaker = Callable[..., nn.Module]
"""Makes a block from (in_channels, width, out_channels, stride) and the keyword `conv`."""


class ConvUnit3d(nn.Sequential):
    """Convolution, BatchNorm and, if asked for, ReLU; `conv` is anything with the signature of `nn.Conv3d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | Stride = 1,
        padding: int | tuple[int, int, int] = 0,
        *,
        conv: ConvMaker = nn.Conv3d,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm3d(out_channels)
        if relu:
            self.relu = nn.ReLU(inplace=True)


class Simple3d(nn.Module):
    """Two 3x3x3 convolutions, the stride in the first."""

    def __init__(
        self, in_channels: int, width: int, out_channels: int, stride: Stride, *, conv: ConvMaker = nn.Conv3d
    ) -> None:
        super().__init__()
        self.conv1 = ConvUnit3d(in_channels, width, 3, stride, 1, conv=conv)
        self.conv2 = ConvUnit3d(width, out_channels, 3, 1, 1, conv=conv, relu=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in, t, h, w) to (b, out, t / stride, h / stride, w / stride), rounded up."""
        out: Tensor = self.relu(self.conv2(self.conv1(x)) + self.shortcut(x))
        return out


class Bottleneck3d(nn.Module):
    """1x1x1, 3x3x3 with the stride, 1x1x1; `pointwise` makes the 1x1x1, `conv` the 3x3x3."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        stride: Stride,
        *,
        conv: ConvMaker = nn.Conv3d,
        pointwise: ConvMaker = nn.Conv3d,
    ) -> None:
        super().__init__()
        self.conv1 = ConvUnit3d(in_channels, width, 1, conv=pointwise)
        self.conv2 = ConvUnit3d(width, width, 3, stride, 1, conv=conv)
        self.conv3 = ConvUnit3d(width, out_channels, 1, conv=pointwise, relu=False)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in, t, h, w) to (b, out, t / stride, h / stride, w / stride), rounded up."""
        out: Tensor = self.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))
        return out


class ResNet3D(nn.Module):
    """`layers` blocks in each of four stages.

    Args:
        block: makes a block, `Simple3d` or `Bottleneck3d` (with its options bound).
        conv: makes the 3x3x3 convolutions of the blocks.
        expansion: how many times wider a block is outside than inside.
        frames: the length of the clips, which decides whether conv4 and conv5 halve time; others run as well.
        stem: makes the 3x7x7.
        pool1: the max pool of the stem; some of the authors' other networks have none.
        dropout: share of the pooled features that training drops.
        norm_eps: of every BatchNorm, those of injected operators included.

    Raises `LeanconvError` for counts below 1 and shares outside 0 to 1.

    >>> import torch
    >>> ResNet3D((1, 1, 1, 1), num_classes=10)(torch.zeros(2, 3, 8, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        num_classes: int = 400,
        block: BlockMaker = Bottleneck3d,
        conv: ConvMaker = nn.Conv3d,
        expansion: int = 4,
        frames: int = 8,
        pool1: bool = True,
        stem: ConvMaker = nn.Conv3d,
        dropout: float = 0.0,
        norm_eps: float = 1e-3,
    ) -> None:
        super().__init__()
        if len(layers) != 4:
            raise LeanconvError(f"layers must be the number of blocks of four stages, got {list(layers)}")
        for index, count in enumerate(layers):
            at_least_one(f"layers[{index}]", count)
        at_least_one("expansion", expansion)
        at_least_one("frames", frames)
        if not 0 <= dropout < 1:
            raise LeanconvError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        first: list[nn.Module] = [ConvUnit3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), conv=stem)]
        if pool1:
            first.append(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        self.stem = nn.Sequential(*first)
        channels = 64
        strides: list[Stride] = [(1, 1, 1), (2, 2, 2), (2 if frames >= 4 else 1, 2, 2), (2 if frames >= 8 else 1, 2, 2)]
        stages: list[nn.Module] = []
        for width, count, stride in zip(WIDTHS, layers, strides, strict=True):
            blocks = []
            for index in range(count):
                blocks.append(block(channels, width, width * expansion, (1, 1, 1) if index else stride, conv=conv))
                channels = width * expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, at_least_one("num_classes", num_classes))
        _draw(self, positive("norm_eps", norm_eps))

    def forward(self, x: Tensor) -> Tensor:
        """Clips (b, 3, t, h, w) to class scores (b, num_classes), averaged over the whole map before the classifier."""
        scores: Tensor = self.fc(self.dropout(self.flatten(self.pool(self.features(x)))))
        return scores

    def features(self, x: Tensor) -> Tensor:
        """Clips (b, 3, t, h, w) to the last feature map (b, c, t', h', w')."""
        y: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return y

    def positions(self, x: Tensor, *, crop: int = 224) -> Tensor:
        """Class scores wherever a window of the training size fits, (b, 3, t, h, w) to (b, num_classes, positions).

        The paper's fully convolutional testing: the average pool has the size that the map of a `crop` x `crop` frame
        has (7 x 7 for 224) and moves by one, over all of time; the classifier runs as a 1x1x1 convolution. Frames of
        256 give 2 x 2 positions, row by row. The prediction is `positions(x).softmax(1).mean(2)`.
        """
        y = self.features(x)
        side = -(-at_least_one("crop", crop) // (32 if len(self.stem) > 1 else 16))
        window = (y.shape[2], min(side, y.shape[3]), min(side, y.shape[4]))
        pooled = F.avg_pool3d(y, window, stride=1).flatten(2)
        scores: Tensor = self.fc(self.dropout(pooled.transpose(1, 2)))
        return scores.transpose(1, 2)


def resnet3d(
    *,
    block: Literal["simple", "bottleneck"] = "bottleneck",
    grouping: Literal["none", "G", "D", "DG"] = "none",
    groups: int = 1,
    layers: Sequence[int] = LAYERS_3D[50],
    expansion: int | None = None,
    conv: ConvMaker | None = None,
    **options: Any,
) -> ResNet3D:
    """The ablation's networks: "simple", "simple-G", "simple-D", "bottleneck", "bottleneck-G", "-D", "-DG".

    Args:
        block, grouping: the block, see the head of this file.
        groups: how many groups, for G and DG; a layer with fewer channels than that becomes depthwise.
        layers: blocks per stage.
        expansion: of bottlenecks, by default 4.
        conv: in place of the 3x3x3 that `grouping` means; then `grouping` is "none".
        options: the other options of `ResNet3D`.

    Raises `LeanconvError` for a combination that has no meaning and for groups that do not divide a layer's channels.

    >>> resnet3d(block="simple", grouping="D", layers=(2, 2, 2, 2)).layer1[0].conv1.conv.groups
    64
    """
    blocks = {"simple": ("none", "G", "D"), "bottleneck": ("none", "G", "D", "DG")}
    if block not in blocks:
        raise unknown("block", block, blocks)
    if grouping not in blocks[block]:
        raise unknown(f"grouping of {block} blocks", grouping, blocks[block])
    if at_least_one("groups", groups) > 1 and "G" not in grouping:
        raise LeanconvError(f"groups={groups} is for grouping G and DG, got grouping={grouping!r}")
    if conv is not None and grouping != "none":
        raise LeanconvError(f"conv= replaces the 3x3x3 convolutions, so grouping must be 'none', got {grouping!r}")
    if block == "simple" and expansion not in (None, 1):
        raise LeanconvError(f"simple blocks do not expand: expansion must be 1, got {expansion}")
    kinds: dict[str, ConvMaker] = {
        "none": conv or nn.Conv3d,
        "G": partial(_grouped, groups),
        "D": _depthwise,
        "DG": _depthwise,
    }
    made: BlockMaker = Simple3d if block == "simple" else Bottleneck3d
    if grouping == "DG":
        made = partial(Bottleneck3d, pointwise=partial(_grouped, groups))
    if expansion is None:
        expansion = 1 if block == "simple" else 4
    return ResNet3D(layers, block=made, conv=kinds[grouping], expansion=expansion, **options)


def _grouped(
    groups: int, in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], **settings: Any
) -> nn.Module:
    """A convolution of `groups` groups, of as many as there are channels where these are fewer."""
    possible = min(groups, in_channels, out_channels)
    if in_channels % possible or out_channels % possible:
        raise LeanconvError(
            f"groups (={groups}) must divide the channels of every layer that has as many, here {in_channels} -> "
            f"{out_channels}: take a power of two"
        )
    return nn.Conv3d(in_channels, out_channels, kernel_size, groups=possible, **settings)  # type: ignore[arg-type]


def _depthwise(in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], **settings: Any) -> nn.Module:
    """One convolution per channel, behind a 1x1x1 with BatchNorm and ReLU where the channels change (figure 3c)."""
    conv = nn.Conv3d(out_channels, out_channels, kernel_size, groups=out_channels, **settings)  # type: ignore[arg-type]
    if in_channels == out_channels:
        return conv
    return nn.Sequential(ConvUnit3d(in_channels, out_channels, 1), conv)


def _shortcut(in_channels: int, out_channels: int, stride: Stride) -> nn.Module:
    if in_channels == out_channels and stride == (1, 1, 1):
        return nn.Identity()
    return ConvUnit3d(in_channels, out_channels, 1, stride, relu=False)


def _draw(net: nn.Module, eps: float) -> None:
    """As published; the leaves of injected operators too, a BatchNorm follows each of them or their sum."""
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm3d):
            module.eps = eps
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
