"""Labelled images under one name: `digits`, `cifar10:PATH`, `folder:PATH`, `parquet:TRAIN,TEST`, ...

A set that fits is decoded once and augmented batch by batch; a larger one, or one whose augmentation needs the
photograph itself, is decoded on the way. Either way every batch is a pure function of (seed, epoch, number).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from leanconv.data.augment import AUGMENTS, Augment, crop_and_mirror, cut_out, find_augment
from leanconv.data.builtin import digits
from leanconv.data.cifar import cifar10, cifar100
from leanconv.data.decode import decode_all
from leanconv.data.folder import folder
from leanconv.data.imagenet import imagenet
from leanconv.data.loaders import Loader, Memory, Source, Stream, epoch_order, every_nth, share_out
from leanconv.data.parquet import parquet
from leanconv.data.seeds import generator
from leanconv.data.splits import ImageSet, Problem, Split
from leanconv.data.svhn import svhn
from leanconv.data.timm_sets import timm_set
from leanconv.errors import DataError, unknown

__all__ = ["ImageData", "open_images"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def _digits(rest: str) -> ImageSet:
    if rest:
        raise DataError(f"digits:{rest}: the embedded digits take no path, write 'digits'")
    return digits()


_READERS: dict[str, Callable[[str], ImageSet]] = {
    "digits": _digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "imagenet": imagenet,
    "folder": folder,
    "parquet": parquet,
    "timm": timm_set,
}


def open_images(
    spec: str,
    *,
    size: int = 32,
    batch_size: int = 128,
    workers: int = 0,
    seed: int = 0,
    augment: str = "none",
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    memory_limit: int = 2**30,
) -> ImageData:
    """Open the images that `spec` names: `digits`, `cifar10:PATH`, `cifar100:PATH`, `svhn:PATH`, `imagenet:PATH`,
    `folder:PATH`, `parquet:TRAIN,TEST` or `timm:NAME?root=..`.

    `size` is the side of the square that the network sees; `batch_size` counts over all processes; `workers` decode
    what does not fit in `memory_limit` bytes of pixels; `augment` is a name of `leanconv.data.AUGMENTS`; `mean` and
    `std` (of pixels in 0..1) default to those of the training pixels, or to ImageNet's for images decoded on the way.
    Raises `DataError` for a set that is missing, empty or inconsistent, `UnknownName` for an unknown kind of set.

    >>> data = open_images("digits", size=8, batch_size=64)
    >>> images, labels = next(iter(data.train_loader()))
    >>> tuple(images.shape), data.num_classes, data.train_size, data.test_size
    ((64, 3, 8, 8), 10, 1438, 359)
    """
    kind, _, rest = spec.partition(":")
    if kind not in _READERS:
        raise unknown("kind of data set", kind, _READERS)
    if kind != "digits" and not rest:
        raise DataError(f"{spec}: expected {kind}:... with a path or name after the colon")
    for name, value, least in (("size", size, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise DataError(f"{spec}: {name} must be at least {least}, got {value}")
    recipe = find_augment(augment)
    return ImageData(
        _READERS[kind](rest),
        size=size,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        augment=recipe,
        mean=mean,
        std=std,
        memory_limit=memory_limit,
    )


class ImageData:
    """Training and test batches of one image set.

    Batches are (images float32 (n, 3, size, size), normalised by `mean` and `std`; labels int64 (n,)). Images that
    cannot be read are skipped and listed in `problems`. `open_images` makes these.
    """

    channels = 3
    unit = "image"

    def __init__(
        self,
        images: ImageSet,
        *,
        size: int,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        augment: Augment = AUGMENTS["none"],
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        memory_limit: int = 2**30,
    ) -> None:
        self.class_names = images.class_names
        self.num_classes = len(images.class_names)
        self.size = size
        self.batch_size = batch_size
        self.epoch = 0
        self._images = images
        self._workers = workers
        self._seed = seed
        self._augment = augment
        self._given = mean or images.mean, std or images.std
        pixels = 3 * size * size * (len(images.train.labels) + len(images.test.labels))
        self.in_memory = not augment.per_image and pixels <= memory_limit

    @property
    def train_size(self) -> int:
        """Training images, without those found unreadable where all have been read."""
        return len(self._train)

    @property
    def test_size(self) -> int:
        """Test images, without those found unreadable where all have been read."""
        return len(self._test)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The images that could not be read, as far as they have been asked for."""
        found = dict(self._found)
        for source in (self.__dict__.get("_train"), self.__dict__.get("_test")):
            if isinstance(source, Stream):
                found.update(source.problems)
        return tuple(found.values())

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, of pixels in 0..1."""
        return self._given[0] or self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, of pixels in 0..1."""
        return self._given[1] or self._statistics[1]

    def set_epoch(self, epoch: int) -> None:
        """Let the next `train_loader()` give the order and the augmentation of `epoch`."""
        self.epoch = epoch

    def train_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The training batches of the current epoch; process `rank` of `world` gets its share of every batch.

        All batches are full: what is left over at the end of an epoch waits for another one (a set smaller than a
        batch is one batch). Raises `DataError` when a batch cannot be shared out evenly.
        """
        order = epoch_order(len(self._train), self._seed, self.epoch)
        total, chunks = share_out(order, self.batch_size, rank, world)
        return Loader(
            source=self._train,
            chunks=chunks,
            epoch=self.epoch,
            finish=partial(self._finish_training, self.epoch, rank * (total // world), total),
        )

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The test batches in file order, nothing dropped; process `rank` of `world` gets every `world`-th image."""
        return Loader(
            source=self._test,
            chunks=every_nth(len(self._test), self.batch_size, rank, world),
            epoch=None,
            finish=lambda _number, pixels: self._normalised(pixels),
        )

    def _finish_training(self, epoch: int, start: int, total: int, number: int, pixels: Tensor) -> Tensor:
        augment = self._augment
        if not augment.per_image and (augment.border or augment.mirror):
            draws = generator(self._seed, "batch", epoch, number)
            border = max(self.size // 8, 1) if augment.border and self.size > 1 else 0
            pixels = crop_and_mirror(pixels, border, augment.mirror, draws, share=(start, total), zeros=augment.zeros)
        images = self._normalised(pixels)
        if augment.cutout:
            draws = generator(self._seed, "cutout", epoch, number)
            images = cut_out(images, augment.cutout * self.size // 32, draws, share=(start, total))
        return images

    def _normalised(self, pixels: Tensor) -> Tensor:
        shift, scale = self._affine
        return pixels.float().sub_(shift).mul_(scale)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (255 * mean)[:, None, None], (1 / (255 * std))[:, None, None]

    @cached_property
    def _found(self) -> dict[str, Problem]:
        return {}

    @cached_property
    def _train(self) -> Source:
        return self._source(self._images.train, "training")

    @cached_property
    def _test(self) -> Source:
        return self._source(self._images.test, "test")

    def _source(self, split: Split, what: str) -> Source:
        training, evaluation = self._augment.training(self.size), self._augment.evaluation(self.size)
        if not self.in_memory:
            return Stream(split, training, evaluation, self._seed, self._workers)
        pixels, labels, problems = decode_all(split, evaluation)
        self._found.update((problem.name, problem) for problem in problems)
        if what == "training":
            missing = sorted(set(range(self.num_classes)) - set(labels.tolist()))
            if missing:
                raise DataError(
                    f"class {self.class_names[missing[0]]!r}: none of its training images could be read, for example"
                    f" {problems[0].name}: {problems[0].reason}"
                )
        return Memory(pixels, labels)

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        source = self._train
        if not isinstance(source, Memory):
            return _IMAGENET_MEAN, _IMAGENET_STD
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in range(self.channels):
            # A histogram is exact: the result does not depend on the order in which pixels are summed.
            counts = torch.bincount(source.pixels[:, channel].reshape(-1), minlength=256).double()
            share = counts / counts.sum()
            mean = float((share * levels).sum())
            means.append(mean)
            # Constant images (a blank set) would divide by zero.
            stds.append(max(float((share * (levels - mean) ** 2).sum()) ** 0.5, 1 / 255))
        return tuple(means), tuple(stds)
