"""What a configuration of a detector scores and costs: average precision, and multiply-adds by part.

    macs = body + neck + proposals' head + P * box head + D * mask head

P and D are the most proposals and detections that the detector keeps of an image, so that the count does not depend on
what is in it; an image with fewer costs less. The image has the native size in proportion, padded as the detector does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from leanconv.cost import measure
from leanconv.dryrun import DryRun
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
    static: Any = net.extract(*config, calibrated=False).eval()
    _, height, width = net.inputs.at(config)
    stride = int(static.transform.size_divisible)
    size = (3, *(math.ceil(side / stride) * stride for side in (height, width)))
    body = getattr(static.backbone, "body", static.backbone)
    levels = [shape[1:] for shape in DryRun(static.backbone, size, batch=1).run().shapes]
    whole, of_body = measure(static.backbone, size), measure(body, size)
    heads = static.roi_heads
    parts = {"body": of_body.macs, "neck": whole.macs - of_body.macs}
    parts["proposals"] = measure(static.rpn.head, [[*levels]]).macs
    parts["boxes"] = static.rpn.post_nms_top_n() * _of_one(
        heads.box_head, heads.box_predictor, heads.box_roi_pool, levels
    )
    if net.masks:
        parts["masks"] = heads.detections_per_img * _of_one(
            heads.mask_head, heads.mask_predictor, heads.mask_roi_pool, levels
        )
    weights = sum(tensor.nbytes for tensor in static.state_dict().values())
    accuracy = scores["box_ap"]
    return Row(
        width=float(config.width),
        resolution=config.resolution,
        accuracy=0.0 if math.isnan(accuracy) else accuracy,
        macs=sum(parts.values()),
        params=sum(p.numel() for p in static.parameters()),
        peak_bytes=weights + whole.peak_activation_bytes,
        scores={name: value for name, value in scores.items() if not math.isnan(value)},
        parts=parts,
    )


def _of_one(head: nn.Module, predictor: nn.Module, pool: Any, levels: Sequence[tuple[int, ...]]) -> int:
    """Multiply-adds for one region."""
    return int(measure(nn.Sequential(head, predictor), (levels[0][0], *pool.output_size)).macs)
