"""A recipe: everything that makes a run, as frozen data that can be written down, changed and read back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from leanconv.elastic.width import Config
from leanconv.errors import LeanconvError, shown
from leanconv.train import FitSettings, OptimSettings, ScheduleSettings

__all__ = ["DataSettings", "DetectionSettings", "ElasticSettings", "Recipe", "VideoSettings"]


@dataclass(frozen=True)
class VideoSettings:
    """How clips are cut out of videos, as `leanconv.data.open_videos` takes it, and how a trained network is tested.

    A clip is `frames` frames, every `rate`-th of a video brought to `fps` frames per second (null: left as it is). The
    shorter side of a training clip is drawn from `short_side` (null: the paper's 8/7 to 10/7 of the resolution), then a
    square is cropped; an epoch takes `clips_per_video` clips of every video. Tests take `test_clips` clips, evenly
    spread over the video, and of each the centre or `test_crops` = 3 crops along the longer side, as large as the
    smaller `short_side`. `mean` and `std` are of pixels in 0..1 (null: those of the paper's networks).
    """

    frames: int = 8
    rate: int = 2
    short_side: tuple[int, int] | None = None
    fps: float | None = 30.0
    clips_per_video: int = 1
    test_clips: int = 10
    test_crops: int = 1
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "rate", "clips_per_video", "test_clips"):
            if getattr(self, name) < 1:
                raise LeanconvError(f"data.video.{name} must be at least 1, got {getattr(self, name)}")
        if self.test_crops not in (1, 3):
            raise LeanconvError(f"data.video.test_crops is 1 (the centre) or 3, got {self.test_crops}")


@dataclass(frozen=True)
class DetectionSettings:
    """How pictures with objects are read, as `leanconv.data.detection.data.open_detection` takes it.

    `longest` is the limit of an image's longer side in pixels; data.resolution is the shorter one. `empty` says what
    becomes of training images without objects: drop or keep. Without `masks` boxes alone are read. `mirror` mirrors
    half of the images; an epoch goes `passes` times over them, which small sets want: a test follows every epoch.
    """

    longest: int = 1000
    empty: str = "drop"
    masks: bool = True
    mirror: bool = True
    passes: int = 1


@dataclass(frozen=True)
class DataSettings:
    """Which images, how large, how augmented, in what batches: the arguments of `leanconv.data.open_images`.

    `resolution` is the side in pixels of what the network sees. With `video` the data are videos: the arguments of
    `leanconv.data.open_videos`; with `detection` they are pictures with objects in them.
    `exif` turns photographs as their EXIF record says. `mean` and `std` are of pixels in 0..1 (null: those of the
    weights that training starts from, else of the training images); those of clips are in `video`. `validation` is the
    share of the training part that is held out to choose the best epoch by, where the data has no validation part
    (null: a tenth of one's own folders and lists, none of a published set, on all of which the papers train).
    """

    spec: str = "digits"
    resolution: int = 32
    augment: str = "none"
    batch_size: int = 128
    workers: int = 0
    exif: bool = True
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    validation: float | None = None
    video: VideoSettings | None = None
    detection: DetectionSettings | None = None

    @property
    def held_out(self) -> float:
        """The share of the training part that is held out as a validation part."""
        own = self.spec.partition(":")[0] in ("folder", "parquet", "video-folder", "video-csv")
        own = own or (self.spec.startswith("coco:") and self.spec.count(",") < 2)
        return self.validation if self.validation is not None else 0.1 if own else 0.0

    @property
    def input_size(self) -> tuple[int, ...]:
        """What the network sees, without the batch axis: (3, side, side), or (3, frames, side, side).

        Of detectors the largest image, (3, shorter side, longer side).
        """
        if self.detection is not None:
            return (3, self.resolution, max(self.resolution, self.detection.longest))
        frames = () if self.video is None else (self.video.frames,)
        return (3, *frames, self.resolution, self.resolution)


@dataclass(frozen=True)
class ElasticSettings:
    """Mutual learning over `widths` (low, high) and `resolutions` (descending; the first is the data's).

    For clips also over `frames` (descending; the first is the data's), or at the data's alone where it is empty.

    Every step trains the full network, the narrowest and `num_random` more. After training the network is calibrated,
    and its query table measured, at every one of `table_widths` and `resolutions`, on `calibration_images` images.
    Channel counts are multiples of `divisor`, as in `make_elastic`; networks with few channels want a smaller one.
    `temperature`, `hard_labels`, `layer_widths`, `draw_full` and `low_memory` are those of `MutualObjective`;
    `train_resolutions` (null: all of them) are those that training draws from, the first alone being US-Net; `teacher`
    is a run folder or a saved model to distill from.
    """

    widths: tuple[float, float] = (0.25, 1.0)
    resolutions: tuple[int, ...] = (32, 28, 24, 20)
    frames: tuple[int, ...] = ()
    num_random: int = 2
    divisor: int = 8
    temperature: float = 1.0
    hard_labels: float = 0.0
    train_resolutions: tuple[int, ...] | None = None
    teacher: str | None = None
    low_memory: bool = False
    layer_widths: bool = False
    draw_full: bool = False
    table_widths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    calibration_images: int = 2048

    def __post_init__(self) -> None:
        low, high = self.widths
        if not 0 < low <= high:
            raise LeanconvError(f"elastic.widths must be (low, high) with 0 < low <= high, got {list(self.widths)}")
        for name, counts in (("resolutions", self.resolutions), ("frames", self.frames)):
            if list(counts) != sorted(set(counts), reverse=True) or (name == "resolutions" and not counts):
                raise LeanconvError(f"elastic.{name} must descend, got {list(counts)}")
        outside = [width for width in self.table_widths if not low <= width <= high]
        if outside:
            raise LeanconvError(f"elastic.table_widths: {outside[0]} is outside the trained range [{low}, {high}]")

    @property
    def configs(self) -> tuple[Config, ...]:
        """Every configuration of the query table, the largest first."""
        widths = sorted(set(self.table_widths), reverse=True)
        return tuple(
            Config(width, resolution, frames)
            for frames in self.frames or (None,)
            for resolution in self.resolutions
            for width in widths
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network, how it is rewritten and made elastic, the data, and how it is trained.

    `model` and `model_args` are what `create_model` takes (the number of classes is the data's unless given; null
    leaves it out), `tiny_args` what the tiny mode changes in them; a `model` may also be a folder made by `save`, whose
    weights the run then starts from. `rewrites` are steps such as "osep:overlap=1"; `note` says in a sentence what it
    is. `weights` is a run folder or a saved model to finetune from: the network takes its weights over, inflated where
    they are an image network's, and starts with a fresh classifier where the classes differ; `frozen_norms` keeps
    BatchNorm as it was trained there. `new_classifier` lets a `model` that is a folder begin with a fresh classifier
    where the data has another number of classes. `teacher` is a run folder or a saved model whose answers are learnt
    too, with `hard_labels` of the loss left to the labels. `mixup` is the parameter of Beta(mixup, mixup) by which
    pairs of images are blended; `auxiliary` weighs the loss of the network's second classifier and `drop_path` is the
    share of its paths that the last epoch drops, for networks that have them (DARTS). `composed` trains chains as the
    dense convolutions that they equal, faster on a GPU (`leanconv.rewrites.composed`). `kernels` says whether grouped
    convolutions train on leanconv's own C library on a CPU: "auto" where that is faster, "always", or "never". The rest
    is `FitSettings`.
    """

    name: str
    model: str
    note: str = ""
    model_args: dict[str, Any] = field(default_factory=dict)
    tiny_args: dict[str, Any] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()
    elastic: ElasticSettings | None = None
    weights: str | None = None
    frozen_norms: bool = False
    new_classifier: bool = False
    teacher: str | None = None
    hard_labels: float = 0.5
    data: DataSettings = field(default_factory=DataSettings)
    label_smoothing: float = 0.0
    mixup: float = 0.0
    auxiliary: float = 0.0
    drop_path: float = 0.0
    composed: bool = False
    kernels: str = "auto"
    epochs: int = 10
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    seed: int = 0
    precision: str = "32-true"
    ema: float | None = None
    accumulate: int = 1
    clip: float | None = None
    steps_per_epoch: int | None = None
    train_sample: int = 0
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        if not self.name or self.name in (".", "..") or set(self.name) & set("/\\\0"):
            raise LeanconvError(f"name is that of a folder in runs/, of one part, got {shown(self.name)}")
        self.fit_settings()
        self._check_names()
        if self.kernels not in ("auto", "always", "never"):
            raise LeanconvError(f"kernels must be auto, always or never, got {shown(self.kernels)}")
        if not 0 <= self.label_smoothing < 1:
            raise LeanconvError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.elastic is not None and self.elastic.resolutions[0] != self.data.resolution:
            raise LeanconvError(
                f"elastic.resolutions start at {self.elastic.resolutions[0]}, but data.resolution is"
                f" {self.data.resolution}: images are made at the largest resolution and only ever reduced, so set both"
                " to the same"
            )
        if self.elastic is not None and self.elastic.frames:
            clip = None if self.data.video is None else self.data.video.frames
            if self.elastic.frames[0] != clip:
                raise LeanconvError(
                    f"elastic.frames start at {self.elastic.frames[0]}, but "
                    + ("the data are images" if clip is None else f"data.video.frames is {clip}: set both to the same")
                )
        if not self.mixup >= 0:
            raise LeanconvError(f"mixup must not be negative, got {self.mixup}")
        if self.mixup and (self.elastic is not None or self.auxiliary or self.drop_path):
            raise LeanconvError("mixup is only for the plain objective: without elastic, auxiliary and drop_path")
        if self.frozen_norms and (self.elastic is not None or self.auxiliary or self.drop_path):
            raise LeanconvError(
                "frozen_norms is only for the plain objective: without elastic, auxiliary and drop_path"
            )
        if self.teacher is not None and (self.elastic is not None or self.auxiliary or self.drop_path):
            raise LeanconvError(
                "teacher is only for the plain objective, without auxiliary and drop_path; elastic networks have"
                " elastic.teacher"
            )
        if not 0 <= self.hard_labels <= 1:
            raise LeanconvError(f"hard_labels is a share of the loss, from 0 to 1, got {self.hard_labels}")
        if not 0 <= self.drop_path < 1:
            raise LeanconvError(f"drop_path must be in [0, 1), got {self.drop_path}")
        if not self.auxiliary >= 0:
            raise LeanconvError(f"auxiliary must not be negative, got {self.auxiliary}")
        if self.elastic is not None and (self.auxiliary or self.drop_path):
            raise LeanconvError("auxiliary and drop_path are not part of mutual learning: set them to 0")
        if self.elastic is not None and self.label_smoothing:
            raise LeanconvError("label_smoothing is not part of mutual learning: set it to 0 or elastic to null")

    def _check_names(self) -> None:
        """A recipe that somebody sent never reaches the network."""
        taught = None if self.elastic is None else self.elastic.teacher
        for name in (self.model, self.weights, self.teacher, taught):
            if name is not None and name.startswith("hf:"):
                raise LeanconvError(
                    f"{self.name}: a recipe names models and folders that are here, and {name} is on the hub: name it"
                    " on the command line (train --model, --teacher), or save it first"
                )

    @property
    def test_limit(self) -> int | None:
        """On how many files a test is made at most: `steps_per_epoch` cuts it short as it does an epoch."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.data.batch_size

    def fit_settings(self) -> FitSettings:
        """The part that `leanconv.train.fit` takes."""
        return FitSettings(
            epochs=self.epochs,
            optim=self.optim,
            schedule=self.schedule,
            seed=self.seed,
            precision=self.precision,
            ema=self.ema,
            accumulate=self.accumulate,
            clip=self.clip,
            steps_per_epoch=self.steps_per_epoch,
            train_sample=self.train_sample,
            accelerator=self.accelerator,
            devices=self.devices,
            nodes=self.nodes,
        )

    def tiny(self) -> Recipe:
        """The same network (with `tiny_args`), rewrites and rules for two steps on the embedded digits, on the CPU.

        Elastic networks run at 32 and 20 pixels, or at the `resolutions` of `tiny_args`; a detector at 64 and 48.
        A recipe for videos runs on the embedded moving digits, from fresh weights, with as many frames up to eight and
        a rate as much smaller as the batch.
        """
        if self.data.detection is not None:
            return self._tiny_detector()
        elastic = self.elastic
        frames = min(self.data.video.frames, 8) if self.data.video is not None else 0
        if elastic is not None:
            low, high = elastic.widths
            elastic = replace(
                elastic,
                resolutions=tuple(self.tiny_args.get("resolutions", (32, 20))),
                frames=(frames, max(1, frames // 2)) if elastic.frames else (),
                train_resolutions=None if elastic.train_resolutions is None else (32,),
                teacher=None,
                table_widths=(low, high),
                calibration_images=32,
            )
        augment = "shift" if self.data.augment != "none" else "none"
        data, optim = DataSettings(spec="digits", resolution=32, augment=augment, batch_size=16), self.optim
        if self.data.video is not None:
            video = VideoSettings(frames=frames, short_side=(32, 32), test_clips=2)
            data = DataSettings(
                spec="moving-digits", resolution=32, augment=self.data.augment, batch_size=4, video=video
            )
            optim = replace(optim, lr=optim.lr * data.batch_size / self.data.batch_size)
        return replace(
            self,
            model_args={**self.model_args, **self.tiny_args},
            elastic=elastic,
            weights=None,
            teacher=None,
            data=data,
            optim=optim,
            epochs=1,
            steps_per_epoch=2,
            train_sample=min(self.train_sample, 32),
            accumulate=1,
            precision="32-true",
            accelerator="cpu",
            devices=1,
            nodes=1,
        )

    def _tiny_detector(self) -> Recipe:
        """On the embedded scattered digits, with small heads."""
        elastic, rcnn = self.elastic, {"rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 20}
        if elastic is not None:
            elastic = replace(
                elastic,
                resolutions=(64, 48),
                train_resolutions=None if elastic.train_resolutions is None else (64,),
                num_random=min(elastic.num_random, 1),
                table_widths=elastic.widths,
                calibration_images=4,
            )
        small: dict[str, Any] = {"channels": 16, "box_features": 32, "rcnn": {**rcnn, "box_detections_per_img": 5}}
        if self.model.endswith("mask_rcnn"):
            small["mask_channels"] = 8
        detection = replace(self.data.detection or DetectionSettings(), longest=96)
        data = DataSettings(spec="scattered-digits", resolution=64, batch_size=2, detection=detection)
        return replace(
            self,
            model_args={**self.model_args, **small, **self.tiny_args},
            elastic=elastic,
            weights=None,
            data=data,
            optim=replace(self.optim, lr=self.optim.lr / 8),
            epochs=1,
            steps_per_epoch=2,
            accumulate=1,
            precision="32-true",
            accelerator="cpu",
            devices=1,
            nodes=1,
        )
