"""Labelled videos under one name: `moving-digits`, `video-folder:PATH`, `video-csv:TRAIN.csv,TEST.csv`, ...

Clips are decoded on the way. Every batch is a pure function of (seed, epoch, number), whichever process reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from torch import Tensor

from leanconv.data.contract import ClipContract, InputContract
from leanconv.data.labelled import (
    LabelledData,
    Part,
    Statistics,
    check_counts,
    check_share,
    check_statistics,
    held_out_remark,
    numbered_as,
    reader_of,
    statistics_of,
    tested_on,
)
from leanconv.data.loaders import every_nth
from leanconv.data.sets.actions import hmdb51, something, ucf101
from leanconv.data.sets.folder import video_folder
from leanconv.data.sets.kinetics import kinetics
from leanconv.data.sets.moving_digits import moving_digits
from leanconv.data.sets.splits import Problem, validation_part
from leanconv.data.sets.sports1m import sports1m
from leanconv.data.sets.video_csv import video_csv
from leanconv.data.sets.video_files import VideoList, VideoSet
from leanconv.data.stream import Stream
from leanconv.data.video.augment import VIDEO_AUGMENTS, CentreClip, ClipChoice, ClipShape, DrawnClip, SpreadClips
from leanconv.data.video.files import VideoFiles
from leanconv.data.video.index import require_pyav
from leanconv.errors import DataError, unknown

__all__ = ["VIDEO_KINDS", "VideoData", "VideoSample", "open_videos"]

# Of the videos on which the networks of the paper were trained, as their code has them.
_MEAN = (0.43216, 0.394666, 0.37645)
_STD = (0.22803, 0.22145, 0.216989)

_READERS: dict[str, Callable[..., VideoSet]] = {
    "moving-digits": moving_digits,
    "video-folder": video_folder,
    "video-csv": video_csv,
    "kinetics": kinetics,
    "sports1m": sports1m,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "something": something,
}

_SPLIT_HERE = ("video-folder", "video-csv")
"""The kinds that may come as one part, of which training holds a fifth out."""

VIDEO_KINDS = tuple(_READERS)
"""What `open_videos` reads: the words before the colon of a spec."""


def open_videos(
    spec: str,
    *,
    frames: int = 8,
    rate: int = 2,
    resolution: int = 112,
    batch_size: int = 8,
    workers: int = 0,
    seed: int = 0,
    augment: str = "video",
    short_side: tuple[int, int] | None = None,
    fps: float | None = 30.0,
    clips_per_video: int = 1,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    contract: InputContract | None = None,
    class_names: Sequence[str] | None = None,
    testing: bool = False,
    part: str | None = None,
    validation: float = 0.0,
) -> VideoData:
    """Open the videos that `spec` names: `moving-digits`, `video-folder:PATH`, `video-csv:TRAIN.csv,TEST.csv`,
    `kinetics:PATH`, `sports1m:PATH`, `ucf101:PATH`, `hmdb51:PATH` or `something:PATH`.

    A clip is `frames` frames, every `rate`-th one at `fps` frames per second (None: as the file has them), `resolution`
    pixels square. In training the shorter side is scaled to a length drawn from `short_side` (default: the paper's 8/7
    to 10/7 of `resolution`), in evaluation to the smaller of the two. `augment` is `video` or `none`; `clips_per_video`
    is how often an epoch visits every training video; `batch_size` counts over all processes; `workers` processes
    decode. `mean` and `std` (of pixels in 0..1) default to those of the paper's networks.

    Where the set has no validation part of its own, the share `validation` of every class of the training part is held
    out as one, drawn by `seed`.
    With a `contract`, that of a trained network, clips are what it says, whatever `frames`, `rate`, `resolution`,
    `fps`, `short_side`, `mean` and `std` are, and classes are numbered by its names, or by `class_names` alone. With
    `testing` there is no
    training part: a set that is not split yet is all test; `part` is as in `open_images`.
    Raises `DataError` for a set that is missing, empty or inconsistent, `UnknownName` for an unknown kind of set,
    `MissingExtra` without PyAV.

        data = open_videos("video-csv:train.csv,test.csv", frames=8, rate=2, resolution=112, workers=2)
        clips, labels = next(iter(data.train_loader()))                              # (8, 3, 8, 112, 112), (8,)
    """
    read = reader_of(spec, _READERS, what="kind of video set", takes="a path", embedded="moving-digits")
    require_pyav()
    if contract is not None:
        clip = _clip_of(spec, contract)
        frames, resolution, mean, std = contract.size[1], contract.size[-1], *statistics_of(spec, contract, "videos")
        rate, fps, short_side = clip.rate, clip.fps, (clip.short_side, max(clip.short_side, round(resolution * 10 / 7)))
    check_counts(
        spec, 1, frames=frames, rate=rate, resolution=resolution, batch_size=batch_size, clips_per_video=clips_per_video
    )
    check_counts(spec, 0, workers=workers)
    check_statistics(spec, mean, std)
    if fps is not None and not 0 < fps <= 1000:
        raise DataError(f"{spec}: fps must be above 0 and at most 1000, or None for each file's own, got {fps}")
    if augment not in VIDEO_AUGMENTS:
        raise unknown("augmentation of videos", augment, VIDEO_AUGMENTS)
    low, high = short_side or (round(resolution * 8 / 7), round(resolution * 10 / 7))
    if not resolution <= low <= high:
        raise DataError(
            f"{spec}: short_side {low} to {high} must be a range of lengths that a crop of {resolution} pixels fits"
            " into"
        )
    if testing and spec.partition(":")[0] in _SPLIT_HERE:
        read = partial(read, testing=True)
    check_share(spec, validation)
    videos = read()
    if testing:
        videos = replace(videos, train=None, val=None if videos.val is not videos.test else videos.val)
    elif validation and videos.val is None and videos.train is not None:
        kept, held = validation_part(videos.train.labels, videos.train.paths, validation, seed)
        if held:
            told = held_out_remark(len(held), len(videos.train.paths), "videos")
            train, val = videos.train.some(kept), videos.train.some(held)
            videos = replace(videos, train=train, val=val, remarks=(*videos.remarks, told))
    if part is not None:
        videos = tested_on(spec, videos, part)
    if contract is not None or class_names is not None:
        names = contract.class_names if contract is not None else class_names
        videos = numbered_as(spec, videos, names, _with_labels)
    return VideoData(
        videos,
        shape=ClipShape(frames=frames, rate=rate, resolution=resolution, fps=None if fps is None else frame_rate(fps)),
        short_side=(low, high),
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        augment=augment,
        clips_per_video=clips_per_video,
        mean=mean or _MEAN,
        std=std or _STD,
    )


def _clip_of(spec: str, contract: InputContract) -> ClipContract:
    if contract.clip is None or contract.size[-1] != contract.size[-2]:
        raise DataError(f"{spec}: the network is fed inputs of {list(contract.size)}, and clips are 3,FRAMES,SIDE,SIDE")
    return contract.clip


def _with_labels(files: VideoList, labels: Tensor) -> VideoList:
    return replace(files, labels=labels)


class VideoSample(NamedTuple):
    """One test video: its file, its label and its clips (clips * crops, 3, frames, h, w), normalised."""

    name: str
    label: int
    clips: Tensor


class VideoData(LabelledData[Stream]):
    """Training and test clips of one set of videos: (float32 (n, 3, frames, side, side); labels int64 (n,)).

    Videos that are missing, broken or too short are passed over and listed in `problems`; in training another one takes
    the place. Evaluation takes the centre clip of every test video. `open_videos` makes these.
    """

    unit = "video"
    sample = "clip"

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
        super().__init__(
            videos.class_names,
            input_size=(self.channels, shape.frames, shape.resolution, shape.resolution),
            batch_size=batch_size,
            seed=seed,
            repeats=clips_per_video,
            remarks=videos.remarks,
        )
        self._videos = videos
        self._shape = shape
        self._short_side = short_side
        self._workers = workers
        self._augment = augment
        self._given = mean, std

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The videos that are missing, broken or too short, as far as they have been asked for."""
        missing = {problem.name: problem for problem in self._videos.problems}
        return tuple((missing | {problem.name: problem for problem in super().problems}).values())

    @property
    def test_problems(self) -> tuple[Problem, ...]:
        """Those of them that were to be tested on."""
        missing = {problem.name: problem for problem in self._videos.test.missing}
        return tuple((missing | {problem.name: problem for problem in super().test_problems}).values())

    @property
    def has_validation(self) -> bool:
        return self._videos.val is not None

    @property
    def has_test(self) -> bool:
        return self._videos.val is not self._videos.test

    @property
    def part(self) -> str:
        return self._videos.part if self.has_test else "validation"

    def test_loader(
        self, clips: int = 10, crops: int = 1, *, rank: int = 0, world: int = 1, limit: int | None = None
    ) -> TestVideos:
        """Every test video as a `VideoSample`: `clips` clips spread over it, times 1 (centre) or 3 crops.

        With `limit`, so many videos at most, drawn by the seed over all classes.

        Three crops, along the longer side, are as large as the smaller `short_side`. Raises `DataError` for other
        counts.
        """
        if clips < 1 or crops not in (1, 3):
            raise DataError(f"clips must be at least 1 and crops 1 or 3, got {clips} and {crops}")
        files = self._files(self._videos.test, SpreadClips(self._shape, self._short_side[0], clips, crops))
        # Samples are large: workers are not to work ahead by more than one.
        stream = replace(self._test, files=files, ahead=1)
        numbers = self._sample(self._test, limit)
        chunks = tuple((numbers[place],) for (place,) in every_nth(len(numbers), 1, rank, world))
        return TestVideos(stream, chunks, self._normalised)

    def _source(self, part: Part) -> Stream:
        videos: VideoList | None = getattr(self._videos, part)
        if videos is None:
            raise DataError("this data was opened to be tested on, it has no training part")
        files = self._files(videos, CentreClip(self._shape, self._short_side[0]))
        return Stream(files=files, workers=self._workers, repeats=self._repeats if part == "train" else 1)

    def _files(self, videos: VideoList, evaluation: ClipChoice) -> VideoFiles:
        drawn = DrawnClip(self._shape, self._short_side, self._videos.mirror)
        training = drawn if self._augment == "video" else evaluation
        return VideoFiles(videos=videos, training=training, evaluation=evaluation, seed=self.seed)

    def _mean_and_std(self) -> Statistics:
        return self._given

    @property
    def contract(self) -> InputContract:
        """What the test clips are."""
        shape, fps = self._shape, self._shape.fps
        return InputContract(
            size=self.input_size,
            mean=self.mean,
            std=self.std,
            resize="shorter_side",
            crop=shape.resolution / self._short_side[0],
            exif=True,
            class_names=self.class_names,
            clip=ClipContract(rate=shape.rate, fps=None if fps is None else float(fps), short_side=self._short_side[0]),
        )


@dataclass(frozen=True)
class TestVideos:
    """An iterable of `VideoSample`, one per test video that can be read; `len` counts all of them."""

    __test__ = False  # pytest would take it for a test

    stream: Stream
    chunks: tuple[tuple[int, ...], ...]
    finish: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[VideoSample]:
        for pixels, labels, [video] in self.stream.batches(self.chunks, None):
            yield VideoSample(self.stream.files.name(video), int(labels[0]), self.finish(pixels[0]))


def frame_rate(fps: float) -> Fraction:
    """The frame rate as it was meant: 29.97002997 is 30000/1001."""
    return Fraction(fps).limit_denominator(1001)
