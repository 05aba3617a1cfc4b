"""One reader for every video: frames by number, no more decoded, converted or held than are asked for.

Decoding starts at the key frame before a wanted one and ends with the last wanted one. Frames that are on the way are
decoded but never converted to RGB, and those that no other frame refers to are not even decoded. Wanted frames are
scaled to their final size while they are converted, so a full-size picture exists one at a time and never as RGB.

What the index promises is checked against what the decoder gives: where a seek lands too late, the file is read from
its beginning; where the time stamps turn out to be wrong, frames are counted instead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from leanconv.data.video_index import VideoIndex, count_frames, open_file, reading, scan
from leanconv.errors import DataError

__all__ = ["Frames", "Video", "Window", "plan_reads"]

Frames = npt.NDArray[np.uint8]
"""Pixels (n, height, width, 3)."""

T = TypeVar("T")

_WORTH_A_SEEK = 8
"""A seek costs about as much as decoding this many frames."""

_CAN_SKIP = frozenset(("h264", "mpeg4"))
"""Codecs in which a frame marked as unreferenced can be left out without any trace in the others."""


@dataclass(frozen=True)
class Window:
    """The part of a frame that is wanted: the frame is scaled to `height` x `width`, then cut."""

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int

    @classmethod
    def whole(cls, height: int, width: int) -> Window:
        """All of the scaled frame."""
        return cls(height, width, 0, 0, height, width)


def plan_reads(wanted: Sequence[int], keys: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The seeks that reading the increasing frame numbers `wanted` takes: (key frame, frames read from there).

    >>> plan_reads([3, 5, 40, 42], [0, 12, 24, 36])
    [(0, [3, 5]), (36, [40, 42])]
    >>> plan_reads([10, 14], [0, 12, 24])                                   # two frames more are cheaper than a seek
    [(0, [10, 14])]
    """
    plan: list[tuple[int, list[int]]] = []
    position = 0
    for number in wanted:
        key = keys[bisect_right(keys, number) - 1]
        if not plan or key - position > _WORTH_A_SEEK:
            plan.append((key, []))
        plan[-1][1].append(number)
        position = number
    return plan


class _Mismatch(Exception):
    """The decoder does not give the frames that the index promises."""


class Video:
    """An open video file; a context manager. Raises `DataError`, with the file's name, for a broken one.

        with Video("clip.mp4") as video:
            frames = video.read([0, 2, 4], lambda height, width: Window.whole(*scaled(height, width, 128)))

    `index` may be given where it is known from before (`video.index`). `MemoryError` says that frames of this file do
    not fit in memory.
    """

    def __init__(self, path: str, index: VideoIndex | None = None) -> None:
        self.path = path
        self._fresh = True
        self._container, self._stream = open_file(path)
        if index is None:
            try:
                index = scan(path, self._container, self._stream)
            except BaseException:
                self.close()
                raise
            self._fresh = False
        self.index = index

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def take(self, choose: Callable[[Video], T]) -> T:
        """`choose(self)`, which picks frames by `index` and reads them; again if the index turns out to be wrong."""
        try:
            return choose(self)
        except _Mismatch:
            self.index = count_frames(self.path)
            return choose(self)

    def read(self, numbers: Sequence[int], place: Callable[[int, int], Window]) -> Frames:
        """The frames of these numbers, in this order: uint8 (n, rows, columns, 3).

        `place` says, given height and width as they are shown, what part of the frames is wanted.
        """
        wanted = sorted(set(numbers))
        if not wanted or wanted[0] < 0 or wanted[-1] >= len(self.index):
            raise IndexError(f"{self.path}: frames {wanted[:1]} to {wanted[-1:]} of {len(self.index)} were asked for")
        sheet = _Sheet(self.path, numbers, place)
        with reading(self.path, (self._stream.height, self._stream.width)):
            if self.index.by_count:
                self._count_to(wanted, sheet)
                return sheet.pixels
            for key, group in plan_reads(wanted, self.index.keys):
                if not self._seek(key) or not self._decode(group, sheet, again=False):
                    self._reopen()
                    if not self._decode(group, sheet, again=True):
                        raise _Mismatch
        return sheet.pixels

    def _seek(self, key: int) -> bool:
        """Go to a key frame; False where the file cannot."""
        from av.error import FFmpegError

        fresh, self._fresh = self._fresh, False
        if fresh and key == 0:
            return True
        try:
            self._container.seek(self.index.stamps[key], stream=self._stream)
        except FFmpegError:
            return False
        return True

    def _reopen(self) -> None:
        self.close()
        self._container, self._stream = open_file(self.path)

    def _decode(self, group: list[int], sheet: _Sheet, *, again: bool) -> bool:
        """Decode forward until all frames of `group` are on the `sheet`; False if they do not come in order.

        The second time (`again`) nothing is left out, and what the decoder complains of is raised.
        """
        from av.error import FFmpegError

        codec = self._stream.codec_context
        skip = not again and codec.name in _CAN_SKIP
        codec.skip_frame = "DEFAULT"
        left = {self.index.stamps[number]: number for number in group}
        before = None
        try:
            for packet in self._container.demux(self._stream):
                if skip:
                    codec.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in left else "NONREF"
                for frame in packet.decode():
                    if frame.pts is None or (before is not None and frame.pts <= before):
                        return False
                    before = frame.pts
                    number = left.pop(before, None)
                    if number is not None:
                        sheet.put(number, frame)
                if not left:
                    return True
                if before is not None and before > max(left):
                    return False
        except FFmpegError as error:
            if again or isinstance(error, MemoryError):
                raise
        return False

    def _count_to(self, wanted: list[int], sheet: _Sheet) -> None:
        fresh, self._fresh = self._fresh, False
        if not fresh:
            self._reopen()
        left = set(wanted)
        for number, frame in enumerate(self._container.decode(self._stream)):
            if number in left:
                sheet.put(number, frame)
                left.remove(number)
            if not left:
                return
        raise DataError(f"{self.path}: broken video: frame {min(left)} of {len(self.index)} cannot be decoded")


class _Sheet:
    """Where wanted frames go: one block of pixels, made when the first of them tells its size."""

    def __init__(self, path: str, numbers: Sequence[int], place: Callable[[int, int], Window]) -> None:
        from av.video.reformatter import VideoReformatter

        self.path = path
        self.pixels: Frames = np.empty((0, 0, 0, 3), dtype=np.uint8)
        self._places: dict[int, list[int]] = {}
        for index, number in enumerate(numbers):
            self._places.setdefault(number, []).append(index)
        self._count = len(numbers)
        self._place = place
        self._window: Window | None = None
        self._turns = 0
        self._scaler = VideoReformatter()

    def put(self, number: int, frame: Any) -> None:
        """Scale, turn and cut the frame, and put it wherever its number is wanted."""
        if frame.is_corrupt:
            raise DataError(f"{self.path}: broken video: frame {number} is damaged")
        if self._window is None:
            self._turns = round(frame.rotation / 90) % 4
            shown = (frame.height, frame.width) if self._turns % 2 == 0 else (frame.width, frame.height)
            self._window = self._place(*shown)
            self.pixels = np.empty((self._count, self._window.rows, self._window.columns, 3), dtype=np.uint8)
        window = self._window
        height, width = (window.height, window.width) if self._turns % 2 == 0 else (window.width, window.height)
        small = self._scaler.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        plane = small.planes[0]
        # The plane's own memory, rows padded: cutting it copies only what is kept.
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height, : 3 * width]
        picture = np.rot90(rows.reshape(height, width, 3), self._turns)
        picture = picture[window.top : window.top + window.rows, window.left : window.left + window.columns]
        for index in self._places[number]:
            self.pixels[index] = picture
