"""Which frames a clip is made of, in plain integers; which pixels, likewise.

    R = (L - 1) rate + 1                                         frames that a clip of L frames at a rate spans
    start_i = floor(i (N - R) / (n - 1)),  i = 0 .. n-1          n clips spread over a video of N frames; 0 for n = 1
    frame_l = start + l rate,              l = 0 .. L-1

N counts frames at the common frame rate: a video at another rate, or at a varying one, is first put on that clock by
its time stamps. A video with N < R gives no clip: frames are never repeated to fill one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

__all__ = ["Clock", "centre_start", "clip_slots", "crop_offsets", "drawn_start", "scaled", "span", "uniform_starts"]


def span(frames: int, rate: int) -> int:
    """Frames from the first to the last of a clip of `frames` frames, every `rate`-th of them taken.

    >>> span(32, 2), span(8, 2)
    (63, 15)
    """
    return (frames - 1) * rate + 1


def uniform_starts(total: int, needed: int, clips: int) -> list[int]:
    """The first frames of `clips` clips that span `needed` of `total` frames, spread over the video.

    >>> uniform_starts(300, 63, 10)
    [0, 26, 52, 79, 105, 131, 158, 184, 210, 237]
    >>> uniform_starts(300, 63, 1)
    [0]
    """
    return [index * (total - needed) // max(clips - 1, 1) for index in range(clips)]


def centre_start(total: int, needed: int) -> int:
    """The first frame of the clip in the middle of the video."""
    return (total - needed) // 2


def drawn_start(total: int, needed: int, draws: torch.Generator) -> int:
    """The first frame of a training clip, every possible one equally likely."""
    return int(torch.randint(0, total - needed + 1, (), generator=draws))


def clip_slots(start: int, frames: int, rate: int) -> range:
    """The frames of the clip that begins at `start`.

    >>> list(clip_slots(5, 4, 2))
    [5, 7, 9, 11]
    """
    return range(start, start + span(frames, rate), rate)


def scaled(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with the shorter side brought to `short_side` and the aspect ratio kept, to the nearest pixel.

    >>> scaled(240, 320, 128), scaled(1080, 607, 256)
    ((128, 171), (455, 256))
    """
    short, long = min(height, width), max(height, width)
    longer = (2 * long * short_side + short) // (2 * short)
    return (short_side, longer) if height <= width else (longer, short_side)


def crop_offsets(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """Top and left of the centre crop, or of three crops along the longer side, the other side centred.

    >>> crop_offsets(256, 340, 256, 3), crop_offsets(340, 256, 224, 1)
    ([(0, 0), (0, 42), (0, 84)], [(58, 16)])
    """
    top, left = (height - size) // 2, (width - size) // 2
    if crops == 1:
        return [(top, left)]
    if height > width:
        return [(index * (height - size) // 2, left) for index in range(3)]
    return [(top, index * (width - size) // 2) for index in range(3)]


@dataclass(frozen=True)
class Clock:
    """The frames of one file, counted at the rate `fps`; with None, as the file has them.

    `stamps` are the presentation times of its frames, increasing, and `end` the time at which the last one is over, in
    units of `time_base` seconds. The picture of slot j is that of the last frame that is due before (j + 1/2) / fps
    seconds from the first, so a file that has this rate already keeps its frames, whatever its stamps are rounded to.

    >>> clock = Clock(range(0, 900, 60), 900, Fraction(1, 900), Fraction(30))        # one second at 15 frames a second
    >>> len(clock), clock.frames(range(0, 6))
    (30, [0, 0, 1, 1, 2, 2])
    """

    stamps: Sequence[int]
    end: int
    time_base: Fraction
    fps: Fraction | None

    def __len__(self) -> int:
        if self.fps is None:
            return len(self.stamps)
        slots = (self.end - self.stamps[0]) * self.time_base * self.fps
        return max(int(slots + Fraction(1, 2)), 1)

    def frames(self, slots: Sequence[int]) -> list[int]:
        """The numbers of the file's frames that are on the screen in `slots`."""
        if self.fps is None:
            return list(slots)
        unit = self.time_base * self.fps
        halves = 2 * unit.numerator
        # stamp - first < (slot + 1/2) / unit, in whole numbers: stamp - first < ceil(...).
        dues = [-(-(2 * slot + 1) * unit.denominator // halves) for slot in slots]
        return [bisect_left(self.stamps, self.stamps[0] + due) - 1 for due in dues]
