"""The test of a detector: its average precision on images and their objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.dryrun import is_detector
from leanconv.elastic.net import ElasticNet
from leanconv.errors import DataError
from leanconv.modes import eval_mode
from leanconv.train.precision import AveragePrecision

__all__ = ["Detected", "evaluate_detector", "has_masks"]


@dataclass(frozen=True, kw_only=True)
class Detected:
    """A test of a detector: `scores` from 0 to 1 by the names of `AveragePrecision`, over `images`.

    `found` are the answers for every image, in order, masks left out.
    """

    images: int
    scores: dict[str, float]
    found: tuple[dict[str, Tensor], ...] = field(repr=False, default=())

    @property
    def box_ap(self) -> float:
        """Average precision of boxes over intersections of .50 to .95."""
        return self.scores["box_ap"]


def evaluate_detector(net: nn.Module, loader: Iterable[Any]) -> Detected:
    """The average precision of `net`, in the configuration in force, on batches of images and their objects.

    On its own device, in evaluation mode. In a distributed run all processes call it, each with its share of the
    images. Raises `DataError` for a loader without images.
    """
    precision = AveragePrecision(masks=has_masks(net))
    answers: list[dict[str, Tensor]] = []
    with eval_mode(net) as device:
        for images, targets in loader:
            found = net(_on_device(images, device))
            precision.add(found, targets)
            answers += ({name: one[name].cpu() for name in ("boxes", "labels", "scores")} for one in found)
    if not precision.images:
        raise DataError("there are no images to evaluate on: the loader is empty")
    return Detected(images=precision.images, scores=precision.scores(), found=tuple(answers))


def _on_device(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The images, each moved."""
    return [image.to(device) for image in images]


def has_masks(net: nn.Module) -> bool:
    """Whether a detector gives masks."""
    model: Any = net.model if isinstance(net, ElasticNet) else net
    return is_detector(model) and bool(model.roi_heads.has_mask())
