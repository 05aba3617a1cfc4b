"""What a video file holds, found without decoding it: when each frame is shown, and where decoding can start.

Packets carry time stamps, so reading through them (milliseconds for a clip of ten seconds) gives the number of every
frame. In some files they are wrong: AVI has no presentation times, so frames that are reordered, or packed two to a
packet, come out of the decoder under other stamps. Those files are counted, frame by frame, by decoding them once
(`by_count`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, TypeGuard

from leanconv.data.limits import check_pixels, most_pixels
from leanconv.errors import DataError, need

__all__ = ["VideoIndex", "count_frames", "open_file", "reading", "require_pyav", "scan"]


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The frames of one file, in the order in which they are shown.

    `stamps` are their presentation times and `end` that at which the last one is over, in units of `time_base`
    seconds; `keys` are the numbers of the frames at which decoding can start. With `by_count` a frame is found only by
    counting those before it.
    """

    stamps: Sequence[int]
    end: int
    time_base: Fraction
    keys: tuple[int, ...]
    by_count: bool = False

    def __len__(self) -> int:
        return len(self.stamps)


def require_pyav() -> None:
    """Raise `MissingExtra` without PyAV, the decoder."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise need("av", "video", "reading videos") from error


@contextmanager
def reading(path: str, size: tuple[int, int] | None = None) -> Iterator[None]:
    """Turn what goes wrong in the block into `DataError` with the file's name, or into `MemoryError`.

    Decoders report a frame for which there was no memory as broken data, so before a file is called broken, two
    pictures of its `size` (height, width) must fit.
    """
    from av.error import FFmpegError

    try:
        yield
    except DataError as error:
        _check_room(path, size, error)
        raise
    except MemoryError as error:
        raise MemoryError(_frames_of(path, size)) from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (FFmpegError, OSError) as error:
        _check_room(path, size, error)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: broken video: {' '.join(reason.split())}") from error


def _check_room(path: str, size: tuple[int, int] | None, error: Exception) -> None:
    if size is not None:
        try:
            bytearray(2 * 3 * size[0] * size[1])
        except MemoryError:
            raise MemoryError(_frames_of(path, size)) from error


def _frames_of(path: str, size: tuple[int, int] | None) -> str:
    return f"{path}: memory ran out" + ("" if size is None else f" on its frames of {size[1]} x {size[0]} pixels")


def open_file(path: str) -> tuple[Any, Any]:
    """PyAV's container and the video stream of a file; `DataError` when it is none.

    Nothing but local files is ever opened, whatever a playlist inside the file names.
    """
    import av

    with reading(path):
        # An absolute path cannot be taken for a protocol, even with a colon in a file's name.
        container = av.open(os.path.abspath(path), options={"protocol_whitelist": "file"})
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    best = container.streams.best("video")  # the default one, then the one with more frames
    if best in streams:
        streams = [best]
    if not streams:
        kinds = sorted({str(stream.type) for stream in container.streams}) or ["nothing"]
        container.close()
        raise DataError(f"{path}: no video in it, only {' and '.join(kinds)}")
    stream = streams[0]
    try:
        check_pixels(stream.width, stream.height)
    except ValueError as error:
        container.close()
        raise DataError(f"{path}: its frames have {error}") from error
    # What the header does not say, a frame may: then the decoder refuses it.
    stream.codec_context.options = {"max_pixels": str(most_pixels())}
    # One thread: the processes that read videos are the parallel part, and every thread would hold frames of its own.
    stream.codec_context.thread_count = 1
    return container, stream


def scan(path: str, container: Any, stream: Any) -> VideoIndex:
    """The index of an open file, from its packets; `container` stands at its end afterwards.

    Raises `DataError` for a file without frames and for one that ends before it should.
    """
    stamps: list[int] = []
    keys: list[int] = []
    final = (0, 0)  # stamp and duration of the frame shown last
    decoded_at = 0
    hides = stream.codec_context.name == "vp8"
    with reading(path):
        for packet in container.demux(stream):
            if packet.size == 0:  # the end of the file
                continue
            if packet.is_corrupt:
                raise DataError(f"{path}: truncated or damaged in frame {len(stamps)}")
            decoded_at = packet.dts if packet.dts is not None else decoded_at
            if packet.is_discard or (hides and not memoryview(packet)[0] & _VP8_SHOWN):
                continue
            stamps.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if packet.pts is not None and (len(stamps) == 1 or packet.pts > final[0]):
                final = (packet.pts, packet.duration or 0)
    if not stamps:
        raise DataError(f"{path}: no frames in it")
    known = sorted(stamp for stamp in stamps if stamp is not None)
    shown_until = max(decoded_at + 1, final[0] + (final[1] or _usual_step(known)))
    _check_whole(path, container, stream, decoded_at, shown_until, len(stamps))
    reordered_avi = container.format.name == "avi" and stream.codec_context.has_b_frames
    if None in stamps or reordered_avi or len(set(stamps)) != len(stamps):
        return count_frames(path)
    stamps.sort()
    place = {stamp: number for number, stamp in enumerate(stamps)}
    return VideoIndex(
        stamps=_compact(stamps),
        end=final[0] + (final[1] or _usual_step(stamps)),
        time_base=stream.time_base,
        keys=tuple(sorted({0, *(place[stamp] for stamp in keys)})),
    )


def count_frames(path: str) -> VideoIndex:
    """The index of a file whose packets do not correspond to its frames, by decoding all of it.

    The decoder's time stamps are kept where they increase; else the times at which the frames are due for decoding,
    which stand for those at which they are shown; else frames are as far apart as the file's rate says.
    """
    container, stream = open_file(path)
    stamps: list[int | None] = []
    decoded_at: list[int | None] = []
    with container, reading(path, (stream.height, stream.width)):
        for packet in container.demux(stream):
            if packet.size:
                decoded_at.append(packet.dts)
            stamps += [frame.pts for frame in packet.decode()]
        rate, time_base = stream.average_rate or stream.guessed_rate, stream.time_base
    if not stamps:
        raise DataError(f"{path}: none of its frames can be decoded")
    numbers: Sequence[int]
    if _increase(stamps):
        numbers = _compact(stamps)
    elif len(decoded_at) == len(stamps) and _increase(decoded_at):
        numbers = _compact(decoded_at)
    elif rate:
        numbers, time_base = range(len(stamps)), 1 / Fraction(rate)
    else:
        raise DataError(f"{path}: it has neither time stamps nor a frame rate")
    end = numbers[-1] + _usual_step(numbers)
    return VideoIndex(stamps=numbers, end=end, time_base=time_base, keys=(0,), by_count=True)


_VP8_SHOWN = 0x10
"""The bit of a VP8 frame's first byte (RFC 6386, section 9.1) that is 0 in frames that are only referred to."""

_WHOLE = Fraction(9, 10)
"""A file of which less than this share is there has lost its end."""


def _check_whole(path: str, container: Any, stream: Any, last: int, until: int, packets: int) -> None:
    """Raise `DataError` where the header declares more than the file has.

    `last` is the last time stamp of decoding, `until` the time to which the last frame is shown.
    """
    entries = stream.index_entries
    if len(entries) and entries[-1].pos + entries[-1].size > os.path.getsize(path):
        raise DataError(f"{path}: truncated, it ends before the last frame that its header names")
    kind = container.format.name
    if kind == "avi":  # counts frames that were dropped, which have no packet but take time
        there, declared = Fraction(last + 1), Fraction(stream.frames)
    elif kind.startswith("matroska"):
        there, declared = until * stream.time_base, _matroska_seconds(container, stream)
    else:
        return
    if there < declared * _WHOLE:
        share = float(100 * there / declared)
        raise DataError(f"{path}: truncated, {packets} frames are there, {share:.0f} % of what its header declares")


def _matroska_seconds(container: Any, stream: Any) -> Fraction:
    """The declared length of the video; 0 where only that of the whole file, with its sound, is declared."""
    found = re.fullmatch(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d{1,9})?)", stream.metadata.get("DURATION", ""), re.ASCII)
    if found:
        return 3600 * int(found[1]) + 60 * int(found[2]) + Fraction(found[3])
    return Fraction(container.duration or 0, 1_000_000) if len(container.streams) == 1 else Fraction(0)


def _is_cover(stream: Any) -> bool:
    """Whether the stream is a picture that belongs to a sound file."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _increase(stamps: list[int | None]) -> TypeGuard[list[int]]:
    """Whether every stamp is there and later than the one before."""
    known = [stamp for stamp in stamps if stamp is not None]
    return len(known) == len(stamps) and all(one < other for one, other in pairwise(known))


def _compact(stamps: list[int]) -> Sequence[int]:
    """A range where the stamps are evenly spaced: an index travels between processes, once per file."""
    if len(stamps) == 1:
        return range(stamps[0], stamps[0] + 1)
    even = range(stamps[0], stamps[-1] + 1, stamps[1] - stamps[0])
    return even if len(even) == len(stamps) and list(even) == stamps else tuple(stamps)


def _usual_step(stamps: Sequence[int]) -> int:
    """The median distance of neighbours, 1 for a single frame."""
    steps = sorted(other - one for one, other in pairwise(stamps))
    return steps[len(steps) // 2] if steps else 1
