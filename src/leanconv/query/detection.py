"""What a configuration of a detector scores and costs: average precision, and multiply-adds by part.

They are those of `leanconv.cost.detector`, for an image of the native size in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from leanconv.cost import measure
from leanconv.elastic.calibrate import images_of, moved
from leanconv.elastic.detector import ElasticDetector
from leanconv.elastic.width import Config
from leanconv.errors import DataError
from leanconv.modes import eval_mode
from leanconv.query.rows import Row
from leanconv.train.precision import AveragePrecision

__all__ = ["detection_row", "precisions"]


def precisions(
    net: ElasticDetector, loader: Iterable[Any], configs: Sequence[Config]
) -> tuple[dict[Config, dict[str, float]], int]:
    """The scores of `AveragePrecision` in each configuration over the loaders of all processes, and their images.

    Raises `DataError` for a loader that does not give (images, objects).
    """
    from leanconv.ranks import summed

    found = {config: AveragePrecision(masks=net.masks) for config in configs}
    with eval_mode(net) as device:
        for batch in loader:
            if not isinstance(batch, Sequence) or len(batch) < 2 or not isinstance(batch[1], Sequence):
                raise DataError("the table of a detector needs its loader to yield (images, objects)")
            images = moved(images_of(batch), device)
            for config, precision in found.items():
                with net.at(*config):
                    precision.add(net(images), batch[1])
    import torch

    images_seen = int(summed(torch.tensor(next(iter(found.values())).images)))
    if not images_seen:
        raise DataError("the loader yields no images, so there is nothing to measure: check the data set and split")
    return {config: precision.scores() for config, precision in found.items()}, images_seen


def detection_row(net: ElasticDetector, config: Config, scores: dict[str, float], images: int) -> Row:
    """With the costs of one image; `accuracy` is the average precision of boxes, 0 where nothing is to be found."""
    static = net.extract(*config, calibrated=False).eval()
    cost = measure(static, net.inputs.at(config))
    weights = sum(tensor.nbytes for tensor in static.state_dict().values())
    accuracy = scores["box_ap"]
    return Row(
        width=float(config.width),
        resolution=config.resolution,
        accuracy=0.0 if math.isnan(accuracy) else accuracy,
        macs=cost.macs,
        params=cost.params,
        peak_bytes=weights + cost.peak_activation_bytes,
        scores={name: value for name, value in scores.items() if not math.isnan(value)},
        parts={part.name: part.macs for part in cost.parts},
    )
