"""The data for a network by the shape of its input: images, or clips of videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leanconv.data.images.images import ImageData, open_images
from leanconv.data.video.video import VideoData, open_videos

__all__ = ["open_inputs"]


def open_inputs(spec: str, size: Sequence[int], **options: Any) -> ImageData | VideoData:
    """The images of `spec`, or for a `size` (3, frames, h, w) its videos; `options` are those of `open_images`."""
    if len(size) == 4:
        return open_videos(spec, frames=size[1], size=size[-1], **options)
    return open_images(spec, size=size[-1], **options)
