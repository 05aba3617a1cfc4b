"""Image files as a `Stream` reads them: one photograph decoded, cropped and augmented for each item."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.data.images.decode import Transform, decode
from leanconv.data.sets.splits import Problem, Split
from leanconv.errors import DataError
from leanconv.seeds import generator, isolated

__all__ = ["ImageFiles"]

_NEAR, _TRIES = 16, 64
"""How many images in a row are tried, and how many in all: so many that cannot be used are not an accident."""


@dataclass(frozen=True)
class ImageFiles:
    """The images of `split`; what `training` draws is a function of (seed, epoch, number of the item)."""

    split: Split
    training: Transform
    evaluation: Transform
    seed: int
    exif: bool = True
    unit: str = "image"

    @property
    def labels(self) -> Tensor:
        return self.split.labels

    def name(self, file: int) -> str:
        return self.split.name(file)

    def replacements(self, file: int, number: int, epoch: int) -> Iterator[int]:
        """The next images of the list, from its beginning after the last one; then others, drawn: a folder may go."""
        count = len(self.labels)
        near = [(file + step) % count for step in range(1, min(_NEAR, count))]
        yield from near
        draws = generator(self.seed, "replacement", epoch, number)
        tried = {file, *near}
        others = (other for other in torch.randperm(count, generator=draws).tolist() if other not in tried)
        yield from itertools.islice(others, _TRIES - len(tried))

    def read(self, file: int, number: int, epoch: int | None, notes: MutableMapping[int, Any]) -> Tensor:
        """The pixels (3, size, size); a note where EXIF turned the image. `DataError` with what is wrong with it."""
        if epoch is None:
            found = decode(self.split, file, self.evaluation, exif=self.exif)
        else:
            with isolated(self.seed, "image", epoch, number):
                found = decode(self.split, file, self.training, exif=self.exif)
        if isinstance(found, Problem):
            raise DataError(found.reason)
        if found.turned:
            notes[file] = True
        return found.pixels
