"""What sets of images and of videos have in common: an epoch's order, shares of processes, normalisation, problems."""

from __future__ import annotations

import csv
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from leanconv.data.contract import InputContract, match_classes
from leanconv.data.loaders import Loader, Source, epoch_order, every_nth, share_out
from leanconv.data.sets.splits import ImageSet, Problem, spread_sample
from leanconv.data.sets.video_files import VideoSet
from leanconv.errors import DataError, unknown
from leanconv.files import write_text

__all__ = [
    "PARTS",
    "LabelledData",
    "Part",
    "check_counts",
    "check_share",
    "check_statistics",
    "held_out_remark",
    "numbered_as",
    "reader_of",
    "statistics_of",
    "tested_on",
]

Part = Literal["train", "val", "test"]

PARTS = ("test", "validation", "train")
"""What a set can be tested on, as people say it."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of pixels in 0..1."""

T = TypeVar("T")
S = TypeVar("S", bound=Source)
F = TypeVar("F", bound=ImageSet | VideoSet)


def reader_of(
    name: str, readers: Mapping[str, Callable[..., T]], *, what: str, takes: str, embedded: str
) -> Callable[..., T]:
    """What opens the set called `name`, such as `folder:PATH`: the reader of the word before the colon, with the rest.

    Raises `UnknownName` for a word that is not among `readers`, `DataError` where nothing follows it and it is not
    the `embedded` set. `what` and `takes` are for these messages.
    """
    kind, _, rest = name.partition(":")
    if kind not in readers:
        raise unknown(what, kind, readers)
    if kind != embedded and not rest:
        raise DataError(f"{name}: expected {kind}:... with {takes} after the colon")
    return partial(readers[kind], rest)


def tested_on(name: str, files: F, part: str) -> F:
    """`files` with the part that is called `part` (one of `PARTS`) as the test, and nothing to train on.

    Raises `DataError` where they have no such part.
    """
    found = {
        "test": None if files.val is files.test else files.test,
        "validation": files.val,
        "train": files.train,
    }
    if part not in found:
        raise unknown("part", part, PARTS)
    if (chosen := found[part]) is None:
        there = [name for name, one in found.items() if one is not None]
        raise DataError(
            f"{name} has no {part} part, only {' and '.join(there)}: a part that is not there cannot be tested on; name"
            " another with part (--part)"
        )
    parts: dict[str, Any] = {"test": chosen, "train": None, "val": None}
    return replace(files, **parts, part=part)


def check_counts(name: str, least: int, **counts: int) -> None:
    """Raise `DataError` for one of `counts` that is below `least`."""
    for what, value in counts.items():
        if value < least:
            raise DataError(f"{name}: {what} must be at least {least}, got {value}")


def check_share(name: str, validation: float) -> None:
    """Raise `DataError` for a share of the training part that cannot be held out."""
    if not 0 <= validation < 1:
        raise DataError(
            f"{name}: validation is the share of training files that is held out, from 0 to below 1, got {validation}"
        )


def held_out_remark(held: int, whole: int, what: str) -> str:
    """That a validation part was made."""
    return f"{held} of the {whole} training {what} are held out to choose by (data.validation=0 trains on all of them)"


def statistics_of(name: str, contract: InputContract, what: str) -> tuple[Any, Any]:
    """Mean and std of the three channels that `what` have; `DataError` for a network of other channels."""
    if contract.size[0] != 3:
        raise DataError(
            f"{name}: the network is fed {contract.size[0]} channels, and {what} are read as 3 (RGB): give it a first"
            " layer for 3 channels"
        )
    return contract.mean, contract.std


def numbered_as(name: str, files: F, class_names: Sequence[str] | None, relabel: Callable[[Any, Tensor], Any]) -> F:
    """The set with the classes of a network, matched by name; `relabel` gives a part other labels."""
    if class_names is None:
        natural = sorted(files.class_names, key=_numbers_as_numbers)
        if list(files.class_names) in (natural, list(map(str, range(len(natural))))):
            return files
        order, other = (", ".join(names[:4]) for names in (files.class_names, natural))
        remark = f"the network names no classes, so they are in the order {order}, ...; timm has {other}, ..."
        return replace(files, remarks=(*files.remarks, remark))
    places, told = match_classes(name, files.class_names, class_names)
    table = torch.tensor(places, dtype=torch.int64)

    def renumbered(part: Any) -> Any:
        return part and relabel(part, table[part.labels])

    test = renumbered(files.test)
    parts = {"train": renumbered(files.train), "test": test}
    parts["val"] = test if files.val is files.test else renumbered(files.val)
    remarks = (*files.remarks, *([told] if told else []))
    return replace(files, **parts, class_names=tuple(class_names), remarks=remarks)


def _numbers_as_numbers(name: str) -> list[tuple[bool, int, str]]:
    """The key by which "2" comes before "10", as timm sorts class folders."""
    parts = re.split(r"(\d+)", name.lower())
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def check_statistics(name: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise `DataError` for a given mean or standard deviation that no pixels in 0..1 can have."""
    if mean is not None and (len(mean) != 3 or not all(0 <= value <= 1 for value in mean)):
        raise DataError(f"{name}: mean must be 3 values from 0 to 1, of pixels in 0..1, got {list(mean)}")
    if std is not None and (len(std) != 3 or not all(0 < value <= 1 for value in std)):
        raise DataError(f"{name}: std must be 3 values above 0 and up to 1, of pixels in 0..1, got {list(std)}")


class LabelledData(ABC, Generic[S]):
    """Training, validation and test batches of one set.

    What is chosen while training (the best epoch) is chosen on the validation part; what is reported is measured on the
    test part.

    Batches are (pixels float32 (n, 3, ..., side, side), normalised by `mean` and `std`; labels int64 (n,)). Files that
    cannot be used are passed over and listed in `problems`.
    """

    channels = 3
    unit: ClassVar[str]
    """What one file is called: image, video."""
    sample: ClassVar[str]
    """What one input of the network is called: image, clip."""

    def __init__(
        self,
        class_names: tuple[str, ...],
        *,
        input_size: tuple[int, ...],
        batch_size: int,
        seed: int,
        repeats: int = 1,
        remarks: tuple[str, ...] = (),
    ) -> None:
        self.class_names = class_names
        self.num_classes = len(class_names)
        self.input_size = input_size
        self.resolution = input_size[-1]
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self._repeats = repeats
        self._remarks = remarks

    @abstractmethod
    def _source(self, part: Part) -> S:
        """Where the pixels of a part come from."""

    @property
    @abstractmethod
    def has_validation(self) -> bool:
        """Whether there is a part to choose by."""

    @property
    @abstractmethod
    def has_test(self) -> bool:
        """Whether the part to report on is another one than that to choose by."""

    @property
    @abstractmethod
    def part(self) -> str:
        """What is tested on: one of `PARTS`."""

    @abstractmethod
    def _mean_and_std(self) -> Statistics: ...

    @property
    @abstractmethod
    def contract(self) -> InputContract:
        """What a network that is trained on these inputs is to be fed from now on."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about what was found in the files and may surprise, as far as it is known by now."""
        return self._remarks

    @property
    def train_size(self) -> int:
        """Training files, without those found unreadable where all have been read."""
        return len(self._train) // self._repeats

    @property
    def test_size(self) -> int:
        """Test files, without those found unreadable where all have been read."""
        return len(self._test)

    @property
    def val_size(self) -> int:
        """Validation files, counted as the others; 0 without that part."""
        return len(self._val) if self.has_validation else 0

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The files that cannot be used, as far as they have been asked for."""
        found: dict[str, Problem] = {}
        for half in ("_train", "_val", "_test"):
            if half in self.__dict__:  # to ask for it here would decode it
                found |= self.__dict__[half].problems
        return tuple(found.values())

    @property
    def test_problems(self) -> tuple[Problem, ...]:
        """Those of them that were to be tested on."""
        return tuple(self._test.problems.values()) if "_test" in self.__dict__ else ()

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, of pixels in 0..1."""
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, of pixels in 0..1."""
        return self._statistics[1]

    def set_epoch(self, epoch: int) -> None:
        """Let the next `train_loader()` give the order and the augmentation of `epoch`."""
        self.epoch = epoch

    def train_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The training batches of the current epoch; process `rank` of `world` gets its share of every batch.

        All batches are full: what is left over at the end of an epoch waits for another one (a set smaller than a
        batch is one batch). Raises `DataError` when a batch cannot be shared out evenly.
        """
        order = epoch_order(len(self._train), self.seed, self.epoch)
        total, chunks = share_out(order, self.batch_size, rank, world, f"{self.sample}s")
        finish = partial(self._finish_training, self.epoch, rank * (total // world), total)
        return Loader(source=self._train, chunks=chunks, epoch=self.epoch, finish=finish)

    def val_loader(self, *, rank: int = 0, world: int = 1, limit: int | None = None) -> Loader:
        """As `eval_loader`, of the validation part; the very batches of the test where there is no such part."""
        return self._tested(self._val if self.has_validation else self._test, rank, world, limit)

    def eval_loader(self, *, rank: int = 0, world: int = 1, limit: int | None = None) -> Loader:
        """The test batches in file order, nothing dropped; process `rank` of `world` gets every `world`-th file.

        With `limit`, so many files at most, drawn by the seed over all classes.
        """
        return self._tested(self._test, rank, world, limit)

    def train_sample_loader(self, count: int, *, rank: int = 0, world: int = 1) -> Loader:
        """`count` training files, the same ones whatever the epoch, drawn by the seed over all classes and prepared as
        the test is: how well the network knows what it has learnt from."""
        return self._tested(self._train, rank, world, count)

    def _tested(self, source: S, rank: int, world: int, limit: int | None) -> Loader:
        numbers = self._sample(source, limit)
        chunks = tuple(
            tuple(numbers[place] for place in chunk) for chunk in every_nth(len(numbers), self.batch_size, rank, world)
        )
        return Loader(source=source, chunks=chunks, epoch=None, finish=lambda _, pixels: self._normalised(pixels))

    def _sample(self, source: S, limit: int | None) -> Sequence[int]:
        """The numbers of the items of `source` that a test of at most `limit` takes."""
        count = len(source)
        return range(count) if limit is None or limit >= count else spread_sample(source.labels, limit, self.seed)

    def write_problems(self, path: str | os.PathLike[str]) -> Path:
        """Write the file and the reason of every problem as CSV, with the header alone when there is none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((self.unit, "reason"))
        writer.writerows(self.problems)
        return write_text(path, text.getvalue(), error=DataError)

    def _finish_training(self, epoch: int, start: int, total: int, number: int, pixels: Tensor) -> Tensor:
        """Images start, start+1, ... of the `total` of batch `number` of an epoch, as the network gets them."""
        return self._normalised(pixels)

    def _normalised(self, pixels: Tensor) -> Tensor:
        shift, scale = self._affine
        return pixels.float().sub_(shift).mul_(scale)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        shape = (self.channels, *(1,) * (len(self.input_size) - 1))
        return (255 * mean).reshape(shape), (1 / (255 * std)).reshape(shape)

    @cached_property
    def _statistics(self) -> Statistics:
        return self._mean_and_std()

    @cached_property
    def _train(self) -> S:
        return self._source("train")

    @cached_property
    def _val(self) -> S:
        return self._source("val") if self.has_test else self._test

    @cached_property
    def _test(self) -> S:
        return self._source("test")
