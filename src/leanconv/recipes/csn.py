"""Channel-separated networks, and small runs of them that a laptop's CPU can carry.

SGD with Nesterov momentum .9 and weight decay 1e-4 on everything; a rate of .01 for each of 64 devices with 8 clips, so
.64 for a batch of 512 (shared by all processes: `devices`, `nodes`, or `accumulate` on fewer); 45 epochs of a million
clips, ten of warm-up and a half cosine over the rest. Videos at 30 frames per second, every other frame; the shorter
side drawn from 256 to 320, a 224 crop, mirrored half of the time. Ablations see 8 frames, the others 32. Tests take 10
clips: the centre crop (ablations, Sports1M) or three of 256 (Kinetics).

The paper does not describe how the networks of Sports1M were finetuned on Kinetics. Here with mmaction2's settings for
its own finetuning: batch 96, rate 5e-4 through 16 epochs of warm-up, a tenth of it from epochs 32 and 48 of 58 on,
gradients clipped at norm 40, BatchNorm frozen, half of the pooled features dropped. There the warm-up begins at a tenth
of the rate, here at nothing, and the crops are of 8 to 100 % of the area, here of the scaled square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from leanconv.recipes.settings import DataSettings, Recipe, VideoSettings
from leanconv.train import OptimSettings, ScheduleSettings

__all__ = [
    "CSN",
    "FIGURE_6",
    "ablation",
    "figure_6",
    "finetune",
    "kinetics",
    "moving_digits",
    "r2plus1d",
    "section_42",
    "sports1m",
    "ut_interaction",
]

_BATCH = 512
_EPOCH = 1_000_000 // _BATCH
"""Batches of an epoch, a million clips; `clips_per_video` below is what a pass must hold to have as many."""

_SGD = OptimSettings(lr=0.64, weight_decay=1e-4, nesterov=True)
_COSINE = ScheduleSettings("cosine", warmup_epochs=10)
_LONG = VideoSettings(frames=32, rate=2, clips_per_video=5, test_crops=3)
_SHORT = VideoSettings(frames=8, rate=2, clips_per_video=5)
_NAMES = {"resnet3d": "ResNet3D", "ir_csn": "ir-CSN", "ip_csn": "ip-CSN"}


def _paper(name: str, note: str, model: str, args: dict[str, Any], spec: str, video: VideoSettings) -> Recipe:
    return Recipe(
        name=name,
        note=note,
        model=model,
        model_args={"frames": video.frames, **args},
        data=DataSettings(spec=spec, resolution=224, augment="video", batch_size=_BATCH, workers=8, video=video),
        epochs=45,
        optim=_SGD,
        schedule=_COSINE,
        steps_per_epoch=_EPOCH,
    )


def ablation(kind: str, depth: int) -> Recipe:
    """A row of table 2; `kind` is resnet3d, ir_csn or ip_csn."""
    name = f"{kind}_{depth}_kinetics_8x2"
    note = f"{_NAMES[kind]}-{depth} on Kinetics-400, clips of 8 frames, table 2 of the channel-separated paper"
    recipe = _paper(name, note, f"{kind}_{depth}", {}, "kinetics:data/kinetics400", _SHORT)
    return replace(recipe, train_sample=4000)  # figure 5 has the training errors


FIGURE_6 = (
    ("simple", "none", 1), ("simple", "G", 4), ("simple", "G", 16), ("simple", "D", 1),
    ("bottleneck", "none", 1), ("bottleneck", "G", 4), ("bottleneck", "G", 16), ("bottleneck", "D", 1),
    ("bottleneck", "DG", 4), ("bottleneck", "DG", 16),
)  # fmt: skip
"""Block, grouping and groups of the networks in figures 6 and 7, which show no group counts: these are ours."""


def figure_6(block: str, grouping: str, groups: int, blocks: int) -> Recipe:
    """A point of figures 6 and 7, with 8 or 16 blocks."""
    kind = block if grouping == "none" else f"{block}_{grouping.lower()}{groups if 'G' in grouping else ''}"
    layers = {8: (2, 2, 2, 2), 16: (3, 4, 6, 3)}[blocks]
    return _paper(
        f"csn_figure6_{kind}_{blocks}",
        f"{blocks} blocks {kind} on Kinetics-400, figure 6 of the channel-separated paper",
        "resnet3d",
        {"block": block, "grouping": grouping, "groups": groups, "layers": list(layers)},
        "kinetics:data/kinetics400",
        _SHORT,
    )


def kinetics(kind: str, depth: int) -> Recipe:
    """A row of table 5 that is trained from scratch."""
    note = f"{_NAMES[kind]}-{depth} on Kinetics-400 from scratch, clips of 32 frames, in the setting of table 5"
    return _paper(f"{kind}_{depth}_kinetics", note, f"{kind}_{depth}", {}, "kinetics:data/kinetics400", _LONG)


def sports1m(kind: str, depth: int) -> Recipe:
    """A row of table 4."""
    note = f"{_NAMES[kind]}-{depth} on Sports1M, clips of 32 frames, in the setting of table 4"
    video = VideoSettings(frames=32, rate=2, clips_per_video=2)
    return _paper(f"{kind}_{depth}_sports1m", note, f"{kind}_{depth}", {}, "sports1m:data/sports1m", video)


def section_42(variant: str) -> Recipe:
    """The two trials of section 4.2: `space_time` in ir-CSN-50, and `relu_between` (figure 2) in ip-CSN-50."""
    kind = {"space_time": "ir_csn", "relu_between": "ip_csn"}[variant]
    return _paper(
        f"{kind}_50_{variant}_kinetics_8x2",
        f"{_NAMES[kind]}-50 with {variant} on Kinetics-400, section 4.2 of the channel-separated paper",
        f"{kind}_50",
        {variant: True},
        "kinetics:data/kinetics400",
        _SHORT,
    )


def finetune(kind: str, depth: int, source: str = "sports1m") -> Recipe:
    """A row of table 5 that starts from weights trained on `source`; `--set weights=FOLDER` for any other.

    The Sports1M run leaves its own in runs/. IG-65M was never published; weights trained on it were, and `leanconv
    import-weights FILE ir_csn_152 --set num_classes=359 --out runs/ir_csn_152_ig65m` puts them there.
    """
    title = {"sports1m": "its Sports1M run", "ig65m": "imported IG-65M weights"}[source]
    return Recipe(
        name=f"{kind}_{depth}_kinetics_finetune{'' if source == 'sports1m' else f'_{source}'}",
        note=f"{_NAMES[kind]}-{depth} finetuned on Kinetics-400 from {title}, in the setting of table 5",
        model=f"{kind}_{depth}",
        model_args={"frames": 32, "dropout": 0.5},
        weights=f"runs/{kind}_{depth}_{source}",
        frozen_norms=True,
        data=DataSettings(
            spec="kinetics:data/kinetics400",
            resolution=224,
            augment="video",
            batch_size=96,
            workers=8,
            video=VideoSettings(frames=32, rate=2, test_crops=3),
        ),
        epochs=58,
        optim=OptimSettings(lr=5e-4, weight_decay=1e-4, nesterov=False),
        schedule=ScheduleSettings("step", warmup_epochs=16, milestones=(32 / 58, 48 / 58)),
        clip=40.0,
    )


def r2plus1d(which: str) -> Recipe:
    """R(2+1)D of tables 4 and 5 in the settings of this paper's own networks, at its own 112 (128 in the last row)."""
    depth, side = (152, 128) if which == "ig65m" else (34, 112)
    made = sports1m("ir_csn", 152) if which == "sports1m" else finetune("ir_csn", 152, which.removeprefix("from_"))
    video = made.data.video
    assert video is not None
    near = (side * 8 // 7, side * 10 // 7)
    name = {"sports1m": "sports1m", "from_sports1m": "kinetics_finetune", "ig65m": "kinetics_finetune_ig65m"}[which]
    return replace(
        made,
        name=f"r2plus1d_{depth}_{name}",
        note=f"R(2+1)D-{depth} {made.note.partition(' ')[2]}, at {side} pixels",
        model=f"r2plus1d_{depth}",
        weights=None if made.weights is None else f"runs/r2plus1d_{depth}_{which.removeprefix('from_')}",
        data=replace(made.data, resolution=side, video=replace(video, short_side=near)),
    )


def moving_digits(model: str = "ip_csn_26", frames: int = 8) -> Recipe:
    """The embedded digits moving in six ways, which no single frame tells apart: a few minutes on a CPU."""
    single = frames == 1
    return Recipe(
        name=f"{model}_moving_digits{'_single_frame' if single else ''}",
        note=f"{model} on the embedded moving digits"
        + (", one frame at a time: how they move cannot be seen" if single else ", clips of 8 frames (minutes)"),
        model=model,
        model_args={"frames": frames},
        data=DataSettings(
            spec="moving-digits",
            resolution=32,
            augment="video",
            batch_size=16,
            video=VideoSettings(frames=frames, rate=2, short_side=(32, 32), test_clips=3),
        ),
        epochs=14,
        optim=OptimSettings(lr=0.02, weight_decay=1e-4),
        schedule=ScheduleSettings("cosine", warmup_epochs=2),
    )


def ut_interaction(model: str = "ip_csn_26", frames: int = 8, resolution: int = 64) -> Recipe:
    """Six things that two people do, 120 clips: `--set data.spec=video-csv:TRAIN.csv,TEST.csv` says where they are.

    A clip of 8 frames at rate 6 spans 1.4 of the 2 to 6 seconds. A quarter of an hour on two cores for ip-CSN-26.
    """
    single = frames == 1
    return Recipe(
        name=f"{model}_ut_interaction{'_single_frame' if single else ''}",
        note=f"{model} on UT-Interaction, " + ("one frame at a time" if single else f"clips of {frames} frames"),
        model=model,
        model_args={"frames": frames},
        data=DataSettings(
            spec="video-csv:data/ut-interaction/train.csv,data/ut-interaction/test.csv",
            resolution=resolution,
            augment="video",
            batch_size=8,
            workers=1,
            video=VideoSettings(
                frames=frames, rate=48 // frames, short_side=(resolution, resolution * 5 // 4), clips_per_video=2
            ),
        ),
        epochs=60,
        optim=OptimSettings(name="adamw", lr=1e-3, weight_decay=0.05, decay="weights"),
        schedule=ScheduleSettings("cosine", warmup_epochs=5),
    )


_KINDS = tuple(_NAMES)

_MAKERS: tuple[Callable[[], Recipe], ...] = (
    *(partial(ablation, kind, depth) for kind in _KINDS for depth in (26, 50, 101)),
    *(partial(figure_6, *point, blocks) for blocks in (8, 16) for point in FIGURE_6),
    *(
        partial(make, kind, depth)
        for make in (kinetics, sports1m, finetune)
        for kind in _KINDS
        for depth in (50, 101, 152)
    ),
    *(partial(section_42, variant) for variant in ("space_time", "relu_between")),
    *(partial(finetune, kind, 152, "ig65m") for kind in ("ir_csn", "ip_csn")),
    *(partial(r2plus1d, which) for which in ("sports1m", "from_sports1m", "ig65m")),
    *(partial(moving_digits, frames=frames) for frames in (8, 1)),
    *(partial(ut_interaction, frames=frames) for frames in (8, 1)),
    *(partial(ut_interaction, model, frames=16, resolution=112) for model in ("ip_csn_50", "resnet3d_50")),
)

CSN: dict[str, Callable[[], Recipe]] = {make().name: make for make in _MAKERS}
"""Name -> the function that makes the recipe."""
