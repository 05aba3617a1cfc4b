"""The networks of the interleaved-group paper: `IgcNet` with an operator in its units.

    CIFAR      stages of C, 2C, 4C channels; L stays, M doubles (tables 2 to 5 and 7); `identity` is "+Ident."
    ImageNet   ResNet-18's layout, units of two interleaved blocks (table 6)

Two quirks are the published networks' own. In the residual CIFAR networks the first block of a stage has as many
secondary groups as the stage before had (`secondary_of="in"`). In L100M2 the stem has 100 channels, half of the first
stage, so already the first block has a projection; there M = 2 stays and L doubles.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from leanconv.errors import LeanconvError
from leanconv.nets.cifar_deep import DeepDenseNet, DeepResNeXt, PreActResNet
from leanconv.nets.igcnet import IgcNet, SummedBranches, blocks_per_stage
from leanconv.nets.wideresnet import WideResNet
from leanconv.ops import conv_maker
from leanconv.ops.chain import Between
from leanconv.ops.igc import InterleavedGroup
from leanconv.zoo.entry import Entry

__all__ = ["IGC"]

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)


def igcnet(
    *,
    num_classes: int = 10,
    primary_partitions: int = 4,
    secondary_partitions: int = 8,
    depth: int = 20,
    identity: bool = False,
    stages: int = 3,
    between: Between = "none",
    dense_secondary: bool = False,
    momentum: float | None = None,
) -> nn.Module:
    """Any L, M and depth; with one stage the map is never reduced (figure 3).

    Section 4's variants: an activation `between` the two convolutions (footnote 4), and a secondary convolution that is
    one dense 1x1 (`dense_secondary`). `momentum` is BatchNorm's, for runs too short for the published .01.
    """
    for name, value in (("primary_partitions", primary_partitions), ("secondary_partitions", secondary_partitions)):
        if value < 1:
            raise LeanconvError(f"{name} must be at least 1, got {value}")
    block = InterleavedGroup(primary_partitions=primary_partitions, between=between, dense_secondary=dense_secondary)
    width = primary_partitions * secondary_partitions
    return IgcNet(
        [width * 2**stage for stage in range(stages)],
        blocks_per_stage(depth, stages=stages, residual=identity),
        num_classes=num_classes,
        residual=identity,
        conv=conv_maker(block),
        widening_conv=conv_maker(replace(block, secondary_of="in")),
        shortcut=partial(nn.Conv2d, groups=primary_partitions),
        momentum=momentum,
    )


def _named(
    primary_partitions: int,
    secondary_partitions: int,
    /,
    *,
    num_classes: int = 10,
    depth: int = 20,
    identity: bool = False,
    between: Between = "none",
    dense_secondary: bool = False,
    momentum: float | None = None,
) -> nn.Module:
    return igcnet(
        num_classes=num_classes,
        primary_partitions=primary_partitions,
        secondary_partitions=secondary_partitions,
        depth=depth,
        identity=identity,
        between=between,
        dense_secondary=dense_secondary,
        momentum=momentum,
    )


def _regconv(
    width: int,
    /,
    *,
    num_classes: int = 10,
    depth: int = 20,
    identity: bool = False,
    momentum: float | None = None,
) -> nn.Module:
    """Regular convolutions, the first stage `width` channels wide."""
    blocks = blocks_per_stage(depth, residual=identity)
    widths = (width, 2 * width, 4 * width)
    return IgcNet(widths, blocks, num_classes=num_classes, residual=identity, momentum=momentum)


def _sumfusion(
    *, num_classes: int = 10, depth: int = 20, identity: bool = False, momentum: float | None = None
) -> nn.Module:
    """Four branches of 8, 16 and 32 channels, added up; as many parameters as RegConv-W16."""
    blocks = blocks_per_stage(depth, residual=identity)
    conv = partial(SummedBranches, branches=4)
    widths = (8, 16, 32)
    return IgcNet(widths, blocks, num_classes=num_classes, residual=identity, conv=conv, momentum=momentum)


def _imagenet(stem: int, widths: tuple[int, ...], conv: Any, shortcut: Any, num_classes: int) -> nn.Module:
    return IgcNet(
        widths,
        2,
        num_classes=num_classes,
        residual=True,
        stem="imagenet",
        stem_width=stem,
        conv=conv,
        shortcut=shortcut,
    )


def _resnet18(primary_partitions: int, secondary_partitions: int, /, *, num_classes: int = 1000) -> nn.Module:
    """L stays, M doubles from stage to stage."""
    width = primary_partitions * secondary_partitions
    conv = conv_maker(InterleavedGroup(primary_partitions=primary_partitions))
    shortcut = partial(nn.Conv2d, groups=primary_partitions)
    return _imagenet(width, (width, 2 * width, 4 * width, 8 * width), conv, shortcut, num_classes)


def _resnet18_l100m2(*, num_classes: int = 1000) -> nn.Module:
    """M = 2 stays, L doubles; the stem gives 100 channels."""
    conv = conv_maker(InterleavedGroup(secondary_partitions=2))
    return _imagenet(100, (200, 400, 800, 1600), conv, _halves, num_classes)


def _halves(in_channels: int, out_channels: int, kernel_size: int, **settings: Any) -> nn.Module:
    """The shortcut's 1x1 with the stage's own L = C_out / 2 groups."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, groups=out_channels // 2, **settings)


def _regconv_resnet18(width: int, /, *, num_classes: int = 1000) -> nn.Module:
    """The ResNets that table 6 compares with, the first stage `width` channels wide."""
    return _imagenet(width, (width, 2 * width, 4 * width, 8 * width), nn.Conv2d, nn.Conv2d, num_classes)


def _preact_resnet(*, num_classes: int = 10, depth: int = 164) -> nn.Module:
    """Table 7, 164 and 1001 layers."""
    return PreActResNet(depth, num_classes=num_classes)


def _wideresnet(*, num_classes: int = 10, depth: int = 28, widen: int = 10, dropout: float = 0.0) -> nn.Module:
    """Table 7, 16 layers of 8 (or, with dropout, 4) and 28 of 10 times the width."""
    return WideResNet(depth, widen, num_classes=num_classes, dropout=dropout)


def _densenet_cifar(*, num_classes: int = 10, depth: int = 40, growth: int = 12, compact: bool = False) -> nn.Module:
    """Table 7; `compact` is DenseNet-BC."""
    return DeepDenseNet(depth, growth, compact=compact, num_classes=num_classes)


def _resnext_cifar(*, num_classes: int = 10, depth: int = 29, groups: int = 8, width: int = 64) -> nn.Module:
    """Table 7."""
    return DeepResNeXt(depth, groups=groups, width=width, num_classes=num_classes)


PARTITIONS = ((4, 8), (24, 2), (32, 26), (16, 32), (450, 2))

IGC: dict[str, Entry] = {
    "igcnet": Entry(igcnet, CIFAR),
    **{f"igc_l{l}m{m}": Entry(partial(_named, l, m), CIFAR) for l, m in PARTITIONS},
    **{f"regconv_w{width}": Entry(partial(_regconv, width), CIFAR) for width in (16, 18)},
    "sumfusion": Entry(_sumfusion, CIFAR),
    "preact_resnet": Entry(_preact_resnet, CIFAR),
    "wideresnet": Entry(_wideresnet, CIFAR),
    "densenet_cifar": Entry(_densenet_cifar, CIFAR),
    "resnext_cifar": Entry(_resnext_cifar, CIFAR),
    **{f"igc_resnet18_l{l}m{m}": Entry(partial(_resnet18, l, m), IMAGENET) for l, m in ((4, 32), (16, 16))},
    "igc_resnet18_l100m2": Entry(_resnet18_l100m2, IMAGENET),
    **{f"regconv_resnet18_w{width}": Entry(partial(_regconv_resnet18, width), IMAGENET) for width in (64, 69)},
}
"""The rows of the zoo that this paper names."""
