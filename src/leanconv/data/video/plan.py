"""What will be read of a video, as plain data: which frames, which part of them, from which key frames on.

A `ClipPlan` is made from the file's index alone; `Video.read` obeys it. Nothing here opens a file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from leanconv.data.video.clips import crop_offsets, scaled

__all__ = ["ClipPlan", "Frames", "Framing", "Picture", "Seek", "Window", "plan_seeks"]

Frames = npt.NDArray[np.uint8]
"""Pixels (n, height, width, 3)."""

Picture = npt.NDArray[np.uint8]
"""Pixels (height, width, 3)."""

_WORTH_A_SEEK = 8
"""A seek costs about as much as decoding this many frames."""


class Window(NamedTuple):
    """The part of a frame that is wanted: the frame is scaled to `height` x `width`, then cut."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Framing:
    """Which part of the frames is wanted, whatever their size: it is known only when the first is decoded.

    Frames are scaled until the shorter side is `short_side` (None: not at all). Of that, a square of `size` pixels
    (None: everything) is taken, `at` parts (from 0 to below 1) of the way down and across that it can go, None being
    the centre.

    >>> Framing(128, 112).window(240, 320)
    Window(height=128, width=171, top=8, left=29, rows=112, columns=112)
    """

    short_side: int | None
    size: int | None = None
    at: tuple[float, float] | None = None

    def window(self, height: int, width: int) -> Window:
        """The window on frames of this size."""
        if self.short_side is not None:
            height, width = scaled(height, width, self.short_side)
        if self.size is None:
            return Window(height, width, 0, 0, height, width)
        if self.at is None:
            [(top, left)] = crop_offsets(height, width, self.size, 1)
        else:
            down, across = self.at
            top, left = int(down * (height - self.size + 1)), int(across * (width - self.size + 1))
        return Window(height, width, top, left, self.size, self.size)


@dataclass(frozen=True)
class ClipPlan:
    """The frames to read, and the clips that they become.

    `frames` are numbers of the file's frames in the order in which they are wanted, `framing` the part of each.
    `clips` says which of the frames read make each clip, by their place in `frames` (None: one clip, of all of them);
    of every clip `crops` squares of `side` pixels are cut (0: it stays as it is). `mirror` turns left and right round.
    """

    frames: tuple[int, ...]
    framing: Framing
    mirror: bool = False
    clips: tuple[tuple[int, ...], ...] | None = None
    crops: int = 0
    side: int = 0

    def arranged(self, frames: Frames) -> Tensor:
        """The frames that were read, as the plan says: one clip (3, frames, h, w) or several of them (n, 3, ...)."""
        if self.clips is None:
            return _channels_first(frames[:, :, ::-1] if self.mirror else frames)
        corners = crop_offsets(frames.shape[1], frames.shape[2], self.side, self.crops)
        return torch.stack(
            [
                _channels_first(frames[list(clip), top : top + self.side, left : left + self.side])
                for clip in self.clips
                for top, left in corners
            ]
        )


class Seek(NamedTuple):
    """Go to the frame `key`, at which decoding can start, and take `frames` from there on."""

    key: int
    frames: tuple[int, ...]


def plan_seeks(wanted: Sequence[int], keys: Sequence[int]) -> list[Seek]:
    """How the increasing frame numbers `wanted` are read from a file whose key frames are `keys`.

    >>> plan_seeks([3, 5, 40, 42], [0, 12, 24, 36])
    [Seek(key=0, frames=(3, 5)), Seek(key=36, frames=(40, 42))]
    >>> plan_seeks([10, 14], [0, 12, 24])                                   # two frames more are cheaper than a seek
    [Seek(key=0, frames=(10, 14))]
    """
    plan: list[tuple[int, list[int]]] = []
    position = 0
    for number in wanted:
        key = keys[bisect_right(keys, number) - 1]
        if not plan or key - position > _WORTH_A_SEEK:
            plan.append((key, []))
        plan[-1][1].append(number)
        position = number
    return [Seek(key, tuple(frames)) for key, frames in plan]


def _channels_first(frames: Frames) -> Tensor:
    """(frames, h, w, 3) as a tensor (3, frames, h, w) of its own."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2)))
