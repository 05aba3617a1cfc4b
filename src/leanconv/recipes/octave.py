"""Octave convolution on ImageNet: tables 2, 4 and 7, trained as section 4.1 and the authors' settings say.

SGD with Nesterov momentum .9 and weight decay 1e-4, batch 1024, rate .4 falling to zero along a half cosine after a
warm-up of five epochs; random-resized crop and mirror. No text says for how many epochs: 110 here. The ablation
networks are pre-activation ResNets trained without label smoothing (table 2); the largest networks (table 7) have
it, and mixup. Table 4 tests one trained network at sides from 256 to 740: `leanconv eval RUN --size 3,320,320`.
Finetuning starts from dense weights, cut in four: a tenth of the epochs, a fortieth of the rate (ours).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from leanconv.recipes.settings import DataSettings, Recipe, VideoSettings
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = [
    "OCTAVE_VIDEO",
    "oct_resnet152_imagenet",
    "oct_resnet20_cifar10",
    "oct_resnet50_imagenet",
    "oct_resnet50_imagenet_finetune",
    "video_kinetics",
]


def oct_resnet50_imagenet(alpha: float = 0.5, *, label_smoothing: float = 0.0) -> Recipe:
    """Table 2: pre-activation Oct-ResNet-50, 77.3 % at alpha .5 and 78.2 % at .125 (77.0 % dense)."""
    smooth = "_smooth" if label_smoothing else ""
    return Recipe(
        name=f"oct_resnet50_imagenet{smooth}",
        note=f"Oct-ResNet-50 at alpha {alpha} on ImageNet" + (", label smoothing" if label_smoothing else ""),
        model="oct_resnet50",
        model_args={"alpha": alpha, "pre_activation": True},
        data=DataSettings(spec="folder:data/imagenet", resolution=224, augment="imagenet", batch_size=1024, workers=8),
        label_smoothing=label_smoothing,
        epochs=110,
        optim=OptimSettings(lr=0.4, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleSettings("cosine", warmup_epochs=5),
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
    return Recipe(
        name=f"{model}_imagenet",
        note=f"{'SE-' if se else ''}Oct-ResNet-152 at alpha .125 on ImageNet, table 7",
        model=model,
        model_args={"alpha": 0.125},
        data=DataSettings(spec="folder:data/imagenet", resolution=224, augment="imagenet", batch_size=1024, workers=8),
        label_smoothing=0.1,
        mixup=0.2,
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
        data=DataSettings(spec="cifar10:data", resolution=32, augment="cifar", batch_size=128),
        epochs=200,
        optim=OptimSettings(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleSettings("cosine"),
    )


def video_kinetics(
    model: str, alpha: float | None = None, *, nonlocal_blocks: bool = False, classes: int = 400, scratch: bool = False
) -> Recipe:
    """A row of table 8: C2D or I3D with ResNet-50 on Kinetics-400 or -600, at `alpha` for the octave forms.

    The schedule is that of the non-local networks, which the paper follows: 8 frames, every eighth of a video, batch 64
    (80 epochs are the 300 thousand steps), rate .01 divided by ten after 1/2 and 5/6 of the run, no decay on BatchNorm;
    10 clips x 3 crops. It starts from an image network, inflated (`weights`): for the octave forms, `leanconv train
    oct_resnet50_imagenet --set model_args.alpha=0.1 --set model_args.pre_activation=false`, for the dense ones the same
    at alpha 0. From scratch the rate is ten times as large and the run sixteen times as long.
    """
    args: dict[str, object] = {} if alpha is None else {"alpha": alpha}
    if nonlocal_blocks:
        args["nonlocal_blocks"] = True
    parts = [model]
    if alpha is not None and alpha != 0.1:
        parts.append(f"alpha{round(100 * alpha)}")
    if nonlocal_blocks:
        parts.append("nonlocal")
    parts.append("kinetics" if classes == 400 else f"kinetics{classes}")
    if scratch:
        parts.append("scratch")
    what = model if alpha is None else f"{model} at alpha {alpha}"
    return Recipe(
        name="_".join(parts),
        note=f"{what}{' with non-local blocks' if nonlocal_blocks else ''} on Kinetics-{classes}"
        f" {'from scratch' if scratch else 'from an image network'}, table 8 of the octave paper",
        model=model,
        model_args=args,
        weights=None if scratch else f"runs/{'oct_' if alpha is not None else ''}resnet50_imagenet",
        data=DataSettings(
            spec=f"kinetics:data/kinetics{classes}",
            resolution=224,
            augment="video",
            batch_size=64,
            workers=8,
            video=VideoSettings(frames=8, rate=8, fps=None, test_crops=3),
        ),
        epochs=1280 if scratch else 80,
        optim=OptimSettings(lr=0.1 if scratch else 0.01, weight_decay=1e-4, decay="weights", nesterov=True),
        schedule=ScheduleSettings("step", milestones=(1 / 2, 5 / 6)),
    )


_TABLE_8: tuple[Callable[[], Recipe], ...] = (
    partial(video_kinetics, "i3d_resnet50", scratch=True),
    *(partial(video_kinetics, "oct_i3d_resnet50", alpha, scratch=True) for alpha in (0.1, 0.2, 0.5)),
    partial(video_kinetics, "c2d_resnet50"),
    partial(video_kinetics, "oct_c2d_resnet50", 0.1),
    *(
        partial(make, nonlocal_blocks=blocks)
        for blocks in (False, True)
        for make in (partial(video_kinetics, "i3d_resnet50"), partial(video_kinetics, "oct_i3d_resnet50", 0.1))
    ),
    partial(video_kinetics, "i3d_resnet50", classes=600),
    partial(video_kinetics, "oct_i3d_resnet50", 0.1, classes=600),
)

OCTAVE_VIDEO: dict[str, Callable[[], Recipe]] = {make().name: make for make in _TABLE_8}
"""Name -> the function that makes the recipe, for table 8."""
