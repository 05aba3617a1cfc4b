"""Labelled images under one name: `digits`, `cifar10:PATH`, `folder:PATH`, `parquet:TRAIN,TEST`, ...

A set that fits is decoded once and augmented batch by batch; a larger one, or one whose augmentation needs the
photograph itself, is decoded on the way. Either way every batch is a pure function of (seed, epoch, number).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from leanconv.data.images.augment import AUGMENTS, Augment, crop_and_mirror, cut_out, find_augment
from leanconv.data.images.decode import decode_all
from leanconv.data.images.files import ImageFiles
from leanconv.data.labelled import LabelledData, Statistics, check_counts, reader_of
from leanconv.data.loaders import Memory
from leanconv.data.sets.cifar import cifar10, cifar100
from leanconv.data.sets.digits import digits
from leanconv.data.sets.folder import image_folder
from leanconv.data.sets.imagenet import imagenet
from leanconv.data.sets.parquet import parquet
from leanconv.data.sets.splits import ImageSet
from leanconv.data.sets.svhn import svhn
from leanconv.data.sets.timm_sets import timm_set
from leanconv.data.stream import Stream
from leanconv.errors import DataError
from leanconv.seeds import generator

__all__ = ["ImageData", "open_images"]

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    "folder": image_folder,
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
    read = reader_of(spec, _READERS, what="kind of data set", takes="a path or name", embedded="digits")
    check_counts(spec, 1, size=size, batch_size=batch_size)
    check_counts(spec, 0, workers=workers)
    recipe = find_augment(augment)
    return ImageData(
        read(),
        size=size,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        augment=recipe,
        mean=mean,
        std=std,
        memory_limit=memory_limit,
    )


class ImageData(LabelledData[Memory | Stream]):
    """Training and test batches of one image set: (images float32 (n, 3, size, size); labels int64 (n,)).

    Images that cannot be read are passed over and listed in `problems`. `open_images` makes these.
    """

    unit = "image"
    sample = "image"

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
        shape = (self.channels, size, size)
        super().__init__(images.class_names, input_size=shape, batch_size=batch_size, seed=seed)
        self._images = images
        self._workers = workers
        self._augment = augment
        self._given = mean or images.mean, std or images.std
        pixels = self.channels * size * size * (len(images.train.labels) + len(images.test.labels))
        self.in_memory = not augment.per_image and pixels <= memory_limit

    def _source(self, *, training: bool) -> Memory | Stream:
        split = self._images.train if training else self._images.test
        evaluation = self._augment.evaluation(self.size)
        if not self.in_memory:
            files = ImageFiles(split, self._augment.training(self.size), evaluation, self.seed)
            return Stream(files=files, workers=self._workers)
        pixels, labels, problems = decode_all(split, evaluation)
        if training:
            missing = sorted(set(range(self.num_classes)) - set(labels.tolist()))
            if missing:
                raise DataError(
                    f"class {self.class_names[missing[0]]!r}: none of its training images could be read, for example"
                    f" {problems[0].name}: {problems[0].reason}"
                )
        return Memory(pixels, labels, {problem.name: problem for problem in problems})

    def _finish_training(self, epoch: int, start: int, total: int, number: int, pixels: Tensor) -> Tensor:
        augment, share = self._augment, (start, total)
        if not augment.per_image and (augment.border or augment.mirror):
            draws = generator(self.seed, "batch", epoch, number)
            border = max(self.size // 8, 1) if augment.border and self.size > 1 else 0
            pixels = crop_and_mirror(pixels, border, augment.mirror, draws, share=share, zeros=augment.zeros)
        images = self._normalised(pixels)
        if augment.cutout:
            draws = generator(self.seed, "cutout", epoch, number)
            images = cut_out(images, augment.cutout * self.size // 32, draws, share=share)
        return images

    def _mean_and_std(self) -> Statistics:
        mean, std = self._given
        if mean is not None and std is not None:
            return mean, std
        measured = statistics(self._train.pixels) if isinstance(self._train, Memory) else _IMAGENET
        return mean or measured[0], std or measured[1]


def statistics(pixels: Tensor) -> Statistics:
    """Mean and standard deviation of every channel of uint8 pixels (n, channels, h, w), as parts of 255.

    >>> statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(pixels.shape[1]):
        # A histogram is exact: the result does not depend on the order in which pixels are summed.
        counts = torch.bincount(pixels[:, channel].reshape(-1), minlength=256).double()
        share = counts / counts.sum()
        mean = float((share * levels).sum())
        means.append(mean)
        # Constant images (a blank set) would divide by zero.
        stds.append(max(float((share * (levels - mean) ** 2).sum()) ** 0.5, 1 / 255))
    return tuple(means), tuple(stds)
