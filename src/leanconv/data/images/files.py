"""Image files as a `Stream` reads them: one photograph decoded, cropped and augmented for each item."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from leanconv.data.images.decode import Transform, decode
from leanconv.data.sets.splits import Problem, Split
from leanconv.errors import DataError
from leanconv.seeds import isolated

__all__ = ["ImageFiles"]

_TRIES = 16


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
        """The next images of the list, from its beginning after the last one."""
        count = len(self.labels)
        return ((file + step) % count for step in range(1, min(_TRIES, count)))

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
