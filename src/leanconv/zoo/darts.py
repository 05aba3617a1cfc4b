"""DARTS' evaluation networks, and the o_ forms of the optimized-separable paper (tables 3 and 5).

P- and PC-DARTS, which table 3 compares with, are the same network with other cells. In the o_ forms every (depthwise,
pointwise) unit of the sep and dil operations is one optimized-separable pair; the width goes from 36 to 42 (CIFAR) and
from 48 to 56 (ImageNet) to meet the MACs of the original.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from leanconv.nets.darts import Cells, Darts
from leanconv.ops import conv_maker
from leanconv.ops.osep import OptimizedSeparable
from leanconv.zoo.entry import Entry

__all__ = ["DARTS"]

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)


def _cifar(
    genotype: Cells, /, *, num_classes: int = 10, channels: int = 36, cells: int = 20, auxiliary: bool = False
) -> nn.Module:
    return Darts(channels, cells=cells, num_classes=num_classes, auxiliary=auxiliary, genotype=genotype)


def _imagenet(*, num_classes: int = 1000, channels: int = 48, cells: int = 14, auxiliary: bool = False) -> nn.Module:
    return Darts(channels, cells=cells, num_classes=num_classes, stem="imagenet", auxiliary=auxiliary)


def _o_cifar(
    *, num_classes: int = 10, channels: int = 42, cells: int = 20, auxiliary: bool = False, overlap: float = 1.0
) -> nn.Module:
    return _osep("cifar", num_classes, channels, cells, auxiliary, overlap)


def _o_imagenet(
    *, num_classes: int = 1000, channels: int = 56, cells: int = 14, auxiliary: bool = False, overlap: float = 1.0
) -> nn.Module:
    return _osep("imagenet", num_classes, channels, cells, auxiliary, overlap)


def _osep(
    stem: Literal["cifar", "imagenet"], num_classes: int, channels: int, cells: int, auxiliary: bool, overlap: float
) -> nn.Module:
    unit = conv_maker(OptimizedSeparable(overlap=overlap))
    return Darts(channels, cells=cells, num_classes=num_classes, stem=stem, unit=unit, auxiliary=auxiliary)


DARTS: dict[str, Entry] = {
    "darts_cifar": Entry(partial(_cifar, "darts_v2"), CIFAR),
    "pdarts_cifar": Entry(partial(_cifar, "pdarts"), CIFAR),
    "pcdarts_cifar": Entry(partial(_cifar, "pcdarts"), CIFAR),
    "darts_imagenet": Entry(_imagenet, IMAGENET),
    "o_darts_cifar": Entry(_o_cifar, CIFAR),
    "o_darts_imagenet": Entry(_o_imagenet, IMAGENET),
}
"""The rows of the zoo that this paper names."""
