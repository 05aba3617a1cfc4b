"""A run of convolutions with nothing between but moves of channels, and its gradients, as programs for training.

Forward is one pass over an image. Backward keeps the input alone: maps between the stages are computed again, which
costs less than to write and read them. For every stage, from the last to the first,

    S_n = the gradient of what stage n made, spread by its stride (`Spread`)
    dW_n, db_n = sums of products of what the stage read with S_n (`Sums`), over the images of the batch
    gradient of what it read = S_n convolved with W_n, inputs and outputs changed, both axes turned round

Weights change at every step, so a program is packed once, with the *number* of each weight where its value would be;
`Order` then says which number goes where, and packing is one gather.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leanconv.errors import PlanError
from leanconv.kernels.fuse import fused
from leanconv.kernels.program import ZERO, Buffer, Conv, Floats, Program, Spread, Stage, Step, Sums, Wire, out_side

__all__ = ["FIRST", "MOST_WEIGHTS", "Piece", "PieceStage", "backward_program", "forward_program", "read_piece"]

FIRST = 3
"""The number of the first weight: before it stand 0, minus infinity and infinity."""

MOST_WEIGHTS = 1 << 24
"""Numbers up to here are exact in a float."""


class PieceStage(NamedTuple):
    """A convolution without its weights: slot j reads channel `reads[j]` of what comes before (-1: zeros)."""

    reads: tuple[int, ...]
    outputs: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    bias: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of its weight."""
        return self.outputs, len(self.reads) // self.groups, *self.kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Stages on maps of (channels, height, width); channel j of the result is output `order[j]` of the last stage."""

    channels: int
    stages: tuple[PieceStage, ...]
    order: tuple[int, ...]

    def why_not(self) -> str | None:
        """Why the library does not train it, in a few words; None where it does.

        >>> stage = PieceStage((0, 1), 2, 2, (3, 3), (1, 1), (0, 0), (1, 1), False)
        >>> Piece(channels=2, stages=(stage,), order=(0, 1)).why_not()
        'padding other than half the kernel'
        """
        if any(
            2 * pad != gap * (k - 1)
            for stage in self.stages
            for pad, gap, k in zip(stage.padding, stage.dilation, stage.kernel, strict=True)
        ):
            return "padding other than half the kernel"
        for wires in (*(stage.reads for stage in self.stages), self.order):
            used = [wire for wire in wires if wire >= 0]
            if len(set(used)) < len(used):
                return "a channel is read twice"
            if not used:
                return "only zeros are read"
        if self.weights >= MOST_WEIGHTS:
            return f"{MOST_WEIGHTS} weights or more"
        return None

    @property
    def weights(self) -> int:
        """How many numbers its parameters hold."""
        return sum(int(np.prod(stage.shape)) + stage.outputs * stage.bias for stage in self.stages)

    def write(self) -> str:
        """As text, which `read_piece` reads."""
        return json.dumps([self.channels, self.stages, self.order], separators=(",", ":"))

    def out_size(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the result for maps of a height and width."""
        for stage in self.stages:
            height, width = ((side - 1) // by + 1 for side, by in zip((height, width), stage.stride, strict=True))
        return len(self.order), height, width


@functools.lru_cache(maxsize=1024)
def read_piece(text: str) -> Piece:
    """The piece that was written."""
    channels, stages, order = json.loads(text)
    made = tuple(
        PieceStage(tuple(reads), outputs, groups, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), bias)
        for reads, outputs, groups, kernel, stride, padding, dilation, bias in stages
    )
    return Piece(channels=channels, stages=made, order=tuple(order))


def _numbers(piece: Piece) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """For each stage the numbers of its weights and of its biases (0, which stands for zero, where it has none)."""
    found, first = [], FIRST
    for stage in piece.stages:
        count = int(np.prod(stage.shape))
        weight = np.arange(first, first + count, dtype=np.float32).reshape(stage.shape)
        first += count
        bias = np.zeros(stage.outputs, dtype=np.float32)
        if stage.bias:
            bias = np.arange(first, first + stage.outputs, dtype=np.float32)
            first += stage.outputs
        found.append((weight, bias))
    return found


def _wires(buffer: int, channels: tuple[int, ...]) -> tuple[Wire, ...]:
    return tuple(ZERO if channel < 0 else Wire(buffer, channel) for channel in channels)


def _forward_steps(piece: Piece, buffers: list[Buffer], count: int) -> list[Step]:
    """Convolutions of the first `count` stages; the buffer of stage n is appended to `buffers`."""
    steps: list[Step] = []
    before = 0
    for stage, (weight, bias) in zip(piece.stages[:count], _numbers(piece), strict=False):
        conv = Stage(
            weight=weight, bias=bias, groups=stage.groups, stride=stage.stride, padding=stage.padding,
            dilation=stage.dilation,
        )  # fmt: skip
        sides = (out_side(buffers[before].height, conv, 0), out_side(buffers[before].width, conv, 1))
        buffers.append(Buffer(stage.outputs, *sides))
        order = tuple(range(stage.outputs))
        steps.append(Conv(reads=_wires(before, stage.reads), writes=len(buffers) - 1, order=order, stages=(conv,)))
        before = len(buffers) - 1
    return steps


def forward_program(piece: Piece, height: int, width: int) -> Program:
    """Input to result, with numbers for weights."""
    buffers = [Buffer(piece.channels, height, width)]
    steps = _forward_steps(piece, buffers, len(piece.stages))
    last = len(buffers) - 1
    made = Program(buffers=tuple(buffers), steps=tuple(steps), inputs=(0,), outputs=(_wires(last, piece.order),))
    return fused(made)


def backward_program(piece: Piece, height: int, width: int, *, of_input: bool, of_weights: bool) -> Program:
    """Input and gradient of the result to the gradient of the input, if wanted, and the sums of all stages, last first.

    Raises `PlanError` for a piece that the library does not train.
    """
    why = piece.why_not()
    if why is not None:
        raise PlanError(f"the kernels do not train this piece: {why}")
    count = len(piece.stages)
    buffers = [Buffer(piece.channels, height, width), Buffer(*piece.out_size(height, width))]
    steps: list[Step] = []
    inputs = [0]  # the buffer that each stage reads
    if of_weights:
        steps += _recomputed(piece, buffers, inputs)
    sizes = [(height, width)]
    for stage in piece.stages:
        sizes.append(tuple((side - 1) // by + 1 for side, by in zip(sizes[-1], stage.stride, strict=True)))  # type: ignore[arg-type]
    wires, order = 1, piece.order  # where the gradient of the last stage is
    outputs: tuple[tuple[Wire, ...], ...] = ()
    numbers = _numbers(piece)
    for index in reversed(range(count)):
        stage = piece.stages[index]
        place = {channel: slot for slot, channel in enumerate(order)}
        gradient = _wires(wires, tuple(place.get(channel, -1) for channel in range(stage.outputs)))
        if stage.stride != (1, 1):
            live = tuple(wire for wire in gradient if wire != ZERO)
            buffers.append(Buffer(len(live), *sizes[index]))
            steps.append(Spread(reads=live, writes=len(buffers) - 1, strides=stage.stride))
            spread = {wire: Wire(len(buffers) - 1, channel) for channel, wire in enumerate(live)}
            gradient = tuple(spread.get(wire, ZERO) for wire in gradient)
        if of_weights:
            steps.append(_sums(stage, inputs[index], gradient))
        if index or of_input:
            buffers.append(Buffer(len(stage.reads), *sizes[index]))
            steps.append(_turned(stage, numbers[index][0], gradient, len(buffers) - 1))
            wires, order = len(buffers) - 1, stage.reads
    if of_input:
        place = {channel: slot for slot, channel in enumerate(order) if channel >= 0}
        outputs = (_wires(wires, tuple(place.get(channel, -1) for channel in range(piece.channels))),)
    return Program(buffers=tuple(buffers), steps=tuple(steps), inputs=(0, 1), outputs=outputs)


def _recomputed(piece: Piece, buffers: list[Buffer], inputs: list[int]) -> list[Step]:
    """What every stage but the first reads, from the input again."""
    own = [buffers[0]]
    steps = _forward_steps(piece, own, len(piece.stages) - 1)
    moved: dict[int, int] = {0: 0}
    found: list[Step] = []
    for step in steps:
        assert isinstance(step, Conv)  # that is all a piece has
        moved[step.writes] = len(buffers)
        buffers.append(own[step.writes])
        reads = tuple(wire if wire == ZERO else Wire(moved[wire.buffer], wire.channel) for wire in step.reads)
        found.append(Conv(reads=reads, writes=moved[step.writes], order=step.order, stages=step.stages))
        inputs.append(moved[step.writes])
    return found


def _sums(stage: PieceStage, reads: int, gradient: tuple[Wire, ...]) -> Sums:
    return Sums(
        reads=_wires(reads, stage.reads),
        gradient=gradient,
        kernel=stage.kernel,
        groups=stage.groups,
        padding=stage.padding,
        dilation=stage.dilation,
        bias=stage.bias,
        step=stage.stride[0],
    )


def _turned(stage: PieceStage, numbers: Floats, gradient: tuple[Wire, ...], writes: int) -> Conv:
    """From the gradient of what a stage made to that of each of its slots."""
    outputs, inputs, *kernel = stage.shape
    groups = stage.groups
    weight = numbers.reshape(groups, outputs // groups, inputs, *kernel).swapaxes(1, 2)[..., ::-1, ::-1]
    weight = np.ascontiguousarray(weight).reshape(groups * inputs, outputs // groups, *kernel)
    bias = np.zeros(len(weight), dtype=np.float32)
    conv = Stage(weight=weight, bias=bias, groups=groups, padding=stage.padding, dilation=stage.dilation)
    return Conv(reads=gradient, writes=writes, order=tuple(range(len(weight))), stages=(conv,))
