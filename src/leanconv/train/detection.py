"""The task of a detector: training that is tested by average precision after every epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from leanconv.errors import LeanconvError
from leanconv.train.detected import has_masks
from leanconv.train.precision import AveragePrecision
from leanconv.train.settings import FitSettings
from leanconv.train.tasks import Task

__all__ = ["DetectionTask"]


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
