"""MutualNet's networks: ordinary backbones made elastic over the widths and resolutions that the paper trains.

elastic_mobilenet_v1        0.25 to 1     224 to 128      13 to 569 M MACs, figure 4
elastic_mobilenet_v2        0.7 to 1      224 to 128      57 to 300 M, figure 4
elastic_mobilenet_v1_wide   1 to 2        320 to 224      0.57 to 4.5 G, the comparison with EfficientNet (table 1)
elastic_resnet50            0.9 to 1      224 to 128      "boost a single network"
elastic_vgg16               0.25 to 1     224 to 128      the detector's backbone (appendix A.2)
elastic_wideresnet28_10     0.9 to 1      32 to 20        CIFAR
elastic_resnet20            0.25 to 1     32 to 20        not in the paper: the smallest network to try it on
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from leanconv.elastic import make_elastic
from leanconv.nets import CifarResNet, MobileNetV1, MobileNetV2
from leanconv.nets.wideresnet import WideResNet
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


MUTUAL: dict[str, Entry] = {
    "elastic_mobilenet_v1": Entry(_mobilenet_v1, (3, 224, 224)),
    "elastic_mobilenet_v1_wide": Entry(partial(_mobilenet_v1, widths=(1.0, 2.0), resolutions=WIDE), (3, 320, 320)),
    "elastic_mobilenet_v2": Entry(_mobilenet_v2, (3, 224, 224)),
    "elastic_resnet50": Entry(_resnet50, (3, 224, 224)),
    "elastic_vgg16": Entry(_vgg16, (3, 224, 224)),
    "elastic_wideresnet28_10": Entry(_wideresnet28_10, (3, 32, 32)),
    "elastic_resnet20": Entry(_resnet20, (3, 32, 32)),
}
"""The rows of the zoo that this paper names."""
