"""Detectors: torchvision's own Faster and Mask R-CNN with a feature pyramid on any network of the zoo, or of others.

detection/faster_rcnn    boxes                  MutualNet, section 4.3, figure 8a
detection/mask_rcnn      boxes and masks        figure 8b, on VGG-16 as in the paper

The network keeps its class and the names of its layers below `backbone.body`; neck, proposals and heads are
torchvision's code. The number of levels is that of the stages and one more, a pool; anchors have 32, 64, ... pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import LeanconvError, unknown
from leanconv.nets.stages import body_of
from leanconv.ops.octave_map import OctaveMap, full_map
from leanconv.rewrites import parse_step, rewrite
from leanconv.story import is_own_code

__all__ = ["DETECTORS", "Pyramid"]

Construct = Callable[[str, Mapping[str, Any]], nn.Module]
"""From a name and options to a network, as `zoo.names.construct`."""

STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """A body and torchvision's feature pyramid on it, which is what its detectors call a backbone.

    >>> from torchvision.models import resnet18
    >>> pyramid = Pyramid(body_of(resnet18()), channels=64)
    >>> {name: tuple(level.shape) for name, level in pyramid(torch.zeros(1, 3, 64, 64)).items()}["pool"]
    (1, 64, 1, 1)
    """

    def __init__(self, body: nn.Module, channels: int = 256) -> None:
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(_channels(body), channels, extra_blocks=LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(n, 3, h, w) to the levels of the pyramid by name, `channels` each."""
        maps = {name: merged(level) for name, level in self.body(x).items()}
        levels: dict[str, Tensor] = self.fpn(maps)
        return levels


def merged(level: Tensor) -> Tensor:
    """An octave map as one map, anything else as it is."""
    return full_map(level) if isinstance(level, OctaveMap) else level


def _channels(body: nn.Module) -> list[int]:
    modes = {module: module.training for module in body.modules()}
    body.eval()
    try:
        with torch.no_grad():
            return [int(level.shape[1]) for level in body(next(body.parameters()).new_zeros(1, 3, 64, 64)).values()]
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True, kw_only=True)
class FasterRcnn:
    """The options of a detector of boxes: `num_classes` without the background, `rcnn` further keywords of its class.

    The body is `backbone` with the options `backbone_args`, rewritten by `rewrites`; the pyramid has `channels`.
    """

    backbone: str = "torchvision/vgg16"
    backbone_args: Mapping[str, Any] | None = None
    rewrites: Sequence[str] = ()
    num_classes: int = 80
    min_size: int = 600
    max_size: int = 1000
    channels: int = 256
    box_features: int = 1024
    rcnn: Mapping[str, Any] | None = None

    def build(self, construct: Construct) -> nn.Module:
        """torchvision's detector on that body."""
        from torchvision.models.detection import FasterRCNN

        made: nn.Module = FasterRCNN(self.pyramid(construct), **self.keywords(FasterRCNN))
        return made

    def pyramid(self, construct: Construct) -> Pyramid:
        """Body and neck."""
        if is_own_code(self.backbone):
            raise LeanconvError(
                f"backbone={self.backbone} is code of one's own: let that function build the whole detector, and name"
                " it as the model"
            )
        network = construct(self.backbone, dict(self.backbone_args or {}))
        if self.rewrites:
            network = rewrite(network, *map(parse_step, self.rewrites), size=(3, 224, 224)).model
        return Pyramid(body_of(network, STRIDES, name=self.backbone), self.channels)

    def keywords(self, kind: type) -> dict[str, Any]:
        """Those of `kind`, the detector's class."""
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

        known = [name for name, one in inspect.signature(kind).parameters.items() if one.kind is not one.VAR_KEYWORD]
        for name in self.rcnn or {}:
            if name not in known:  # torchvision takes any, and does nothing with it
                raise unknown(f"keyword of {kind.__name__} in rcnn", name, known)
        sizes = tuple((32 * 2**level,) for level in range(len(STRIDES) + 1))
        return {
            "box_head": TwoMLPHead(self.channels * 7**2, self.box_features),
            "box_predictor": FastRCNNPredictor(self.box_features, self.num_classes + 1),  # torchvision's background
            "min_size": self.min_size,
            "max_size": self.max_size,
            "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
            **(self.rcnn or {}),
        }


@dataclass(frozen=True, kw_only=True)
class MaskRcnn(FasterRcnn):
    """The same with a mask for every box; `mask_channels` are those of its head."""

    mask_channels: int = 256

    def build(self, construct: Construct) -> nn.Module:
        """torchvision's detector on that body."""
        from torchvision.models.detection import MaskRCNN
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

        pyramid, width = self.pyramid(construct), self.mask_channels
        made: nn.Module = MaskRCNN(
            pyramid,
            mask_head=MaskRCNNHeads(self.channels, [width] * 4, 1),
            mask_predictor=MaskRCNNPredictor(width, width, self.num_classes + 1),
            **self.keywords(MaskRCNN),
        )
        return made


DETECTORS: dict[str, type[FasterRcnn]] = {"faster_rcnn": FasterRcnn, "mask_rcnn": MaskRcnn}
"""Name behind "detection/" -> its options, which build it from `construct`."""
