"""Runs on the embedded handwritten digits, small enough for a laptop's CPU."""

from __future__ import annotations

from leanconv.recipes.settings import DataSettings, ElasticSettings, Recipe
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = ["demo", "digits_resnet20"]

_DIGITS = DataSettings(spec="digits", resolution=32, augment="shift", batch_size=32)


def demo() -> Recipe:
    """An elastic ResNet-20 on the digits by mutual learning: one network from 20 to 32 pixels and 25 to 100 % width."""
    return Recipe(
        name="demo",
        note="elastic ResNet-20 on the embedded digits: any width from 25 %, any resolution from 20 (2 minutes)",
        model="resnet20",
        elastic=ElasticSettings(widths=(0.25, 1.0), resolutions=(32, 28, 24, 20), divisor=4, calibration_images=1024),
        data=_DIGITS,
        epochs=10,
        optim=OptimSettings(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleSettings("cosine", warmup_epochs=1),
    )


def digits_resnet20() -> Recipe:
    """A plain ResNet-20 on the digits, the smallest run there is."""
    return Recipe(
        name="digits_resnet20",
        note="ResNet-20 on the embedded digits, the smallest run there is",
        model="resnet20",
        data=_DIGITS,
        epochs=10,
        optim=OptimSettings(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleSettings("cosine", warmup_epochs=1),
    )
