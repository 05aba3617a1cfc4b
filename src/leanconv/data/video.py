"""Labelled videos under one name: `moving-digits`, `video-folder:PATH`, `video-csv:TRAIN.csv,TEST.csv`, ...

Clips are decoded on the way. Every batch is a pure function of (seed, epoch, number), whichever process reads it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from leanconv.data.loaders import Loader, epoch_order, every_nth, share_out
from leanconv.data.moving_digits import moving_digits
from leanconv.data.splits import Problem
from leanconv.data.video_augment import VIDEO_AUGMENTS, CentreClip, ClipShape, ClipTransform, DrawnClip, SpreadClips
from leanconv.data.video_index import require_pyav
from leanconv.data.video_sets import VideoSet, kinetics, sports1m, video_csv, video_folder
from leanconv.data.video_stream import VideoStream
from leanconv.errors import DataError, unknown

__all__ = ["VIDEO_KINDS", "VideoData", "VideoSample", "open_videos"]

# Of the videos on which the networks of the paper were trained, as their code has them.
_MEAN = (0.43216, 0.394666, 0.37645)
_STD = (0.22803, 0.22145, 0.216989)

_READERS: dict[str, Callable[[str], VideoSet]] = {
    "moving-digits": moving_digits,
    "video-folder": video_folder,
    "video-csv": video_csv,
    "kinetics": kinetics,
    "sports1m": sports1m,
}

VIDEO_KINDS = tuple(_READERS)
"""What `open_videos` reads: the words before the colon of a spec."""


def open_videos(
    spec: str,
    *,
    frames: int = 8,
    rate: int = 2,
    size: int = 112,
    batch_size: int = 8,
    workers: int = 0,
    seed: int = 0,
    augment: str = "video",
    short_side: tuple[int, int] | None = None,
    fps: float | None = 30.0,
    clips_per_video: int = 1,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> VideoData:
    """Open the videos that `spec` names: `moving-digits`, `video-folder:PATH`, `video-csv:TRAIN.csv,TEST.csv`,
    `kinetics:PATH` or `sports1m:PATH`.

    A clip is `frames` frames, every `rate`-th one at `fps` frames per second (None: as the file has them), `size`
    pixels square. In training the shorter side is scaled to a length drawn from `short_side` (default: the paper's 8/7
    to 10/7 of `size`), in evaluation to the smaller of the two. `augment` is `video` or `none`; `clips_per_video` is
    how often an epoch visits every training video; `batch_size` counts over all processes; `workers` processes decode.
    `mean` and `std` (of pixels in 0..1) default to those of the paper's networks.
    Raises `DataError` for a set that is missing, empty or inconsistent, `UnknownName` for an unknown kind of set,
    `MissingExtra` without PyAV.

        data = open_videos("video-csv:train.csv,test.csv", frames=8, rate=2, size=112, workers=2)
        clips, labels = next(iter(data.train_loader()))                              # (8, 3, 8, 112, 112), (8,)
    """
    kind, _, rest = spec.partition(":")
    if kind not in _READERS:
        raise unknown("kind of video set", kind, _READERS)
    if kind != "moving-digits" and not rest:
        raise DataError(f"{spec}: expected {kind}:... with a path after the colon")
    require_pyav()
    counts = (
        ("frames", frames, 1),
        ("rate", rate, 1),
        ("size", size, 1),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("clips_per_video", clips_per_video, 1),
    )
    for name, value, least in counts:
        if value < least:
            raise DataError(f"{spec}: {name} must be at least {least}, got {value}")
    if fps is not None and not 0 < fps <= 1000:
        raise DataError(f"{spec}: fps must be above 0 and at most 1000, or None for each file's own, got {fps}")
    if augment not in VIDEO_AUGMENTS:
        raise unknown("augmentation of videos", augment, VIDEO_AUGMENTS)
    low, high = short_side or (round(size * 8 / 7), round(size * 10 / 7))
    if not size <= low <= high:
        raise DataError(
            f"{spec}: short_side {low} to {high} must be a range of lengths that a crop of {size} pixels fits into"
        )
    return VideoData(
        _READERS[kind](rest),
        shape=ClipShape(frames=frames, rate=rate, size=size, fps=None if fps is None else _rate(fps)),
        short_side=(low, high),
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        augment=augment,
        clips_per_video=clips_per_video,
        mean=mean or _MEAN,
        std=std or _STD,
    )


class VideoSample(NamedTuple):
    """One test video: its file, its label and its clips (clips * crops, 3, frames, h, w), normalised."""

    name: str
    label: int
    clips: Tensor


class VideoData:
    """Training and test clips of one set of videos.

    Batches are (clips float32 (n, 3, frames, size, size), normalised by `mean` and `std`; labels int64 (n,)). Videos
    that cannot be used are passed over and listed in `problems`. `open_videos` makes these.
    """

    channels = 3
    unit = "video"

    def __init__(
        self,
        videos: VideoSet,
        *,
        shape: ClipShape,
        short_side: tuple[int, int],
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        augment: str = "video",
        clips_per_video: int = 1,
        mean: tuple[float, float, float] = _MEAN,
        std: tuple[float, float, float] = _STD,
    ) -> None:
        self.class_names = videos.class_names
        self.num_classes = len(videos.class_names)
        self.size = shape.size
        self.input_size = (self.channels, shape.frames, shape.size, shape.size)
        self.batch_size = batch_size
        self.mean, self.std = mean, std
        self.seed = seed
        self.epoch = 0
        self._shape = shape
        self._short_side = short_side
        self._missing = videos.problems
        centre = CentreClip(shape, short_side[0])
        drawn = DrawnClip(shape, short_side, videos.mirror)
        training: ClipTransform = drawn if augment == "video" else centre
        self._train = VideoStream(
            files=videos.train,
            training=training,
            evaluation=centre,
            seed=seed,
            workers=workers,
            repeats=clips_per_video,
        )
        self._test = VideoStream(files=videos.test, training=centre, evaluation=centre, seed=seed, workers=workers)

    @property
    def train_size(self) -> int:
        """Training videos that are there."""
        return len(self._train.files.paths)

    @property
    def test_size(self) -> int:
        """Test videos that are there."""
        return len(self._test.files.paths)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The videos that are missing, broken or too short, as far as they have been asked for."""
        found = {problem.name: problem for problem in self._missing}
        return tuple((found | self._train.problems | self._test.problems).values())

    def write_problems(self, path: str | os.PathLike[str]) -> Path:
        """Write the file and the reason of every problem as CSV, with the header alone when there is none."""
        path = Path(path)
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(draft, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow((self.unit, "reason"))
                writer.writerows(self.problems)
            os.replace(draft, path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
        finally:
            draft.unlink(missing_ok=True)
        return path

    def set_epoch(self, epoch: int) -> None:
        """Let the next `train_loader()` give the order and the clips of `epoch`."""
        self.epoch = epoch

    def train_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The training batches of the current epoch; process `rank` of `world` gets its share of every batch.

        All batches are full, as with images; a video that cannot be used is replaced by another one. Raises `DataError`
        when a batch cannot be shared out evenly.
        """
        order = epoch_order(len(self._train), self.seed, self.epoch)
        _, chunks = share_out(order, self.batch_size, rank, world, "clips")
        return self._loader(self._train, chunks, self.epoch)

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The centre clip of every test video, in file order; process `rank` of `world` gets every `world`-th video."""
        return self._loader(self._test, every_nth(self.test_size, self.batch_size, rank, world), None)

    def test_loader(self, clips: int = 10, crops: int = 1, *, rank: int = 0, world: int = 1) -> TestVideos:
        """Every test video as a `VideoSample`: `clips` clips spread over it, times 1 (centre) or 3 crops.

        Three crops, along the longer side, are as large as the smaller `short_side`. Raises `DataError` for other
        counts.
        """
        if clips < 1 or crops not in (1, 3):
            raise DataError(f"clips must be at least 1 and crops 1 or 3, got {clips} and {crops}")
        taken = SpreadClips(self._shape, self._short_side[0], clips, crops)
        # Samples are large: workers are not to work ahead by more than one.
        stream = replace(self._test, evaluation=taken, ahead=1)
        return TestVideos(stream, every_nth(self.test_size, 1, rank, world), self._normalised)

    def _loader(self, stream: VideoStream, chunks: tuple[tuple[int, ...], ...], epoch: int | None) -> Loader:
        return Loader(
            source=stream, chunks=chunks, epoch=epoch, finish=lambda _number, pixels: self._normalised(pixels)
        )

    def _normalised(self, pixels: Tensor) -> Tensor:
        shift, scale = self._affine
        return pixels.float().sub_(shift).mul_(scale)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (255 * mean)[:, None, None, None], (1 / (255 * std))[:, None, None, None]


@dataclass(frozen=True)
class TestVideos:
    """An iterable of `VideoSample`, one per test video that can be read; `len` counts all of them."""

    __test__ = False  # pytest would take it for a test

    stream: VideoStream
    chunks: tuple[tuple[int, ...], ...]
    finish: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[VideoSample]:
        for pixels, labels, [video] in self.stream.batches(self.chunks, None):
            yield VideoSample(self.stream.files.paths[video], int(labels[0]), self.finish(pixels[0]))


def _rate(fps: float) -> Fraction:
    """The frame rate as it was meant: 29.97002997 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)
