"""Optimized separable convolution, trained as appendix C of its paper says.

    CIFAR       200 epochs, batch 128, rate .1 divided by ten at 100 and 150 (figures 3 to 6, tables 2, 4 and 6)
    ImageNet40  20 epochs, batch 256, rate .1 divided by ten at 10 and 15; no other augmentation (table 7)
    DARTS       CIFAR-10 600 epochs, cosine, cutout, paths dropped, auxiliary tower (table 3); ImageNet 250, linear
    MobileNet   ImageNet, 200 epochs, rate times .973 every .8 epochs (table 5)

SGD of momentum .9 without Nesterov, weight decay on every parameter. The paper prints multipliers for o- and d- only.
Those of o- are, to the digit, the multiple of 1/8 that comes nearest to the MACs of the conventional network; dw-, s-,
so- and every overlap but 1 follow that rule here, which is ours. CIFAR's crops have a border of 4 pixels of which
nothing more is said, so it is black; `--set data.augment=cifar` reflects it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from leanconv.recipes.settings import DataSettings, Recipe
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = [
    "GAMMAS",
    "OSEP",
    "cifar_resnet",
    "darts",
    "equal_params",
    "gamma_sweep",
    "imagenet40_resnet",
    "mobilenet",
    "searched",
    "unmultiplied",
]

_DEPTHS = (20, 32, 56, 110)
_KINDS = {
    "": "conventional",
    "dw_": "depthwise",
    "d_": "depth separable",
    "s_": "spatial separable",
    "o_": "optimized separable",
    "so_": "spatial optimized separable",
}

_MULTIPLIERS: dict[str, tuple[float, float, float, float]] = {
    "": (1, 1, 1, 1),
    "dw_": (20.375, 22.75, 24.625, 26.0),
    "d_": (2.75, 2.75, 2.75, 2.75),
    "s_": (1.25, 1.25, 1.25, 1.25),
    "o_": (3.625, 3.75, 3.875, 3.875),
    "so_": (3.5, 3.625, 3.75, 3.75),
}
"""For depths 20, 32, 56 and 110 on CIFAR."""

_MULTIPLIERS_40: dict[str, tuple[float, float, float, float]] = {
    "": (1, 1, 1, 1),
    "o_": (5.375, 5.75, 6.0, 6.25),
}
"""Table 7."""

_EQUAL_PARAMS: dict[str, tuple[float, float, float, float]] = {
    "dw_": (31.75, 34.625, 36.625, 38.0),
    "d_": (2.875, 2.875, 2.875, 2.875),
    "s_": (1.25, 1.25, 1.25, 1.25),
    "o_": (4.125, 4.375, 4.5, 4.625),
    "so_": (4.125, 4.25, 4.5, 4.5),
}
"""Figures 5 and 6, where parameters are matched alone: the multiple of 1/8 that comes nearest to them (ours)."""

GAMMAS: dict[str, tuple[float, tuple[float, float, float, float]]] = {
    "1_16": (1 / 16, (6.875, 7.625, 8.375, 9.0)),
    "1_4": (1 / 4, (5.0, 5.25, 5.5, 5.625)),
    "4": (4.0, (2.625, 2.625, 2.625, 2.75)),
    "16": (16.0, (1.5, 1.5, 1.5, 1.5)),
    "64": (64.0, (1.0, 1.0, 1.0, 1.0)),
}
"""The columns of tables 2 and 4 between depthwise and conventional, gamma = 1 being the o_ networks themselves.

The rows are "channel multiplied", the paper says, and not by how much: the multipliers are ours.
"""

_SGD = OptimSettings(lr=0.1, weight_decay=1e-4, nesterov=False)
_STEPS = ScheduleSettings("step", milestones=(0.5, 0.75))


def cifar_resnet(prefix: str = "o_", depth: int = 20, classes: int = 10) -> Recipe:
    """A network of figure 3 or 4; `prefix` as in the zoo: "", dw_, d_, s_, o_ or so_."""
    multiplier = _MULTIPLIERS[prefix][_DEPTHS.index(depth)]
    return _cifar(
        f"{prefix}resnet{depth}_cifar{classes}",
        f"{_KINDS[prefix]} ResNet-{depth} on CIFAR-{classes}, as the optimized separable paper trains it",
        f"{prefix}resnet{depth}",
        {} if multiplier == 1 else {"multiplier": multiplier},
        classes,
    )


def unmultiplied(prefix: str, depth: int = 20, classes: int = 10) -> Recipe:
    """A point of the solid lines in figures 3 and 4: the network as wide as the conventional one; o_ or d_."""
    return _cifar(
        f"{prefix}resnet{depth}_m1_cifar{classes}",
        f"{_KINDS[prefix]} ResNet-{depth} of the conventional width on CIFAR-{classes}, optimized separable paper",
        f"{prefix}resnet{depth}",
        {},
        classes,
    )


def equal_params(prefix: str, depth: int = 20, classes: int = 10) -> Recipe:
    """A network of figure 5 (CIFAR-10) or 6 (CIFAR-100), with about as many parameters as the conventional one."""
    return _cifar(
        f"{prefix}resnet{depth}_params_cifar{classes}",
        f"{_KINDS[prefix]} ResNet-{depth} at equal parameters on CIFAR-{classes}, optimized separable paper",
        f"{prefix}resnet{depth}",
        {"multiplier": _EQUAL_PARAMS[prefix][_DEPTHS.index(depth)]},
        classes,
    )


def gamma_sweep(label: str, depth: int = 20, classes: int = 10) -> Recipe:
    """A cell of table 2 (CIFAR-10) or 4 (CIFAR-100); `label` is a key of `GAMMAS`."""
    overlap, multipliers = GAMMAS[label]
    return _cifar(
        f"o_resnet{depth}_gamma{label}_cifar{classes}",
        f"o-ResNet-{depth} with an overlap of {overlap:g} on CIFAR-{classes}, optimized separable paper",
        f"o_resnet{depth}",
        {"multiplier": multipliers[_DEPTHS.index(depth)], "overlap": overlap},
        classes,
    )


def _cifar(name: str, note: str, model: str, model_args: dict[str, Any], classes: int) -> Recipe:
    return Recipe(
        name=name,
        note=note,
        model=model,
        model_args=model_args,
        data=DataSettings(spec=f"cifar{classes}:data", resolution=32, augment="cifar_zero", batch_size=128),
        epochs=200,
        optim=_SGD,
        schedule=_STEPS,
    )


def imagenet40_resnet(prefix: str = "o_", depth: int = 20) -> Recipe:
    """A row of table 7: images brought to 40 x 40, crops of 32."""
    multiplier = _MULTIPLIERS_40[prefix][_DEPTHS.index(depth)]
    return Recipe(
        name=f"{prefix}resnet{depth}_imagenet40",
        note=f"{_KINDS[prefix]} ResNet-{depth} on ImageNet40, table 7 of the optimized separable paper",
        model=f"{prefix}resnet{depth}_imagenet40",
        model_args={} if multiplier == 1 else {"multiplier": multiplier},
        data=DataSettings(
            spec="imagenet:data/imagenet", resolution=32, augment="imagenet40", batch_size=256, workers=8
        ),
        epochs=20,
        optim=_SGD,
        schedule=_STEPS,
    )


def darts(prefix: str = "o_", data: str = "cifar10") -> Recipe:
    """A row of table 3 (`data` "cifar10") or 5 ("imagenet"); gradients clipped at 5, as Liu et al. train."""
    kind = "optimized separable" if prefix else "depth separable"
    if data == "cifar10":
        return Recipe(
            name=f"{prefix}darts_cifar10",
            note=f"DARTS V2 with {kind} units on CIFAR-10, table 3 of the optimized separable paper",
            model=f"{prefix}darts_cifar",
            model_args={"auxiliary": True},
            tiny_args={"cells": 3, "channels": 8},
            data=DataSettings(spec="cifar10:data", resolution=32, augment="cifar_cutout", batch_size=96),
            auxiliary=0.4,
            drop_path=0.2,
            epochs=600,
            optim=OptimSettings(lr=0.025, weight_decay=3e-4, nesterov=False),
            schedule=ScheduleSettings("cosine"),
            clip=5.0,
        )
    return Recipe(
        name=f"{prefix}darts_imagenet",
        note=f"DARTS V2 with {kind} units on ImageNet, table 5 of the optimized separable paper",
        model=f"{prefix}darts_imagenet",
        model_args={"auxiliary": True},
        tiny_args={"cells": 3, "channels": 8},
        data=DataSettings(
            spec="imagenet:data/imagenet", resolution=224, augment="imagenet_jitter", batch_size=1024, workers=8
        ),
        auxiliary=0.4,
        label_smoothing=0.1,
        epochs=250,
        optim=OptimSettings(lr=0.5, weight_decay=3e-5, nesterov=False),
        schedule=ScheduleSettings("linear"),
        clip=5.0,
    )


def searched(cells: str) -> Recipe:
    """P-DARTS or PC-DARTS, which table 3 compares with: the same training, with .3 of the paths dropped as theirs."""
    made = darts("")
    title = {"pdarts": "P-DARTS", "pcdarts": "PC-DARTS"}[cells]
    return replace(
        made,
        name=f"{cells}_cifar10",
        note=f"{title} on CIFAR-10, which table 3 of the optimized separable paper compares with",
        model=f"{cells}_cifar",
        drop_path=0.3,
    )


def mobilenet(prefix: str = "o_") -> Recipe:
    """The MobileNet rows of table 5; the multiplier of o-MobileNet is the zoo's 2.125."""
    kind = "optimized separable" if prefix else "depth separable"
    return Recipe(
        name=f"{prefix}mobilenet_v1_imagenet",
        note=f"MobileNetV1 with {kind} units on ImageNet, table 5 of the optimized separable paper",
        model=f"{prefix}mobilenet_v1",
        data=DataSettings(
            spec="imagenet:data/imagenet", resolution=224, augment="imagenet", batch_size=1024, workers=8
        ),
        epochs=200,
        optim=OptimSettings(lr=0.064, weight_decay=1e-5, nesterov=False),
        schedule=ScheduleSettings("exponential", gamma=0.973, every=0.8),
    )


_MAKERS: tuple[Callable[[], Recipe], ...] = (
    *(partial(cifar_resnet, prefix, depth, classes) for classes in (10, 100) for prefix in _KINDS for depth in _DEPTHS),
    *(
        partial(make, prefix, depth, classes)
        for make, prefixes in ((unmultiplied, ("o_", "d_")), (equal_params, _EQUAL_PARAMS))
        for classes in (10, 100)
        for prefix in prefixes
        for depth in _DEPTHS
    ),
    *(partial(gamma_sweep, label, depth, classes) for classes in (10, 100) for label in GAMMAS for depth in _DEPTHS),
    *(partial(imagenet40_resnet, prefix, depth) for prefix in _MULTIPLIERS_40 for depth in _DEPTHS),
    *(partial(darts, prefix, data) for data in ("cifar10", "imagenet") for prefix in ("", "o_")),
    *(partial(searched, cells) for cells in ("pdarts", "pcdarts")),
    *(partial(mobilenet, prefix) for prefix in ("", "o_")),
)

OSEP: dict[str, Callable[[], Recipe]] = {make().name: make for make in _MAKERS}
"""Name -> the function that makes the recipe."""
