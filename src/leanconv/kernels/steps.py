"""What a program is made of, as plain data: wires, buffers, activations, and the kinds of steps.

A step reads channels one by one: a `Wire` says which channel of which buffer stands in a slot. So a shuffle, a gather,
a crop, a concatenation or a channel of zeros is only another tuple of wires and costs nothing when the program runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MOST_FILTER_ROWS",
    "MOST_STRIDE",
    "NOTHING",
    "ZERO",
    "Activation",
    "Buffer",
    "ClipConv",
    "Conv",
    "Floats",
    "Pool",
    "Product",
    "Repeat",
    "Spread",
    "Stage",
    "Step",
    "Sums",
    "Volume",
    "Window",
    "Wire",
    "out_side",
]

Floats = NDArray[np.float32]

MOST_FILTER_ROWS = 64
"""Frames times rows of a filter over time, as in native/kernels.h."""
MOST_STRIDE = 30
"""Of columns, where each phase of them is sorted for itself."""


class Wire(NamedTuple):
    """One channel of a buffer; `ZERO` is a channel of zeros."""

    buffer: int
    channel: int


ZERO = Wire(-1, 0)


class Buffer(NamedTuple):
    """The maps of one image."""

    channels: int
    height: int
    width: int


class Activation(NamedTuple):
    """What is done to each number: cut off below `low` and above `high`, then the curve.

    >>> Activation(low=0.0)  # a ReLU
    Activation(low=0.0, high=inf, curve='none')
    """

    low: float = -inf
    high: float = inf
    curve: Literal["none", "silu", "hardswish", "sigmoid", "hardsigmoid"] = "none"


NOTHING = Activation()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """A convolution: a weight of (C_out, C_in / groups, k_h, k_w) and a bias of (C_out,)."""

    weight: Floats
    bias: Floats
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def in_channels(self) -> int:
        """The slots that it reads."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def pointwise(self) -> bool:
        """Whether an output pixel depends on the input pixel at its place alone."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conv:
    """`activation(stages(reads) + residual)`, written to a buffer whose channel j is output `order[j]`.

    Without a stage the channels pass as they are, every `strides`-th row and column of them. Of two stages the
    second is pointwise and reads output `between[k]` of the first (-1: zeros), after `inner`, in its slot k.
    """

    reads: tuple[Wire, ...]
    writes: int
    order: tuple[int, ...]
    stages: tuple[Stage, ...] = ()
    strides: tuple[int, int] = (1, 1)
    between: tuple[int, ...] = ()
    inner: Activation = NOTHING
    residual: tuple[Wire, ...] | None = None
    activation: Activation = NOTHING

    @property
    def first(self) -> Stage:
        """The first stage; where there is none, the convolution of each channel with one that passing is."""
        if self.stages:
            return self.stages[0]
        count = len(self.reads)
        weight, bias = np.ones((count, 1, 1, 1), np.float32), np.zeros(count, np.float32)
        return Stage(weight=weight, bias=bias, groups=count, stride=self.strides)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """The mean of each channel, as a map of one pixel."""

    reads: tuple[Wire, ...]
    writes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """`activation(reads * by + residual)`, each channel times one of `by`: a map of its size, or of one pixel."""

    reads: tuple[Wire, ...]
    by: tuple[Wire, ...]
    writes: int
    residual: tuple[Wire, ...] | None = None
    activation: Activation = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spread:
    """The channels as they are, rows and columns `strides` apart and zeros between: what a stride has left out."""

    reads: tuple[Wire, ...]
    writes: int
    strides: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sums:
    """The gradient of a convolution's weight, added up over the images of a run: (C_out, C_in / groups, k_h, k_w).

    sums[o, i, ky, kx] = sum over y, x of gradient[o, y, x] * reads[i, y + ky * d_h - p_h, x + kx * d_w - p_w]

    with zeros outside of the map; both maps have one size. Behind it, with `bias`, the gradient of a bias, (C_out,).
    Only rows `step` apart of `gradient` hold anything else than zeros.
    """

    reads: tuple[Wire, ...]
    gradient: tuple[Wire, ...]
    kernel: tuple[int, int]
    groups: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = False
    step: int = 1

    @property
    def weights(self) -> tuple[int, int, int, int]:
        """The shape of the weight."""
        return len(self.gradient), len(self.reads) // self.groups, *self.kernel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Volume:
    """A filter over time, rows and columns for each channel; the rows of a map are those of `frames` frames, in order.

    `weight` is (C, k_t, k_h, 3) and `bias` (C,). Without a weight the pixels pass, every `stride`-th of each axis.
    """

    reads: tuple[Wire, ...]
    writes: int
    frames: int
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 0, 0)
    dilation: tuple[int, int, int] = (1, 1, 1)
    weight: Floats | None = None
    bias: Floats | None = None
    activation: Activation = NOTHING

    @property
    def kernel(self) -> tuple[int, int, int]:
        """Frames, height and width of the filters."""
        return (1, 1, 1) if self.weight is None else self.weight.shape[1:]

    def sides(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Frames, height and width of what it makes of maps of a size."""
        return _sides(self, size)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipConv:
    """A convolution over frames, rows and columns, of maps as in `Volume`, whose groups have any number of channels.

    `weight` is (C_out, C_in / groups, k_t, k_h, k_w), `bias` (C_out,).
    """

    reads: tuple[Wire, ...]
    writes: int
    frames: int
    weight: Floats
    bias: Floats
    groups: int = 1
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 0, 0)
    dilation: tuple[int, int, int] = (1, 1, 1)
    activation: Activation = NOTHING

    @property
    def kernel(self) -> tuple[int, int, int]:
        """Frames, height and width of the kernel."""
        frames, height, width = self.weight.shape[2:]
        return frames, height, width

    def sides(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Frames, height and width of what it makes of maps of a size."""
        return _sides(self, size)


def _sides(step: Volume | ClipConv, size: tuple[int, int]) -> tuple[int, int, int]:
    sides = (step.frames, size[0] // step.frames, size[1])
    axes = zip(sides, step.kernel, step.stride, step.padding, step.dilation, strict=True)
    frames, height, width = ((n + 2 * pad - gap * (k - 1) - 1) // by + 1 for n, k, by, pad, gap in axes)
    return frames, height, width


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """The greatest number of each window, or the mean; the rows of a map are those of `frames` frames, as in `Volume`.

    Windows reach over the border of a map by `padding`, and with `ceil` the last may reach over the end further than
    that. What is outside is never the greatest; it counts in a mean as zeros where `counted`, unless it is behind the
    padding. `divisor` replaces the number of pixels of every mean. A window with a number that is none gives none.
    """

    reads: tuple[Wire, ...]
    writes: int
    kernel: tuple[int, int, int]
    largest: bool
    frames: int = 1
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int] = (0, 0, 0)
    dilation: tuple[int, int, int] = (1, 1, 1)
    ceil: bool = False
    counted: bool = True
    divisor: int | None = None

    def sides(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Frames, height and width of what it makes of maps of a size."""
        found = []
        for axis, n in enumerate((self.frames, size[0] // self.frames, size[1])):
            by, pad = self.stride[axis], self.padding[axis]
            free = n + 2 * pad - self.dilation[axis] * (self.kernel[axis] - 1) - 1
            count = (free + (by - 1 if self.ceil else 0)) // by + 1
            if self.ceil and (count - 1) * by >= n + pad:  # a window must begin on the map
                count -= 1
            found.append(count)
        return found[0], found[1], found[2]

    def factors(self, size: tuple[int, int]) -> tuple[Floats, Floats, Floats]:
        """By what the sum of a window is multiplied for its mean: the product of one number of each axis."""
        found = []
        sides = (self.frames, size[0] // self.frames, size[1])
        for n, made, k, by, pad in zip(sides, self.sides(size), self.kernel, self.stride, self.padding, strict=True):
            first = np.arange(made) * by - pad
            end = np.minimum(first + k, n + pad)
            count = end - first if self.counted else np.minimum(end, n) - np.maximum(first, 0)
            found.append((1 / (count if self.divisor is None else np.ones(made))).astype(np.float32))
        if self.divisor is not None:
            found[2] /= self.divisor
        return found[0], found[1], found[2]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repeat:
    """Every pixel `times` rows and columns (nearest up-sampling), cut where the buffer ends, and `residual` added."""

    reads: tuple[Wire, ...]
    writes: int
    times: tuple[int, int]
    residual: tuple[Wire, ...] | None = None


Step = ClipConv | Conv | Pool | Product | Repeat | Spread | Sums | Volume | Window


def out_side(side: int, stage: Stage, axis: int) -> int:
    """Height (axis 0) or width (axis 1) after a convolution."""
    reach = stage.dilation[axis] * (stage.kernel[axis] - 1) + 1
    return (side + 2 * stage.padding[axis] - reach) // stage.stride[axis] + 1
