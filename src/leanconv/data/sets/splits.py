"""What every reader gives: a training and a test half, each a list of labelled images that can be read by number."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from leanconv.errors import DataError
from leanconv.seeds import generator, mix

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "ImageSet",
    "Problem",
    "Relabelled",
    "Split",
    "Subset",
    "check_labels",
    "held_out",
    "split_by_class",
    "spread_sample",
    "validation_part",
]


class Problem(NamedTuple):
    """One image or video that could not be read, and why; it takes no part in training or evaluation."""

    name: str
    reason: str

    @property
    def is_missing(self) -> bool:
        """Whether there is no such file, as the system and the readers of lists say it; else it is there and broken."""
        return "no such file" in self.reason.lower()


class Split(Protocol):
    """Images by number. `labels` is an int64 tensor (n,); `read` returns an image of any mode and size, or raises."""

    @property
    def labels(self) -> Tensor: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class Subset:
    """The images of `whole` at `indices`, in that order."""

    whole: Split
    indices: tuple[int, ...]

    @property
    def labels(self) -> Tensor:
        return self.whole.labels[list(self.indices)]

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])

    def read(self, index: int) -> Image.Image:
        return self.whole.read(self.indices[index])


@dataclass(frozen=True)
class Relabelled:
    """The images of `whole` with other labels."""

    whole: Split
    labels: Tensor

    def name(self, index: int) -> str:
        return self.whole.name(index)

    def read(self, index: int) -> Image.Image:
        return self.whole.read(index)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A training and a test split over the same classes; labels index `class_names`.

    A set opened to be tested on alone has no training split. `val` is the split to choose by, where the set has one; it
    is `test` itself where there is no other to report on. `part` says what `test` is: the test part, or one that was
    asked for in its place. `mean` and `std` (of pixels in 0..1) are given where they
    have been published for this set. `remarks` are sentences about what was found and may surprise.
    """

    train: Split | None
    test: Split
    class_names: tuple[str, ...]
    val: Split | None = None
    part: str = "test"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    remarks: tuple[str, ...] = ()


def split_by_class(split: Split, keys: Sequence[str], *, fraction: float = 0.2) -> tuple[Subset, Subset]:
    """Train and test subsets of images, chosen as `held_out` says."""
    train, test = held_out(split.labels, keys, split.name, fraction=fraction)
    return Subset(split, train), Subset(split, test)


def held_out(
    labels: Tensor,
    keys: Sequence[str],
    name: Callable[[int], str],
    *,
    fraction: float = 0.2,
    what: str = "image",
    class_names: Sequence[str] = (),
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Train and test numbers in which every class keeps its share, chosen by a hash of each file's key.

    No generator is involved, so the halves are the same on every machine and under every version of every library.
    `fraction` is the test share, rounded per class; a class gives at least one `what` to each half, so it needs two
    (`DataError` otherwise).
    """
    train: list[int] = []
    test: list[int] = []
    for label, members in _by_class(labels):
        if len(members) < 2:
            called = repr(class_names[label]) if class_names else label
            raise DataError(
                f"class {called} has one {what} only ({name(members[0])}): a set that is not yet split needs two or"
                " more per class, one of them for the test half; add some or make train/ and val/ folders"
            )
        ranked = sorted(members, key=lambda index: (mix(keys[index]), keys[index]))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        test += ranked[:count]
        train += ranked[count:]
    return tuple(sorted(train)), tuple(sorted(test))


def validation_part(
    labels: Tensor, names: Sequence[str], fraction: float, seed: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Training numbers and those held out of them to choose by: `fraction` of every class, drawn by `seed`.

    A file is drawn by its name below the folder that all of `names` share, so the parts are the same wherever that
    folder lies. A class of one file stays in training.
    """
    paths = list(map(os.path.abspath, names))
    shared = os.path.commonpath(paths)
    keys = [path.removeprefix(shared) for path in paths]
    train: list[int] = []
    held: list[int] = []
    for _, members in _by_class(labels):
        ranked = sorted(members, key=lambda index: (mix(seed, "validation", keys[index]), keys[index]))
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held += ranked[:count]
        train += ranked[count:]
    return tuple(sorted(train)), tuple(sorted(held))


def spread_sample(labels: Tensor, count: int, seed: int) -> list[int]:
    """The numbers, ascending, of `count` of the items, drawn by `seed`, each class with its share and at least one.

    All of them where there are no more; with fewer than one per class the most frequent classes.

    >>> labels = torch.tensor([0] * 90 + [1] * 10)
    >>> [sum(index < 90 for index in spread_sample(labels, count, 0)) for count in (1, 2, 20)]
    [1, 1, 18]
    """
    if count >= len(labels):
        return list(range(len(labels)))
    order: list[int] = torch.randperm(len(labels), generator=generator(seed, "sample")).tolist()
    waiting: dict[int, list[int]] = {}
    for index in order:
        waiting.setdefault(int(labels[index]), []).append(index)
    sizes = {label: len(members) for label, members in waiting.items()}
    # Every class once, then in turn as seats are given by Sainte-Lague.
    queue = [(-float("inf"), -size, label) for label, size in sizes.items()]
    heapq.heapify(queue)
    taken: list[int] = []
    while len(taken) < count:
        _, _, label = heapq.heappop(queue)
        taken.append(waiting[label].pop())
        if waiting[label]:
            seats = sizes[label] - len(waiting[label])
            heapq.heappush(queue, (-sizes[label] / (2 * seats + 1), -sizes[label], label))
    return sorted(taken)


def _by_class(labels: Tensor) -> list[tuple[int, list[int]]]:
    """The numbers of the items of every class, by class."""
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        by_class.setdefault(label, []).append(index)
    return sorted(by_class.items())


def check_labels(
    where: str, labels: Tensor, class_names: Sequence[str], *, every_class: bool, what: str = "image"
) -> None:
    """Raise `DataError` unless labels are numbers of classes and, with `every_class`, no class is without a `what`."""
    if len(labels) == 0:
        raise DataError(f"{where}: no {what}s at all, expected at least one")
    count = len(class_names)
    wrong = torch.nonzero((labels < 0) | (labels >= count)).flatten()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{where}: row {first} has label {int(labels[first])}, expected 0 to {count - 1} ({count} classes);"
            f" {len(wrong)} of {len(labels)} labels are out of range"
        )
    present = Counter(labels.tolist())
    empty = [name for label, name in enumerate(class_names) if not present[label]]
    if every_class and empty:
        raise DataError(
            f"{where}: empty class {empty[0]!r} ({len(empty)} of {count} classes have no {what}): a network cannot"
            f" learn a class it never sees; add {what}s or remove the class"
        )
