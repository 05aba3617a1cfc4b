"""Images for training and evaluation: the embedded digits, folders, parquet files and timm's readers."""

from __future__ import annotations

from leanconv.data.augment import AUGMENTS
from leanconv.data.images import ImageData, open_images
from leanconv.data.splits import Problem

__all__ = ["AUGMENTS", "ImageData", "Problem", "open_images"]
