"""What an elastic network is given in each configuration: inputs resized, and frames of clips left out.

The resolution is a bilinear resize of the input (align_corners=True, as in the reference implementation), of every
input where there are several, and of both sides in step where they differ; frames, for clips, are taken evenly, as in
the journal version of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanconv.dryrun import Sizes, each_shape, shapes_of
from leanconv.dryrun.size import arguments
from leanconv.elastic.width import Config
from leanconv.errors import LeanconvError

__all__ = ["Inputs", "resized", "sampled", "sides_at"]


class Inputs(NamedTuple):
    """The inputs of a network at its native resolution: their shapes, and which side is that resolution.

    >>> Inputs((3, 32, 64), 32).at(Config(0.5, 24))
    (3, 24, 48)
    """

    size: Sizes
    native: int

    def at(self, config: Config) -> Sizes:
        """The shapes in another configuration."""

        def changed(shape: tuple[int, ...]) -> tuple[int, ...]:
            sides = sides_at(shape, self.native, config.resolution)
            channels, *lengths = shape[: len(shape) - len(sides)]
            return (channels, *(config.frames or length for length in lengths), *sides)

        return each_shape(self.size, changed)

    def arguments(self, model: nn.Module, make: Callable[[tuple[int, ...]], Any]) -> tuple[Any, ...]:
        """What the forward of `model` is given, every input made by `make` of its shape without the batch axis."""
        return arguments(model, self.size, make)

    def fitted(self, inputs: tuple[Any, ...], resolution: int | None, frames: int | None) -> tuple[Any, ...]:
        """The arguments of a forward with these inputs of any size brought to a configuration.

        They are the first tensors of all; left as they are where resolution and frames are None.
        """
        if resolution is None and frames is None:
            return inputs
        leaves, tree = pytree.tree_flatten(inputs)
        shapes = iter(shapes_of(self.size))
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and (shape := next(shapes, None)) is not None:
                x = leaf if frames is None else sampled(leaf, frames)
                leaves[place] = x if resolution is None else resized(x, sides_at(shape, self.native, resolution))
        brought: tuple[Any, ...] = pytree.tree_unflatten(leaves, tree)
        return brought


def sides_at(shape: Sequence[int], native: int, resolution: int) -> tuple[int, ...]:
    """The sides at a resolution of an input that has this `shape` (c, [frames,] [h,] w) at the native one.

    >>> sides_at((3, 32, 64), 32, 24)
    (24, 48)
    """
    spatial = min(len(shape) - 1, 2)
    return tuple(max(1, (2 * side * resolution + native) // (2 * native)) for side in shape[len(shape) - spatial :])


def resized(x: Tensor, sides: int | Sequence[int]) -> Tensor:
    """The last one or two axes of (b, c, [frames,] [h,] w) bilinearly resized to `sides`, corners aligned."""
    size = (sides,) * min(x.ndim - 2, 2) if isinstance(sides, int) else tuple(sides)
    if tuple(x.shape[-len(size) :]) == size:
        return x
    mode = "linear" if len(size) == 1 else "bilinear"
    if x.ndim == 5:  # a clip: every frame by itself
        flat = x.transpose(1, 2).flatten(0, 1)
        small = F.interpolate(flat, size, mode=mode, align_corners=True)
        return small.reshape(len(x), -1, *small.shape[1:]).transpose(1, 2)
    return F.interpolate(x, size, mode=mode, align_corners=True)


def sampled(x: Tensor, frames: int) -> Tensor:
    """`frames` of the T frames of (b, c, T, h, w): frame floor(i T / frames) for i = 0, 1, ...

    Raises `LeanconvError` for an input without frames, or with fewer.
    """
    if x.ndim != 5 or x.shape[2] < frames:
        raise LeanconvError(
            f"{frames} frames are to be taken from an input of shape {tuple(x.shape)}: expected (batch, channels, T, "
            f"height, width) with T of at least {frames}"
        )
    total = x.shape[2]
    if total % frames == 0:
        return x if total == frames else x[:, :, :: total // frames]
    places = torch.arange(frames, device=x.device) * total // frames
    return x.index_select(2, places)
