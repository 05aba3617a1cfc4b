"""Interleaved group convolution, with the authors' own settings.

SGD with Nesterov momentum .9, batch 64, rate .1 divided by ten at 1/2, 3/4 and 7/8 of the run, weight decay 1e-4 on
every parameter, BatchNorm's and the biases included (as their code does). CIFAR 400 epochs, crops after a black border
of 4 pixels and mirrors; SVHN 40 epochs without augmentation; ImageNet batch 256, rate divided by ten every 30 epochs,
the network of epoch 95, whose errors on the training images table 6 prints as well: here on 10,000 of them. Their
ImageNet crops (short side 256 to 480, aspect within a quarter, shifted colours) are replaced by resized crops of 8 to
100 % of the area.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from leanconv.recipes.settings import DataSettings, Recipe
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = ["FIGURE_3", "IGC", "figure_3", "resnet18", "small_images"]

_SGD = OptimSettings(lr=0.1, weight_decay=1e-4, nesterov=True)
_STEPS = ScheduleSettings("step", milestones=(0.5, 0.75, 0.875))

_DATA = {
    "cifar10": ("CIFAR-10", DataSettings(spec="cifar10:data", resolution=32, augment="cifar_zero", batch_size=64), 400),
    "cifar100": (
        "CIFAR-100",
        DataSettings(spec="cifar100:data", resolution=32, augment="cifar_zero", batch_size=64),
        400,
    ),
    "svhn": ("SVHN", DataSettings(spec="svhn:data?extra=true", resolution=32, augment="none", batch_size=64), 40),
}

FIGURE_3 = (
    (1, 23), (2, 16), (3, 13), (5, 10), (6, 9), (12, 6), (28, 3), (40, 2), (64, 1),
    (1, 44), (2, 31), (4, 22), (12, 12), (14, 11), (23, 8), (28, 7), (41, 5), (64, 3), (85, 2), (128, 1),
)  # fmt: skip
"""L and M of the networks in figure 3 (table 1), about 4672 and about 17536 parameters per block."""


def small_images(model: str, depth: int, data: str, *, identity: bool = False) -> Recipe:
    """A cell of table 4, 5 (`identity`) or 7; `data` is cifar10, cifar100 or svhn."""
    title, settings, epochs = _DATA[data]
    kind = f"{model} + identity" if identity else model
    args: dict[str, Any] = {"depth": depth}
    if identity:
        args["identity"] = True
    return Recipe(
        name=f"{model}{'_identity' if identity else ''}_d{depth}_{data}",
        note=f"{kind}, {depth} layers, on {title}, as the interleaved group paper trains it",
        model=model,
        model_args=args,
        tiny_args={"depth": 8},
        data=settings,
        epochs=epochs,
        optim=_SGD,
        schedule=_STEPS,
    )


def figure_3(primary: int, secondary: int) -> Recipe:
    """A point of figure 3: eight layers at full resolution on CIFAR-100, M and L traded at equal parameters."""
    _, settings, epochs = _DATA["cifar100"]
    return Recipe(
        name=f"igc_figure3_l{primary}m{secondary}_cifar100",
        note=f"six interleaved blocks of L = {primary}, M = {secondary} on CIFAR-100, figure 3 of their paper",
        model="igcnet",
        model_args={
            "primary_partitions": primary,
            "secondary_partitions": secondary,
            "depth": 8,
            "stages": 1,
        },
        data=settings,
        epochs=epochs,
        optim=_SGD,
        schedule=_STEPS,
    )


def resnet18(model: str) -> Recipe:
    """A row of table 6."""
    return Recipe(
        name=f"{model}_imagenet",
        note=f"{model} on ImageNet, table 6 of the interleaved group paper",
        model=model,
        data=DataSettings(spec="imagenet:data/imagenet", resolution=224, augment="imagenet", batch_size=256, workers=8),
        epochs=95,
        train_sample=10_000,
        optim=_SGD,
        schedule=ScheduleSettings("step", milestones=(30 / 95, 60 / 95, 90 / 95)),
    )


_TABLE_4 = ("sumfusion", "regconv_w16", "regconv_w18", "igc_l4m8", "igc_l24m2")
_TABLE_6 = (
    "regconv_resnet18_w64",
    "regconv_resnet18_w69",
    *(f"igc_resnet18_{p}" for p in ("l4m32", "l16m16", "l100m2")),
)
_TABLE_7 = ("igc_l16m32", "igc_l450m2", "igc_l32m26")

_MAKERS: tuple[Callable[[], Recipe], ...] = (
    *(partial(small_images, m, d, data) for data in ("cifar10", "cifar100") for m in _TABLE_4 for d in (8, 20, 38, 62)),
    *(
        partial(small_images, model, depth, data, identity=True)
        for data in ("cifar10", "cifar100")
        for model in _TABLE_4[1:]
        for depth in (50, 74, 98)
    ),
    *(partial(figure_3, primary, secondary) for primary, secondary in FIGURE_3),
    *(partial(resnet18, model) for model in _TABLE_6),
    *(partial(small_images, model, 20, data) for data in _DATA for model in _TABLE_7),
)

IGC: dict[str, Callable[[], Recipe]] = {make().name: make for make in _MAKERS}
"""Name -> the function that makes the recipe."""
