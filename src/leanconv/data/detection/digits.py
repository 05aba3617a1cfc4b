"""`scattered-digits`: scikit-learn's real handwritten digits on small grey canvases, with boxes and masks, embedded.

Each canvas holds one to four digits of 16 to 40 pixels that do not touch; a mask are the pixels that are written on.
96 canvases for training, 32 of other digits for the test; everything follows from the number of the canvas.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from leanconv.data.detection.coco import Annotated, CocoSet, Thing
from leanconv.data.detection.masks import from_pixels
from leanconv.errors import need
from leanconv.seeds import generator

__all__ = ["canvas", "scattered_digits"]

_SIDES = (96, 128)
_TRAIN, _TEST = 96, 32


def scattered_digits() -> tuple[CocoSet, CocoSet]:
    """The training and the test canvases. Raises `MissingExtra` without scikit-learn."""
    names = tuple(str(digit) for digit in range(10))
    numbers = tuple(range(1, 11))
    every = [_annotated(number) for number in range(_TRAIN + _TEST)]
    return CocoSet(tuple(every[:_TRAIN]), names, numbers), CocoSet(tuple(every[_TRAIN:]), names, numbers)


def canvas(name: str) -> Tensor:
    """The pixels (3, 96, 128) of the canvas called "digits:NUMBER"."""
    return _drawn(int(name.partition(":")[2]))[0].expand(3, -1, -1).contiguous()


def _annotated(number: int) -> Annotated:
    _, things = _drawn(number)
    return Annotated(number + 1, Path(f"digits:{number}"), _SIDES[1], _SIDES[0], things)


@lru_cache(_TRAIN + _TEST)
def _drawn(number: int) -> tuple[Tensor, tuple[Thing, ...]]:
    images, labels = _digits()
    draws = generator("scattered-digits", number)
    height, width = _SIDES
    picture = torch.randint(0, 60, (1, 1), generator=draws).expand(height, width).float().clone()
    half = len(images) // 2
    things: list[Thing] = []
    for _ in range(int(torch.randint(1, 5, (1,), generator=draws))):
        which = int(torch.randint(0, half, (1,), generator=draws)) + (half if number >= _TRAIN else 0)
        side = int(torch.randint(16, 41, (1,), generator=draws))
        top = int(torch.randint(0, height - side, (1,), generator=draws))
        left = int(torch.randint(0, width - side, (1,), generator=draws))
        digit = functional.interpolate(images[which][None, None], (side, side), mode="bilinear")[0, 0]
        place = (slice(top, top + side), slice(left, left + side))
        inside = torch.zeros(height, width, dtype=torch.uint8)
        inside[place] = (digit > 5).to(torch.uint8)
        rows, columns = (inside.any(axis).nonzero()[:, 0] for axis in (1, 0))
        box = tuple(float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        if any(_meet(box, thing.box) for thing in things):
            continue
        picture[place] = torch.maximum(picture[place], digit * (255 / 16))
        [rle] = from_pixels(inside[None])
        things.append(Thing(int(labels[which]) + 1, box, rle, False, float(inside.sum())))  # type: ignore[arg-type]
    return picture.round().to(torch.uint8)[None], tuple(things)


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@lru_cache(1)
def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise need("scikit-learn", "train", "the data set 'scattered-digits'") from error
    bunch = load_digits()
    return torch.as_tensor(bunch.images, dtype=torch.float32), torch.as_tensor(bunch.target)
