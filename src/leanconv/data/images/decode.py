"""From an encoded image of any mode and size to uint8 pixels of one size, three channels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from leanconv.data.sets.splits import Problem, Split
from leanconv.errors import DataError
from leanconv.machine import usable_cores

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Transform", "Centre", "decode", "decode_all", "to_rgb"]


class Transform(Protocol):
    """From an RGB image to uint8 pixels (3, size, size). Made of plain data, so that it can be sent to a process."""

    def __call__(self, image: Image.Image) -> Tensor: ...


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in three 8-bit channels: grey repeated, transparency dropped, 16-bit grey scaled to 8 bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # Pillow clips wide greys to 255 instead of scaling them, which would make almost every pixel white.
        from PIL import Image as images

        wide = np.asarray(image).astype(np.float64)
        image = images.fromarray(np.clip(wide / 257, 0, 255).round().astype(np.uint8))
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")
    return image.convert("RGB")


@dataclass(frozen=True)
class Centre:
    """The transform that resizes (bilinear) the central square, `crop` of the shorter side, to (3, size, size)."""

    size: int
    crop: float = 1.0

    def __call__(self, image: Image.Image) -> Tensor:
        from PIL import Image as images

        width, height = image.size
        if self.crop != 1 or (width, height) != (self.size, self.size):
            side = min(width, height) * self.crop
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            image = image.resize((self.size, self.size), images.Resampling.BILINEAR, box=box)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def decode(split: Split, index: int, transform: Transform) -> Tensor | Problem:
    """The pixels (3, size, size) of one image, or the problem that its file has.

    Decoders raise anything on broken input (OSError, SyntaxError, struct.error, MemoryError on absurd headers, ...), so
    everything that the reading of one file raises is that file's problem.
    """
    try:
        with split.read(index) as image:
            return transform(to_rgb(image))
    except Exception as error:
        return Problem(split.name(index), " ".join(str(error).split()) or type(error).__name__)


def decode_all(split: Split, transform: Transform) -> tuple[Tensor, Tensor, tuple[Problem, ...]]:
    """Every readable image: pixels (n, 3, size, size), labels (n,), and the unreadable ones by name.

    Pillow frees the interpreter while it decodes, so threads are enough. Raises `DataError` when nothing is readable.
    """
    labels = split.labels
    count = len(labels)
    threads = min(8, usable_cores())
    problems: dict[int, Problem] = {}
    store: list[Tensor] = []  # allocated when the shape of the first image is known

    def one(index: int) -> Tensor | Problem:
        return decode(split, index, transform)

    with ThreadPoolExecutor(threads) as pool:
        for index, pixels in enumerate(pool.map(one, range(count), chunksize=64)):
            if isinstance(pixels, Problem):
                problems[index] = pixels
                continue
            if not store:
                store.append(torch.empty((count, *pixels.shape), dtype=torch.uint8))
            store[0][index] = pixels
    if not store:
        first = problems[0]
        raise DataError(f"none of the {count} images could be read, for example {first.name}: {first.reason}")
    if not problems:
        return store[0], labels, ()
    kept = torch.tensor([index for index in range(count) if index not in problems])
    return store[0][kept], labels[kept], tuple(problems.values())
