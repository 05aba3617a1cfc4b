"""Video files as a `Stream` reads them: one clip planned from the file's index, then read, for each item."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.data.sets.video_files import VideoList
from leanconv.data.video.augment import ClipChoice
from leanconv.data.video.reader import Video, WrongIndex
from leanconv.seeds import generator

__all__ = ["VideoFiles"]

_TRIES = 64
"""So many videos in a row that cannot be used are not an accident."""


@dataclass(frozen=True, kw_only=True)
class VideoFiles:
    """The clips of `videos`; what `training` draws is a function of (seed, epoch, number of the item)."""

    videos: VideoList
    training: ClipChoice
    evaluation: ClipChoice
    seed: int
    unit: str = "video"

    @property
    def labels(self) -> Tensor:
        return self.videos.labels

    def name(self, file: int) -> str:
        return self.videos.paths[file]

    def replacements(self, file: int, number: int, epoch: int) -> Iterator[int]:
        """Other videos, in an order drawn from (seed, epoch, number)."""
        draws = generator(self.seed, "replacement", epoch, number)
        others = (other for other in torch.randperm(len(self.videos.paths), generator=draws).tolist() if other != file)
        return itertools.islice(others, _TRIES - 1)

    def read(self, file: int, number: int, epoch: int | None, notes: MutableMapping[int, Any]) -> Tensor:
        """The pixels of a clip, or of all clips of a test; the index of the file is kept in `notes`.

        Raises `DataError` for a file that is broken or too short.
        """
        choice, stream = (self.evaluation, ()) if epoch is None else (self.training, (self.seed, "clip", epoch, number))
        known = notes.get(file)
        with Video(self.videos.paths[file], known) as video:
            try:
                return _clip(video, choice, stream)
            except WrongIndex:
                video.recount()
                return _clip(video, choice, stream)
            finally:
                if video.index is not known:
                    notes[file] = video.index


def _clip(video: Video, choice: ClipChoice, stream: tuple[int | str, ...]) -> Tensor:
    plan = choice.plan(video.index, generator(*stream))
    return plan.arranged(video.read(plan.frames, plan.framing))
