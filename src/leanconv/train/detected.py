"""The test of a detector: its average precision on images and their objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leanconv.dryrun import is_detector
from leanconv.elastic.net import ElasticNet
from leanconv.errors import DataError
from leanconv.intervals import Interval
from leanconv.modes import eval_mode
from leanconv.train.precision import AveragePrecision, coco_rows, scores_of
from leanconv.train.resampled import Matches, ap_interval, difference_interval, matched

__all__ = ["Detected", "Difference", "evaluate_answers", "evaluate_detector", "has_masks"]


@dataclass(frozen=True, kw_only=True)
class Detected:
    """A test of a detector: `scores` from 0 to 1 by the names of `AveragePrecision`, over `images`.

    `image_ids` are those that this process tested, `answers` what was found in each, as rows of `coco_rows`, and
    `matches` what the answers for the images of all processes matched, by "box" and "mask".
    """

    images: int
    scores: dict[str, float]
    image_ids: tuple[int, ...] = field(repr=False, default=())
    answers: tuple[list[dict[str, Any]], ...] = field(repr=False, default=())
    matches: dict[str, Matches] = field(repr=False, default_factory=dict)

    @property
    def box_ap(self) -> float:
        """Average precision of boxes over intersections of .50 to .95."""
        return self.scores["box_ap"]

    @cached_property
    def intervals(self) -> dict[str, Interval | None]:
        """The 95 % intervals of box_ap, box_ap50, mask_ap and mask_ap50, see `train.resampled`."""
        found = {kind: ap_interval(matches) for kind, matches in self.matches.items()}
        return {f"{kind}_{name}": one for kind, of in found.items() for name, one in of.items()}

    def above(self, first: Detected) -> dict[str, Difference]:
        """How much higher the APs are than those of `first` on the same images, with 95 % intervals for pairs.

        Raises `DataError` for a test on other images.
        """
        if self.image_ids != first.image_ids:
            raise DataError(
                f"one was tested on {first.images} images and the other on {self.images}, or on others: name the same"
            )
        found = {}
        for kind in self.matches.keys() & first.matches.keys():
            for name, interval in difference_interval(first.matches[kind], self.matches[kind]).items():
                key = f"{kind}_{name}"
                found[key] = Difference(self.scores[key] - first.scores[key], interval)
        return found


class Difference(NamedTuple):
    """A difference of two APs and its 95 % interval; None where too few draws of images have an object."""

    value: float
    interval: Interval | None


def evaluate_detector(net: nn.Module, loader: Iterable[Any]) -> Detected:
    """The average precision of `net`, in the configuration in force, on batches of images and their objects.

    On its own device, in evaluation mode. In a distributed run all processes call it, each with its share of the
    images. Raises `DataError` for a loader without images.
    """
    masks = has_masks(net)

    def answered() -> Iterator[tuple[list[list[dict[str, Any]]], Any]]:
        with eval_mode(net) as device:
            for images, targets in loader:
                yield [coco_rows(one, masks=masks) for one in net(_on_device(images, device))], targets

    return evaluate_answers(answered(), masks=masks)


def evaluate_answers(answered: Iterable[tuple[list[list[dict[str, Any]]], Any]], *, masks: bool) -> Detected:
    """The same of answers that are there already, as rows of `coco_rows`: batches of them with the objects."""
    precision = AveragePrecision(masks=masks)
    answers: list[list[dict[str, Any]]] = []
    ids: list[int] = []
    for rows, targets in answered:
        precision.add_rows(rows, targets)
        answers += rows
        ids += (int(target["image_id"]) if "image_id" in target else len(ids) for target in targets)
    if not precision.images:
        raise DataError("there are no images to evaluate on: the loader is empty")
    every = precision.rows
    matches = {"box": matched(every, "bbox"), **({"mask": matched(every, "segmentation")} if masks else {})}
    return Detected(
        images=precision.images,
        scores=scores_of(every, masks=masks),
        image_ids=tuple(ids),
        answers=tuple(answers),
        matches=matches,
    )


def _on_device(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The images, each moved."""
    return [image.to(device) for image in images]


def has_masks(net: nn.Module) -> bool:
    """Whether a detector gives masks."""
    model: Any = net.model if isinstance(net, ElasticNet) else net
    return is_detector(model) and bool(model.roi_heads.has_mask())
