"""Backbones that neither timm nor torchvision has: ordinary networks, no paper's idea inside, operators injected.

`conv=` is anything with the signature of `nn.Conv2d`; `block=` anything that makes a module from channels and a stride.
"""

from __future__ import annotations

from leanconv.nets.mobilenet import MobileNetV1, MobileNetV2
from leanconv.nets.nonlocal_block import NonLocal3d, add_nonlocal
from leanconv.nets.resnet import LAYERS, ResNet
from leanconv.nets.resnet_cifar import CifarResNet
from leanconv.nets.wideresnet import WideResNet

__all__ = ["LAYERS", "CifarResNet", "MobileNetV1", "MobileNetV2", "NonLocal3d", "ResNet", "WideResNet", "add_nonlocal"]
