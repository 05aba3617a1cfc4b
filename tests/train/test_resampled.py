"""Intervals of average precision: a draw counted from matches is the evaluator's number on the drawn images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from detections import by_pycocotools, scene
from leanconv.train.precision import AveragePrecision
from leanconv.train.resampled import ap_interval, difference_interval, draws, matched, resampled_ap


def rows_of(found: Any, targets: Any) -> Any:
    precision = AveragePrecision(masks=True)
    precision.add(found, targets)
    return precision.rows


@pytest.mark.parametrize(("by", "kind"), [("bbox", "bbox"), ("segmentation", "segm")])
def test_a_draw_counts_as_the_evaluator_on_the_drawn_images(by: str, kind: str) -> None:
    found, targets = scene(5)
    matches = matched(rows_of(found, targets), by)
    times = np.concatenate([np.ones((1, len(found)), np.int64), draws(len(found), count=4, seed=3)])
    ours = resampled_ap(matches, times)
    for drawn, mine in zip(times, ours, strict=True):
        order = np.repeat(np.arange(len(found)), drawn)
        stats = by_pycocotools([found[i] for i in order], [targets[i] for i in order], kind)
        assert mine.mean() == pytest.approx(stats[0], abs=1e-9)
        assert mine[0] == pytest.approx(stats[1], abs=1e-9)
        assert mine[5] == pytest.approx(stats[2], abs=1e-9)


def test_intervals_hold_the_value_and_pairs_tell_more() -> None:
    found, targets = scene(0, images=40)
    worse = [{**one, "boxes": one["boxes"] * 1.03} for one in found]
    better, second = (matched(rows_of(answers, targets), "bbox") for answers in (found, worse))
    whole = [float(resampled_ap(m, np.ones((1, 40), np.int64)).mean()) for m in (better, second)]
    intervals = [ap_interval(m)["ap"] for m in (better, second)]
    for value, interval in zip(whole, intervals, strict=True):
        assert interval is not None
        assert interval.low < value < interval.high
    assert intervals[0].low < intervals[1].high  # type: ignore[union-attr]  # they overlap,
    difference = difference_interval(better, second)["ap"]
    assert difference is not None
    assert difference.low < whole[1] - whole[0] < difference.high < 0  # and the pairs are told apart
    assert difference_interval(better, better)["ap"] == (0.0, 0.0)
    assert ap_interval(better) == ap_interval(better)


def test_images_without_objects_have_no_average_precision() -> None:
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    more = {"iscrowd": torch.zeros(0), "area": torch.zeros(0), "masks": torch.zeros(0, 8, 8)}
    answer = {**empty, "scores": torch.zeros(0), "masks": torch.zeros(0, 1, 8, 8)}
    matches = matched(rows_of([answer] * 3, [{**empty, **more}] * 3), "bbox")
    assert ap_interval(matches) == {"ap": None, "ap50": None}
