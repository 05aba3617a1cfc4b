"""From an encoded image of any mode and size to uint8 pixels of one size, three channels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from leanconv.data.images.modes import orientation, to_rgb, upright
from leanconv.data.sets.splits import Problem, Split
from leanconv.errors import DataError
from leanconv.machine import usable_cores

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Decoded", "Transform", "decode", "decode_all"]


class Transform(Protocol):
    """From an RGB image to uint8 pixels (3, size, size). Made of plain data, so that it can be sent to a process."""

    def __call__(self, image: Image.Image) -> Tensor: ...


class Decoded(NamedTuple):
    """The pixels (3, size, size) of an image, and whether its EXIF record turned or mirrored it."""

    pixels: Tensor
    turned: bool


def decode(split: Split, index: int, transform: Transform, *, exif: bool = True) -> Decoded | Problem:
    """The pixels of one image, or the problem that its file has; with `exif` as its EXIF record says it is shown.

    Decoders raise anything on broken input (OSError, SyntaxError, struct.error, MemoryError on absurd headers, ...), so
    everything that the reading of one file raises is that file's problem.
    """
    try:
        with split.read(index) as image:
            number = orientation(image) if exif else 1
            return Decoded(transform(to_rgb(upright(image, number))), number != 1)
    except Exception as error:
        return Problem(split.name(index), " ".join(str(error).split()) or type(error).__name__)


class _All(NamedTuple):
    """Every readable image: pixels (n, 3, size, size), labels (n,); the unreadable ones; how many EXIF turned."""

    pixels: Tensor
    labels: Tensor
    problems: tuple[Problem, ...]
    turned: int


def decode_all(split: Split, transform: Transform, *, exif: bool = True) -> _All:
    """All images of `split`, as `decode` gives them.

    Pillow frees the interpreter while it decodes, so threads are enough. Raises `DataError` when nothing is readable.
    """
    labels = split.labels
    count = len(labels)
    threads = min(8, usable_cores())
    problems: dict[int, Problem] = {}
    store: list[Tensor] = []  # allocated when the shape of the first image is known
    turned = 0

    def one(index: int) -> Decoded | Problem:
        return decode(split, index, transform, exif=exif)

    with ThreadPoolExecutor(threads) as pool:
        for index, found in enumerate(pool.map(one, range(count), chunksize=64)):
            if isinstance(found, Problem):
                problems[index] = found
                continue
            if not store:
                store.append(torch.empty((count, *found.pixels.shape), dtype=torch.uint8))
            store[0][index] = found.pixels
            turned += found.turned
    if not store:
        first = problems[0]
        raise DataError(f"none of the {count} images could be read, for example {first.name}: {first.reason}")
    if not problems:
        return _All(store[0], labels, (), turned)
    kept = torch.tensor([index for index in range(count) if index not in problems])
    return _All(store[0][kept], labels[kept], tuple(problems.values()), turned)
