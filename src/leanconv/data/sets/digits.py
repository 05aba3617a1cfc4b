"""The embedded set: 1,797 real handwritten digits, 8x8 grey, that scikit-learn ships inside its package.

Nothing is downloaded. The pixels 0 to 16 become 0 to 255; the enlargement to the wanted size is the reader's usual
bilinear resize. The split is fixed: a fifth of every class is held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from leanconv.data.sets.splits import ImageSet, split_by_class
from leanconv.errors import need

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["digits"]


@dataclass(frozen=True)
class _Digits:
    pixels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
    labels: Tensor

    def name(self, index: int) -> str:
        return f"digit {index}"

    def read(self, index: int) -> Image.Image:
        from PIL import Image

        return Image.fromarray(self.pixels[index])


def digits() -> ImageSet:
    """The handwritten digits as train (1,438 images) and test (359) splits of ten classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise need("scikit-learn", "train", "the data set 'digits'") from error
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    whole = _Digits(pixels, torch.as_tensor(bunch.target, dtype=torch.int64))
    train, test = split_by_class(whole, [f"digit {index}" for index in range(len(pixels))])
    return ImageSet(train=train, test=test, class_names=tuple(str(digit) for digit in range(10)))
