"""Average precision of boxes and masks as COCO computes it, by torchmetrics with faster-coco-eval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import need
from leanconv.ranks import rank_and_world

__all__ = ["SCORES", "AveragePrecision"]

SCORES = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "ap_small": "map_small",
    "ap_medium": "map_medium",
    "ap_large": "map_large",
    "recall": "mar_100",
}
"""Our names and torchmetrics'; `ap` is the mean over intersections of .50, .55 to .95, `recall` that of 100 answers."""


class AveragePrecision:
    """Collects detections and objects, and computes the scores of boxes and, with `masks`, of masks.

    In a distributed run every process adds its images, and all compute the scores of all of them.
    Raises `MissingExtra` without torchmetrics or faster-coco-eval.
    """

    def __init__(self, *, masks: bool) -> None:
        try:
            import faster_coco_eval  # noqa: F401
        except ImportError as error:
            raise need("faster-coco-eval", "detect", "average precision") from error
        try:
            from torchmetrics.detection import MeanAveragePrecision
        except ImportError as error:
            raise need("torchmetrics", "detect", "average precision") from error
        self.masks, self.images = masks, 0
        kinds: Any = ("bbox", "segm") if masks else ("bbox",)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # It would gather image by image, for which every process must have as many.
            self._metric = MeanAveragePrecision(iou_type=kinds, backend="faster_coco_eval", sync_on_compute=False)
            self._metric.warn_on_many_detections = False

    def add(self, found: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]]) -> None:
        """What was found in some images, and what is in them; masks are shares (n, 1, h, w), cut at a half."""
        self._metric.update([self._answer(one) for one in found], [self._object(one) for one in targets])
        self.images += len(targets)

    def scores(self) -> dict[str, float]:
        """`box_ap`, `box_ap50`, ... and `mask_ap`, ...; one that nothing can be said of (no small objects) is NaN."""
        mine = {name: getattr(self._metric, name) for name in self._metric._defaults}
        for name, of_all in _of_all(mine).items():
            setattr(self._metric, name, of_all)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = self._metric.compute()
        finally:
            for name, before in mine.items():
                setattr(self._metric, name, before)
            self._metric._computed = None
        kinds = {"box": "bbox_", "mask": "segm_"} if self.masks else {"box": ""}
        found = {
            f"{kind}_{ours}": float(values[f"{before}{theirs}"])
            for kind, before in kinds.items()
            for ours, theirs in SCORES.items()
        }
        return {name: value if value >= 0 else float("nan") for name, value in found.items()}

    def _answer(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        plain = {name: found[name].detach().cpu() for name in ("boxes", "labels", "scores")}
        plain["scores"] = plain["scores"].float()
        if self.masks:
            plain["masks"] = (
                (found["masks"].detach() > 0.5).flatten(0, 1).cpu() if len(found["boxes"]) else _none(found)
            )
        return plain

    def _object(self, target: dict[str, Tensor]) -> dict[str, Tensor]:
        names = ("boxes", "labels", "iscrowd", "area", *(("masks",) if self.masks else ()))
        plain = {name: target[name].detach().cpu() for name in names}
        if self.masks:
            plain["masks"] = plain["masks"].bool()
        return plain


def _of_all(mine: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The lists of all processes, one behind the other."""
    world = rank_and_world()[1]
    if world == 1:
        return mine
    parts: list[Any] = [None] * world
    torch.distributed.all_gather_object(parts, mine)
    return {name: [item for part in parts for item in part[name]] for name in mine}


def _none(found: dict[str, Tensor]) -> Tensor:
    return torch.zeros(0, *found["masks"].shape[-2:], dtype=torch.bool)
