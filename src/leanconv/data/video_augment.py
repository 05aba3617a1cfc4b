"""What is taken of one video: a drawn clip for training, the centre clip, or many clips for testing.

| name    | training                                                                               | evaluation        |
|---------|----------------------------------------------------------------------------------------|-------------------|
| `video` | a drawn start, the short side drawn uniformly from a range, a drawn crop, a mirror     | centre clip, crop |
| `none`  | nothing is drawn: as in evaluation                                                     | centre clip, crop |
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from leanconv.data.video_clips import (
    Clock,
    centre_start,
    clip_slots,
    crop_offsets,
    drawn_start,
    scaled,
    span,
    uniform_starts,
)
from leanconv.data.video_reader import Frames, Video, Window
from leanconv.errors import DataError

__all__ = ["VIDEO_AUGMENTS", "CentreClip", "ClipShape", "DrawnClip", "SpreadClips", "ClipTransform"]

VIDEO_AUGMENTS = ("none", "video")


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """`frames` frames, every `rate`-th at `fps` a second (None: as the file has them), `size` pixels square."""

    frames: int
    rate: int
    size: int
    fps: Fraction | None

    @property
    def span(self) -> int:
        """R, the frames from the first to the last."""
        return span(self.frames, self.rate)

    def clock(self, video: Video) -> Clock:
        """The frames of `video` at the common rate; `DataError` where they are too few for one clip."""
        index = video.index
        clock = Clock(index.stamps, index.end, index.time_base, self.fps)
        if len(clock) < self.span:
            at = "" if self.fps is None else f" at {float(self.fps):g} per second"
            raise DataError(
                f"{video.path}: too short, {len(clock)} frames{at}, and a clip of {self.frames} frames at rate"
                f" {self.rate} spans {self.span}"
            )
        return clock

    def numbers(self, clock: Clock, start: int) -> list[int]:
        """The frames of the file that the clip from `start` shows."""
        return clock.frames(clip_slots(start, self.frames, self.rate))


class ClipTransform(Protocol):
    """From an open video to uint8 pixels. Made of plain data, so that it can be sent to a process."""

    def __call__(self, video: Video, draws: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class DrawnClip:
    """A training clip (3, frames, size, size): start, short side (uniform in `short_side`), crop and mirror drawn."""

    shape: ClipShape
    short_side: tuple[int, int]
    mirror: bool

    def __call__(self, video: Video, draws: torch.Generator) -> Tensor:
        size = self.shape.size
        side = int(torch.randint(self.short_side[0], self.short_side[1] + 1, (), generator=draws))
        down, across, mirrored = torch.rand(3, generator=draws, dtype=torch.float64).tolist()

        def place(height: int, width: int) -> Window:
            height, width = scaled(height, width, side)
            top, left = int(down * (height - size + 1)), int(across * (width - size + 1))
            return Window(height, width, top, left, size, size)

        clock = self.shape.clock(video)
        start = drawn_start(len(clock), self.shape.span, draws)
        frames = video.read(self.shape.numbers(clock, start), place)
        return _channels_first(frames[:, :, ::-1] if self.mirror and mirrored < 0.5 else frames)


@dataclass(frozen=True)
class CentreClip:
    """The clip (3, frames, size, size) in the middle of the video and of the picture; nothing is drawn."""

    shape: ClipShape
    short_side: int

    def __call__(self, video: Video, draws: torch.Generator) -> Tensor:
        clock = self.shape.clock(video)
        numbers = self.shape.numbers(clock, centre_start(len(clock), self.shape.span))
        return _channels_first(video.read(numbers, self._place))

    def _place(self, height: int, width: int) -> Window:
        height, width = scaled(height, width, self.short_side)
        size = self.shape.size
        [(top, left)] = crop_offsets(height, width, size, 1)
        return Window(height, width, top, left, size, size)


@dataclass(frozen=True)
class SpreadClips:
    """`clips` clips spread over the video times 1 or 3 crops: (clips * crops, 3, frames, h, w), the crops of a clip
    together.

    The centre crop is `size` square; three crops are as large as the short side. Frames that several clips share are
    decoded once.
    """

    shape: ClipShape
    short_side: int
    clips: int
    crops: int

    @property
    def side(self) -> int:
        """Height and width of the crops."""
        return self.shape.size if self.crops == 1 else self.short_side

    def __call__(self, video: Video, draws: torch.Generator) -> Tensor:
        clock = self.shape.clock(video)
        starts = uniform_starts(len(clock), self.shape.span, self.clips)
        chosen = [self.shape.numbers(clock, start) for start in starts]
        numbers = sorted({number for clip in chosen for number in clip})
        place = {number: index for index, number in enumerate(numbers)}
        frames = video.read(numbers, self._whole)
        pixels = [
            _channels_first(frames[[place[number] for number in clip], top : top + self.side, left : left + self.side])
            for clip in chosen
            for top, left in crop_offsets(frames.shape[1], frames.shape[2], self.side, self.crops)
        ]
        return torch.stack(pixels)

    def _whole(self, height: int, width: int) -> Window:
        return Window.whole(*scaled(height, width, self.short_side))


def _channels_first(frames: Frames) -> Tensor:
    """(frames, h, w, 3) as a tensor (3, frames, h, w) of its own."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2)))
