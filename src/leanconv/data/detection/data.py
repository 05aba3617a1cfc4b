"""Batches of pictures with their objects, as torchvision's detectors take them, in an order that an epoch decides."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanconv.data.contract import InputContract, match_classes
from leanconv.data.detection.coco import Annotated, CocoSet, Thing, read_coco
from leanconv.data.detection.digits import scattered_digits
from leanconv.data.detection.masks import pixels_of
from leanconv.data.images.modes import orientation, to_rgb, upright
from leanconv.data.limits import open_image
from leanconv.data.loaders import epoch_order, every_nth, share_out
from leanconv.data.sets.splits import Problem
from leanconv.errors import DataError, unknown
from leanconv.seeds import generator

__all__ = ["EMPTY", "DetectionBatch", "DetectionData", "DetectionLoader", "open_detection"]

EMPTY = ("drop", "keep")
"""What becomes of images without objects in training: left out (COCO's custom), or trained on as background."""

Target = dict[str, Tensor]
DetectionBatch = tuple[list[Tensor], list[Target]]
"""Images (3, h, w) of values from 0 to 1, of any sizes, and for each its objects: boxes (n, 4) as x1, y1, x2, y2 in
pixels, labels (n,) from 1, masks (n, h, w), iscrowd (n,), area (n,) and image_id ()."""


def open_detection(
    spec: str,
    *,
    batch_size: int = 2,
    workers: int = 0,
    seed: int = 0,
    mirror: bool = True,
    empty: str = "drop",
    masks: bool = True,
    passes: int = 1,
    validation: float = 0.0,
    class_names: Sequence[str] | None = None,
    memory_limit: int = 2**30,
) -> DetectionData:
    """The images and objects called `spec`.

    `coco:ANNOTATIONS,FOLDER` is an annotation file in COCO's format and the folder of its images, of which the share
    `validation` (drawn by `seed`) is held out; `coco:ANNOTATIONS,FOLDER,ANNOTATIONS,FOLDER` has a validation part of
    its own. `scattered-digits` is embedded: handwritten digits on small canvases.

    `mirror` mirrors half of the images in training, drawn by image and epoch. `empty` says what becomes of training
    images without objects, one of `EMPTY`; in tests they stay. Objects of crowds are not trained on. An epoch goes
    `passes` times over the images, which small sets want: a test follows every epoch. Decoded images
    are kept in `memory_limit` bytes where they all fit. `class_names` number the classes as a trained network has them.
    Raises `DataError` for a set that is missing or of another form, `UnknownName` for an unknown kind.

    >>> data = open_detection("scattered-digits", batch_size=2)
    >>> images, targets = next(iter(data.train_loader()))
    >>> len(images), sorted(targets[0]), data.class_names[:2]
    (2, ['area', 'boxes', 'image_id', 'iscrowd', 'labels', 'masks'], ('0', '1'))
    """
    if empty not in EMPTY:
        raise unknown("choice for images without objects", empty, EMPTY)
    if batch_size < 1 or workers < 0 or passes < 1:
        raise DataError(
            f"{spec}: batch_size and passes must be at least 1 and workers 0, got {batch_size}, {passes} and {workers}"
        )
    kind, _, rest = spec.partition(":")
    held: CocoSet | None
    if kind == "scattered-digits":
        train, held = scattered_digits()
    elif kind == "coco":
        parts = [part for part in rest.split(",") if part]
        if len(parts) not in (2, 4):
            raise DataError(
                f"{spec}: expected coco:ANNOTATIONS.json,FOLDER for one part, or two such pairs for training and"
                " validation"
            )
        train = read_coco(Path(parts[0]).expanduser(), Path(parts[1]).expanduser(), masks=masks)
        held = (
            None
            if len(parts) == 2
            else read_coco(Path(parts[2]).expanduser(), Path(parts[3]).expanduser(), masks=masks)
        )
    else:
        raise unknown("kind of detection data", kind, ("coco", "scattered-digits"))
    if held is not None and held.class_ids != train.class_ids:
        raise DataError(f"{spec}: the two annotation files declare other categories, so their objects do not compare")
    if held is None and not 0 <= validation < 1:
        raise DataError(f"{spec}: validation is the share that is held out, from 0 to below 1, got {validation}")
    if class_names is not None and tuple(class_names) != train.class_names:
        held = None if held is None else _renumbered(spec, held, class_names)
        train = _renumbered(spec, train, class_names)
    if held is None and validation:
        order = epoch_order(len(train.images), seed, -1)
        count = max(1, round(len(order) * validation))
        chosen = set(order[:count])
        held = replace(train, images=tuple(one for i, one in enumerate(train.images) if i in chosen), problems=())
        train = replace(train, images=tuple(one for i, one in enumerate(train.images) if i not in chosen))
    return DetectionData(
        train,
        held,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        mirror=mirror and kind != "scattered-digits",
        empty=empty,
        passes=passes,
        masks=masks,
        memory_limit=memory_limit,
    )


def _renumbered(spec: str, given: CocoSet, wanted: Sequence[str]) -> CocoSet:
    """With the classes numbered as a network has them."""
    places, _ = match_classes(spec, given.class_names, wanted)
    ids = dict(zip(given.class_names, given.class_ids, strict=True))
    free = iter(number for number in range(1, 10**6) if number not in given.class_ids)
    images = tuple(
        replace(one, things=tuple(replace(thing, label=places[thing.label - 1] + 1) for thing in one.things))
        for one in given.images
    )
    class_ids = tuple(ids[name] if name in ids else next(free) for name in wanted)
    return replace(given, images=images, class_names=tuple(wanted), class_ids=class_ids)


@dataclass(frozen=True)
class DetectionLoader:
    """An iterable of batches, each the images at the numbers of a chunk; iterating it again gives the same ones."""

    data: DetectionData
    images: tuple[Annotated, ...]
    chunks: tuple[tuple[int, ...], ...]
    epoch: int | None

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[DetectionBatch]:
        return self.after(0)

    def after(self, done: int) -> Iterator[DetectionBatch]:
        """The batches without the first `done`, which are not read either."""
        if self.data.workers and self.chunks[done:]:
            from torch.utils.data import DataLoader

            # What a worker could not read is known to it alone: it comes with the batch.
            loader = DataLoader(_Chunks(self, done), batch_size=None, num_workers=self.data.workers)
            for batch, problems in loader:
                self.data.note(problems)
                if batch[0]:
                    yield batch
            return
        for place in range(done, len(self.chunks)):
            batch, problems = self.batch(place)
            self.data.note(problems)
            if batch[0]:
                yield batch

    def batch(self, place: int) -> tuple[DetectionBatch, list[Problem]]:
        """The batch of one chunk and what of it could not be read."""
        images, targets, problems = [], [], []
        for number in self.chunks[place]:
            try:
                turn = None if self.epoch is None else place  # an image may come several times in an epoch
                image, target = self.data.sample(self.images[number], self.epoch, turn)
            except Exception as error:  # decoders raise anything on broken files
                name = str(self.images[number].path)
                problems.append(Problem(name, " ".join(str(error).split()) or type(error).__name__))
                continue
            images.append(image)
            targets.append(target)
        return (images, targets), problems


class _Chunks(torch.utils.data.Dataset[Any]):
    """The batches of a loader by number, for worker processes."""

    def __init__(self, loader: DetectionLoader, done: int) -> None:
        self.loader, self.done = loader, done

    def __len__(self) -> int:
        return len(self.loader.chunks) - self.done

    def __getitem__(self, place: int) -> tuple[DetectionBatch, list[Problem]]:
        return self.loader.batch(self.done + place)


class DetectionData:
    """Training and validation batches of pictures with objects; `open_detection` makes these."""

    unit = "image"
    sample_name = "image"

    def __init__(
        self,
        train: CocoSet,
        held: CocoSet | None,
        *,
        batch_size: int,
        workers: int,
        seed: int,
        mirror: bool,
        empty: str,
        passes: int,
        masks: bool,
        memory_limit: int,
    ) -> None:
        self.batch_size, self.workers, self.seed, self.mirror, self.masks = batch_size, workers, seed, mirror, masks
        self.passes = passes
        self.class_names, self.class_ids = train.class_names, train.class_ids
        self._found = {problem.name: problem for part in (train, held) if part is not None for problem in part.problems}
        trained = tuple(one for one in train.images if empty == "keep" or any(not thing.crowd for thing in one.things))
        self.dropped = len(train.images) - len(trained)
        if not trained:
            raise DataError("no training image has an object: keep images without objects with empty='keep'")
        self.train_images = trained
        self.test_images = train.images if held is None else held.images
        self.has_validation = held is not None
        both = {one.path: one for one in (*self.train_images, *self.test_images)}
        size = sum(3 * one.width * one.height for one in both.values())
        self._cache: dict[Path, Tensor] | None = {} if size <= memory_limit else None
        self._epoch = 0

    @property
    def num_classes(self) -> int:
        """Classes without the background."""
        return len(self.class_names)

    @property
    def part(self) -> str:
        """What tests are made on."""
        return "validation" if self.has_validation else "train"

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Images and annotations that could not be used, each with its reason."""
        return tuple(self._found.values())

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about the data that may surprise."""
        told = []
        if self.dropped:
            told.append(
                f"{self.dropped} training images without objects are left out (data.detection.empty=keep keeps them)"
            )
        if self._found:
            first = next(iter(self._found.values()))
            told.append(
                f"{len(self._found)} images and annotations cannot be used, the first: {first.name}: {first.reason}"
            )
        if not self.has_validation:
            told.append("no validation part: epochs are tested on the training images, and nothing is chosen by it")
        return tuple(told)

    def note(self, problems: Sequence[Problem]) -> None:
        """Remember what could not be read."""
        self._found.update({problem.name: problem for problem in problems})

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next training loader is for."""
        self._epoch = epoch

    def train_loader(self, *, rank: int = 0, world: int = 1) -> DetectionLoader:
        """The batches of this epoch for process `rank` of `world`; `batch_size` counts over all of them."""
        count = len(self.train_images)
        turns = range(self._epoch * self.passes, (self._epoch + 1) * self.passes)
        order = [number for turn in turns for number in epoch_order(count, self.seed, turn)]
        _, chunks = share_out(order, self.batch_size, rank, world, "images")
        return DetectionLoader(self, self.train_images, chunks, self._epoch)

    def val_loader(self, *, rank: int = 0, world: int = 1, limit: int | None = None) -> DetectionLoader:
        """The images to test on, or the first `limit` of them, all of them once over the processes."""
        count = len(self.test_images) if limit is None else min(limit, len(self.test_images))
        return DetectionLoader(
            self, self.test_images, every_nth(count, max(1, self.batch_size // world), rank, world), None
        )

    eval_loader = val_loader

    def contract(self, size: Sequence[int], longest: int) -> InputContract:
        """What a detector that was trained on these is fed: pictures as they are, of values from 0 to 1."""
        return InputContract(
            size=tuple(size),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            resize="inside",
            longest=longest,
            class_names=self.class_names,
            class_ids=self.class_ids,
        )

    def sample(self, one: Annotated, epoch: int | None, batch: int | None = None) -> tuple[Tensor, Target]:
        """An image and its objects; in training without crowds, and mirrored as epoch and batch have it."""
        pixels = self._pixels(one)
        things = [thing for thing in one.things if epoch is None or not thing.crowd]
        target = _target(one, things, self.masks)
        if epoch is not None and self.mirror:
            draws = generator(self.seed, "mirror", epoch, one.id, batch or 0)
            if bool(torch.rand((), generator=draws) < 0.5):
                pixels, target = _mirrored(pixels, target)
        return pixels.float() / 255, target

    def _pixels(self, one: Annotated) -> Tensor:
        if self._cache is not None and one.path in self._cache:
            return self._cache[one.path]
        pixels = read_pixels(one.path)
        if tuple(pixels.shape[1:]) != (one.height, one.width):
            raise DataError(
                f"the file is {pixels.shape[2]} x {pixels.shape[1]} pixels and its annotations say {one.width} x"
                f" {one.height}: its boxes would be somewhere else"
            )
        if self._cache is not None:
            self._cache[one.path] = pixels
        return pixels


def read_pixels(path: str | os.PathLike[str], *, exif: bool = False) -> Tensor:
    """A picture as uint8 (3, h, w): as it lies in the file, as COCO's annotations have it, or turned as EXIF says."""
    import numpy as np

    if str(path).startswith("digits:"):
        from leanconv.data.detection.digits import canvas

        return canvas(str(path))
    with open_image(Path(path)) as image:
        image = upright(image, orientation(image)) if exif else image
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1).contiguous()


def _target(one: Annotated, things: Sequence[Thing], masks: bool) -> Target:
    target = {
        "boxes": torch.tensor([thing.box for thing in things], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64),
        "iscrowd": torch.tensor([thing.crowd for thing in things], dtype=torch.int64),
        "area": torch.tensor([thing.area for thing in things], dtype=torch.float32),
        "image_id": torch.tensor(one.id),
    }
    if masks:
        target["masks"] = pixels_of([thing.mask for thing in things if thing.mask], one.height, one.width)
    return target


def _mirrored(pixels: Tensor, target: Target) -> tuple[Tensor, Target]:
    """An image and its objects as in a mirror."""
    width = pixels.shape[-1]
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    changed = {**target, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
    if "masks" in target:
        changed["masks"] = target["masks"].flip(-1)
    return pixels.flip(-1), changed
