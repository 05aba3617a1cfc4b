"""Clips decoded when a batch needs them, in worker processes; what cannot be read is named and passed over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from leanconv.data.loaders import Batch, collated, give_up_reserve
from leanconv.data.seeds import generator
from leanconv.data.splits import Problem
from leanconv.data.video_augment import ClipTransform
from leanconv.data.video_index import VideoIndex
from leanconv.data.video_reader import Video
from leanconv.data.video_sets import VideoList
from leanconv.errors import DataError

__all__ = ["VideoStream"]

_TRIES = 64
"""So many videos in a row that cannot be used are not an accident."""


@dataclass(frozen=True, kw_only=True)
class VideoStream:
    """The clips of `files`, each file `repeats` times an epoch.

    In training a video that cannot be used is replaced by one drawn from (seed, epoch, place), so that every process
    of a distributed run makes the same number of equal steps; in evaluation it is left out. Either way it is added to
    `problems`. `indexes` holds what is known of the files, so that each is searched once, whichever process read it.
    """

    files: VideoList
    training: ClipTransform
    evaluation: ClipTransform
    seed: int
    workers: int
    repeats: int = 1
    ahead: int = 2
    problems: dict[str, Problem] = field(default_factory=dict)
    indexes: dict[int, VideoIndex] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files.paths) * self.repeats

    def fetch(self, chunks: Sequence[Sequence[int]], epoch: int | None) -> Iterator[Batch]:
        for pixels, labels, _ in self.batches(chunks, epoch):
            yield pixels, labels

    def batches(self, chunks: Sequence[Sequence[int]], epoch: int | None) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """Pixels, labels and the numbers of the videos that they are from.

        Raises `DataError` where nothing can be read, and where memory runs out, with the name of the file.
        """
        items = _Items(self, epoch)
        last: Problem | None = None
        found = False
        for part in collated(items, chunks, self.workers, _gather, ahead=self.ahead, reading=items.reading):
            self.indexes.update(part.indexes)
            self.problems.update((problem.name, problem) for problem in part.problems)
            last = part.problems[-1] if part.problems else last
            if part.refusal is not None:
                raise DataError(part.refusal)
            if part.pixels is not None:
                found = True
                yield part.pixels, part.labels, part.videos
        if last is not None and not found:
            raise DataError(f"none of the videos could be read, for example {last.name}: {last.reason}")


class _Part(NamedTuple):
    """One clip, or a batch of them, and what came up on the way."""

    pixels: Tensor | None
    labels: Tensor
    videos: list[int]
    problems: list[Problem]
    indexes: dict[int, VideoIndex]
    refusal: str | None = None


_NOTHING = torch.empty(0, dtype=torch.int64)


def _refused(why: str, problems: Sequence[Problem] = ()) -> _Part:
    return _Part(None, _NOTHING, [], list(problems), {}, why)


class _Items(Dataset[_Part]):
    """The map-style data set that worker processes run."""

    def __init__(self, stream: VideoStream, epoch: int | None) -> None:
        self.stream, self.epoch = stream, epoch
        self.refusal: str | None = None
        """Why this process reads no more: what it reads would take the memory that its answer needs."""
        self.at = torch.full((max(stream.workers, 1),), -1)
        """The video that each worker is reading, in memory that all see: a worker that is killed can say nothing."""
        if stream.workers:
            self.at.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, number: int) -> _Part:
        if self.refusal is not None:
            return _refused(self.refusal)
        stream = self.stream
        problems: list[Problem] = []
        indexes: dict[int, VideoIndex] = {}
        for video in self._candidates(number):
            self._note(video)
            path = stream.files.paths[video]
            try:
                pixels = self._read(number, video, indexes)
            except MemoryError as error:
                self.refusal = (
                    f"{error if str(error).startswith(path) else f'{path}: memory ran out'}: use fewer workers (now"
                    f" {stream.workers}) or a smaller batch, or store the video smaller; videos are scaled while they"
                    " are decoded, so a larger size of clips is rarely the reason"
                )
                break
            except Exception as error:  # decoders raise anything on broken input
                reason = " ".join(str(error).removeprefix(f"{path}: ").split()) or type(error).__name__
                problems.append(Problem(path, reason))
                continue
            finally:
                self._note(-1)
            return _Part(pixels, stream.files.labels[video : video + 1], [video], problems, indexes)
        if self.refusal is not None:
            give_up_reserve()  # here the error is gone, and with it the decoder whose threads would fill what is free
            return _refused(self.refusal, problems)
        if self.epoch is None:
            return _Part(None, _NOTHING, [], problems, indexes)
        name, reason = problems[-1]
        return _refused(
            f"{len(problems)} videos drawn in a row cannot be used for training, the last is {name}: {reason}", problems
        )

    def reading(self) -> list[str]:
        """The videos that the workers are reading."""
        return [self.stream.files.paths[video] for video in self.at.tolist() if video >= 0]

    def _candidates(self, number: int) -> Iterator[int]:
        count = len(self.stream.files.paths)
        first = number % count
        yield first
        if self.epoch is not None:
            draws = generator(self.stream.seed, "replacement", self.epoch, number)
            others = (video for video in torch.randperm(count, generator=draws).tolist() if video != first)
            yield from itertools.islice(others, _TRIES - 1)

    def _read(self, number: int, video: int, indexes: dict[int, VideoIndex]) -> Tensor:
        stream, epoch = self.stream, self.epoch
        known = stream.indexes.get(video)

        def take(opened: Video) -> Tensor:
            if epoch is None:
                return stream.evaluation(opened, torch.Generator())
            return stream.training(opened, generator(stream.seed, "clip", epoch, number))

        with Video(stream.files.paths[video], known) as opened:
            try:
                return opened.take(take)
            finally:
                if opened.index is not known:
                    indexes[video] = opened.index

    def _note(self, video: int) -> None:
        worker = get_worker_info()
        self.at[0 if worker is None else worker.id] = video


def _gather(parts: list[_Part]) -> _Part:
    problems = [problem for part in parts for problem in part.problems]
    for part in parts:
        if part.refusal is not None:
            return _refused(part.refusal, problems)
    pixels = [part.pixels for part in parts if part.pixels is not None]
    return _Part(
        torch.stack(pixels) if pixels else None,
        torch.cat([part.labels for part in parts]),
        [video for part in parts for video in part.videos],
        problems,
        {video: index for part in parts for video, index in part.indexes.items()},
    )
