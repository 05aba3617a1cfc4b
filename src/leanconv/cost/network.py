"""`measure`: what any network costs; where its forward cannot be followed as a whole, part by part."""

from __future__ import annotations

from torch import nn

from leanconv.cost.detector import measure_detector
from leanconv.cost.summary import Cost, measure_forward
from leanconv.dryrun import (
    ModelHolder,
    Size,
    as_module,
    check_sizes,
    default_size,
    detector_in,
    refuse_one_stage,
    unwrapped,
)
from leanconv.errors import LeanconvError

__all__ = ["measure"]


def measure(
    model: nn.Module | ModelHolder, size: Size | None = None, *, batch: int = 1, all_operations: bool = False
) -> Cost:
    """Measure what `model` costs for one image of `size`, without computing anything.

    The forward runs in eval mode on fake tensors, on a copy that shares no state with `model`; weights may be on any
    device and of any type. `size` has no batch axis: (3, 224, 224), (3, frames, H, W) or (C, L). A network of several
    inputs takes a list of shapes, [(3, 32, 224, 224), (3, 4, 224, 224)]: the arguments of its forward, or the list that
    it takes where it has one argument. With `batch` above 1 the forward takes that many images, for networks that need
    them, and the numbers stay per image.

    A detector of torchvision is measured part by part, for the most regions that it keeps of an image, see
    `leanconv.cost.detector`; `size` is the image that it is given, and it resizes itself.

    An elastic network is measured in the configuration in force, calibrated or not, which may be another than its
    largest: `with net.at(width=0.5): measure(net)`. Its `params` stay those of all its weights.

    Args:
        model: a network, or what `rewrite` returned around one.
        size: None takes what the model itself says: the native size of an elastic network, the one in timm's
            `pretrained_cfg`, the shorter and the longest side of a detector.
        batch: images at once.
        all_operations: also count norms, pools, sums, activations and the rest, by kind, as `Cost.other_operations`:
            some papers' totals hold one or the other of them. `macs` stays what it is.

    Raises `LeanconvError` when the network cannot run on that size, its forward depends on tensor values, or it says no
    size and none is given.

    >>> cost = measure(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), (3, 32, 32))
    >>> cost.params, cost.conv_params, cost.macs, cost.interactions, cost.receptive_field
    (224, 216, 221184, 24, (3, 3))
    >>> measure(nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(2)), (3, 32, 32), all_operations=True).other_operations
    {'norms': 3072, 'pools': 3072}
    """
    network = unwrapped(as_module(model))
    size = default_size(network) if size is None else size
    if size is None:
        raise LeanconvError(
            f"measure: {type(network).__name__} does not say which input it was made for: pass size, the shape of one "
            "input without the batch axis, such as size=(3, 224, 224)"
        )
    size = check_sizes(size)
    refuse_one_stage(network, "measure")
    if (detector := detector_in(network)) is not None:
        return measure_detector(detector, size, batch=batch, all_operations=all_operations)
    return measure_forward(network, size, batch=batch, all_operations=all_operations)
