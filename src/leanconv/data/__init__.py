"""Images and videos for training and evaluation: embedded sets, folders, lists, and the layouts of published sets."""

from __future__ import annotations

from leanconv.data.contract import ClipContract, InputContract, amended, attach, contract_of
from leanconv.data.images.augment import AUGMENTS
from leanconv.data.images.images import ImageData, open_images
from leanconv.data.inputs import open_inputs
from leanconv.data.named_files import find_files, open_files
from leanconv.data.sets.splits import Problem
from leanconv.data.video.augment import VIDEO_AUGMENTS
from leanconv.data.video.video import VIDEO_KINDS, VideoData, VideoSample, open_videos

__all__ = [
    "AUGMENTS",
    "ClipContract",
    "ImageData",
    "InputContract",
    "Problem",
    "VIDEO_AUGMENTS",
    "VIDEO_KINDS",
    "VideoData",
    "VideoSample",
    "amended",
    "attach",
    "contract_of",
    "find_files",
    "open_files",
    "open_images",
    "open_inputs",
    "open_videos",
]
