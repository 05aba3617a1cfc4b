"""What a rule makes steps with: tensors of the graph in terms of wires, and the buffers and steps of one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.kernels.program import (
    MOST_STRIDE,
    ZERO,
    Activation,
    Buffer,
    ClipConv,
    Conv,
    Pool,
    Product,
    Program,
    Repeat,
    Stage,
    Step,
    Volume,
    Window,
    Wire,
    out_side,
)

__all__ = ["Builder", "Map", "Rule", "Unfit", "as_map"]


class Unfit(Exception):
    """Why an operator cannot be a step."""


@dataclass(frozen=True, eq=False)
class Map:
    """A tensor of the graph in terms of wires: (B, *lead, height, width), or (B, *lead) where it is `flat`.

    `wires` is (*lead, 2): buffer and channel. Every `strides`-th row and column of them is meant. Of clips,
    (B, *lead, frames, height, width), the maps have the rows of all `frames`, one frame under another. A `line`,
    (B, *lead, length), is a map of one row.
    """

    wires: NDArray[np.int64]
    size: tuple[int, int]
    flat: bool = False
    strides: tuple[int, int] = (1, 1)
    frames: int | None = None
    line: bool = False

    @property
    def lead(self) -> tuple[int, ...]:
        return self.wires.shape[:-1]

    @property
    def sides(self) -> tuple[int, ...]:
        """The axes of the tensor behind `lead`."""
        if self.flat:
            return ()
        if self.line:
            return self.size[1:]
        return self.size if self.frames is None else (self.frames, self.size[0] // self.frames, self.size[1])

    @property
    def rank(self) -> int:
        """The axes of the tensor, that of the batch among them."""
        return 1 + len(self.lead) + len(self.sides)

    def channels(self) -> tuple[Wire, ...]:
        """The wires in order."""
        return tuple(Wire(int(buffer), int(channel)) for buffer, channel in self.wires.reshape(-1, 2))


class Builder:
    """Collects the buffers and steps of one program, of a network that convolves over so many `axes`.

    Of one axis tensors of three axes and more are lines, of three those of five and more clips. With `any_size` large
    dense convolutions become steps, too.
    """

    def __init__(self, axes: int = 2, *, any_size: bool = False) -> None:
        self.axes, self.any_size = axes, any_size
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []
        self.inputs: list[int] = []

    def input(self, shape: Sequence[int]) -> Map:
        """An input of a shape without its batch axis: the channels, in one axis or in several, and height and width.

        Of clips frames are before them, of lines there is a length alone. Raises `Unfit` for other shapes.
        """
        whole = bool(shape) and all(isinstance(side, int) for side in shape)
        if not whole or (len(shape) == 2 and self.axes > 1):
            raise Unfit(f"its input of shape (B, {', '.join(map(str, shape))}) is no map of two axes")
        if self.axes == 1 and len(shape) >= 2:
            *channels, length = shape
            number = self._buffer(prod(channels), (1, length))
            self.inputs.append(number)
            return Map(_wires(number, prod(channels)).reshape(*channels, 2), (1, length), line=True)
        if self.axes == 3 and len(shape) >= 4:
            *channels, frames, height, width = shape
            number = self._buffer(prod(channels), (frames * height, width))
            self.inputs.append(number)
            wires = _wires(number, prod(channels)).reshape(*channels, 2)
            return Map(wires, (frames * height, width), frames=frames)
        lead, size = (tuple(shape), (1, 1)) if len(shape) == 1 else (tuple(shape[:-2]), (shape[-2], shape[-1]))
        number = self._buffer(prod(lead), size)
        self.inputs.append(number)
        return replace(
            self._whole(number, size), wires=_wires(number, prod(lead)).reshape(*lead, 2), flat=len(shape) == 1
        )

    def program(self, outputs: Sequence[Map]) -> Program:
        """The program that computes these outputs."""
        wires = tuple(self.settled(one).channels() for one in outputs)
        return Program(buffers=tuple(self.buffers), steps=tuple(self.steps), inputs=tuple(self.inputs), outputs=wires)

    def conv(self, x: Map, stage: Stage) -> Map:
        """A convolution."""
        x = self.settled(x)
        if x.flat or len(x.lead) != 1:
            raise Unfit("it convolves something that is no map of two axes")
        size = (out_side(x.size[0], stage, 0), out_side(x.size[1], stage, 1))
        if min(size) < 1:
            raise Unfit("its kernel is larger than its map")
        number = self._buffer(len(stage.weight), size)
        order = tuple(range(len(stage.weight)))
        self.steps.append(Conv(reads=x.channels(), writes=number, order=order, stages=(stage,)))
        return replace(self._whole(number, size), frames=x.frames, line=x.line)

    def filtered(
        self,
        x: Map,
        stride: tuple[int, int, int],
        padding: tuple[int, int, int] = (0, 0, 0),
        dilation: tuple[int, int, int] = (1, 1, 1),
        weight: NDArray[np.float32] | None = None,
        bias: NDArray[np.float32] | None = None,
    ) -> Map:
        """A filter over time for each channel of clips; without one every `stride`-th pixel."""
        if x.frames is None or len(x.lead) != 1:
            raise Unfit("it convolves something that is no clip")
        # As many filters as a channel has stand one behind the other.
        times = 1 if weight is None else len(weight) // x.lead[0]
        reads = tuple(wire for wire in x.channels() for _ in range(times))
        step = Volume(
            reads=reads,
            writes=len(self.buffers),
            frames=x.frames,
            stride=stride,
            padding=padding,
            dilation=dilation,
            weight=weight,
            bias=bias,
        )
        return self._over_frames(x, step, len(reads))

    def elementwise(self, x: Map, activation: Activation, other: Map | None = None) -> Map:
        """`activation(x + other)`."""
        x, other = self.settled(x), None if other is None else self.settled(other)
        if other is not None and (x.lead, x.sides) != (other.lead, other.sides):
            raise Unfit("it adds tensors of two shapes")
        number = self._buffer(prod(x.lead), x.size)
        self.steps.append(
            Conv(
                reads=x.channels(),
                writes=number,
                order=tuple(range(prod(x.lead))),
                residual=None if other is None else other.channels(),
                activation=activation,
            )
        )
        return replace(x, wires=_wires(number, prod(x.lead)).reshape(*x.lead, 2))

    def product(self, x: Map, other: Map) -> Map:
        """`x * other`, tensors of one shape, or one of them with one channel for all, or one pixel."""
        x, other = self.settled(x), self.settled(other)
        if prod(other.lead) * prod(other.size) > prod(x.lead) * prod(x.size):
            x, other = other, x
        alike = other.size in (x.size, (1, 1)) and other.sides in (x.sides, (1,) * len(x.sides))
        if x.rank != other.rank or not alike:
            raise Unfit("it multiplies tensors of two shapes")
        try:
            by = replace(other, wires=np.broadcast_to(other.wires, x.wires.shape))
        except ValueError as error:
            raise Unfit("it multiplies tensors of two shapes") from error
        number = self._buffer(prod(x.lead), x.size)
        self.steps.append(Product(reads=x.channels(), by=by.channels(), writes=number))
        return replace(x, wires=_wires(number, prod(x.lead)).reshape(*x.lead, 2))

    def clip_conv(
        self,
        x: Map,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        groups: int,
        stride: tuple[int, int, int],
        padding: tuple[int, int, int],
        dilation: tuple[int, int, int],
    ) -> Map:
        """A convolution over time; its weight is (C_out, C_in / groups, k_t, k_h, k_w)."""
        if x.frames is None or len(x.lead) != 1:
            raise Unfit("it convolves something that is no clip")
        if stride[2] > MOST_STRIDE:
            raise Unfit(f"its columns are {stride[2]} apart, more than {MOST_STRIDE}")
        step = ClipConv(
            reads=x.channels(),
            writes=len(self.buffers),
            frames=x.frames,
            weight=weight,
            bias=bias,
            groups=groups,
            stride=stride,
            padding=padding,
            dilation=dilation,
        )
        return self._over_frames(x, step, len(weight))

    def windows(
        self,
        x: Map,
        kernel: tuple[int, int, int],
        *,
        largest: bool,
        stride: tuple[int, int, int],
        padding: tuple[int, int, int],
        **options: Any,
    ) -> Map:
        """The greatest number or the mean of windows, over frames, rows and columns; maps alone are one frame."""
        x = self.settled(x)
        if x.flat or len(x.lead) != 1:
            raise Unfit("it pools something that is no map of two axes, and no clip")
        step = Window(
            reads=x.channels(),
            writes=len(self.buffers),
            kernel=kernel,
            largest=largest,
            frames=x.frames or 1,
            stride=stride,
            padding=padding,
            **options,
        )
        return self._over_frames(x, step, len(step.reads))

    def repeated(self, x: Map, times: tuple[int, int], size: tuple[int, int]) -> Map:
        """Every pixel several times, cut off where `size` ends."""
        x = self.settled(x)
        if x.flat or x.frames is not None or len(x.lead) != 1:
            raise Unfit("it repeats pixels of something that is no map of two axes")
        number = self._buffer(x.lead[0], size)
        self.steps.append(Repeat(reads=x.channels(), writes=number, times=times))
        return replace(self._whole(number, size), line=x.line)

    def mean(self, x: Map, *, flat: bool) -> Map:
        """The mean of each channel, of clips over all frames."""
        x = self.settled(x)
        number = self._buffer(prod(x.lead), (1, 1))
        self.steps.append(Pool(reads=x.channels(), writes=number))
        frames = None if flat or x.frames is None else 1
        wires = _wires(number, prod(x.lead)).reshape(*x.lead, 2)
        return Map(wires, (1, 1), flat, frames=frames, line=x.line and not flat)

    def settled(self, x: Map) -> Map:
        """`x` with every row and column meant: a step copies those that were not skipped."""
        if x.strides == (1, 1):
            return x
        size = (-(-x.size[0] // x.strides[0]), -(-x.size[1] // x.strides[1]))
        live = x.wires[..., 0] != ZERO.buffer  # channels of zeros stay what they are
        if not live.any():
            live[...] = True
        reads = tuple(Wire(int(buffer), int(channel)) for buffer, channel in x.wires[live])
        number = self._buffer(len(reads), size)
        self.steps.append(Conv(reads=reads, writes=number, order=tuple(range(len(reads))), strides=x.strides))
        wires = x.wires.copy()
        wires[live] = _wires(number, len(reads))
        return replace(x, wires=wires, size=size, strides=(1, 1))

    def _over_frames(self, x: Map, step: Volume | ClipConv | Window, channels: int) -> Map:
        """What a step makes of `x`; it writes the next buffer."""
        frames, height, width = step.sides(x.size)
        if min(frames, height, width) < 1:
            raise Unfit("its kernel is larger than its clip")
        number = self._buffer(channels, (frames * height, width))
        self.steps.append(step)
        whole = self._whole(number, (frames * height, width))
        return replace(whole, frames=None if x.frames is None else frames, line=x.line)

    def _buffer(self, channels: int, size: tuple[int, int]) -> int:
        self.buffers.append(Buffer(channels, *size))
        return len(self.buffers) - 1

    def _whole(self, number: int, size: tuple[int, int]) -> Map:
        return Map(_wires(number, self.buffers[number].channels), size)


def _wires(buffer: int, channels: int) -> NDArray[np.int64]:
    return np.stack([np.full(channels, buffer), np.arange(channels)], axis=1).astype(np.int64)


Rule = Callable[[Builder, dict[str, Any], tuple[int, ...]], "Map | list[Map]"]
"""Makes steps for an operator, given its arguments by name, with a `Map` for every tensor of the image and the weights
as they are, and its shape without the batch axis. Raises `Unfit`."""


def as_map(value: object) -> Map:
    if not isinstance(value, Map):
        raise Unfit("one of its operands is no map of the image")
    return value
