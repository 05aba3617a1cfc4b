"""Which frames and which pixels a clip is made of: the formulas, in plain integers."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.data.video.clips import (
    Clock,
    centre_start,
    clip_slots,
    crop_offsets,
    drawn_start,
    scaled,
    span,
    uniform_starts,
)
from leanconv.seeds import generator


def test_a_clip_spans_what_the_paper_says() -> None:
    assert span(32, 2) == 63  # "required frames R = (L - 1) * rate + 1"
    assert list(clip_slots(3, 8, 2)) == [3, 5, 7, 9, 11, 13, 15, 17]
    assert list(clip_slots(3, 1, 8)) == [3]


@given(total=st.integers(63, 10_000), clips=st.integers(2, 30))
def test_clips_are_spread_over_the_whole_video(total: int, clips: int) -> None:
    starts = uniform_starts(total, 63, clips)
    assert starts == [floor(Fraction(index * (total - 63), clips - 1)) for index in range(clips)]
    assert (starts[0], starts[-1] + 62) == (0, total - 1)


def test_one_clip_starts_at_the_beginning_and_a_video_just_long_enough_has_one_clip() -> None:
    assert uniform_starts(300, 63, 1) == [0]
    assert uniform_starts(63, 63, 10) == [0] * 10
    assert (centre_start(63, 63), centre_start(300, 63), centre_start(16, 15)) == (0, 118, 0)


def test_training_starts_are_uniform_over_all_that_fit() -> None:
    draws = generator("starts")
    counts = torch.bincount(torch.tensor([drawn_start(20, 15, draws) for _ in range(6000)]))
    assert len(counts) == 6  # 0 to 5
    assert (counts.float() / 6000 - 1 / 6).abs().max() < 0.02


def test_sizes_keep_the_aspect_ratio() -> None:
    assert scaled(240, 320, 256) == (256, 341)
    assert scaled(320, 240, 256) == (341, 256)
    assert scaled(100, 100, 7) == (7, 7)
    assert scaled(2160, 3840, 128) == (128, 228)


def test_crops_along_the_longer_side() -> None:
    wide, tall = (256, 341), (341, 256)
    assert crop_offsets(*wide, 256, 3) == [(0, 0), (0, 42), (0, 85)]  # j * (341 - 256) / 2, in whole numbers
    assert crop_offsets(*tall, 256, 3) == [(0, 0), (42, 0), (85, 0)]
    assert crop_offsets(*wide, 224, 3) == [(16, 0), (16, 58), (16, 117)]
    assert crop_offsets(*wide, 224, 1) == [(16, 58)]
    assert crop_offsets(256, 256, 256, 3) == [(0, 0)] * 3


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(1, 200), min_size=1, max_size=30),
    first=st.integers(-500, 500),
    fps=st.sampled_from([Fraction(30), Fraction(25), Fraction(15), Fraction(30000, 1001)]),
    unit=st.sampled_from([Fraction(1, 1000), Fraction(1, 600), Fraction(1001, 30000)]),
)
def test_a_varying_rate_is_put_on_the_common_clock(steps: list[int], first: int, fps: Fraction, unit: Fraction) -> None:
    stamps = [first]
    for step in steps:
        stamps.append(stamps[-1] + step)
    clock = Clock(stamps[:-1], stamps[-1], unit, fps)
    # By hand: what is on the screen is the last frame whose time, rounded to the nearest slot, has come.
    due = [floor((stamp - first) * unit * fps + Fraction(1, 2)) for stamp in stamps[:-1]]
    slots = range(0, len(clock), 1 + len(clock) // 200)
    assert clock.frames(slots) == [max(number for number, at in enumerate(due) if at <= slot) for slot in slots]
    assert abs(len(clock) - (stamps[-1] - first) * unit * fps) <= max(Fraction(1, 2), 1 - (stamps[-1] - first) * unit)


@pytest.mark.parametrize("ticks", [1, 512, 1001])
def test_a_video_that_has_the_rate_keeps_its_frames(ticks: int) -> None:
    clock = Clock(range(7, 7 + 300 * ticks, ticks), 7 + 300 * ticks, Fraction(1, 30 * ticks), Fraction(30))
    assert clock.frames(range(len(clock))) == list(range(300))


def test_stamps_rounded_to_milliseconds_keep_their_frames() -> None:
    stamps = [round(1000 * number / 30) for number in range(300)]
    clock = Clock(stamps, 10_000, Fraction(1, 1000), Fraction(30))
    assert clock.frames(range(len(clock))) == list(range(300))


def test_other_rates_drop_and_repeat() -> None:
    def at(rate: int, fps: int | None) -> list[int]:
        clock = Clock(range(rate), rate, Fraction(1, rate), None if fps is None else Fraction(fps))
        return clock.frames(range(len(clock)))

    assert at(60, 30) == list(range(0, 60, 2))
    assert at(15, 30) == [number // 2 for number in range(30)]
    assert len(at(24, 30)) == len(at(25, 30)) == len(at(50, 30)) == 30
    assert at(50, None) == list(range(50))
