"""A small network of chains for tests of forms."""

from __future__ import annotations

import torch
from torch import nn

from leanconv.nets import CifarResNet
from leanconv.ops import conv_maker

__all__ = ["net"]


def net(operator: object, multiplier: float = 0.75, shortcut: str = "B") -> CifarResNet:
    """Twelve, 24 and 48 channels wide, of which 8 divides two; its norms have statistics of their own."""
    torch.manual_seed(0)
    made = CifarResNet(8, multiplier=multiplier, shortcut=shortcut, conv=conv_maker(operator))  # type: ignore[arg-type]
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return made
