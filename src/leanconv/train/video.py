"""How often a network is right about videos: clip by clip, and about a video as the mean of its clips.

    p(video) = mean over its clips of (mean over positions of softmax(logits))       (CSN, sections 4.1 and 5)

clip@1    the share of clips (every crop of every clip counts) whose most probable class is the label
video@k   the share of videos whose label is among the k most probable classes of p(video)

A clip larger than the network was trained for has several positions: its last map is pooled and classified window by
window, the softmax is taken at each, and only then averaged. Networks that can do so have `positions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from leanconv.dryrun import ModelHolder, as_module
from leanconv.errors import DataError
from leanconv.intervals import Interval, of_share
from leanconv.modes import eval_mode
from leanconv.train.evaluate import check_labels
from leanconv.train.predictions import Prediction

__all__ = ["VideoEvaluation", "VideoPrediction", "VideoSample", "clip_probabilities", "evaluate_videos"]


class VideoSample(Protocol):
    """One test video: its name, its label and its clips (clips * crops, 3, frames, h, w)."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> int: ...

    @property
    def clips(self) -> Tensor: ...


@runtime_checkable
class _FullyConvolutional(Protocol):
    """A network that classifies every position of its last map: (n, 3, frames, h, w) to logits (n, classes, places).

    A position is a window of the size that a clip of side `crop` has there.
    """

    def positions(self, x: Tensor, *, crop: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class VideoPrediction(Prediction):
    """The prediction for one video, the mean over its `clips`, and how many of these were right by themselves."""

    clips: int
    right_clips: int


@dataclass(frozen=True, kw_only=True)
class VideoEvaluation:
    """The predictions for every video of a set, from a network with `classes` outputs; shares are from 0 to 1."""

    predictions: tuple[VideoPrediction, ...]
    classes: int

    @property
    def videos(self) -> int:
        """How many videos were tested."""
        return len(self.predictions)

    @property
    def clips(self) -> int:
        """How many clips were tested, every crop counted."""
        return sum(prediction.clips for prediction in self.predictions)

    @property
    def clip1(self) -> float:
        """clip@1."""
        return sum(prediction.right_clips for prediction in self.predictions) / self.clips

    @property
    def video1(self) -> float:
        """video@1."""
        return self._among(1)

    @property
    def video5(self) -> float | None:
        """video@5; None for five classes or fewer, where it is always 1."""
        return self._among(5) if self.classes > 5 else None

    @property
    def intervals(self) -> dict[str, Interval]:
        """The 95 % intervals of video1 and video5; clips of one video are no separate items, so clip1 has none."""
        shares = {"video1": self.video1} | ({} if self.video5 is None else {"video5": self.video5})
        return {name: of_share(share, self.videos) for name, share in shares.items()}

    def _among(self, best: int) -> float:
        return sum(video.label in video.classes[:best] for video in self.predictions) / self.videos


def evaluate_videos(
    net: nn.Module | ModelHolder,
    samples: Iterable[VideoSample],
    *,
    crop: int,
    clips_at_once: int = 8,
    watch: Callable[[VideoSample, VideoPrediction], None] | None = None,
) -> VideoEvaluation:
    """Test `net` on videos, in evaluation mode, on its own device; every module is left in the mode it was in.

    `crop` is the side of the clips that the network was trained on: larger ones have several positions. One video is
    held at a time, and at most `clips_at_once` of its clips go through the network together. `watch` is called with
    every video and its prediction. Raises `DataError` without any video, and for labels that the network has no
    output for.

        evaluate_videos(net, data.test_loader(clips=10, crops=3), crop=data.resolution).video1
    """
    net = as_module(net)
    predictions = []
    classes = 0
    with eval_mode(net) as device:
        for sample in samples:
            parts = [
                clip_probabilities(net, part.to(device), crop).cpu()
                for part in torch.split(sample.clips, clips_at_once)
            ]
            of_clips = torch.cat(parts).double()
            classes = of_clips.shape[1]
            check_labels(torch.tensor([sample.label]), classes)
            best = of_clips.mean(dim=0).topk(min(5, classes))
            prediction = VideoPrediction(
                name=sample.name,
                label=sample.label,
                classes=tuple(best.indices.tolist()),
                probabilities=tuple(best.values.tolist()),
                clips=len(of_clips),
                right_clips=int((of_clips.argmax(dim=1) == sample.label).sum()),
            )
            predictions.append(prediction)
            if watch is not None:
                watch(sample, prediction)
            del sample  # or it would stay in memory while the next one is read
    if not predictions:
        raise DataError("there is no video to test on: none could be read, or the test half is empty")
    return VideoEvaluation(predictions=tuple(predictions), classes=classes)


def clip_probabilities(net: nn.Module, clips: Tensor, crop: int) -> Tensor:
    """The probabilities (n, classes) of clips (n, 3, frames, h, w), averaged over positions where `net` has them."""
    if isinstance(net, _FullyConvolutional):
        return net.positions(clips, crop=crop).float().softmax(dim=1).mean(dim=2)
    logits: Tensor = net(clips)
    return logits.float().softmax(dim=1)
