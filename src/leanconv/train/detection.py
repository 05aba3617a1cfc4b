"""The task of a detector, tested by average precision after every epoch, and its test on its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.elastic.detector import is_detector
from leanconv.elastic.net import ElasticNet
from leanconv.errors import DataError, LeanconvError
from leanconv.modes import eval_mode
from leanconv.train.precision import AveragePrecision
from leanconv.train.settings import FitSettings
from leanconv.train.tasks import Task

__all__ = ["Detected", "DetectionTask", "evaluate_detector", "has_masks", "on_device"]


class DetectionTask(Task):
    """As `Task`, on images of any sizes with their objects. `val_accuracy` is the average precision of boxes."""

    precision: AveragePrecision

    def __init__(self, objective: nn.Module, settings: FitSettings, batches: int) -> None:
        if settings.train_sample:
            raise LeanconvError(
                "train_sample is a share of right answers, and detectors are tested by AP: leave it out"
            )
        super().__init__(objective, settings, batches)

    def on_validation_epoch_start(self) -> None:
        self.precision = AveragePrecision(masks=has_masks(self.objective.net))  # type: ignore[arg-type]

    def validation_step(self, batch: Any, number: int, dataloader_idx: int = 0) -> None:
        images, targets = batch
        self.precision.add(self.objective.predict(images), targets)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        for name, value in self.precision.scores().items():
            if name.partition("_")[2] in ("ap", "ap50"):
                self.log(f"val_{name}", torch.tensor(value, dtype=torch.float64), logger=False)
                if name == "box_ap":  # all processes have the same
                    value = 0.0 if value != value else value
                    self.log("val_accuracy", torch.tensor(value, dtype=torch.float64), logger=False)

    def test_row(self, metrics: dict[str, float]) -> dict[str, float]:
        """The average precisions; an interval is not known for them."""
        names = [f"val_{kind}_{score}" for kind in ("box", "mask") for score in ("ap", "ap50")]
        return {"val_accuracy": metrics["val_accuracy"], **{name: metrics[name] for name in names if name in metrics}}

    def told(self, row: dict[str, float]) -> str:
        """Boxes and masks, each AP and AP at an intersection of a half."""
        kinds = [kind for kind in ("box", "mask") if f"val_{kind}_ap" in row]
        return ", ".join(
            f"{kind} AP {100 * row[f'val_{kind}_ap']:.1f} ({100 * row[f'val_{kind}_ap50']:.1f})" for kind in kinds
        )


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
            found = net(on_device(images, device))
            precision.add(found, targets)
            answers += ({name: one[name].cpu() for name in ("boxes", "labels", "scores")} for one in found)
    if not precision.images:
        raise DataError("there are no images to evaluate on: the loader is empty")
    return Detected(images=precision.images, scores=precision.scores(), found=tuple(answers))


def on_device(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The images, each moved."""
    return [image.to(device) for image in images]


def has_masks(net: nn.Module) -> bool:
    """Whether a detector gives masks."""
    model: Any = net.model if isinstance(net, ElasticNet) else net
    return is_detector(model) and bool(model.roi_heads.has_mask())
