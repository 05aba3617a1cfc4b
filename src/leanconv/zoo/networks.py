"""Every network that the papers name, as one visible table: name -> how to build it and the input it was made for.

A network is a backbone of `nets` plus the operator injected into it; most papers have a file of their own. Prefixes as
in the optimized-separable paper, each replacing the 3x3 convolutions inside the residual blocks (stem and classifier
stay):
    dw_  depthwise alone            s_   spatial separable               o_   optimized separable, N = 2
    d_   depth separable, with BatchNorm between (its baselines)         so_  optimized separable, spatial variant
Shortcuts, which decide the counts of its tables 6 and 7: plain, dw_, d_ and s_ on CIFAR take option A, everything else
option B. The paper prints no counts for dw_, s_ and so_; they follow their nearest relatives that have some.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from leanconv.nets import CifarResNet, MobileNetV1, MobileNetV2
from leanconv.nets.mobilenet import conv_unit
from leanconv.ops import ConvRewrite, conv_maker
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import DepthSeparable, Depthwise, SpatialSeparable
from leanconv.zoo.csn import CSN
from leanconv.zoo.darts import DARTS
from leanconv.zoo.entry import Entry
from leanconv.zoo.igc import IGC
from leanconv.zoo.mutual import MUTUAL
from leanconv.zoo.octave import OCTAVE

__all__ = ["ZOO", "Entry"]


CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)
DEPTHS = (20, 32, 56, 110)
BASELINES: dict[str, ConvRewrite | None] = {
    "": None,
    "dw_": Depthwise(),
    "d_": DepthSeparable(between="bn"),
    "s_": SpatialSeparable(),
}
OPTIMIZED = {"o_": False, "so_": True}
"""Prefix -> whether the kernel is split in space, too."""


def _cifar(
    depth: int,
    operator: ConvRewrite | None,
    shortcut: Literal["A", "B"],
    /,
    *,
    num_classes: int = 10,
    multiplier: float = 1.0,
) -> nn.Module:
    """Tables 2 and 6: the CIFAR ResNets with one operator in their blocks."""
    return CifarResNet(
        depth, num_classes=num_classes, multiplier=multiplier, shortcut=shortcut, conv=conv_maker(operator)
    )


def _imagenet40(
    depth: int, operator: ConvRewrite | None, /, *, num_classes: int = 1000, multiplier: float = 1.0
) -> nn.Module:
    """Table 7: four times as wide, the stem halves the 32x32 crop, shortcut B."""
    return CifarResNet(
        depth,
        num_classes=num_classes,
        multiplier=multiplier,
        base_width=64,
        stem_stride=2,
        shortcut="B",
        conv=conv_maker(operator),
    )


def _o_cifar(
    depth: int, spatial: bool, /, *, num_classes: int = 10, multiplier: float = 1.0, overlap: float = 1.0
) -> nn.Module:
    operator = OptimizedSeparable(overlap=overlap, spatial=spatial, at_most_dense=True)
    return _cifar(depth, operator, "B", num_classes=num_classes, multiplier=multiplier)


def _o_imagenet40(
    depth: int, spatial: bool, /, *, num_classes: int = 1000, multiplier: float = 1.0, overlap: float = 1.0
) -> nn.Module:
    operator = OptimizedSeparable(overlap=overlap, spatial=spatial, at_most_dense=True)
    return _imagenet40(depth, operator, num_classes=num_classes, multiplier=multiplier)


def _mobilenet_v1(*, num_classes: int = 1000, multiplier: float = 1.0, depth: float = 1.0) -> nn.Module:
    return MobileNetV1(num_classes=num_classes, multiplier=multiplier, depth=depth)


def _mobilenet_v2(*, num_classes: int = 1000, multiplier: float = 1.0) -> nn.Module:
    return MobileNetV2(num_classes=num_classes, multiplier=multiplier)


def _o_mobilenet_v1(*, num_classes: int = 1000, multiplier: float = 2.125, overlap: float = 1.0) -> nn.Module:
    """Table 5: each (depthwise, pointwise) unit as one optimized-separable pair; the last 1024 channels are kept.

    The paper prints 3.00 M and 0.564 G and no multiplier; 2.125 comes within 0.5 %.
    """
    conv = conv_maker(OptimizedSeparable(overlap=overlap))
    return MobileNetV1(
        num_classes=num_classes, multiplier=multiplier, last_width=1024, block=partial(conv_unit, conv=conv)
    )


ZOO: dict[str, Entry] = {
    **{f"{p}resnet{d}": Entry(partial(_cifar, d, op, "A"), CIFAR) for p, op in BASELINES.items() for d in DEPTHS},
    **{f"{p}resnet{d}": Entry(partial(_o_cifar, d, s), CIFAR) for p, s in OPTIMIZED.items() for d in DEPTHS},
    **{
        f"{p}resnet{d}_imagenet40": Entry(partial(_imagenet40, d, op), CIFAR)
        for p, op in BASELINES.items()
        for d in DEPTHS
    },
    **{
        f"{p}resnet{d}_imagenet40": Entry(partial(_o_imagenet40, d, s), CIFAR)
        for p, s in OPTIMIZED.items()
        for d in DEPTHS
    },
    "mobilenet_v1": Entry(_mobilenet_v1, IMAGENET),
    "mobilenet_v2": Entry(_mobilenet_v2, IMAGENET),
    "o_mobilenet_v1": Entry(_o_mobilenet_v1, IMAGENET),
    **OCTAVE,
    **DARTS,
    **IGC,
    **MUTUAL,
    **CSN,
}
"""Every name that `create_model` knows by itself; timm, torchvision and dotted paths come on top."""
