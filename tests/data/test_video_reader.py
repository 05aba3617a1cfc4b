"""Frames by number, out of real files that show their numbers: every container, codec and rate gives the right ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import av
import numpy as np
import pytest
from tiny_videos import number_of, numbered, write_video

from leanconv.data.video.clips import Clock, clip_slots, span, uniform_starts
from leanconv.data.video.index import scan
from leanconv.data.video.plan import Framing
from leanconv.data.video.reader import Video, WrongIndex, _Block
from leanconv.errors import DataError

FRAMES = 60
# Milliseconds between frames: from 10 to 50 frames a second.
STAMPS = [0, *accumulate([20, 33, 100, 50, 33, 20, 40, 100, 25, 66] * 6)][:FRAMES]


WHOLE, SMALL = Framing(short_side=None), Framing(short_side=48)


def read(path: Path, numbers: Sequence[int]) -> list[int]:
    with Video(str(path)) as video:
        return [number_of(frame) for frame in video.read(numbers, SMALL)]


FILES = {
    "h264 with B-frames": ("a.mp4", {"options": {"b-pyramid": "normal"}, "b_frames": 3}),
    "h264 without": ("a.mp4", {"b_frames": 0}),
    "h264, key frames only where they must be": ("a.mp4", {"keys": 250}),
    "h264 that needs frames before its key frames": ("a.mkv", {"options": {"x264-params": "open-gop=1"}}),
    "h265": ("a.mp4", {"codec": "libx265", "b_frames": 3}),
    "mpeg4 with B-frames": ("a.mp4", {"codec": "mpeg4"}),
    "vp9 in webm": ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
    "transport stream": ("a.ts", {"muxer": "mpegts"}),
    "fragments": ("a.mp4", {"container": {"movflags": "frag_keyframe+empty_moov"}}),
    "avi, which has no times to show frames at": ("a.avi", {"codec": "mpeg4"}),
    "avi without B-frames": ("a.avi", {"codec": "mpeg4", "b_frames": 0}),
    "h264 in avi": ("a.avi", {"b_frames": 3}),
    "bare h264 without any time": ("a.h264", {"muxer": "h264"}),
}
ORDERS = [range(FRAMES), [0], [59], [3, 5, 7, 40, 42, 59], [30, 2, 30, 55], range(11, 26, 2)]


@pytest.mark.parametrize("rate", ["constant", "varying"])
@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_found_by_its_number(tmp_path: Path, name: str, rate: str) -> None:
    file, how = FILES[name]
    path = write_video(tmp_path / file, FRAMES, stamps=STAMPS if rate == "varying" else None, **how)
    for order in ORDERS:
        assert read(path, order) == list(order)
    with Video(str(path)) as video:
        assert len(video.index) == FRAMES


TIMED = ["h264 with B-frames", "h264 without", "h265", "mpeg4 with B-frames", "vp9 in webm", "transport stream"]


@pytest.mark.parametrize("name", TIMED)
def test_clips_of_a_varying_rate_are_those_of_the_formula(tmp_path: Path, name: str) -> None:
    """Uniform clips at 30 frames a second, from the known times at which the frames were written."""
    file, how = FILES[name]
    path = write_video(tmp_path / file, FRAMES, stamps=STAMPS, **how)
    with Video(str(path)) as video:
        index = video.index
        clock = Clock(index.stamps, index.end, index.time_base, Fraction(30))
        total = round(STAMPS[-1] * 30 / 1000)
        assert total <= len(clock) <= total + 3  # and the last frame's own time, at most the longest of all
        for start in uniform_starts(total, span(8, 2), 5):
            # A frame is due in the slot nearest to its time.
            due = [(2 * stamp * 30 + 1000) // 2000 for stamp in STAMPS]
            expected = [max(n for n in range(FRAMES) if due[n] <= slot) for slot in range(start, start + 15, 2)]
            numbers = clock.frames(clip_slots(start, 8, 2))
            assert numbers == expected
            assert [number_of(frame) for frame in video.read(numbers, SMALL)] == expected


@pytest.mark.parametrize("name", ["h264 with B-frames", "mpeg4 with B-frames", "vp9 in webm", "h265"])
def test_what_is_left_out_on_the_way_leaves_no_trace(tmp_path: Path, name: str) -> None:
    file, how = FILES[name]
    path = write_video(tmp_path / file, FRAMES, **how)
    with Video(str(path)) as video:
        everything = video.read(range(FRAMES), WHOLE)
        for numbers in (range(1, FRAMES, 2), range(2, FRAMES, 7), [47, 50, 51]):
            assert np.array_equal(video.read(numbers, WHOLE), everything[list(numbers)])


def damaged(path: Path, packets: range) -> Path:
    """A copy of the file in which the pictures of some packets are overwritten."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in (places[number] for number in packets):
        content[position : position + size] = bytes(size)
    copy = path.with_name(f"damaged-{path.name}")
    copy.write_bytes(content)
    return copy


def test_only_what_is_needed_is_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", FRAMES, keys=12, b_frames=0)
    assert read(damaged(path, range(12)), [26, 30]) == [26, 30]  # from the key frame before, not from the beginning
    assert read(damaged(path, range(40, 60)), [26, 30]) == [26, 30]  # and no further than the last
    with pytest.raises(DataError, match=r"damaged-a\.mp4: broken video: "):
        read(damaged(path, range(24, 36)), [26, 30])


def test_only_what_is_wanted_is_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", FRAMES)
    converted = []
    put = _Block.put
    monkeypatch.setattr(_Block, "put", lambda self, number, frame: (converted.append(number), put(self, number, frame)))
    assert read(path, [20, 22, 20, 59]) == [20, 22, 20, 59]
    assert converted == [20, 22, 59]


def test_frames_are_scaled_and_cut_as_asked(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 4, size=(64, 160), options={"crf": "4"})
    with Video(str(path)) as video:
        full = video.read([3], WHOLE)
        cut = video.read([3], Framing(short_side=None, size=40, at=(0.34, 0.25)))  # of 25 and of 121 places
        half = video.read([3], Framing(short_side=32))
    assert np.array_equal(cut, full[:, 8:48, 30:70])
    assert np.abs(full[0].astype(int) - numbered(3, 64, 160)).mean() < 8
    assert half.shape == (1, 32, 80, 3)
    assert number_of(half[0]) == 3


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_picture_that_is_to_be_turned_is_turned(tmp_path: Path, degrees: int) -> None:
    upright = write_video(tmp_path / "a.mp4", 3, size=(64, 160))
    turned = write_video(tmp_path / "b.mp4", 3, size=(64, 160), rotation=degrees)
    with Video(str(upright)) as one, Video(str(turned)) as other:
        expected = np.rot90(one.read([2], WHOLE), degrees // 90, axes=(1, 2))
        assert np.array_equal(other.read([2], WHOLE), expected)
        assert other.read([2], SMALL).shape == ((1, 48, 120, 3) if degrees == 180 else (1, 120, 48, 3))


def test_frames_before_the_beginning_do_not_count(tmp_path: Path) -> None:
    """A film cut without encoding it again keeps the frames from the last key frame on, and says not to show them."""
    path, cut = write_video(tmp_path / "a.mp4", FRAMES, keys=12), tmp_path / "cut.mp4"
    with av.open(str(path)) as source, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        shift = 17 * round(1 / (30 * stream.time_base))
        for packet in source.demux(stream):
            if packet.size and packet.pts >= 12 * shift // 17:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                out.mux(packet)
    with Video(str(cut)) as video:
        assert len(video.index) == FRAMES - 17
    assert read(cut, [0, 1, 20, 42]) == [17, 18, 37, 59]


def test_frames_that_are_only_referred_to_do_not_count(tmp_path: Path) -> None:
    """VP8 may have frames that are never shown; here a copy of every third frame is one."""
    path, hidden = write_video(tmp_path / "a.webm", 20, codec="libvpx", keys=1, b_frames=0), tmp_path / "b.webm"
    with av.open(str(path)) as source, av.open(str(hidden), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.size and number % 3 == 0:
                content = bytearray(bytes(packet))
                content[0] &= ~0x10
                unseen = av.Packet(bytes(content))
                unseen.pts = unseen.dts = packet.pts - 2 if number else 0
                unseen.time_base, unseen.is_keyframe, unseen.stream = stream.time_base, True, copy
                out.mux(unseen)
            if packet.size:
                packet.pts = packet.dts = packet.pts + 1
                packet.stream = copy
                out.mux(packet)
    with Video(str(hidden)) as video:
        assert len(video.index) == 20
        assert not video.index.by_count
    assert read(hidden, [0, 3, 4, 7, 19]) == [0, 3, 4, 7, 19]


def test_an_index_is_made_once_and_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", FRAMES)
    with Video(str(path)) as video:
        index = video.index
    monkeypatch.setattr("leanconv.data.video.reader.scan", lambda *_: pytest.fail("searched again"))
    with Video(str(path), index) as video:
        assert video.index is index
        assert [number_of(frame) for frame in video.read([0, 40], SMALL)] == [0, 40]


def test_an_index_that_lies_is_found_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", FRAMES)
    with Video(str(path)) as video:
        index = video.index
    shifted = replace(index, stamps=[stamp + 1 for stamp in index.stamps])
    with Video(str(path), shifted) as video:
        with pytest.raises(WrongIndex):
            video.read([3, 50], SMALL)
        video.recount()
        assert [number_of(frame) for frame in video.read([3, 50], SMALL)] == [3, 50]
        assert video.index.by_count
    false_keys = replace(index, keys=tuple(range(FRAMES)))
    with Video(str(path), false_keys) as video:
        assert [number_of(frame) for frame in video.read([3, 50], SMALL)] == [3, 50]


def test_an_index_is_small_where_frames_are_evenly_spaced(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", FRAMES)
    container, stream = av.open(str(path)), None
    with container:
        stream = container.streams.video[0]
        index = scan(str(path), container, stream)
    assert isinstance(index.stamps, range)
    assert index.keys == (0, 12, 24, 36, 48)
    assert index.end * index.time_base == 2


def test_names_with_a_colon_and_frames_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "http:12.mp4", 5)
    monkeypatch.chdir(tmp_path)
    assert read(Path("http:12.mp4"), [4]) == [4]
    with Video("http:12.mp4") as video, pytest.raises(IndexError, match=r"\[5\] to \[5\] of 5 were asked for"):
        video.read([5], SMALL)


@pytest.mark.parametrize("frames", [1, 2, 7])
@pytest.mark.parametrize("name", ["a.mkv", "a.webm"])
def test_a_film_of_a_few_frames_is_whole(tmp_path: Path, name: str, frames: int) -> None:
    """What its header declares goes to the end of the last frame, not to its beginning."""
    how = {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}} if name == "a.webm" else {}
    path = write_video(tmp_path / name, frames, fps=10, **how)
    assert read(path, range(frames)) == list(range(frames))
