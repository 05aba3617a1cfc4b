"""The non-local block (Wang et al., CVPR 2018), embedded Gaussian with sub-sampled keys, as video ResNets use it.

    y_i = softmax_j(theta(x_i) phi(x_j)) g(x_j),     z = x + BN(out(y))

Positions i run over all of time and space, j over space sub-sampled by two. The last BatchNorm starts at zero, so that
a block put into a trained network changes nothing at first.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from leanconv.errors import LeanconvError

__all__ = ["NonLocal3d", "add_nonlocal"]


class NonLocal3d(nn.Module):
    """(b, c, t, h, w) to the same shape, with c / 2 channels inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.theta = nn.Conv3d(channels, inner, 1)
        self.phi = nn.Conv3d(channels, inner, 1)
        self.g = nn.Conv3d(channels, inner, 1)
        self.subsample = nn.MaxPool3d((1, 2, 2))
        self.out = nn.Conv3d(inner, channels, 1)
        self.bn = nn.BatchNorm3d(channels)
        for conv in (self.theta, self.phi, self.g, self.out):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x plus what all other positions say about it."""
        query = self.theta(x)
        small = self.subsample(x)
        keys, values = self.phi(small).flatten(2), self.g(small).flatten(2)
        scores = query.flatten(2).transpose(1, 2) @ keys
        mixed = torch.softmax(scores, dim=-1) @ values.transpose(1, 2)
        told = mixed.transpose(1, 2).reshape(query.shape)
        z: Tensor = x + self.bn(self.out(told))
        return z


def add_nonlocal(net: nn.Module, names: Iterable[str]) -> nn.Module:
    """Put a non-local block behind each of the bottlenecks called `names` (as their `after`); returns `net`."""
    for name in names:
        block = net.get_submodule(name)
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
        if not isinstance(getattr(block, "after", None), nn.Identity) or not norms:
            raise LeanconvError(f"{name} has no place for a non-local block: it must be a 3D bottleneck of nets.resnet")
        convs = [module for module in block.modules() if isinstance(module, nn.Conv3d)]
        block.add_module("after", NonLocal3d(convs[2].out_channels))
    return net
