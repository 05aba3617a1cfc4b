"""Training augmentation: small images as tensor operations on whole batches, photographs one by one.

| name       | what is drawn                                                        | evaluation           |
|------------|----------------------------------------------------------------------|----------------------|
| `none`     | nothing                                                              | central square       |
| `shift`    | a crop after a reflected border of side/8 (for digits: never flipped) | central square       |
| `cifar`    | the same, then a mirror (4 pixels at 32; MutualNet)                   | central square       |
| `cifar_zero` | the same, but the border is black (interleaved group, optimized separable) | central square |
| `cifar_cutout` | the same, then a square of 16 pixels at 32 is cut out (DARTS)     | central square       |
| `imagenet40` | the whole image at 5/4 of the side, a crop, a mirror              | central 4/5          |
| `imagenet` | a resized crop of 8 to 100 % of the area, a mirror                   | 7/8 central square   |
| `imagenet_jitter` | the same and colour jitter .4 (DARTS)                        | 7/8 central square   |
| `imagenet_basic` | the same and lighting .1 (elastic ResNet-50, the deep octave networks) | 7/8 central square |
| `mobile`   | 25 to 100 %, a mirror, colour jitter .4, lighting .1 (MutualNet)     | 7/8 central square   |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leanconv.data.images.decode import Transform
from leanconv.data.images.prepare import Prepare
from leanconv.errors import unknown

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AUGMENTS", "Augment", "crop_and_mirror", "cut_out", "find_augment"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """One row of the table above.

    `zeros` makes the border black instead of reflected; `cutout` is the side of the cut square for images of 32
    pixels; `squash` the side, relative to the resolution, to which the whole image is brought before it is cropped.
    """

    border: bool = False
    zeros: bool = False
    mirror: bool = False
    cutout: int = 0
    squash: float | None = None
    area: tuple[float, float] | None = None
    jitter: float = 0.0
    lighting: float = 0.0
    crop: float = 1.0

    @property
    def per_image(self) -> bool:
        """Whether each image is augmented when it is decoded, not the whole batch at once."""
        return self.area is not None or self.squash is not None

    def training(self, resolution: int) -> Transform:
        """The transform of one training image; it draws from the global generators when `per_image`."""
        if self.squash is not None:
            return _Squashed(resolution, self.squash, mirror=self.mirror)
        return Prepare(resolution) if self.area is None else _ResizedCrop(self, resolution)

    def evaluation(self, resolution: int) -> Prepare:
        """The transform of one test image; it draws nothing."""
        if self.squash is not None:
            return Prepare(resolution, "whole", crop=1 / self.squash)
        return Prepare(resolution, crop=self.crop)


AUGMENTS: dict[str, Augment] = {
    "none": Augment(),
    "shift": Augment(border=True),
    "cifar": Augment(border=True, mirror=True),
    "cifar_zero": Augment(border=True, zeros=True, mirror=True),
    "cifar_cutout": Augment(border=True, zeros=True, mirror=True, cutout=16),
    "imagenet40": Augment(squash=1.25, mirror=True),
    "imagenet": Augment(area=(0.08, 1.0), mirror=True, crop=0.875),
    "imagenet_jitter": Augment(area=(0.08, 1.0), mirror=True, jitter=0.4, crop=0.875),
    "imagenet_basic": Augment(area=(0.08, 1.0), mirror=True, jitter=0.4, lighting=0.1, crop=0.875),
    "mobile": Augment(area=(0.25, 1.0), mirror=True, jitter=0.4, lighting=0.1, crop=0.875),
}


def find_augment(name: str) -> Augment:
    """The augmentation called `name`; `UnknownName` with the nearest otherwise."""
    if name not in AUGMENTS:
        raise unknown("augmentation", name, AUGMENTS)
    return AUGMENTS[name]


def crop_and_mirror(
    pixels: Tensor,
    border: int,
    mirror: bool,
    generator: torch.Generator,
    *,
    share: tuple[int, int] | None = None,
    zeros: bool = False,
) -> Tensor:
    """Crop every image of `pixels` (n, c, h, w) at its own place after reflecting `border` pixels, mirror half of them.

    With `zeros` what lies outside the image is black.

    `share` = (start, total): these are images start, start+1, ... of a batch of `total` whose draws are made in full,
    so that an image's augmentation does not depend on how many processes share the batch. The border is reflected by
    arithmetic on the indices, so nothing is padded.
    """
    if not (border or mirror):
        return pixels
    count, channels, height, width = pixels.shape
    start, total = share or (0, count)
    tops = torch.randint(-border, border + 1, (total,), generator=generator)[start : start + count]
    lefts = torch.randint(-border, border + 1, (total,), generator=generator)[start : start + count]
    mirrored = (torch.rand(total, generator=generator) < 0.5)[start : start + count]
    rows, columns = _reflected(tops, height), _reflected(lefts, width)
    if mirror:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    places = (rows[:, :, None] * width + columns[:, None, :]).reshape(count, 1, -1).expand(-1, channels, -1)
    cropped = pixels.reshape(count, channels, -1).gather(2, places).reshape(pixels.shape)
    if zeros:
        inside = _inside(tops, height)[:, :, None] & _inside(lefts, width)[:, None, :]
        if mirror:
            inside = torch.where(mirrored[:, None, None], inside.flip(2), inside)
        cropped = cropped * inside[:, None]
    return cropped


def cut_out(images: Tensor, side: int, generator: torch.Generator, *, share: tuple[int, int] | None = None) -> Tensor:
    """Set a square of `side` pixels to 0, the mean, in every image of (n, c, h, w); its centre may be anywhere.

    `share` as in `crop_and_mirror`.
    """
    count, _, height, width = images.shape
    start, total = share or (0, count)
    rows = torch.randint(0, height, (total,), generator=generator)[start : start + count] - side // 2
    columns = torch.randint(0, width, (total,), generator=generator)[start : start + count] - side // 2
    here_y, here_x = torch.arange(height) - rows[:, None], torch.arange(width) - columns[:, None]
    cut = ((here_y >= 0) & (here_y < side))[:, :, None] & ((here_x >= 0) & (here_x < side))[:, None, :]
    return images.masked_fill(cut[:, None], 0.0)


def _inside(starts: Tensor, length: int) -> Tensor:
    """Which of the indices start .. start+length-1 are inside 0..length-1: (n, length)."""
    wanted = starts[:, None] + torch.arange(length)
    return (wanted >= 0) & (wanted < length)


def _reflected(starts: Tensor, length: int) -> Tensor:
    """Per start the indices start .. start+length-1, reflected where outside 0..length-1: (n, length)."""
    wanted = (starts[:, None] + torch.arange(length)).abs()
    return (length - 1) - ((length - 1) - wanted).abs()


# Principal components of ImageNet's colours and their spread, as published with AlexNet (section 4.1 of its paper
# describes the method; these numbers circulate with every ImageNet pipeline).
_SPREAD = (0.2175, 0.0188, 0.0045)
_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True)
class _Squashed:
    """The whole image at `factor` times the resolution, whatever its shape, then a random square of it."""

    resolution: int
    factor: float
    mirror: bool

    def __call__(self, image: Image.Image) -> Tensor:
        from PIL import Image as images

        side = round(self.resolution * self.factor)
        pixels = torch.from_numpy(np.array(image.resize((side, side), images.Resampling.BILINEAR)))
        room = side - self.resolution
        top, left = torch.randint(0, room + 1, (2,)).tolist()
        pixels = pixels[top : top + self.resolution, left : left + self.resolution]
        if self.mirror and torch.rand(()) < 0.5:
            pixels = pixels.flip(1)
        return pixels.permute(2, 0, 1).contiguous()


class _ResizedCrop:
    """timm's training transform up to uint8 pixels, then the lighting noise that it does not have."""

    def __init__(self, augment: Augment, resolution: int) -> None:
        from timm.data.transforms_factory import create_transform

        make: Any = create_transform  # timm declares some arguments narrower than it accepts
        self.lighting = augment.lighting
        self.geometry = make(
            (3, resolution, resolution),
            is_training=True,
            scale=augment.area,
            hflip=0.5 if augment.mirror else 0.0,
            color_jitter=augment.jitter or None,
            interpolation="bilinear",
            use_prefetcher=True,  # ends in uint8 pixels: normalisation is the loader's
        )

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.as_tensor(self.geometry(image))
        if self.lighting:
            strength = torch.randn(3) * self.lighting * torch.tensor(_SPREAD)
            shift = 255 * (torch.tensor(_COMPONENTS) @ strength)
            pixels = (pixels.float() + shift[:, None, None]).round().clamp(0, 255).to(torch.uint8)
        return pixels
