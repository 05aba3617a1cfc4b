"""One reader for every video: what a plan asks for, no more decoded, converted or held than that.

Decoding starts at the key frame before a wanted one and ends with the last wanted one. Frames that are on the way are
decoded but never converted to RGB, and those that no other frame refers to are not even decoded. Wanted frames are
scaled to their final size while they are converted, so a full-size picture exists one at a time and never as RGB.

The index is checked against what the decoder gives: where a seek lands too late, the file is read from
its beginning; where the time stamps turn out to be wrong, frames are counted instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np

from leanconv.data.limits import check_pixels
from leanconv.data.video.display import Turn, pixel_aspect
from leanconv.data.video.index import VideoIndex, count_frames, open_file, reading, scan
from leanconv.data.video.plan import Frames, Framing, Window, plan_seeks
from leanconv.errors import DataError

__all__ = ["Video", "WrongIndex"]

_CAN_SKIP = frozenset(("h264", "mpeg4"))
"""Codecs in which a frame marked as unreferenced can be left out without any trace in the others."""


class WrongIndex(Exception):
    """The decoder does not give the frames that the index lists: `Video.recount`, then plan again."""


class Video:
    """An open video file; a context manager. Raises `DataError`, with the file's name, for a broken one.

        with Video("clip.mp4") as video:
            frames = video.read([0, 2, 4], Framing(short_side=128))

    `index` may be given where it was made before (`video.index`). `MemoryError` means that frames of this file do not
    fit in memory.
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

    def recount(self) -> None:
        """Replace an index that turned out to be wrong by one that comes from decoding the whole file."""
        self.index = count_frames(self.path)

    def read(self, numbers: Sequence[int], framing: Framing) -> Frames:
        """That part of the frames of these numbers, in this order: uint8 (n, rows, columns, 3).

        Raises `WrongIndex` where the file does not have the frames that `index` says.
        """
        wanted = sorted(set(numbers))
        if not wanted or wanted[0] < 0 or wanted[-1] >= len(self.index):
            raise IndexError(f"{self.path}: frames {wanted[:1]} to {wanted[-1:]} of {len(self.index)} were asked for")
        block = _Block(self.path, numbers, framing, pixel_aspect(self.path, self._stream))
        with reading(self.path, (self._stream.height, self._stream.width)):
            if self.index.by_count:
                self._count_to(wanted, block)
                return block.pixels
            for key, frames in plan_seeks(wanted, self.index.keys):
                if not self._seek(key) or not self._decode(frames, block, again=False):
                    self._reopen()
                    if not self._decode(frames, block, again=True):
                        raise WrongIndex(self.path)
        return block.pixels

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

    def _decode(self, wanted: Sequence[int], block: _Block, *, again: bool) -> bool:
        """Decode forward until all `wanted` frames are in the `block`; False if they do not come in order.

        The second time (`again`) nothing is left out, and errors of the decoder are raised.
        """
        from av.error import FFmpegError

        codec = self._stream.codec_context
        skip = not again and codec.name in _CAN_SKIP
        codec.skip_frame = "DEFAULT"
        left = {self.index.stamps[number]: number for number in wanted}
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
                        block.put(number, frame)
                if not left:
                    return True
                if before is not None and before > max(left):
                    return False
        except FFmpegError as error:
            if again or isinstance(error, MemoryError):
                raise
        return False

    def _count_to(self, wanted: list[int], block: _Block) -> None:
        fresh, self._fresh = self._fresh, False
        if not fresh:
            self._reopen()
        left = set(wanted)
        for number, frame in enumerate(self._container.decode(self._stream)):
            if number in left:
                block.put(number, frame)
                left.remove(number)
            if not left:
                return
        raise DataError(f"{self.path}: broken video: frame {min(left)} of {len(self.index)} cannot be decoded")


class _Block:
    """Where wanted frames go: one block of pixels, made when the size of the first of them is known.

    Every frame is framed by its own size, which may change on the way. Pixels are `aspect` times as wide as high.
    """

    def __init__(self, path: str, numbers: Sequence[int], framing: Framing, aspect: Fraction) -> None:
        from av.video.reformatter import VideoReformatter

        self.path = path
        self.pixels: Frames = np.empty((0, 0, 0, 3), dtype=np.uint8)
        self._places: dict[int, list[int]] = {}
        for index, number in enumerate(numbers):
            self._places.setdefault(number, []).append(index)
        self._count = len(numbers)
        self._framing = framing
        self._aspect = aspect
        self._turns: dict[int, Turn] = {}
        self._windows: dict[tuple[int, int], Window] = {}
        self._scaler = VideoReformatter()

    def put(self, number: int, frame: Any) -> None:
        """Scale, turn and cut the frame, and put it wherever its number is wanted."""
        if frame.is_corrupt:
            raise DataError(f"{self.path}: broken video: frame {number} is damaged")
        turn = self._turns.get(frame.rotation)
        if turn is None:
            turn = self._turns[frame.rotation] = Turn.of(self.path, self._thumbnail(frame))
        window = self._window(turn.shown(frame.height, max(round(frame.width * self._aspect), 1)))
        height, width = turn.shown(window.height, window.width)
        small = self._scaler.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        plane = small.planes[0]
        # The plane's own memory, rows padded: cutting it copies only what is kept.
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height, : 3 * width]
        picture = turn.applied(rows.reshape(height, width, 3))
        picture = picture[window.top : window.top + window.rows, window.left : window.left + window.columns]
        for index in self._places[number]:
            self.pixels[index] = picture

    def _thumbnail(self, frame: Any) -> Any:
        """A small frame with the side data of a large one.

        PyAV lets a frame whose side data were asked for live until Python next collects cycles: 12 MB each at 4K.
        """
        return type(self._scaler)().reformat(frame, width=16, height=16, format="gray", threads=1)

    def _window(self, size: tuple[int, int]) -> Window:
        """The window on frames of this size, (height, width) as they are shown."""
        if size not in self._windows:
            window = self._framing.window(*size)
            try:
                check_pixels(window.width, window.height)
            except ValueError as error:
                raise DataError(f"{self.path}: its frames brought to {error}") from error
            if not self._windows:
                self.pixels = np.empty((self._count, window.rows, window.columns, 3), dtype=np.uint8)
            elif (window.rows, window.columns) != self.pixels.shape[1:3]:
                first = next(iter(self._windows))
                raise DataError(
                    f"{self.path}: its frames change from {first[1]} x {first[0]} to {size[1]} x {size[0]} pixels, and"
                    " what is cut out of them has no common size: take one crop of every clip, or cut the video there"
                )
            self._windows[size] = window
        return self._windows[size]
