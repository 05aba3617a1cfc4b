"""Labelled images under one name: `digits`, `cifar10:PATH`, `folder:PATH`, `parquet:TRAIN,TEST`, ...

A set that fits is decoded once and augmented batch by batch; a larger one, or one whose augmentation needs the
photograph itself, is decoded on the way. Either way every batch is a pure function of (seed, epoch, number).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from leanconv.data.contract import InputContract
from leanconv.data.images.augment import AUGMENTS, Augment, crop_and_mirror, cut_out, find_augment
from leanconv.data.images.decode import decode_all
from leanconv.data.images.files import ImageFiles
from leanconv.data.images.prepare import Prepare
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
from leanconv.data.loaders import Memory, every_nth
from leanconv.data.sets.cifar import cifar10, cifar100
from leanconv.data.sets.digits import digits
from leanconv.data.sets.folder import image_folder
from leanconv.data.sets.image_lists import food101, indoor67
from leanconv.data.sets.imagenet import imagenet
from leanconv.data.sets.parquet import parquet
from leanconv.data.sets.splits import ImageSet, Relabelled, Split, Subset, validation_part
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


_READERS: dict[str, Callable[..., ImageSet]] = {
    "digits": _digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "imagenet": imagenet,
    "food101": food101,
    "indoor67": indoor67,
    "folder": image_folder,
    "parquet": parquet,
    "timm": timm_set,
}

_SPLIT_HERE = ("folder", "parquet")
"""The kinds that may come as one part, of which training holds a fifth out."""


def open_images(
    spec: str,
    *,
    resolution: int = 32,
    batch_size: int = 128,
    workers: int = 0,
    seed: int = 0,
    augment: str = "none",
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    exif: bool = True,
    memory_limit: int = 2**30,
    contract: InputContract | None = None,
    class_names: Sequence[str] | None = None,
    testing: bool = False,
    part: str | None = None,
    validation: float = 0.0,
) -> ImageData:
    """Open the images that `spec` names: `digits`, `cifar10:PATH`, `cifar100:PATH`, `svhn:PATH`, `imagenet:PATH`,
    `food101:PATH`, `indoor67:PATH`, `folder:PATH`, `parquet:TRAIN,TEST` or `timm:NAME?root=..`.

    `resolution` is the side in pixels of the square that the network sees; `batch_size` counts over all processes;
    `workers` decode what does not fit in `memory_limit` bytes of pixels; `augment` is a name of
    `leanconv.data.AUGMENTS`; `mean` and `std` (of pixels in 0..1) default to those of the training pixels, or to
    ImageNet's for images decoded on the way. With `exif` photographs are turned as their EXIF record says, which timm
    and torchvision do not do.

    Where the set has no validation part of its own, the share `validation` of every class of the training part is held
    out as one, drawn by `seed`.
    With a `contract`, that of a trained network, the test images are what it says, whatever `resolution`, `mean`,
    `std`, `exif` and `augment` are, and classes are numbered by its names; `class_names` number them alone. With
    `testing` there is no training part: a set that is not split yet is all test. `part` ("test", "validation", "train")
    is that part of what training would have as the test, and no training part.
    Raises `DataError` for a set that is missing, empty or inconsistent, `UnknownName` for an unknown kind of set.

    >>> data = open_images("digits", resolution=8, batch_size=64)
    >>> images, labels = next(iter(data.train_loader()))
    >>> tuple(images.shape), data.num_classes, data.train_size, data.test_size
    ((64, 3, 8, 8), 10, 1438, 359)
    """
    read = reader_of(spec, _READERS, what="kind of data set", takes="a path or name", embedded="digits")
    check_counts(spec, 1, resolution=resolution, batch_size=batch_size)
    check_counts(spec, 0, workers=workers)
    check_statistics(spec, mean, std)
    recipe = find_augment(augment)
    if testing and spec.partition(":")[0] in _SPLIT_HERE:
        read = partial(read, testing=True)
    check_share(spec, validation)
    images = read()
    if testing:
        images = replace(images, train=None, val=None if images.val is not images.test else images.val)
    elif validation and images.val is None and images.train is not None:
        images = _holding_out(images, images.train, validation, seed)
    if part is not None:
        images = tested_on(spec, images, part)
    if contract is not None:
        resolution, mean, std, exif = _square(spec, contract), *statistics_of(spec, contract, "images"), contract.exif
    if contract is not None or class_names is not None:
        names = contract.class_names if contract is not None else class_names
        images = numbered_as(spec, images, names, Relabelled)
    return ImageData(
        images,
        evaluation=None if contract is None else Prepare.by(contract),
        exif=exif,
        resolution=resolution,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        augment=recipe,
        mean=mean,
        std=std,
        memory_limit=memory_limit,
    )


def _holding_out(images: ImageSet, train: Split, share: float, seed: int) -> ImageSet:
    names = [train.name(index) for index in range(len(train.labels))]
    kept, held = validation_part(train.labels, names, share, seed)
    if not held:
        return images
    told = held_out_remark(len(held), len(names), "images")
    return replace(images, train=Subset(train, kept), val=Subset(train, held), remarks=(*images.remarks, told))


def _square(spec: str, contract: InputContract) -> int:
    if len(contract.size) != 3 or contract.size[-1] != contract.size[-2]:
        raise DataError(
            f"{spec}: the network is fed inputs of {list(contract.size)}, and images are made square, 3,SIDE,SIDE"
        )
    return contract.size[-1]


class ImageData(LabelledData[Memory | Stream]):
    """Training and test batches of one image set: (images float32 (n, 3, resolution, resolution); labels int64 (n,)).

    Images that cannot be read are passed over and listed in `problems`. `open_images` makes these.
    """

    unit = "image"
    sample = "image"

    def __init__(
        self,
        images: ImageSet,
        *,
        resolution: int,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        augment: Augment = AUGMENTS["none"],
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        exif: bool = True,
        memory_limit: int = 2**30,
        evaluation: Prepare | None = None,
    ) -> None:
        shape = (self.channels, resolution, resolution)
        super().__init__(images.class_names, input_size=shape, batch_size=batch_size, seed=seed, remarks=images.remarks)
        self._images = images
        self._workers = workers
        self._augment = augment
        self._evaluation = evaluation or augment.evaluation(resolution)
        self._exif = exif
        self._given = mean or images.mean, std or images.std
        parts = {id(part): len(part.labels) for part in (images.train, images.val, images.test) if part is not None}
        count = sum(parts.values())
        pixels = self.channels * resolution**2 * count
        self.in_memory = not augment.per_image and pixels <= memory_limit

    @property
    def has_validation(self) -> bool:
        return self._images.val is not None

    @property
    def has_test(self) -> bool:
        return self._images.val is not self._images.test

    @property
    def part(self) -> str:
        return self._images.part if self.has_test else "validation"

    def _source(self, part: Part) -> Memory | Stream:
        split: Split | None = getattr(self._images, part)
        if split is None:
            raise DataError("this data was opened to be tested on, it has no training part")
        if not self.in_memory:
            files = ImageFiles(split, self._augment.training(self.resolution), self._evaluation, self.seed, self._exif)
            return Stream(files=files, workers=self._workers)
        # What is augmented batch by batch is prepared for training as for the test.
        pixels, labels, problems, turned = decode_all(split, self._evaluation, exif=self._exif)
        if part == "train":
            missing = sorted(set(split.labels.tolist()) - set(labels.tolist()))
            if missing:
                raise DataError(
                    f"class {self.class_names[missing[0]]!r}: none of its training images could be read, for example"
                    f" {problems[0].name}: {problems[0].reason}"
                )
        unread = {problem.name: problem for problem in problems}
        names = tuple(name for name in map(split.name, range(len(split.labels))) if name not in unread)
        return Memory(pixels, labels, names, unread, turned)

    @property
    def remarks(self) -> tuple[str, ...]:
        """As of every set, and how many images were turned."""
        halves = [self.__dict__[half] for half in ("_train", "_val", "_test") if half in self.__dict__]
        halves = list({id(half): half for half in halves}.values())  # the validation part may be the test part
        turned = sum(half.turned if isinstance(half, Memory) else len(half.notes) for half in halves)
        if not turned:
            return super().remarks
        count = "1 image is" if turned == 1 else f"{turned} images are"
        return (*super().remarks, f"{count} turned or mirrored, as EXIF says")

    def named_batches(self) -> Iterator[tuple[list[str], Tensor]]:
        """The test images (n, 3, side, side) by their names, each read when it is asked for, whatever its label is."""
        files = ImageFiles(self._images.test, self._evaluation, self._evaluation, self.seed, self._exif)
        stream = self.__dict__["_test"] = Stream(files=files, workers=self._workers)
        for pixels, _, numbers in stream.batches(every_nth(len(stream), self.batch_size, 0, 1), None):
            yield [files.name(number) for number in numbers], self._normalised(pixels)

    @property
    def contract(self) -> InputContract:
        """What the test images are, with the mean and the std of the training images."""
        made = self._evaluation
        return InputContract(
            size=self.input_size,
            mean=self.mean,
            std=self.std,
            resize=made.resize,
            interpolation=made.interpolation,
            crop=made.crop,
            exif=self._exif,
            class_names=self.class_names,
        )

    def _finish_training(self, epoch: int, start: int, total: int, number: int, pixels: Tensor) -> Tensor:
        augment, share = self._augment, (start, total)
        if not augment.per_image and (augment.border or augment.mirror):
            draws = generator(self.seed, "batch", epoch, number)
            border = max(self.resolution // 8, 1) if augment.border and self.resolution > 1 else 0
            pixels = crop_and_mirror(pixels, border, augment.mirror, draws, share=share, zeros=augment.zeros)
        images = self._normalised(pixels)
        if augment.cutout:
            draws = generator(self.seed, "cutout", epoch, number)
            images = cut_out(images, augment.cutout * self.resolution // 32, draws, share=share)
        return images

    def _mean_and_std(self) -> Statistics:
        mean, std = self._given
        if mean is not None and std is not None:
            return mean, std
        if self._images.train is None:
            raise DataError("nothing says with which mean and std these images are normalised")
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
