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

import torch

from leanconv.data.video.clips import Clock, centre_start, clip_slots, drawn_start, span, uniform_starts
from leanconv.data.video.index import VideoIndex
from leanconv.data.video.plan import ClipPlan, Framing
from leanconv.errors import DataError

__all__ = ["VIDEO_AUGMENTS", "CentreClip", "ClipChoice", "ClipShape", "DrawnClip", "SpreadClips"]

VIDEO_AUGMENTS = ("none", "video")


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """`frames` frames, every `rate`-th at `fps` a second (None: as the file has them), `resolution` pixels square."""

    frames: int
    rate: int
    resolution: int
    fps: Fraction | None

    @property
    def span(self) -> int:
        """R, the frames from the first to the last."""
        return span(self.frames, self.rate)

    def clock(self, index: VideoIndex) -> Clock:
        """The frames of a file at the common rate; `DataError` where they are too few for one clip."""
        clock = Clock(index.stamps, index.end, index.time_base, self.fps)
        if len(clock) < self.span:
            at = "" if self.fps is None else f" at {float(self.fps):g} per second"
            raise DataError(
                f"too short, {len(clock)} frames{at}, and a clip of {self.frames} frames at rate {self.rate} spans"
                f" {self.span}"
            )
        return clock

    def numbers(self, clock: Clock, start: int) -> tuple[int, ...]:
        """The frames of the file that the clip from `start` shows."""
        return tuple(clock.frames(clip_slots(start, self.frames, self.rate)))


class ClipChoice(Protocol):
    """What to take of a file with that index. Made of plain data, so that it can be sent to a process."""

    def plan(self, index: VideoIndex, draws: torch.Generator) -> ClipPlan: ...


@dataclass(frozen=True)
class DrawnClip:
    """A training clip (3, frames, side, side): start, short side (uniform in `short_side`), crop and mirror drawn."""

    shape: ClipShape
    short_side: tuple[int, int]
    mirror: bool

    def plan(self, index: VideoIndex, draws: torch.Generator) -> ClipPlan:
        side = int(torch.randint(self.short_side[0], self.short_side[1] + 1, (), generator=draws))
        down, across, mirrored = torch.rand(3, generator=draws, dtype=torch.float64).tolist()
        clock = self.shape.clock(index)
        start = drawn_start(len(clock), self.shape.span, draws)
        return ClipPlan(
            self.shape.numbers(clock, start),
            Framing(side, self.shape.resolution, (down, across)),
            mirror=self.mirror and mirrored < 0.5,
        )


@dataclass(frozen=True)
class CentreClip:
    """The clip (3, frames, side, side) in the middle of the video and of the picture; nothing is drawn."""

    shape: ClipShape
    short_side: int

    def plan(self, index: VideoIndex, draws: torch.Generator) -> ClipPlan:
        clock = self.shape.clock(index)
        start = centre_start(len(clock), self.shape.span)
        return ClipPlan(self.shape.numbers(clock, start), Framing(self.short_side, self.shape.resolution))


@dataclass(frozen=True)
class SpreadClips:
    """`clips` clips spread over the video times 1 or 3 crops: (clips * crops, 3, frames, h, w), the crops of a clip
    together.

    The centre crop is `resolution` square; three crops are as large as the short side. Frames that several clips share
    are decoded once.
    """

    shape: ClipShape
    short_side: int
    clips: int
    crops: int

    def plan(self, index: VideoIndex, draws: torch.Generator) -> ClipPlan:
        clock = self.shape.clock(index)
        starts = uniform_starts(len(clock), self.shape.span, self.clips)
        chosen = [self.shape.numbers(clock, start) for start in starts]
        frames = tuple(sorted({number for clip in chosen for number in clip}))
        place = {number: index for index, number in enumerate(frames)}
        # A single crop is cut of every frame by its own size, which may change on the way.
        return ClipPlan(
            frames,
            Framing(self.short_side, self.shape.resolution if self.crops == 1 else None),
            clips=tuple(tuple(place[number] for number in clip) for clip in chosen),
            crops=self.crops,
            side=self.shape.resolution if self.crops == 1 else self.short_side,
        )
