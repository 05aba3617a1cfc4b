"""MutualNet's journal version: Slow-only, SlowFast and X3D on Kinetics-400, elastic in width, resolution and frames.

Its text was not at hand, so widths, frames and the sizes of the table are ours, and the optimisation is that of the
papers that the networks are from, as far as we know it: from scratch, 256 epochs of a half cosine after a linear
warm-up of 34 (X3D 35), SGD with Nesterov momentum .9, 1024 clips a step at a rate of 1.6, half of the features dropped,
no decay on BatchNorm; shorter sides of 256 to 320, crops of 224, tests of 10 clips x 3 crops of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from leanconv.recipes.settings import DataSettings, ElasticSettings, Recipe, VideoSettings
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = ["MUTUAL_VIDEO", "elastic_kinetics"]

_RESOLUTIONS = (224, 192, 160, 128)
_SHALLOW: dict[str, Any] = {"layers": [1, 1, 1, 1]}

_NETWORKS: dict[str, tuple[str, int, tuple[int, ...], dict[str, Any]]] = {
    "slow_only_50": ("Slow-only-50, 8 x 8", 8, (8, 6, 4), _SHALLOW),
    "slowfast_50_4x16": ("SlowFast-50, 4 x 16", 2, (32, 24, 16), _SHALLOW),
    "slowfast_50_8x8": ("SlowFast-50, 8 x 8", 2, (32, 24, 16), _SHALLOW),
    "x3d_m": ("X3D-M", 5, (16, 12, 8), {"depth": 0.5}),
}
"""Network -> its name, every how many-th frame it is given, how many of these, and what its tiny mode is built with."""


def elastic_kinetics(network: str) -> Recipe:
    """An elastic video network on Kinetics-400."""
    title, rate, frames, small = _NETWORKS[network]
    x3d = network == "x3d_m"
    return Recipe(
        name=f"elastic_{network}_kinetics",
        note=f"{title}, elastic in width (.5 to 1), resolution and frames ({frames[0]} to {frames[-1]}), Kinetics-400,"
        " the journal version of MutualNet",
        model=f"elastic_{network}",
        tiny_args=small,
        elastic=ElasticSettings(
            widths=(0.5, 1.0),
            resolutions=_RESOLUTIONS,
            frames=frames,
            table_widths=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
            low_memory=True,
        ),
        data=DataSettings(
            spec="kinetics:data/kinetics400",
            resolution=224,
            augment="video",
            batch_size=1024,
            workers=8,
            video=VideoSettings(frames=frames[0], rate=rate, test_crops=3),
        ),
        epochs=256,
        optim=OptimSettings(lr=1.6, weight_decay=5e-5 if x3d else 1e-4, decay="weights", nesterov=True),
        schedule=ScheduleSettings("cosine", warmup_epochs=35 if x3d else 34),
    )


MUTUAL_VIDEO: dict[str, Callable[[], Recipe]] = {
    f"elastic_{network}_kinetics": partial(elastic_kinetics, network) for network in _NETWORKS
}
"""Name -> the function that makes the recipe."""
