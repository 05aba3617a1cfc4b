"""Detectors of torchvision with an elastic body (MutualNet, section 4.3): neck and heads belong to all sub-networks.

    N(W_{0:w}, I_{R=r})   w: channels of the body; r: the shorter side of the image, its longer side within the limit

The detector's code stays torchvision's. Its body is made elastic in place, `inner_blocks` of the pyramid read as many
channels as the body has and make all of theirs, and its own transform brings images, boxes and masks to the resolution
in force. Norms of the neck and the heads, which see other values in every configuration, have statistics for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.dryrun import classes_of, is_detector
from leanconv.elastic.active import ActiveConfig
from leanconv.elastic.layers.leaves import Elastic, make_class_elastic
from leanconv.elastic.net import ElasticNet
from leanconv.elastic.slices import Channels, Layer, OtherLayer, Slice
from leanconv.elastic.width import Config
from leanconv.errors import LeanconvError

__all__ = ["ElasticDetector", "detector_size", "necks", "put_around", "sliced_part"]


class ElasticDetector(ElasticNet):
    """An elastic network that finds objects: images (any sizes, a list) to boxes, labels, scores and masks.

    In training it takes targets as torchvision's detectors do and returns their losses. `resolutions` are shorter sides
    in pixels, `longest` the limit of the longer one, in every configuration; `size` of its settings is the image that
    costs are counted for, in proportion at other resolutions.

    >>> from leanconv.build import create_model
    >>> from leanconv.elastic import make_elastic
    >>> options = {"backbone": "torchvision/resnet18", "num_classes": 3, "min_size": 64, "max_size": 96}
    >>> net = make_elastic(create_model("detection/faster_rcnn", **options), resolutions=(64, 48)).eval()
    >>> net.longest, net.inputs.at(net.checked(1.0, 48))
    (96, (3, 48, 72))
    """

    @property
    def longest(self) -> int:
        """The limit of an image's longer side in pixels."""
        return int(self.model.transform.max_size)  # type: ignore[union-attr, arg-type]

    @property
    def masks(self) -> bool:
        """Whether it gives a mask for every object."""
        heads: Any = self.model.roi_heads
        return bool(heads.has_mask())

    @property
    def num_classes(self) -> int:
        """Classes without the background."""
        return classes_of(self.model)

    def backbone_net(self) -> ElasticNet:
        """The body and the neck alone, sharing everything with this network: one batch (b, 3, h, w) to the levels."""
        return ElasticNet(sliced_part(self.model), self.active, self.settings, self.kept)

    def fitted(self, inputs: tuple[Any, ...], resolution: int | None, frames: int | None) -> tuple[Any, ...]:
        """As they are: the detector's transform brings them to the resolution, and boxes and masks with them."""
        return inputs


class ElasticTransform(Elastic):
    """The transform of a detector, whose shorter side is the resolution in force; its own where none is."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward, for the resolution in force."""
        side = self.elastic_config.scope.input[0]
        return self.kind.forward(self if side is None else self._at(self.elastic_config.config), *args, **kwargs)

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """An ordinary transform for that resolution."""
        return self._at(config)

    def _at(self, config: Config) -> nn.Module:
        view = self.view(config.width)
        vars(view)["min_size"] = (config.resolution,)
        return view


def sliced_part(model: nn.Module) -> nn.Module:
    """What of `model` follows the width: of a detector its backbone, of any other network all of it."""
    return model.backbone if is_detector(model) else model  # type: ignore[return-value]


def necks(part: nn.Module) -> tuple[str, ...]:
    """Name patterns of the layers of a backbone that keep their channels at every width: those of its pyramid."""
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

    names = (name for name, module in part.named_modules() if isinstance(module, FeaturePyramidNetwork))
    return tuple(f"{name}.*" for name in names)


def detector_size(model: nn.Module, native: int) -> tuple[int, int, int]:
    """The largest image of a detector, (3, shorter side, longer side).

    Raises `LeanconvError` where its transform has another shorter side than the `native` resolution.
    """
    transform: Any = model.transform
    if transform.fixed_size is not None or transform._skip_resize:
        raise LeanconvError("this detector resizes no images, or to one fixed size, so its resolution is not elastic")
    if max(transform.min_size) != native or transform.min_size[-1] != native:
        raise LeanconvError(
            f"the largest of resolutions is {native}, and this detector brings the shorter side of its images to"
            f" {', '.join(map(str, transform.min_size))}: build it with min_size={native}, or pass resolutions= that"
            f" begin with {max(transform.min_size)}"
        )
    return (3, native, max(native, int(transform.max_size)))


def put_around(
    detector: nn.Module, active: ActiveConfig, settings: Mapping[str, Any], kept: Mapping[str, str]
) -> ElasticDetector:
    """The elastic network of a `detector` whose backbone is elastic already; the rest follows, in place."""
    transform: Any = detector.transform
    make_class_elastic(transform, OtherLayer({}, {}, {}, {}), active, ElasticTransform)
    heads: Any = (detector.rpn, detector.roi_heads)
    for part in heads:
        for module in part.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, Elastic):
                channels = Channels((Slice(module.num_features, 1),))
                make_class_elastic(module, Layer(channels, channels), active)
    net = ElasticDetector(detector, active, settings, {f"backbone.{name}": reason for name, reason in kept.items()})
    net.training = detector.training
    return net


def without_prefix(patterns: Sequence[str]) -> tuple[str, ...]:
    """Name patterns of layers of a detector as its backbone has them."""
    return tuple(pattern.removeprefix("backbone.") for pattern in patterns)
