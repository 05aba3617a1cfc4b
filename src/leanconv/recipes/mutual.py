"""MutualNet: one set of weights for many widths and resolutions, with the published optimisation settings.

SGD with Nesterov momentum .9 and a cosine from the first step to zero, without warm-up. On ImageNet weight decay acts
on dense weights only (depthwise weights, BatchNorm and biases are exempt), on CIFAR on everything.
"""

from __future__ import annotations

from leanconv.recipes.settings import DataSettings, ElasticSettings, Recipe
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = ["elastic_mobilenet_imagenet", "elastic_resnet20_cifar10"]


def elastic_mobilenet_imagenet(version: int = 1) -> Recipe:
    """MobileNet `version` 1 or 2 on ImageNet: 250 epochs, batch 1024, rate .5 (the query table of figure 4).

    Version 2 is trained from width .7, as its published settings have it, though the text says .25 for all.
    """
    low = {1: 0.25, 2: 0.7}[version]
    steps = round((1.0 - low) / 0.05)
    return Recipe(
        name=f"elastic_mobilenet_v{version}_imagenet",
        note=f"MutualNet's MobileNetV{version} on ImageNet, widths {low} to 1, resolutions 224 to 128",
        model=f"mobilenet_v{version}",
        elastic=ElasticSettings(
            widths=(low, 1.0),
            resolutions=(224, 192, 160, 128),
            num_random=2,
            table_widths=tuple(round(low + 0.05 * step, 2) for step in range(steps + 1)),
        ),
        data=DataSettings(spec="folder:data/imagenet", size=224, augment="mobile", batch_size=1024, workers=8),
        epochs=250,
        optim=OptimSettings(lr=0.5, weight_decay=1e-4, decay="dense"),
        schedule=ScheduleSettings("cosine"),
    )


def elastic_resnet20_cifar10() -> Recipe:
    """ResNet-20 on CIFAR-10 with the CIFAR settings (200 epochs, batch 128, rate .1, weight decay 5e-4).

    The paper's CIFAR network is WideResNet-28-10 over widths .9 to 1; this is the smallest network to try it on.
    """
    return Recipe(
        name="elastic_resnet20_cifar10",
        note="elastic ResNet-20 on CIFAR-10 with MutualNet's CIFAR settings",
        model="resnet20",
        elastic=ElasticSettings(widths=(0.25, 1.0), resolutions=(32, 28, 24, 20), divisor=4),
        data=DataSettings(spec="timm:torch/cifar10?root=data", size=32, augment="cifar", batch_size=128),
        epochs=200,
        optim=OptimSettings(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleSettings("cosine"),
    )
