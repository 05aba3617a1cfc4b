"""Scaling and normalisation as the first layer of a network, so that raw pixels go in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leanconv.data.contract import InputContract

__all__ = ["FromPixels"]


class FromPixels(nn.Module):
    """uint8 pixels (b, 3, [frames,] h, w) to whatever `network` makes of (pixels / 255 - mean) / std."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, contract: InputContract) -> None:
        super().__init__()
        self.network = network
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (contract.mean, contract.std))
        shape = (-1, *(1,) * (len(contract.size) - 1))
        self.register_buffer("scale", (1 / (255 * std)).float().reshape(shape))
        self.register_buffer("shift", (-mean / std).float().reshape(shape))

    def forward(self, pixels: Tensor) -> object:
        """The network's own outputs."""
        return self.network(pixels.float() * self.scale + self.shift)

    def pixels(self, inputs: Tensor) -> Tensor:
        """The pixels of which normalised `inputs` were made."""
        return ((inputs - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)
