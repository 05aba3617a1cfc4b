"""An image as a network is tested on it, by the resize rule, the interpolation and the crop of an input contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from leanconv.data.contract import InputContract
from leanconv.data.limits import check_pixels

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Prepare"]

_ROUNDING = 1e-6
"""What a quotient such as 224 / (224 / 232) may lie below the whole number that was meant."""


@dataclass(frozen=True)
class Prepare:
    """From an RGB image to uint8 pixels (3, side, side), by the rules of `leanconv.data.contract.RESIZES`."""

    resolution: int
    resize: str = "square"
    interpolation: str = "bilinear"
    crop: float = 1.0

    @classmethod
    def by(cls, contract: InputContract) -> Prepare:
        """As `contract` says."""
        return cls(contract.size[-1], contract.resize, contract.interpolation, contract.crop)

    def __call__(self, image: Image.Image) -> Tensor:
        from PIL import Image as images

        how = images.Resampling[self.interpolation.upper()]
        width, height = image.size
        if self.resize == "square":
            if self.crop != 1 or (width, height) != (self.resolution, self.resolution):
                side = min(width, height) * self.crop
                left, top = (width - side) / 2, (height - side) / 2
                image = image.resize((self.resolution, self.resolution), how, box=(left, top, left + side, top + side))
        else:
            short = int(self.resolution / self.crop + _ROUNDING)
            if self.resize == "whole":
                width = height = short
            elif width <= height:
                width, height = short, int(short * height / width)
            else:
                width, height = int(short * width / height), short
            check_pixels(width, height)
            left, top = round((width - self.resolution) / 2), round((height - self.resolution) / 2)
            image = image.resize((width, height), how).crop((left, top, left + self.resolution, top + self.resolution))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
