"""The octave paper's networks: a dense backbone and one `Octave` step; alpha = 0 is the dense network itself.

Their exceptions are the authors': the stem and the last stage stay at full resolution; MobileNetV2 splits only the
expanded tensor of each block; the deep networks leave their whole stem as it is. Stride 2 is a pool and a convolution
of stride 1 in every layer but the stem's, also in the last stage; `full_stride="strided"` keeps the layers' own stride
there, as leanconv 0.1 had it. In the video networks (Wang et al., CVPR 2018) only space is at two resolutions, and
non-local blocks read and write such maps but compute at full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from leanconv.nets.mobilenet import InvertedResidual, MobileNetV1, MobileNetV2, depth_separable_unit
from leanconv.nets.nonlocal_block import add_nonlocal
from leanconv.nets.resnet import LAYERS, ResNet, Stem
from leanconv.ops.octave import Exchange, StrideMode
from leanconv.rewrites import Inflate, Octave, rewrite
from leanconv.zoo.entry import Entry

__all__ = ["OCTAVE"]

IMAGENET = (3, 224, 224)
KINETICS = (3, 8, 224, 224)


def _octave(
    net: nn.Module,
    alpha: float,
    full_stride: StrideMode,
    size: tuple[int, ...] = IMAGENET,
    **options: Any,
) -> nn.Module:
    step = Octave(alpha=alpha, full_stride=full_stride, **options)
    return rewrite(net, step, size=size).model if alpha else net


def _resnet(
    depth: int,
    se: bool,
    /,
    *,
    num_classes: int = 1000,
    alpha: float = 0.5,
    pre_activation: bool = False,
    stem: Stem = "plain",
    downsample: StrideMode = "pool",
    exchange: Exchange = "both",
    full_stride: StrideMode = "pool",
) -> nn.Module:
    """Tables 2 and 9, and with `downsample` and `exchange` table 3, with `stem` the dagger of table 6.

    The paper's own are pre-activation, which costs the same.
    """
    net = ResNet(LAYERS[depth], num_classes=num_classes, se=se, pre_activation=pre_activation, stem=stem)
    return _octave(net, alpha, full_stride, where=_but_the(stem), downsample=downsample, exchange=exchange)


def _resnext(
    depth: int,
    /,
    *,
    num_classes: int = 1000,
    alpha: float = 0.5,
    pre_activation: bool = False,
    stem: Stem = "plain",
    layers: Sequence[int] | None = None,
    full_stride: StrideMode = "pool",
) -> nn.Module:
    """32x4d. Its first 3x3 has 128 channels in 32 groups, so alpha must be at least .25.

    `stem` and `layers` (blocks per stage) are the marks of table 6.
    """
    net = ResNet(
        LAYERS[depth] if layers is None else layers,
        num_classes=num_classes,
        groups=32,
        width_per_group=4,
        pre_activation=pre_activation,
        stem=stem,
    )
    return _octave(net, alpha, full_stride, where=_but_the(stem))


def _but_the(stem: Stem) -> str:
    """A stem of one convolution is the first, which stays as it is anyway; a longer one stays whole."""
    return "" if stem == "plain" else "!stem.*"


def _resnet152_deep(*, num_classes: int = 1000, alpha: float = 0.125, full_stride: StrideMode = "pool") -> nn.Module:
    """Table 7: deep stem that ends in a bottleneck, strides on the last 1x1 of a block."""
    net = ResNet(LAYERS[152], num_classes=num_classes, stem="deep_residual", stride_at="conv3")
    return _octave(net, alpha, full_stride, where="!stem.*")


def _se_resnet152_deep(*, num_classes: int = 1000, alpha: float = 0.125, full_stride: StrideMode = "pool") -> nn.Module:
    """Table 7 with squeeze-and-excitation: deep stem and max pool, a norm without parameters before each branch."""
    net = ResNet(LAYERS[152], num_classes=num_classes, se=True, stem="deep", stride_at="conv3", input_norm=True)
    return _octave(net, alpha, full_stride, where="!stem.*")


def _densenet121(*, num_classes: int = 1000, alpha: float = 0.25, full_stride: StrideMode = "pool") -> nn.Module:
    """Growth 32 and bottleneck 128 split by the same rule; maps are concatenated per resolution."""
    from torchvision.models import densenet121

    return _octave(densenet121(num_classes=num_classes), alpha, full_stride)


def _mobilenet_v1(
    *, num_classes: int = 1000, alpha: float = 0.5, multiplier: float = 1.0, full_stride: StrideMode = "pool"
) -> nn.Module:
    """Table 5: 0.75 with alpha .375, 1.0 with alpha .5."""
    block = partial(depth_separable_unit, activation=nn.ReLU)
    net = MobileNetV1(num_classes=num_classes, multiplier=multiplier, block=block, activation=nn.ReLU)
    return _octave(net, alpha, full_stride)


def _mobilenet_v2(
    *, num_classes: int = 1000, alpha: float = 0.375, multiplier: float = 1.0, full_stride: StrideMode = "pool"
) -> nn.Module:
    """Table 5: 1.0 with alpha .375, 1.125 with alpha .5. All 17 blocks expand, and widths are not rounded to eights."""
    block = partial(InvertedResidual, always_expand=True)
    net = MobileNetV2(num_classes=num_classes, multiplier=multiplier, divisor=1, block=block)
    return _octave(net, alpha, full_stride, where="*.body.[03]")


_I3D = (
    ("stem.0.conv", 5),
    *((f"layer1.{block}.conv1.conv", 3) for block in (0, 1, 2)),
    *((f"layer2.{block}.conv1.conv", 3) for block in (0, 2)),
    *((f"layer3.{block}.conv1.conv", 3) for block in (0, 2, 4)),
    ("layer4.1.conv1.conv", 3),
)
"""Which kernels of ResNet-50 reach over time, and how far."""

_NONLOCAL = ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5")
"""Behind every second block of the two middle stages."""


def _video(
    temporal: tuple[tuple[str, int], ...],
    /,
    *,
    num_classes: int = 400,
    nonlocal_blocks: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """ResNet-50 inflated at the centre tap; time is halved once, after the first stage."""
    net = ResNet(LAYERS[50], num_classes=num_classes, dropout=dropout)
    net3d = rewrite(net, Inflate(temporal=temporal, pool_after=("layer1",))).model
    return add_nonlocal(net3d, _NONLOCAL) if nonlocal_blocks else net3d


def _oct_video(
    temporal: tuple[tuple[str, int], ...],
    /,
    *,
    num_classes: int = 400,
    alpha: float = 0.1,
    nonlocal_blocks: bool = False,
    dropout: float = 0.0,
    last: bool = False,
    full_stride: StrideMode = "pool",
) -> nn.Module:
    """Table 8. With `last` the last stage is split, too: so alphas of .2 and .5 come nearer to what is printed."""
    net = _video(temporal, num_classes=num_classes, nonlocal_blocks=nonlocal_blocks, dropout=dropout)
    where = "!*.after.theta !*.after.phi !*.after.g"
    return _octave(net, alpha, full_stride, KINETICS, where=where, last=last)


OCTAVE: dict[str, Entry] = {
    **{f"oct_resnet{depth}": Entry(partial(_resnet, depth, False), IMAGENET) for depth in LAYERS},
    "oct_se_resnet50": Entry(partial(_resnet, 50, True), IMAGENET),
    **{f"oct_resnext{depth}": Entry(partial(_resnext, depth), IMAGENET) for depth in (50, 101)},
    "oct_resnet152_deep": Entry(_resnet152_deep, IMAGENET),
    "oct_se_resnet152_deep": Entry(_se_resnet152_deep, IMAGENET),
    "oct_densenet121": Entry(_densenet121, IMAGENET),
    "oct_mobilenet_v1": Entry(_mobilenet_v1, IMAGENET),
    "oct_mobilenet_v2": Entry(_mobilenet_v2, IMAGENET),
    "c2d_resnet50": Entry(partial(_video, ()), KINETICS),
    "i3d_resnet50": Entry(partial(_video, _I3D), KINETICS),
    "oct_c2d_resnet50": Entry(partial(_oct_video, ()), KINETICS),
    "oct_i3d_resnet50": Entry(partial(_oct_video, _I3D), KINETICS),
}
"""The rows of the zoo that this paper names."""
