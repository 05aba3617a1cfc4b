"""Octave convolution on Kinetics: table 8, and the image networks that its finetuned rows begin with.

The schedule is that of the non-local networks, which the paper follows: 8 frames, every eighth of a video, batch 64 (80
epochs are the 300 thousand steps), rate .01 divided by ten after 1/2 and 5/6 of the run, no decay on BatchNorm, half of
the pooled features dropped; 10 clips x 3 crops. From scratch the rate is ten times as large and the run sixteen times
as long.

    leanconv train oct_resnet50_alpha100_imagenet_for_video     # the image network, in runs/ under its name
    leanconv train oct_i3d_resnet50_kinetics                    # takes its weights, inflated in time
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from leanconv.recipes.settings import DataSettings, Recipe, VideoSettings
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = ["OCTAVE_VIDEO", "image_network", "video_kinetics"]


def image_network(alpha: float = 0.1) -> Recipe:
    """The ImageNet run of a ResNet-50 that is to be inflated: post-activation, at the alpha of the video network."""
    title = f"Oct-ResNet-50 at alpha {alpha:g}" if alpha else "ResNet-50"
    return Recipe(
        name=f"{f'oct_resnet50_alpha{round(1000 * alpha)}' if alpha else 'resnet50'}_imagenet_for_video",
        note=f"{title} on ImageNet, whose weights the video networks of table 8 begin with",
        model="oct_resnet50",
        model_args={"alpha": alpha},
        data=DataSettings(spec="folder:data/imagenet", resolution=224, augment="imagenet", batch_size=1024, workers=8),
        epochs=110,
        optim=OptimSettings(lr=0.4, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleSettings("cosine", warmup_epochs=5),
    )


def video_kinetics(
    model: str, alpha: float | None = None, *, nonlocal_blocks: bool = False, classes: int = 400, scratch: bool = False
) -> Recipe:
    """A row of table 8: C2D or I3D with ResNet-50 on Kinetics-400 or -600, at `alpha` for the octave forms.

    At .2 and .5 the last stage is at two resolutions too, which comes nearer to the multiply-adds that are printed.
    """
    args: dict[str, object] = {"dropout": 0.5} if alpha is None else {"alpha": alpha, "dropout": 0.5}
    if nonlocal_blocks:
        args["nonlocal_blocks"] = True
    if alpha is not None and alpha > 0.1:
        args["last"] = True
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
        weights=None if scratch else f"runs/{image_network(alpha or 0).name}",
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


_MAKERS: tuple[Callable[[], Recipe], ...] = (
    *(partial(image_network, alpha) for alpha in (0, 0.1)),
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

OCTAVE_VIDEO: dict[str, Callable[[], Recipe]] = {make().name: make for make in _MAKERS}
"""Name -> the function that makes the recipe."""
