"""The data for a network by the shape of its input: images, or clips of videos."""

from __future__ import annotations

from typing import Any

from leanconv.data.contract import InputContract
from leanconv.data.images.images import ImageData, open_images
from leanconv.data.video.video import VIDEO_KINDS, VideoData, open_videos
from leanconv.errors import DataError

__all__ = ["open_inputs"]


def open_inputs(spec: str, contract: InputContract, **options: Any) -> ImageData | VideoData:
    """The images of `spec`, or for a contract of clips its videos; `options` are those of `open_images`."""
    if contract.clip is not None:
        return open_videos(spec, contract=contract, **options)
    if spec.partition(":")[0] in VIDEO_KINDS:
        raise DataError(f"{spec} names videos, and the network is fed images of {list(contract.size)}: name images")
    return open_images(spec, contract=contract, **options)
