"""A property of videos: however a file stores its frames, those that are asked for are those that come."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tiny_videos import number_of, write_video

from leanconv.data.video.clips import Clock, clip_slots, span
from leanconv.data.video.plan import Framing
from leanconv.data.video.reader import Video
from random_trials import tried

FILES: list[dict[str, Any]] = [
    {"suffix": "mp4"}, {"suffix": "mkv"}, {"suffix": "mov"}, {"suffix": "ts", "muxer": "mpegts"},
    {"suffix": "avi"}, {"suffix": "avi", "codec": "mpeg4"}, {"suffix": "mp4", "codec": "mpeg4"},
    {"suffix": "mkv", "codec": "libx265"}, {"suffix": "mp4", "container": {"movflags": "frag_keyframe+empty_moov"}},
    {"suffix": "webm", "codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    {"suffix": "h264", "muxer": "h264"},
]  # fmt: skip
TIMED = ("mp4", "mkv", "mov", "ts", "webm")
"""Suffixes of containers that keep a time for each frame; the others have a constant rate."""
RATES = [*map(Fraction, (10, 15, 25, 30, 50)), Fraction(24000, 1001), Fraction(30000, 1001)]


@st.composite
def films(draw: st.DrawFn) -> dict[str, Any]:
    """What `write_video` is told, and the suffix of the file."""
    film = {"keys": draw(st.sampled_from((1, 5, 12, 250))), "b_frames": draw(st.integers(0, 3))}
    film |= draw(st.sampled_from(FILES))
    # Of a transport stream or of bare pictures FFmpeg wants more than a few before it knows what they are.
    film["frames"] = draw(st.integers(20 if film["suffix"] in ("ts", "h264") else 1, 60))
    film["fps"] = draw(st.sampled_from(RATES))
    film["size"] = (draw(st.sampled_from((32, 48, 66))), draw(st.sampled_from((80, 160, 202))))
    if film["suffix"] in TIMED and draw(st.booleans()):
        steps = draw(st.lists(st.integers(20, 120), min_size=film["frames"], max_size=film["frames"]))
        film["stamps"] = [0, *accumulate(steps)][: film["frames"]]
    return film


@tried(48, "LEANCONV_FILES", share=0.25)
@given(film=films(), data=st.data())
def test_the_frames_that_are_asked_for_come(film: dict[str, Any], data: st.DataObject) -> None:
    film = dict(film)
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / f"film.{film.pop('suffix')}", **film)
        with Video(str(path)) as video:
            assert len(video.index) == film["frames"]
            numbers = st.lists(st.integers(0, film["frames"] - 1), min_size=1, max_size=8)
            for asked in data.draw(st.lists(numbers, min_size=1, max_size=3)):
                small = video.read(asked, Framing(short_side=32))
                assert [number_of(frame) for frame in small] == asked
            whole = video.read(range(film["frames"]), Framing(short_side=None))
            assert np.array_equal(video.read(asked, Framing(short_side=None)), whole[asked])
            if (stamps := film.get("stamps")) is None:
                return
            # A clip at another rate shows, in each slot, the last frame that is due by then, whatever the container.
            rate, length, step = data.draw(st.sampled_from((10, 25, 30))), 4, data.draw(st.integers(1, 3))
            clock = Clock(video.index.stamps, video.index.end, video.index.time_base, Fraction(rate))
            due = [(2 * stamp * rate + 1000) // 2000 for stamp in stamps]
            latest = due[-1] + 1 - span(length, step)
            if latest >= 0:
                start = data.draw(st.integers(0, latest))
                slots = range(start, start + length * step, step)
                wanted = [max(n for n in range(film["frames"]) if due[n] <= slot) for slot in slots]
                assert clock.frames(clip_slots(start, length, step)) == wanted
