"""How sure an average precision is: that of images drawn anew from those of the test, a thousand times (the bootstrap).

Which answers match which objects does not depend on the other images, so it is found once, and a draw only says how
often each image counts. Accumulated from that, AP is the number that the evaluator gives on the drawn images; a test
holds it to that. Two detectors are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.errors import DataError, need
from leanconv.intervals import Interval

__all__ = ["DRAWS", "Matches", "ap_interval", "difference_interval", "draws", "matched", "resampled_ap"]

DRAWS = 1000
"""Sets of images that an interval is taken from; its ends are the 2.5 % and the 97.5 % of their APs."""

_TOGETHER = 100  # draws that are accumulated at once
_MOST = 100  # answers for a class in an image that count, as in COCO
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)

Row = Mapping[str, Any]
_Part = tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]
"""Of one image: scores, right, left out, and its number, once for each answer."""


@dataclass(frozen=True)
class _OfClass:
    """The answers of one class in all images, the surest first.

    image (d,): in which image; right and left_out (10, d): whether it matches an object, or a crowd, at each threshold;
    objects (images,): how many there are to be found.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    left_out: NDArray[np.bool_]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """What the answers for `images` images matched, class by class."""

    images: int
    classes: tuple[_OfClass, ...]


def matched(images: Sequence[tuple[Sequence[Row], Sequence[Row]]], by: str) -> Matches:
    """Match answers with objects as COCO does, by "bbox" or by "segmentation"; each image is (objects, answers).

    At each threshold the surest answer takes the object that it overlaps most, of those that are left.
    Raises `MissingExtra` without faster-coco-eval.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise need("faster-coco-eval", "detect", "average precision") from error
    labels = sorted({row["category_id"] for pair in images for row in pair[0]})  # others have no precision
    parts: dict[Any, list[_Part]] = {label: [] for label in labels}
    objects = {label: np.zeros(len(images), np.int64) for label in labels}
    for number, (wanted, answered) in enumerate(images):
        truth_of, answers_of = _by_label(wanted), _by_label(answered)
        for label in truth_of.keys() | (answers_of.keys() & objects.keys()):
            truth, answers = truth_of.get(label, []), answers_of.get(label, [])
            crowd = np.array([bool(row.get("iscrowd", 0)) for row in truth], np.bool_)
            objects[label][number] = len(truth) - crowd.sum()
            if not answers:
                continue
            answers = sorted(answers, key=lambda row: -row["score"])[:_MOST]
            right = left_out = np.zeros((len(THRESHOLDS), len(answers)), np.bool_)
            if truth:
                overlap = np.asarray(mask.iou([row[by] for row in answers], [row[by] for row in truth], list(crowd)))
                right, left_out = _match(overlap.reshape(len(answers), len(truth)), crowd)
            scores = np.array([row["score"] for row in answers])
            parts[label].append((scores, right, left_out, np.full(len(scores), number)))
    return Matches(len(images), tuple(_joined(parts[label], objects[label]) for label in labels))


def _by_label(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row["category_id"], []).append(row)
    return found


def _joined(parts: Sequence[_Part], objects: NDArray[np.int64]) -> _OfClass:
    none = np.zeros((len(THRESHOLDS), 0), np.bool_)
    scores = np.concatenate([np.zeros(0), *(part[0] for part in parts)])
    order = np.argsort(-scores, kind="stable")
    image = np.concatenate([np.zeros(0, np.int64), *(part[3] for part in parts)])
    right = np.concatenate([none, *(part[1] for part in parts)], axis=1)
    left_out = np.concatenate([none, *(part[2] for part in parts)], axis=1)
    return _OfClass(image[order], right[:, order], left_out[:, order], objects)


def _match(overlap: NDArray[Any], crowd: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Overlaps (answers, objects) to whether an answer is right, and whether it is left out, at each threshold."""
    levels = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    shape = (len(THRESHOLDS), len(overlap))
    right, left_out = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    taken = np.zeros((len(THRESHOLDS), len(crowd)), np.bool_)
    rows = np.arange(len(THRESHOLDS))
    for place, mine in enumerate(overlap):
        if mine.max() < THRESHOLDS[0]:
            continue
        fits = (mine[None] >= levels) & ~crowd & ~taken
        hit = fits.any(1)
        best = np.where(fits, mine, -1.0)
        last = best.shape[1] - 1 - best[:, ::-1].argmax(1)  # of equal ones the last
        right[hit, place] = True
        taken[rows[hit], last[hit]] = True
        left_out[:, place] = ~hit & ((mine[None] >= levels) & crowd).any(1)  # a crowd may be met any number of times
    return right, left_out


def draws(images: int, *, count: int = DRAWS, seed: int = 0) -> NDArray[np.int32]:
    """How often each image is in each of `count` draws of as many with replacement, (count, images)."""
    if images < 1 or count < 1:
        raise DataError(f"nothing can be drawn: {images} images, {count} times")
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)
    return drawn.astype(np.int32)


def resampled_ap(matches: Matches, times: NDArray[Any]) -> NDArray[np.float64]:
    """AP at each of the ten thresholds, (draws, 10), where image i counts times[:, i] times; NaN without objects.

    >>> truth = [{"category_id": 1, "bbox": [0, 0, 4, 4]}]
    >>> right = [{"category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.9}]
    >>> resampled_ap(matched([(truth, right), (truth, [])], "bbox"), np.array([[1, 1], [2, 0]]))[:, 0].round(3)
    array([0.505, 1.   ])
    """
    return np.concatenate(
        [_accumulated(matches, part) for part in np.split(times, range(_TOGETHER, len(times), _TOGETHER))]
    )


def _accumulated(matches: Matches, times: NDArray[Any]) -> NDArray[np.float64]:
    total, present = np.zeros((len(times), len(THRESHOLDS))), np.zeros(len(times))
    for one in matches.classes:
        wanted = times @ one.objects
        present += wanted > 0
        weights = times[:, one.image]
        seen = weights.cumsum(1, dtype=np.int32)
        for level in range(len(THRESHOLDS)):
            hits = np.flatnonzero(one.right[level])
            if not len(hits):
                continue
            right, answers = weights[:, hits].cumsum(1), seen[:, hits]
            out = np.flatnonzero(one.left_out[level])
            if len(out):
                before = np.pad(weights[:, out].cumsum(1), ((0, 0), (1, 0)))
                answers = answers - before[:, np.searchsorted(out, hits)]
            # Precision and recall change for the better at right answers alone, so these are all that is looked at.
            precision = right / np.maximum(answers, 1)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = right / np.maximum(wanted, 1)[:, None]
            reached = np.searchsorted(RECALLS, recall, side="right")
            steps = np.diff(reached, axis=1, prepend=0)
            total[:, level] += np.where(wanted > 0, (envelope * steps).sum(1) / len(RECALLS), 0.0)
    with np.errstate(invalid="ignore"):
        return np.where(present[:, None] > 0, total / present[:, None], np.nan)


def ap_interval(matches: Matches, *, seed: int = 0) -> dict[str, Interval | None]:
    """The 95 % intervals of "ap" and "ap50"; None where too few draws have an object."""
    found = resampled_ap(matches, draws(matches.images, seed=seed))
    return {"ap": _interval(found.mean(1)), "ap50": _interval(found[:, 0])}


def difference_interval(first: Matches, second: Matches, *, seed: int = 0) -> dict[str, Interval | None]:
    """The 95 % intervals of how much higher "ap" and "ap50" of `second` are, on the same draws of the same images.

    Raises `DataError` for tests on other numbers of images.
    """
    if first.images != second.images:
        raise DataError(f"pairs are of the same images, and these are {first.images} and {second.images}")
    drawn = draws(first.images, seed=seed)
    one, other = resampled_ap(first, drawn), resampled_ap(second, drawn)
    return {"ap": _interval(other.mean(1) - one.mean(1)), "ap50": _interval(other[:, 0] - one[:, 0])}


def _interval(values: NDArray[np.float64]) -> Interval | None:
    known = values[~np.isnan(values)]
    if len(known) < len(values) / 2:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(float(low), float(high))
