"""Octave convolution on ImageNet: the networks of figure 4 and tables 2 to 7, trained as section 4.1 says.

SGD with Nesterov momentum .9 and weight decay 1e-4, batch 1024, rate .4 falling to zero along a half cosine after a
warm-up of five epochs. No text says for how many epochs: 110 here. The ablation networks are pre-activation ResNets
trained without label smoothing, by random-resized crop and mirror; MobileNetV2 has label smoothing, the largest
networks (table 7) mixup as well, and what the authors trained by their second set of scripts (tables 5 and 7) sees
jittered colours and lighting. Table 4 tests one trained network at sides from 256 to 740: `leanconv eval RUN --crop 1
--size 3,256,256 --size 3,320,320 ...`. Finetuning starts from dense weights, cut in four: a tenth of the epochs, a
fortieth of the rate (ours).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from leanconv.recipes.octave_video import OCTAVE_VIDEO
from leanconv.recipes.settings import DataSettings, Recipe
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = [
    "FIGURE_4",
    "OCTAVE",
    "ablation_3",
    "backbone",
    "dagger",
    "mobilenet",
    "oct_resnet152_imagenet",
    "oct_resnet20_cifar10",
    "oct_resnet50_imagenet",
    "oct_resnet50_imagenet_finetune",
]


def _imagenet(name: str, note: str, model: str, args: dict[str, Any], *, augment: str = "imagenet") -> Recipe:
    return Recipe(
        name=name,
        note=note,
        model=model,
        model_args=args,
        data=DataSettings(spec="folder:data/imagenet", resolution=224, augment=augment, batch_size=1024, workers=8),
        epochs=110,
        optim=OptimSettings(lr=0.4, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleSettings("cosine", warmup_epochs=5),
    )


def oct_resnet50_imagenet(alpha: float = 0.5, *, label_smoothing: float = 0.0) -> Recipe:
    """Table 2: pre-activation Oct-ResNet-50, 77.3 % at alpha .5 and 78.2 % at .125 (77.0 % dense)."""
    smooth = "_smooth" if label_smoothing else ""
    note = f"Oct-ResNet-50 at alpha {alpha} on ImageNet" + (", label smoothing" if label_smoothing else "")
    args = {"alpha": alpha, "pre_activation": True}
    made = _imagenet(f"oct_resnet50_imagenet{smooth}", note, "oct_resnet50", args)
    return replace(made, label_smoothing=label_smoothing)


FIGURE_4: dict[str, tuple[str, tuple[float, ...]]] = {
    "oct_resnet26": ("ResNet-26", (0, 0.125, 0.25, 0.5, 0.75)),
    "oct_densenet121": ("DenseNet-121", (0, 0.125, 0.25)),
    "oct_resnet50": ("ResNet-50", (0, 0.125, 0.25, 0.5, 0.75)),
    "oct_se_resnet50": ("SE-ResNet-50", (0, 0.125, 0.25, 0.5, 0.75)),
    "oct_resnext50": ("ResNeXt-50", (0, 0.25, 0.5, 0.75)),
    "oct_resnet101": ("ResNet-101", (0, 0.125, 0.25, 0.5)),
    "oct_resnext101": ("ResNeXt-101", (0, 0.25, 0.5)),
    "oct_resnet200": ("ResNet-200", (0, 0.125, 0.25, 0.5)),
}
"""Network -> its title and the alphas of figure 4 and table 9; 0 is the baseline."""


def backbone(model: str, alpha: float) -> Recipe:
    """A point of figure 4 (table 9); `model` is a key of `FIGURE_4`, and an alpha of 0 its baseline."""
    title, _ = FIGURE_4[model]
    args: dict[str, Any] = {"alpha": alpha}
    if "densenet" not in model:
        args["pre_activation"] = True
    name = f"{model}_alpha{round(1000 * alpha):03d}" if alpha else model.removeprefix("oct_")
    kind = f"Oct-{title} at alpha {alpha:g}" if alpha else f"{title}, the baseline of the octave paper,"
    return _imagenet(f"{name}_imagenet", f"{kind} on ImageNet, figure 4 and table 9", model, args)


def at_256(alpha: float = 0.5) -> Recipe:
    """The networks that table 4 tests at eight sizes, trained at 256 pixels; an alpha of 0 is the baseline."""
    made = oct_resnet50_imagenet(alpha)
    title = f"Oct-ResNet-50 at alpha {alpha:g}" if alpha else "ResNet-50"
    return replace(
        made,
        name=f"{'oct_' if alpha else ''}resnet50_256_imagenet",
        note=f"{title} on ImageNet at 256 pixels, to be tested at the sizes of table 4 of the octave paper",
        data=replace(made.data, resolution=256),
    )


_TABLE_3 = {
    "strided": ("strided convolutions down", {"downsample": "strided"}),
    "alone": ("no exchange between the resolutions", {"exchange": "none"}),
    "low_to_high": ("exchange from low to high alone", {"exchange": "low_to_high"}),
    "high_to_low": ("exchange from high to low alone", {"exchange": "high_to_low"}),
}


def ablation_3(variant: str) -> Recipe:
    """A row of table 3: strided, alone, low_to_high or high_to_low; the last row is `oct_resnet50_imagenet`."""
    title, options = _TABLE_3[variant]
    return _imagenet(
        f"oct_resnet50_{variant}_imagenet",
        f"Oct-ResNet-50 at alpha 0.5 with {title}, table 3",
        "oct_resnet50",
        {"alpha": 0.5, "pre_activation": True, **options},
    )


def mobilenet(version: int, multiplier: float, alpha: float) -> Recipe:
    """A row of table 5, an alpha of 0 being its baseline; MobileNetV2 is trained with label smoothing."""
    model = f"oct_mobilenet_v{version}"
    name = f"{model if alpha else model.removeprefix('oct_')}_x{round(1000 * multiplier):04d}_imagenet"
    kind = f"Oct-MobileNetV{version} at alpha {alpha:g}" if alpha else f"MobileNetV{version}"
    made = _imagenet(
        name,
        f"{multiplier:g} {kind} on ImageNet, table 5 of the octave paper",
        model,
        {"alpha": alpha, "multiplier": multiplier},
        augment="imagenet_basic",
    )
    return replace(made, label_smoothing=0.1 if version == 2 else 0.0)


def dagger(model: str, stem: str, layers: tuple[int, ...] | None = None) -> Recipe:
    """A row of table 6 with a dagger: the max pool gives way to convolutions; `layers` moves blocks between stages."""
    title, _ = FIGURE_4[model]
    args: dict[str, Any] = {"alpha": 0.5, "pre_activation": True, "stem": stem}
    if layers is not None:
        args["layers"] = list(layers)
    moved = "" if layers is None else "_balanced"
    what = "a bottleneck" if stem == "plain_residual" else "a convolution"
    return _imagenet(
        f"{model}_dagger{moved}_imagenet",
        f"Oct-{title} at alpha 0.5 with {what} for the max pool{', blocks balanced' if moved else ''}, table 6",
        model,
        args,
    )


def oct_resnet50_imagenet_finetune(alpha: float = 0.25) -> Recipe:
    """timm's trained ResNet-50 rewritten at `alpha` and tuned; another network: `--set model=FOLDER` or timm/NAME."""
    return Recipe(
        name="oct_resnet50_imagenet_finetune",
        note=f"a trained ResNet-50 rewritten at alpha {alpha} and finetuned on ImageNet",
        model="timm/resnet50",
        model_args={"pretrained": True},
        tiny_args={"pretrained": False},
        rewrites=(f"octave:alpha={alpha}",),
        data=DataSettings(spec="folder:data/imagenet", resolution=224, augment="imagenet", batch_size=256, workers=8),
        epochs=11,
        optim=OptimSettings(lr=0.01, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleSettings("cosine"),
    )


def oct_resnet152_imagenet(se: bool = False) -> Recipe:
    """Table 7: Oct-ResNet-152 at alpha .125, with or without squeeze-and-excitation, label smoothing .1, mixup .2."""
    model = "oct_se_resnet152_deep" if se else "oct_resnet152_deep"
    made = _imagenet(
        f"{model}_imagenet",
        f"{'SE-' if se else ''}Oct-ResNet-152 at alpha .125 on ImageNet, table 7",
        model,
        {"alpha": 0.125},
        augment="imagenet_basic",
    )
    return replace(made, label_smoothing=0.1, mixup=0.2)


def oct_resnet20_cifar10(alpha: float = 0.25) -> Recipe:
    """ResNet-20 rewritten at `alpha` on CIFAR-10: the smallest network to try octave on, not in the paper."""
    return Recipe(
        name="oct_resnet20_cifar10",
        note=f"ResNet-20 at two resolutions, alpha {alpha}, on CIFAR-10",
        model="resnet20",
        rewrites=(f"octave:alpha={alpha}",),
        data=DataSettings(spec="cifar10:data", resolution=32, augment="cifar", batch_size=128),
        epochs=200,
        optim=OptimSettings(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleSettings("cosine"),
    )


_MAKERS: tuple[Callable[[], Recipe], ...] = (
    oct_resnet20_cifar10,
    oct_resnet50_imagenet,
    partial(oct_resnet50_imagenet, label_smoothing=0.1),
    oct_resnet50_imagenet_finetune,
    oct_resnet152_imagenet,
    partial(oct_resnet152_imagenet, se=True),
    *(
        partial(backbone, model, alpha)
        for model, (_, alphas) in FIGURE_4.items()
        for alpha in alphas
        if (model, alpha) != ("oct_resnet50", 0.5)  # oct_resnet50_imagenet
    ),
    *(partial(at_256, alpha) for alpha in (0, 0.5)),
    *(partial(ablation_3, variant) for variant in _TABLE_3),
    *(partial(mobilenet, 1, multiplier, alpha) for multiplier, alpha in ((0.75, 0), (0.75, 0.375), (1.0, 0.5))),
    *(partial(mobilenet, 2, multiplier, alpha) for multiplier, alpha in ((1.0, 0), (1.0, 0.375), (1.125, 0.5))),
    *(partial(dagger, model, "plain_residual") for model in ("oct_resnet50", "oct_resnext50")),
    *(partial(dagger, "oct_resnext101", "plain_conv", layers) for layers in (None, (4, 8, 18, 3))),
)

OCTAVE: dict[str, Callable[[], Recipe]] = {**{make().name: make for make in _MAKERS}, **OCTAVE_VIDEO}
"""Name -> the function that makes the recipe."""
