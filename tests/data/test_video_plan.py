"""What will be read of a video, planned from its index alone: no file is there, and no decoder."""

from __future__ import annotations

import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from leanconv.data.video.augment import CentreClip, ClipShape, DrawnClip, SpreadClips
from leanconv.data.video.index import VideoIndex
from leanconv.data.video.plan import ClipPlan, Framing, Window, plan_seeks
from leanconv.errors import DataError
from leanconv.seeds import generator

SHAPE = ClipShape(frames=8, rate=2, resolution=48, fps=Fraction(30))


@pytest.fixture(autouse=True)
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)


def index_of(frames: int) -> VideoIndex:
    """The index of a file of so many frames, 30 a second."""
    return VideoIndex(stamps=range(frames), end=frames, time_base=Fraction(1, 30), keys=(0,))


def test_starts_short_sides_and_crops_are_drawn_from_their_ranges() -> None:
    draws, index = generator("clips"), index_of(20)
    plans = [DrawnClip(SHAPE, (48, 60), mirror=True).plan(index, draws) for _ in range(3000)]
    starts = Counter(plan.frames[0] for plan in plans)
    windows = [plan.framing.window(60, 120) for plan in plans]
    sides = Counter(window.height for window in windows)
    assert sorted(starts) == list(range(6))
    assert {plan.frames for plan in plans} == {tuple(range(start, start + 15, 2)) for start in range(6)}
    assert sorted(sides) == list(range(48, 61))  # "uniformly sampled": every length, and equally often
    assert max(abs(count - 3000 / 13) for count in sides.values()) < 75
    for window in windows:
        assert (window.width, window.rows, window.columns) == (2 * window.height, 48, 48)
        assert 0 <= window.top <= window.height - 48
        assert 0 <= window.left <= window.width - 48
    largest = [window for window in windows if window.height == 60]
    assert {window.top for window in largest} == set(range(13))
    assert (min(window.left for window in largest), max(window.left for window in largest)) == (0, 72)
    assert 1400 <= sum(plan.mirror for plan in plans) <= 1600
    assert not any(DrawnClip(SHAPE, (48, 60), mirror=False).plan(index, draws).mirror for _ in range(50))


def test_the_centre_clip_draws_nothing() -> None:
    draws = generator("clips")
    before = draws.get_state()
    plan = CentreClip(SHAPE, short_side=60).plan(index_of(40), draws)
    assert plan == ClipPlan(tuple(range(12, 27, 2)), Framing(60, 48))  # (40 - 15) // 2
    assert torch.equal(draws.get_state(), before)
    assert plan.framing.window(60, 101) == Window(60, 101, 6, 26, 48, 48)
    assert plan.framing.window(120, 240) == Window(60, 120, 6, 36, 48, 48)  # whatever the size of the frames is


def test_frames_that_clips_share_are_read_once() -> None:
    plan = SpreadClips(SHAPE, short_side=60, clips=5, crops=3).plan(index_of(20), generator())
    starts = [index * 5 // 4 for index in range(5)]
    assert plan.frames == tuple(sorted({start + step for start in starts for step in range(0, 15, 2)}))
    assert [[plan.frames[place] for place in clip] for clip in plan.clips] == [
        list(range(start, start + 15, 2)) for start in starts
    ]
    assert (plan.framing, plan.crops, plan.side) == (Framing(60), 3, 60)
    assert SpreadClips(SHAPE, short_side=60, clips=5, crops=1).plan(index_of(20), generator()).side == 48


def test_what_was_read_becomes_what_was_planned() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 6, 10, 3), dtype=np.uint8)
    first = torch.from_numpy(frames).permute(3, 0, 1, 2)
    framing = Framing(None)
    assert torch.equal(ClipPlan((0, 1, 2, 3), framing).arranged(frames), first)
    assert torch.equal(ClipPlan((0, 1, 2, 3), framing, mirror=True).arranged(frames), first.flip(-1))
    several = ClipPlan((0, 1, 2, 3), framing, clips=((0, 2), (1, 3)), crops=3, side=6).arranged(frames)
    assert several.shape == (6, 3, 2, 6, 6)
    for clip, places in enumerate(([0, 2], [1, 3])):
        for crop, left in enumerate((0, 2, 4)):
            assert torch.equal(several[3 * clip + crop], first[:, places, :, left : left + 6])


def test_a_file_without_enough_frames_has_no_plan() -> None:
    for choice in (DrawnClip(SHAPE, (48, 60), True), CentreClip(SHAPE, 48), SpreadClips(SHAPE, 48, 2, 1)):
        with pytest.raises(DataError, match="too short, 14 frames at 30 per second, and a clip of 8 frames at rate 2"):
            choice.plan(index_of(14), generator())
        assert len(choice.plan(index_of(15), generator()).frames) == 8


def test_seeks_are_planned_to_the_last_key_frame_before() -> None:
    keys = [0, 100, 200]
    assert plan_seeks([0, 2], keys) == [(0, (0, 2))]
    assert plan_seeks([150, 160, 210], keys) == [(100, (150, 160)), (200, (210,))]
    assert plan_seeks([98, 101, 103], keys) == [(0, (98, 101, 103))]  # as good as there: no seek
    assert plan_seeks([250], keys) == [(200, (250,))]
