"""Octave convolution on ImageNet: tables 2, 4 and 7, trained as section 4.1 and the authors' settings say.

SGD with Nesterov momentum .9 and weight decay 1e-4, batch 1024, rate .4 falling to zero along a half cosine after a
warm-up of five epochs; random-resized crop and mirror. No text says for how many epochs: 110 here. The ablation
networks are pre-activation ResNets trained without label smoothing (table 2); the networks compared with others
(table 7) have it. Mixup, which the authors add to their largest ones, is not here.
"""

from __future__ import annotations

from leanconv.recipes.settings import DataSettings, Recipe
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = ["TEST_SIZES", "oct_resnet152_imagenet", "oct_resnet20_cifar10", "oct_resnet50_imagenet"]

TEST_SIZES = (256, 320, 384, 448, 512, 576, 640, 740)
"""Table 4 evaluates one trained network at these sizes: `leanconv eval RUN --size 3,320,320`, and so on."""


def oct_resnet50_imagenet(alpha: float = 0.5, *, label_smoothing: float = 0.0) -> Recipe:
    """Table 2: pre-activation Oct-ResNet-50, 77.3 % at alpha .5 and 78.2 % at .125 (77.0 % dense)."""
    smooth = "_smooth" if label_smoothing else ""
    return Recipe(
        name=f"oct_resnet50_imagenet{smooth}",
        note=f"Oct-ResNet-50 at alpha {alpha} on ImageNet" + (", label smoothing" if label_smoothing else ""),
        model="oct_resnet50",
        model_args={"alpha": alpha, "pre_activation": True},
        data=DataSettings(spec="folder:data/imagenet", size=224, augment="imagenet", batch_size=1024, workers=8),
        label_smoothing=label_smoothing,
        epochs=110,
        optim=OptimSettings(lr=0.4, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleSettings("cosine", warmup_epochs=5),
    )


def oct_resnet152_imagenet(se: bool = False) -> Recipe:
    """Table 7: Oct-ResNet-152 at alpha .125, with or without squeeze-and-excitation, label smoothing .1."""
    model = "oct_se_resnet152_deep" if se else "oct_resnet152_deep"
    return Recipe(
        name=f"{model}_imagenet",
        note=f"{'SE-' if se else ''}Oct-ResNet-152 at alpha .125 on ImageNet, table 7 without mixup",
        model=model,
        model_args={"alpha": 0.125},
        data=DataSettings(spec="folder:data/imagenet", size=224, augment="imagenet", batch_size=1024, workers=8),
        label_smoothing=0.1,
        epochs=110,
        optim=OptimSettings(lr=0.4, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleSettings("cosine", warmup_epochs=5),
    )


def oct_resnet20_cifar10(alpha: float = 0.25) -> Recipe:
    """ResNet-20 rewritten at `alpha` on CIFAR-10: the smallest network to try octave on, not in the paper."""
    return Recipe(
        name="oct_resnet20_cifar10",
        note=f"ResNet-20 at two resolutions, alpha {alpha}, on CIFAR-10",
        model="resnet20",
        rewrites=(f"octave:alpha={alpha}",),
        data=DataSettings(spec="timm:torch/cifar10?root=data", size=32, augment="cifar", batch_size=128),
        epochs=200,
        optim=OptimSettings(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleSettings("cosine"),
    )
