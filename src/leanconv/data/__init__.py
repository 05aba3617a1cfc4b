"""Images and videos for training and evaluation: embedded sets, folders, lists, and the layouts of published sets."""

from __future__ import annotations

from leanconv.data.augment import AUGMENTS
from leanconv.data.images import ImageData, open_images
from leanconv.data.splits import Problem
from leanconv.data.video import VIDEO_KINDS, VideoData, VideoSample, open_videos
from leanconv.data.video_augment import VIDEO_AUGMENTS

__all__ = [
    "AUGMENTS",
    "ImageData",
    "Problem",
    "VIDEO_AUGMENTS",
    "VIDEO_KINDS",
    "VideoData",
    "VideoSample",
    "open_images",
    "open_videos",
]
