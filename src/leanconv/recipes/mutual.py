"""MutualNet: one set of weights for many widths and resolutions, with the published optimisation settings.

SGD with Nesterov momentum .9 and a cosine from the first step to zero, without warm-up; weight decay 1e-4 on ImageNet,
where it acts on dense weights only (depthwise weights, BatchNorm and biases are exempt), 5e-4 on CIFAR, on everything.
US-Net, which it is compared with, is the same step at one resolution with a rate that falls in a straight line.

The text leaves three things to the authors' code: MobileNetV2 is trained from width .7, ResNet-50 and WideResNet-28-10
from .9; figures 4b and 6b show it narrower, so there is a run from .25 as well. The independent networks of figures 6
and 7 are trained here as the full network is, one by one; the paper takes most of their figures from others. The
weight decay of VGG-16 and of the transfer runs is not printed: that of ImageNet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from leanconv.recipes.csn import moving_digits
from leanconv.recipes.mutual_video import MUTUAL_VIDEO
from leanconv.recipes.settings import DataSettings, DetectionSettings, ElasticSettings, Recipe
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = [
    "MUTUAL",
    "compound_imagenet",
    "detection_coco",
    "elastic_drawn",
    "elastic_imagenet",
    "elastic_moving_digits",
    "elastic_resnet20_cifar10",
    "elastic_wideresnet_cifar",
    "independent_imagenet",
    "independent_transfer",
    "mask_rcnn_alone",
    "transfer",
    "usnet_imagenet",
]

_MOBILE = (224, 192, 160, 128)
_SMALL = (32, 28, 24, 20)

_IMAGENET: dict[str, tuple[float, float, int, int, float]] = {
    "mobilenet_v1": (0.25, 1.0, 250, 1024, 0.5),
    "mobilenet_v2": (0.7, 1.0, 250, 1024, 0.5),
    "mobilenet_v2_narrow": (0.25, 1.0, 250, 1024, 0.5),
    "mobilenet_v1_wide": (1.0, 2.0, 250, 1024, 0.5),
    "resnet50": (0.9, 1.0, 120, 512, 0.2),
    "vgg16": (0.25, 1.0, 100, 512, 0.01),
}
"""Network -> smallest and largest width, epochs, batch, rate."""

_TRANSFER = {
    "cifar100": ("CIFAR-100", "cifar100:data"),
    "food101": ("Food-101", "folder:data/food101"),
    "indoor67": ("MIT-Indoor67", "folder:data/indoor67"),
}


def _grid(low: float, high: float, step: float = 0.05) -> tuple[float, ...]:
    """The widths of the published tables."""
    return tuple(round(low + step * index, 2) for index in range(round((high - low) / step) + 1))


def elastic_imagenet(network: str) -> Recipe:
    """The ImageNet run of a network of the zoo: figure 4, table 1 (`mobilenet_v1_wide`) and appendix A.2 (`vgg16`)."""
    low, high, epochs, batch, lr = _IMAGENET[network]
    resolutions = (320, 288, 256, 224) if network == "mobilenet_v1_wide" else _MOBILE
    mobile = network.startswith("mobilenet")
    return Recipe(
        name=f"elastic_{network}_imagenet",
        note=f"MutualNet's {network} on ImageNet, widths {low:g} to {high:g}, resolutions {resolutions[0]} to"
        f" {resolutions[-1]}",
        model=f"elastic_{network.removesuffix('_narrow')}",
        tiny_args={"resolutions": [32]} if network == "vgg16" else {},  # its five pools leave nothing of 20 pixels
        elastic=ElasticSettings(widths=(low, high), resolutions=resolutions, table_widths=_grid(low, high)),
        data=DataSettings(
            spec="folder:data/imagenet",
            resolution=resolutions[0],
            augment="mobile" if mobile else "imagenet_basic" if network == "resnet50" else "imagenet",
            batch_size=batch,
            workers=8,
        ),
        epochs=epochs,
        optim=OptimSettings(lr=lr, weight_decay=1e-4, decay="dense"),
        schedule=ScheduleSettings("cosine"),
    )


def usnet_imagenet(network: str = "mobilenet_v1") -> Recipe:
    """US-Net's network on ImageNet: one resolution in training; its table at all of them is "US-Net+" (figure 5).

    MobileNets have its own rate, falling in a straight line, VGG-16 (figure 9) that of appendix A.2.
    """
    made = elastic_imagenet(network)
    assert made.elastic is not None
    low = made.elastic.widths[0]
    return replace(
        made,
        name=f"usnet_{network}_imagenet",
        note=f"US-Net's {network} on ImageNet, widths {low:g} to 1, trained at 224 and measured at all sizes",
        elastic=replace(made.elastic, train_resolutions=(224,)),
        schedule=ScheduleSettings("linear" if network.startswith("mobilenet") else "cosine"),
    )


def independent_imagenet(version: int, width: float, resolution: int) -> Recipe:
    """A point of figure 6: a MobileNet of its own at a `width` and `resolution`, as the full network is trained."""
    made = elastic_imagenet(f"mobilenet_v{version}")
    name = f"mobilenet_v{version}_x{round(100 * width):03d}_{resolution}"
    return replace(
        made,
        name=f"{name}_imagenet",
        note=f"MobileNetV{version} of width {width:g} on ImageNet at {resolution} pixels, alone: figure 6",
        model=f"mobilenet_v{version}",
        model_args={"multiplier": width},
        elastic=None,
        data=replace(made.data, resolution=resolution),
    )


def independent_transfer(data: str) -> Recipe:
    """Figure 7's MobileNetV1 of its own, finetuned from `mobilenet_v1_x100_224_imagenet`."""
    made = transfer(data)
    return replace(
        made,
        name=f"mobilenet_v1_{data}",
        note=f"MobileNetV1 alone, finetuned on {_TRANSFER[data][0]}, figure 7",
        model="mobilenet_v1",
        weights=f"runs/{independent_imagenet(1, 1.0, 224).name}",
        elastic=None,
    )


def compound_imagenet() -> Recipe:
    """Table 1's EfficientNet scaling of MobileNetV1: depth 1.4, width 1.2, resolution 1.3; 75.6 % are its authors'."""
    made = independent_imagenet(1, 1.2, 291)
    return replace(
        made,
        name="mobilenet_v1_compound_imagenet",
        note="MobileNetV1 of depth 1.4, width 1.2 and resolution 1.3 on ImageNet, EfficientNet's row of table 1",
        model_args={"multiplier": 1.2, "depth": 1.4},
    )


def elastic_drawn() -> Recipe:
    """Section 3.2: the full network, too, is trained at a resolution that is drawn."""
    made = elastic_imagenet("mobilenet_v1")
    assert made.elastic is not None
    return replace(
        made,
        name="elastic_mobilenet_v1_drawn_imagenet",
        note="MutualNet's mobilenet_v1 with a drawn resolution for the full network too, section 3.2",
        elastic=replace(made.elastic, draw_full=True),
    )


def elastic_wideresnet_cifar(classes: int = 10) -> Recipe:
    """WideResNet-28-10 on CIFAR-10 (97.3 %; 96.1 % alone) or CIFAR-100 (83.8 %; 81.2 %)."""
    return Recipe(
        name=f"elastic_wideresnet28_10_cifar{classes}",
        note=f"MutualNet's WideResNet-28-10 on CIFAR-{classes}, widths .9 to 1, resolutions 32 to 20",
        model="elastic_wideresnet28_10",
        elastic=ElasticSettings(widths=(0.9, 1.0), resolutions=_SMALL, table_widths=(0.9, 0.95, 1.0)),
        data=DataSettings(spec=f"cifar{classes}:data", resolution=32, augment="cifar", batch_size=128),
        epochs=200,
        optim=OptimSettings(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleSettings("cosine"),
    )


def transfer(data: str, *, us_net: bool = False) -> Recipe:
    """Figure 7: the trained MobileNetV1 finetuned for 100 epochs, batch 256, rate .1; `data` is a key of the sets.

    It starts from the weights that `leanconv train elastic_mobilenet_v1_imagenet` (or `usnet_...`) left in `runs/`.
    """
    title, spec = _TRANSFER[data]
    kind = "usnet" if us_net else "elastic"
    return Recipe(
        name=f"{kind}_mobilenet_v1_{data}",
        note=f"{'US-Net' if us_net else 'MutualNet'}'s MobileNetV1 finetuned on {title}, figure 7",
        model="elastic_mobilenet_v1",
        weights=f"runs/{kind}_mobilenet_v1_imagenet",
        elastic=ElasticSettings(
            widths=(0.25, 1.0),
            resolutions=_MOBILE,
            train_resolutions=(224,) if us_net else None,
            table_widths=_grid(0.25, 1.0),
        ),
        data=DataSettings(spec=spec, resolution=224, augment="mobile", batch_size=256, workers=8),
        epochs=100,
        optim=OptimSettings(lr=0.1, weight_decay=1e-4, decay="dense"),
        schedule=ScheduleSettings("cosine"),
    )


def detection_coco(*, us_net: bool = False) -> Recipe:
    """Section 4.3, figure 8: Mask R-CNN with FPN on VGG-16, on COCO, widths .25 to 1, 1000 x {600, 480, 360, 240}.

    US-Net is trained at 1000 x 600 alone. The body starts from what `elastic_vgg16_imagenet` (or `usnet_...`) left in
    `runs/`. The paper leaves rate, batch and length to MMDetection's defaults: 12 epochs of 16 images, SGD at .02 with
    momentum .9, weight decay 1e-4, a warm-up; the schedule is the cosine of the classification runs.
    """
    kind = "usnet" if us_net else "elastic"
    return Recipe(
        name=f"{kind}_mask_rcnn_vgg16_coco",
        note=f"{'US-Net' if us_net else 'MutualNet'}'s Mask R-CNN with FPN on VGG-16, COCO, figure 8",
        model="detection/mask_rcnn",
        model_args={"backbone": "torchvision/vgg16"},
        tiny_args={"backbone": "torchvision/resnet18"},  # VGG-16 takes seconds to be drawn
        weights=f"runs/{kind}_vgg16_imagenet",
        elastic=ElasticSettings(
            widths=(0.25, 1.0),
            resolutions=(600, 480, 360, 240),
            train_resolutions=(600,) if us_net else None,
            table_widths=_grid(0.25, 1.0, 0.25),
            low_memory=True,
        ),
        data=DataSettings(
            spec="coco:data/coco/annotations/instances_train2017.json,data/coco/train2017,"
            "data/coco/annotations/instances_val2017.json,data/coco/val2017",
            resolution=600,
            batch_size=16,
            workers=8,
            detection=DetectionSettings(longest=1000),
        ),
        epochs=12,
        optim=OptimSettings(lr=0.02, weight_decay=1e-4),
        schedule=ScheduleSettings("cosine", warmup_epochs=1),
        clip=35.0,
    )


def mask_rcnn_alone() -> Recipe:
    """Figure 8's independent VGG-16, from torchvision's weights, as the full network is trained."""
    made = detection_coco()
    return replace(
        made,
        name="mask_rcnn_vgg16_coco",
        note="Mask R-CNN with FPN on VGG-16 alone, COCO, figure 8",
        model_args={**made.model_args, "backbone_args": {"weights": "IMAGENET1K_V1"}},
        tiny_args={**made.tiny_args, "backbone_args": {}},
        weights=None,
        elastic=None,
    )


def elastic_resnet20_cifar10() -> Recipe:
    """ResNet-20 on CIFAR-10 with the settings of the paper's WideResNet: the smallest network to try it on."""
    return Recipe(
        name="elastic_resnet20_cifar10",
        note="elastic ResNet-20 on CIFAR-10 with MutualNet's CIFAR settings",
        model="resnet20",
        elastic=ElasticSettings(widths=(0.25, 1.0), resolutions=_SMALL, divisor=4),
        data=DataSettings(spec="timm:torch/cifar10?root=data", resolution=32, augment="cifar", batch_size=128),
        epochs=200,
        optim=OptimSettings(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleSettings("cosine"),
    )


def elastic_moving_digits(model: str = "ip_csn_26") -> Recipe:
    """The journal version's third axis, frames, on the embedded moving digits: six minutes on two cores."""
    plain = moving_digits(model)
    return replace(
        plain,
        name=f"elastic_{plain.name}",
        note=f"elastic {model} on the embedded moving digits, widths .25 to 1, 32 and 24 pixels, 8 and 4 frames",
        elastic=ElasticSettings(widths=(0.25, 1.0), resolutions=(32, 24), frames=(8, 4)),
    )


_MAKERS: tuple[Callable[[], Recipe], ...] = (
    elastic_resnet20_cifar10,
    elastic_moving_digits,
    *(partial(elastic_imagenet, network) for network in _IMAGENET),
    *(partial(usnet_imagenet, network) for network in ("mobilenet_v1", "mobilenet_v2", "vgg16")),
    elastic_drawn,
    compound_imagenet,
    *(
        partial(independent_imagenet, version, width, resolution)
        for version, narrowest in ((1, 0.25), (2, 0.35))
        for width in (1.0, 0.75, 0.5, narrowest)
        for resolution in _MOBILE
    ),
    *(partial(independent_transfer, data) for data in _TRANSFER),
    *(partial(elastic_wideresnet_cifar, classes) for classes in (10, 100)),
    *(partial(transfer, data, us_net=us_net) for us_net in (False, True) for data in _TRANSFER),
    *(partial(detection_coco, us_net=us_net) for us_net in (False, True)),
    mask_rcnn_alone,
)

MUTUAL: dict[str, Callable[[], Recipe]] = {**{make().name: make for make in _MAKERS}, **MUTUAL_VIDEO}
"""Name -> the function that makes the recipe."""
