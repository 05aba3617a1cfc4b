"""A piece of a network as a program: steps over maps of one image, with no torch in it.

A step reads channels one by one: a `Wire` says which channel of which buffer stands in a slot. So a shuffle, a gather,
a crop, a concatenation or a channel of zeros is only another tuple of wires and costs nothing when the program runs.
Every buffer is written by one step, or is an input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import comb, inf
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leanconv.errors import PlanError

__all__ = [
    "MOST_FILTER_ROWS",
    "NOTHING",
    "ZERO",
    "Activation",
    "Buffer",
    "Conv",
    "Floats",
    "Pool",
    "Program",
    "Spread",
    "Stage",
    "Step",
    "Sums",
    "Volume",
    "Wire",
    "out_side",
]

Floats = NDArray[np.float32]

MOST_FILTER_ROWS = 64
"""Frames times rows of a filter over time, as in native/kernels.h."""


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
    curve: Literal["none", "silu", "hardswish"] = "none"


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
        axes = zip(
            (self.frames, size[0] // self.frames, size[1]),
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            strict=True,
        )
        frames, height, width = ((n + 2 * pad - gap * (k - 1) - 1) // by + 1 for n, k, by, pad, gap in axes)
        return frames, height, width


Step = Conv | Pool | Spread | Sums | Volume


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """Steps in the order in which they run; each input fills a buffer, each output is read by wires.

    Raises `PlanError` where sizes do not fit, a buffer is read before it is written, or written twice.
    """

    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[tuple[Wire, ...], ...]
    sizes: tuple[Buffer, ...] = field(init=False)

    def __post_init__(self) -> None:
        written = set(self.inputs)
        for number, step in enumerate(self.steps):
            _check(self, number, step, written)
            if not isinstance(step, Sums):
                written.add(step.writes)
        for wires in self.outputs:
            self._size(wires, written, "an output")
        object.__setattr__(self, "sizes", tuple(self._output(wires) for wires in self.outputs))

    @property
    def macs(self) -> int:
        """Multiply-adds of one image, padding counted, as everywhere."""
        total = 0
        for step in self.steps:
            if isinstance(step, Conv):
                pixels = self.buffers[step.writes].height * self.buffers[step.writes].width
                total += sum(stage.weight.size for stage in step.stages) * pixels
            elif isinstance(step, Volume) and step.weight is not None:
                total += step.weight.size * self.buffers[step.writes].height * self.buffers[step.writes].width
        return total

    @property
    def interactions(self) -> int:
        """Pairs of input channels that meet in an output channel, over all convolutions (CSN, eq. 3)."""
        stages = [stage for step in self.steps for stage in getattr(step, "stages", ())]
        return sum(len(stage.weight) * comb(stage.weight.shape[1], 2) for stage in stages)

    def _output(self, wires: tuple[Wire, ...]) -> Buffer:
        like = next(self.buffers[wire.buffer] for wire in wires if wire != ZERO)
        return Buffer(len(wires), like.height, like.width)

    def _size(self, wires: tuple[Wire, ...], written: set[int], what: str) -> tuple[int, int]:
        """Height and width of the maps that are read."""
        found = set()
        for buffer, channel in wires:
            if buffer == ZERO.buffer:
                continue
            if buffer not in written:
                raise PlanError(f"{what} reads buffer {buffer} before any step has written it")
            if not 0 <= channel < self.buffers[buffer].channels:
                raise PlanError(f"{what} reads channel {channel} of buffer {buffer}, {self.buffers[buffer]}")
            found.add(self.buffers[buffer][1:])
        if len(found) != 1:
            raise PlanError(f"{what} must read maps of one size, got {sorted(found) or 'zeros alone'}")
        return found.pop()


def _check(program: Program, number: int, step: Step, written: set[int]) -> None:
    what = f"step {number}"
    size = program._size(step.reads, written, what)
    if isinstance(step, Sums):
        if program._size(step.gradient, written, what) != size:
            raise PlanError(f"{what} sums products of maps of different sizes")
        if len(step.reads) % step.groups or len(step.gradient) % step.groups:
            raise PlanError(f"{what}: its channels do not come in {step.groups} groups")
        return
    out = program.buffers[step.writes]
    if step.writes in written:
        raise PlanError(f"{what} writes buffer {step.writes} again")
    if isinstance(step, Pool):
        if out[1:] != (1, 1) or len(step.reads) != out.channels:
            raise PlanError(f"{what} makes {len(step.reads)} maps of one pixel, its buffer is {out}")
        return
    if isinstance(step, Spread):
        small = tuple(-(-side // by) for side, by in zip(out[1:], step.strides, strict=True))
        if small != size or len(step.reads) != out.channels:
            raise PlanError(f"{what} spreads {len(step.reads)} maps of {size} by {step.strides}, its buffer is {out}")
        return
    if isinstance(step, Volume):
        _check_volume(what, step, size, out)
        return
    channels = len(step.reads)
    for index, stage in enumerate(step.stages or (step.first,)):
        if stage.in_channels != (channels if index == 0 else len(step.between)):
            raise PlanError(f"{what}: stage {index} takes {stage.in_channels} channels, {channels} are read")
        if index and (not stage.pointwise or not all(-1 <= slot < channels for slot in step.between)):
            raise PlanError(f"{what}: a second stage is pointwise and reads channels of the first")
        channels = len(stage.weight)
        size = (out_side(size[0], stage, 0), out_side(size[1], stage, 1))
    if len(step.stages) > 2 or size != out[1:] or len(step.order) != out.channels:
        raise PlanError(f"{what}: {len(step.stages)} stages make {len(step.order)} maps of {size}, its buffer is {out}")
    if not all(0 <= slot < channels for slot in step.order):
        raise PlanError(f"{what}: its order names channels outside of {channels}")
    if step.residual is not None and (
        program._size(step.residual, written, what) != size or len(step.residual) != out.channels
    ):
        raise PlanError(f"{what}: its residual has another size than {out}")


def _check_volume(what: str, step: Volume, size: tuple[int, int], out: Buffer) -> None:
    frames, height, width = step.sides(size)
    if size[0] % step.frames or min(frames, height, width) < 1:
        raise PlanError(f"{what} reads maps of {size} as {step.frames} frames, and makes {(frames, height, width)}")
    if len(step.reads) != out.channels or (frames * height, width) != out[1:]:
        raise PlanError(f"{what} makes {len(step.reads)} maps of {(frames * height, width)}, its buffer is {out}")
    if step.weight is None:
        if step.bias is not None or any(step.padding) or step.activation != NOTHING:
            raise PlanError(f"{what} passes pixels, and has a bias, padding or an activation")
    elif (
        step.bias is None
        or step.weight.ndim != 4
        or not len(step.weight) == len(step.bias) == out.channels
        or step.kernel[2] != 3
        or step.kernel[0] * step.kernel[1] > MOST_FILTER_ROWS
    ):
        raise PlanError(
            f"{what}: filters of {step.weight.shape} for {out.channels} channels; they are (C, k_t, k_h, 3), of at "
            f"most {MOST_FILTER_ROWS} rows, with a bias"
        )


def out_side(side: int, stage: Stage, axis: int) -> int:
    """Height (axis 0) or width (axis 1) after a convolution."""
    reach = stage.dilation[axis] * (stage.kernel[axis] - 1) + 1
    return (side + 2 * stage.padding[axis] - reach) // stage.stride[axis] + 1
