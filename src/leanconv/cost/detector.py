"""What a detector of torchvision costs, by part.

    macs = body + neck + proposals' head + P * box head + D * (mask head + keypoint head)

P and D are the most proposals and detections that it keeps of an image, so that the count does not depend on what is in
it; an image with fewer costs less. The image is resized and padded as the detector does it. Cutting regions out of maps
and suppressing boxes are no products with weights, and are not counted, nor are they among other operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from leanconv.cost.summary import Cost, ModuleCost, PartCost, measure_forward
from leanconv.dryrun import DryRun, Sizes, body_name, in_evaluation, seen_as

__all__ = ["measure_detector"]

_NOTE = "of one region it is that of its maps and of where it was cut out, which values decide"


@dataclass(frozen=True)
class _Measured:
    """The cost of a part of the detector that runs `times` for an image; `names` are its modules' names in it."""

    names: Mapping[str, str]
    times: int
    cost: Cost


def measure_detector(detector: nn.Module, size: Sizes, *, batch: int = 1, all_operations: bool = False) -> Cost:
    """The cost for one image of `size`, see `measure`; its `parts` add up to it.

    The peak of activations is the largest of the parts: of the backbone for an image, of a head for all regions at
    once. Raises `LeanconvError` where a part does not run on what the one before it gives.
    """
    given = seen_as(detector, tuple(size))
    inner = body_name(detector)
    heads: Any = detector.roi_heads
    kept: int = in_evaluation(detector.rpn).post_nms_top_n()
    backbone: Any = detector.backbone
    levels = [shape[1:] for shape in DryRun(backbone, given, batch=1).run().shapes]
    whole = measure_forward(backbone, given, batch=batch, all_operations=all_operations)
    body = measure_forward(detector.get_submodule(inner), given, batch=batch)
    rpn = measure_forward(detector.rpn.head, ([*levels],), all_operations=all_operations)  # type: ignore[union-attr, arg-type]
    parts = [PartCost("body", given, 1, body.params, body.macs)]
    if whole.params > body.params or whole.macs > body.macs:
        parts.append(PartCost("neck", given, 1, whole.params - body.params, whole.macs - body.macs))
    parts.append(PartCost("proposals", tuple(levels), 1, rpn.params, rpn.macs))
    measured = [_Measured({"": "backbone"}, 1, whole), _Measured({"": "rpn.head"}, 1, rpn)]
    for part, stem, times, present in (
        ("boxes", "box", kept, True),
        ("masks", "mask", heads.detections_per_img, heads.has_mask()),
        ("keypoints", "keypoint", heads.detections_per_img, heads.has_keypoint()),
    ):
        if not present:
            continue
        names = [f"roi_heads.{stem}_head", f"roi_heads.{stem}_predictor"]
        region = (levels[0][0], *getattr(heads, f"{stem}_roi_pool").output_size)
        cost = measure_forward(
            nn.Sequential(*map(detector.get_submodule, names)), region, all_operations=all_operations
        )
        parts.append(PartCost(part, region, times, cost.params, cost.macs * times))
        measured.append(_Measured(dict(zip("01", names, strict=True)), times, cost))
    return _summed(detector, tuple(size), batch, measured, parts)


def _summed(detector: nn.Module, size: Sizes, batch: int, measured: list[_Measured], parts: list[PartCost]) -> Cost:
    modules = [module for one in measured for module in _modules(one)]

    def total(name: str) -> int:
        return sum(getattr(one.cost, name) * one.times for one in measured)

    def counted(name: str, *, once: bool = False) -> dict[str, int]:
        found: Counter[str] = Counter()
        for one in measured:
            found.update({key: n * (1 if once else one.times) for key, n in getattr(one.cost, name).items()})
        return dict(found.most_common())

    params = sum(p.numel() for p in detector.parameters())
    conv_params = sum(one.cost.conv_params for one in measured)
    sums = {name: total(name) for name in ("macs", "attention_macs", "interactions", "activation_bytes")}
    own = ModuleCost("", type(detector).__name__, 1, params, conv_params, own_macs=0, **sums)
    return Cost(
        size=size,
        batch=batch,
        params=params,
        conv_params=conv_params,
        **sums,
        peak_activation_bytes=max(one.cost.peak_activation_bytes * one.times for one in measured),
        receptive_field=None,
        receptive_field_note=_NOTE,
        not_counted=counted("not_counted"),
        params_not_counted=counted("params_not_counted", once=True),
        params_not_run=params - sum(one.cost.params - one.cost.params_not_run for one in measured),
        other_operations=counted("other_operations"),
        operators=counted("operators"),
        modules=(own, *modules),
        parts=tuple(parts),
    )


def _modules(of: _Measured) -> list[ModuleCost]:
    """The modules of a part by their names in the detector, for all times that they run."""
    found = []
    for module in of.cost.modules:
        first, _, rest = module.name.partition(".")
        if "" in of.names:
            name = f"{of.names['']}.{module.name}" if module.name else of.names[""]
        elif first in of.names:
            name = f"{of.names[first]}.{rest}" if rest else of.names[first]
        else:
            continue  # what holds the head and its predictor for measuring
        scaled = {
            number.name: getattr(module, number.name) * of.times
            for number in fields(module)
            if number.name not in ("name", "type", "params", "conv_params")
        }
        found.append(replace(module, name=name, **scaled))
    return found
