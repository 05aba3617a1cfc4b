"""Detectors of torchvision (Faster, Mask and Keypoint R-CNN), which are looked at part by part.

Their forward chooses boxes by values, so that nothing follows the whole of it. What comes before that choice, the
backbone, is a network like others: one batch (b, 3, h, w) to feature maps. It is a body and, mostly, a neck on it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from leanconv.errors import LeanconvError

__all__ = [
    "BACKBONE",
    "body_name",
    "classes_of",
    "detector_in",
    "image_size",
    "in_evaluation",
    "is_detector",
    "refuse_one_stage",
    "seen_as",
]

BACKBONE = "backbone"
"""What torchvision calls the part of a detector that makes feature maps."""


def is_detector(model: nn.Module) -> bool:
    """Whether `model` is a `GeneralizedRCNN` of torchvision, or of a class made of it."""
    place = "torchvision.models.detection.generalized_rcnn"
    return any(kind.__module__ == place and kind.__name__ == "GeneralizedRCNN" for kind in type(model).__mro__)


def refuse_one_stage(model: nn.Module, what: str, *, error: type[LeanconvError] = LeanconvError) -> None:
    """Raise `error` for torchvision's other detectors (RetinaNet, FCOS, SSD), whose parts are not known here."""
    if image_size(model) is not None and not is_detector(model):
        raise error(
            f"{what}: {type(model).__name__} chooses boxes by values, which nothing follows, and only Faster, Mask and"
            " Keypoint R-CNN are known by part: pass its backbone, model.backbone with size=(3, height, width)"
        )


def detector_in(model: nn.Module) -> nn.Module | None:
    """The detector that `model` is, or that an elastic network holds; None for anything else."""
    inner = getattr(model, "model", None) if hasattr(model, "default_input_size") else model
    return inner if isinstance(inner, nn.Module) and is_detector(inner) else None


def classes_of(detector: nn.Module) -> int:
    """Classes that a detector tells apart, without the background.

    Raises `LeanconvError` for a head that is not torchvision's, which does not say it.
    """
    score = getattr(getattr(detector.roi_heads, "box_predictor", None), "cls_score", None)
    if not isinstance(score, nn.Linear):
        raise LeanconvError(
            f"{type(detector).__name__}: its roi_heads.box_predictor has no linear cls_score as torchvision's have,"
            " so how many classes it tells apart is not known"
        )
    return score.out_features - 1


def body_name(detector: nn.Module) -> str:
    """The name of the network that the neck stands on; of a backbone without a neck its own."""
    return f"{BACKBONE}.body" if isinstance(getattr(detector.backbone, "body", None), nn.Module) else BACKBONE


def image_size(model: nn.Module) -> tuple[int, int, int] | None:
    """The largest image that a detector makes of the images that it is given, (3, shorter side, longer side).

    None for a network that is no detector of torchvision's.
    """
    transform: Any = getattr(model, "transform", None)
    if type(transform).__module__ != "torchvision.models.detection.transform" and not is_detector(model):
        return None
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return (3, int(height), int(width))
    short = int(transform.min_size[-1])
    return (3, short, max(short, int(transform.max_size)))


def seen_as(detector: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    """What the backbone is given for one image of `size`: resized and padded by the detector's own transform.

    Of an elastic detector at the resolution in force. Raises `LeanconvError` for what is no image of three channels.

    >>> from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn
    >>> seen_as(fasterrcnn_mobilenet_v3_large_fpn(weights_backbone=None, min_size=64, max_size=96), (3, 100, 200))
    (3, 64, 96)
    """
    channels = len(detector.transform.image_mean)  # type: ignore[arg-type, union-attr]
    if len(size) != 3 or size[0] != channels or not all(isinstance(side, int) and side > 0 for side in size):
        raise LeanconvError(
            f"a detector is given one image ({channels}, height, width), which it resizes itself, got size={size}"
        )
    images, _ = in_evaluation(detector.transform)([torch.empty(size, device="meta")])
    return tuple(images.tensors.shape[1:])


def in_evaluation(part: Any) -> Any:
    """A view of a part of a detector that behaves as in evaluation; what is inside of it is shared."""
    view = copy.copy(part)
    view.training = False
    return view
