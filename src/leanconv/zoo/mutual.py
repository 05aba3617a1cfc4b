"""MutualNet's networks: ordinary backbones made elastic over the widths and resolutions that the paper trains.

elastic_mobilenet_v1        0.25 to 1     224 to 128      13 to 569 M MACs, figure 4
elastic_mobilenet_v2        0.7 to 1      224 to 128      57 to 300 M, figure 4
elastic_mobilenet_v1_wide   1 to 2        320 to 224      0.57 to 4.5 G, the comparison with EfficientNet (table 1)
elastic_resnet50            0.9 to 1      224 to 128      "boost a single network"
elastic_vgg16               0.25 to 1     224 to 128      the detector's backbone (appendix A.2)
elastic_wideresnet28_10     0.9 to 1      32 to 20        CIFAR
elastic_resnet20            0.25 to 1     32 to 20        not in the paper: the smallest network to try it on

The journal version (video) has frames as a third axis; which widths and frames it trains we could not read, so these
are ours. `slow_only_50`, `slowfast_50_4x16`, `slowfast_50_8x8` and `x3d_m` are the networks alone.

elastic_slow_only_50        0.5 to 1      224 to 128      8, 6, 4 frames
elastic_slowfast_50_4x16    0.5 to 1      224 to 128      32, 24, 16 frames, of which the slow pathway sees 4, 3, 2
elastic_slowfast_50_8x8     0.5 to 1      224 to 128      32, 24, 16 frames, of which the slow pathway sees 8, 6, 4
elastic_x3d_m               0.5 to 1      224 to 128      16, 12, 8 frames
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from leanconv.elastic import make_elastic
from leanconv.nets import CifarResNet, MobileNetV1, MobileNetV2
from leanconv.nets.resnet3d import LAYERS_3D
from leanconv.nets.slowfast import SlowFast, SlowOnly
from leanconv.nets.wideresnet import WideResNet
from leanconv.nets.x3d import X3D
from leanconv.zoo.entry import Entry

__all__ = ["MUTUAL"]

MOBILE = (224, 192, 160, 128)
WIDE = (320, 288, 256, 224)
SMALL = (32, 28, 24, 20)


def _mobilenet_v1(
    *,
    num_classes: int = 1000,
    multiplier: float = 1.0,
    widths: Sequence[float] = (0.25, 1.0),
    resolutions: Sequence[int] = MOBILE,
) -> nn.Module:
    net = MobileNetV1(num_classes=num_classes, multiplier=multiplier)
    return make_elastic(net, widths=widths, resolutions=resolutions)


def _mobilenet_v2(
    *,
    num_classes: int = 1000,
    multiplier: float = 1.0,
    widths: Sequence[float] = (0.7, 1.0),
    resolutions: Sequence[int] = MOBILE,
) -> nn.Module:
    """Trained from 0.7, as its published settings have it (the text says 0.25).

    The last 1x1 convolution keeps all its channels at every width, as the published counts show.
    """
    net = MobileNetV2(num_classes=num_classes, multiplier=multiplier)
    return make_elastic(net, widths=widths, resolutions=resolutions, keep=("features.18.*",))


def _resnet50(
    *, num_classes: int = 1000, widths: Sequence[float] = (0.9, 1.0), resolutions: Sequence[int] = MOBILE
) -> nn.Module:
    """torchvision's, with the stride in the 3x3 convolution."""
    from torchvision.models import resnet50

    return make_elastic(resnet50(num_classes=num_classes), widths=widths, resolutions=resolutions)


def _vgg16(
    *,
    num_classes: int = 1000,
    batch_norm: bool = False,
    widths: Sequence[float] = (0.25, 1.0),
    resolutions: Sequence[int] = MOBILE,
) -> nn.Module:
    """torchvision's, whose classifier reads a 7x7 map pooled from any size; its hidden layers are elastic too."""
    from torchvision.models import vgg16, vgg16_bn

    net = (vgg16_bn if batch_norm else vgg16)(num_classes=num_classes)
    return make_elastic(net, widths=widths, resolutions=resolutions)


def _wideresnet28_10(
    *,
    num_classes: int = 10,
    dropout: float = 0.0,
    widths: Sequence[float] = (0.9, 1.0),
    resolutions: Sequence[int] = SMALL,
) -> nn.Module:
    net = WideResNet(28, 10, num_classes=num_classes, dropout=dropout)
    return make_elastic(net, widths=widths, resolutions=resolutions)


def _resnet20(
    *,
    num_classes: int = 10,
    multiplier: float = 1.0,
    widths: Sequence[float] = (0.25, 1.0),
    resolutions: Sequence[int] = SMALL,
) -> nn.Module:
    net = CifarResNet(20, num_classes=num_classes, multiplier=multiplier)
    return make_elastic(net, widths=widths, resolutions=resolutions)


def _slow_only(*, num_classes: int = 400, layers: Sequence[int] = LAYERS_3D[50], dropout: float = 0.5) -> nn.Module:
    return SlowOnly(layers, num_classes=num_classes, dropout=dropout)


def _slowfast(
    alpha: int,
    lateral: int,
    /,
    *,
    num_classes: int = 400,
    layers: Sequence[int] = LAYERS_3D[50],
    dropout: float = 0.5,
) -> nn.Module:
    return SlowFast(layers, num_classes=num_classes, alpha=alpha, lateral=lateral, dropout=dropout)


def _x3d(*, num_classes: int = 400, depth: float = 2.2, dropout: float = 0.5) -> nn.Module:
    return X3D(num_classes=num_classes, depth=depth, dropout=dropout)


def _elastic_slow_only(
    *,
    num_classes: int = 400,
    layers: Sequence[int] = LAYERS_3D[50],
    dropout: float = 0.5,
    widths: Sequence[float] = (0.5, 1.0),
    resolutions: Sequence[int] = MOBILE,
    frames: Sequence[int] = (8, 6, 4),
) -> nn.Module:
    net = SlowOnly(layers, num_classes=num_classes, dropout=dropout)
    return make_elastic(net, widths=widths, resolutions=resolutions, frames=frames)


def _elastic_slowfast(
    alpha: int,
    lateral: int,
    /,
    *,
    num_classes: int = 400,
    layers: Sequence[int] = LAYERS_3D[50],
    dropout: float = 0.5,
    widths: Sequence[float] = (0.5, 1.0),
    resolutions: Sequence[int] = MOBILE,
    frames: Sequence[int] = (32, 24, 16),
) -> nn.Module:
    """Both pathways are as wide as the other says, and see the same seconds: frames are those of the fast one."""
    net = SlowFast(layers, num_classes=num_classes, alpha=alpha, lateral=lateral, dropout=dropout)
    return make_elastic(net, widths=widths, resolutions=resolutions, frames=frames)


def _elastic_x3d(
    *,
    num_classes: int = 400,
    depth: float = 2.2,
    dropout: float = 0.5,
    widths: Sequence[float] = (0.5, 1.0),
    resolutions: Sequence[int] = MOBILE,
    frames: Sequence[int] = (16, 12, 8),
) -> nn.Module:
    net = X3D(num_classes=num_classes, depth=depth, dropout=dropout)
    return make_elastic(net, widths=widths, resolutions=resolutions, frames=frames)


MUTUAL: dict[str, Entry] = {
    "elastic_mobilenet_v1": Entry(_mobilenet_v1, (3, 224, 224)),
    "elastic_mobilenet_v1_wide": Entry(partial(_mobilenet_v1, widths=(1.0, 2.0), resolutions=WIDE), (3, 320, 320)),
    "elastic_mobilenet_v2": Entry(_mobilenet_v2, (3, 224, 224)),
    "elastic_resnet50": Entry(_resnet50, (3, 224, 224)),
    "elastic_vgg16": Entry(_vgg16, (3, 224, 224)),
    "elastic_wideresnet28_10": Entry(_wideresnet28_10, (3, 32, 32)),
    "elastic_resnet20": Entry(_resnet20, (3, 32, 32)),
    "slow_only_50": Entry(_slow_only, (3, 8, 224, 224)),
    "slowfast_50_4x16": Entry(partial(_slowfast, 8, 5), (3, 32, 224, 224)),
    "slowfast_50_8x8": Entry(partial(_slowfast, 4, 7), (3, 32, 224, 224)),
    "x3d_m": Entry(_x3d, (3, 16, 224, 224)),
    "elastic_slow_only_50": Entry(_elastic_slow_only, (3, 8, 224, 224)),
    "elastic_slowfast_50_4x16": Entry(partial(_elastic_slowfast, 8, 5), (3, 32, 224, 224)),
    "elastic_slowfast_50_8x8": Entry(partial(_elastic_slowfast, 4, 7), (3, 32, 224, 224)),
    "elastic_x3d_m": Entry(_elastic_x3d, (3, 16, 224, 224)),
}
"""The rows of the zoo that this paper names."""
