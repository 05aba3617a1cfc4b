"""Random programs of dense and depthwise convolutions, channels in blocks; `random_programs` has all others."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from leanconv.kernels.program import (
    NOTHING,
    ZERO,
    Activation,
    Buffer,
    Conv,
    Pool,
    Product,
    Program,
    Repeat,
    Stage,
    Window,
    Wire,
    out_side,
)
from random_programs import ACTIVATIONS

_KINDS = ("conv", "conv", "depthwise", "depthwise", "pass", "mean", "window", "octave", "gate")
_KERNELS = ((1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (2, 2))


class _Draw:
    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.random = np.random.default_rng(self.draw(st.integers(0, 2**32 - 1), label="seed"))
        self.buffers: list[Buffer] = []
        self.steps: list[Conv | Pool | Product | Repeat | Window] = []

    def whole(self, number: int) -> tuple[Wire, ...]:
        return tuple(Wire(number, channel) for channel in range(self.buffers[number].channels))

    def reads(self, source: int) -> tuple[Wire, ...]:
        """All of a buffer; or with others of its size; or some channels in any order, zeros among them."""
        kind = self.draw(st.sampled_from(("whole", "whole", "joined", "some")))
        alike = [n for n, buffer in enumerate(self.buffers) if buffer[1:] == self.buffers[source][1:]]
        if kind == "joined":
            return self.whole(source) + self.whole(self.draw(st.sampled_from(alike)))
        if kind == "whole":
            return self.whole(source)
        there = self.whole(source)
        picked = [there[int(index)] for index in self.random.integers(len(there), size=self.draw(st.integers(1, 20)))]
        return tuple(ZERO if index and self.random.random() < 0.1 else wire for index, wire in enumerate(picked))

    def stage(self, channels: int, size: tuple[int, int], *, depthwise: bool = False) -> Stage:
        kernel = self.draw(st.sampled_from(_KERNELS))
        stride = self.draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 2), (3, 1))))
        dilation = self.draw(st.sampled_from(((1, 1), (1, 1), (1, 1), (2, 3))))
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        least = [max(0, -(-(r - side) // 2)) for r, side in zip(reach, size, strict=True)]
        padding = tuple(max(low, self.draw(st.integers(0, r // 2))) for low, r in zip(least, reach, strict=True))
        out = self.draw(st.sampled_from((16, 32, 48, 14)))
        out, each, groups = (channels, 1, channels) if depthwise else (out, channels, 1)
        weight = self.random.standard_normal((out, each, *kernel)) / np.sqrt(each * np.prod(kernel))
        bias = self.random.standard_normal(out).astype(np.float32)
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        return Stage(weight=weight.astype(np.float32), bias=bias, groups=groups, **geometry)

    def residual(self, size: Buffer) -> tuple[Wire, ...] | None:
        alike = [n for n, buffer in enumerate(self.buffers) if buffer == size and n >= 1]
        if not alike or not self.draw(st.booleans()):
            return None
        found = self.whole(self.draw(st.sampled_from(alike)))
        if self.draw(st.integers(0, 3)):
            return found
        mixed = [ZERO if self.random.random() < 0.2 else found[k] for k in self.random.permutation(len(found))]
        return (found[0], *mixed[1:])  # not zeros alone

    def step(self) -> None:
        source = self.draw(st.integers(0, len(self.buffers) - 1))
        size, writes = self.buffers[source][1:], len(self.buffers)
        kind = self.draw(st.sampled_from(_KINDS)) if source else "conv"
        if kind == "mean":
            self.steps.append(Pool(reads=self.whole(source), writes=writes))
            self.buffers.append(Buffer(self.buffers[source].channels, 1, 1))
            return
        if kind == "gate":
            self.gate(source)
            return
        if kind == "window" and min(size) >= 3:  # torch's reference refuses less
            self.window(source)
            return
        if kind == "octave" and min(size) >= 2:
            self.octave(source)
            return
        activation = self.draw(st.sampled_from(ACTIVATIONS))
        if kind in ("pass", "window", "octave"):
            strides = self.draw(st.sampled_from(((1, 1), (2, 2), (1, 3))))
            small = (-(-size[0] // strides[0]), -(-size[1] // strides[1]))
            made = Buffer(self.buffers[source].channels, *small)
            step = Conv(reads=self.whole(source), writes=writes, order=tuple(range(made.channels)), strides=strides)
        else:
            depthwise = kind == "depthwise" and self.buffers[source].channels > 1
            reads = self.whole(source) if depthwise else self.reads(source)
            stage = self.stage(len(reads), size, depthwise=depthwise)
            order = tuple(int(slot) for slot in self.random.permutation(len(stage.weight)))
            if depthwise and self.draw(st.integers(0, 3)):  # whole blocks, in their order or turned
                blocks = [tuple(range(at, min(at + 16, len(order)))) for at in range(0, len(order), 16)]
                blocks[: len(order) // 16] = blocks[: len(order) // 16][:: self.draw(st.sampled_from((1, -1)))]
                order = sum(blocks, ())
            made = Buffer(len(order), out_side(size[0], stage, 0), out_side(size[1], stage, 1))
            step = Conv(reads=reads, writes=writes, order=order, stages=(stage,))
        fields = {name: getattr(step, name) for name in ("reads", "writes", "order", "stages", "strides")}
        self.steps.append(Conv(**fields, residual=self.residual(made), activation=activation))
        self.buffers.append(made)

    def gate(self, source: int) -> None:
        """A map times a gate for each channel, computed from its mean, or times one for each pixel; a sum."""
        buffer, size = self.buffers[source], self.buffers[source][1:]
        by = source
        if self.draw(st.booleans()):
            self.steps.append(Pool(reads=self.whole(source), writes=len(self.buffers)))
            self.buffers.append(Buffer(buffer.channels, 1, 1))
            by, size = len(self.buffers) - 1, (1, 1)
        curve = self.draw(st.sampled_from(("sigmoid", "hardsigmoid")))
        by = self.add(buffer.channels, size, reads=self.whole(by), activation=Activation(curve=curve))
        self.steps.append(
            Product(
                reads=self.whole(source),
                by=self.whole(by),
                writes=len(self.buffers),
                residual=self.residual(buffer),
                activation=self.draw(st.sampled_from(ACTIVATIONS)),
            )
        )
        self.buffers.append(buffer)

    def window(self, source: int) -> None:
        step = Window(
            reads=self.whole(source),
            writes=len(self.buffers),
            kernel=(1, *self.draw(st.sampled_from(((2, 2), (3, 3), (1, 3))))),
            largest=self.draw(st.booleans()),
            stride=(1, *self.draw(st.sampled_from(((2, 2), (1, 2))))),
            padding=(0, 0, self.draw(st.integers(0, 1))),
            ceil=True,
            counted=False,
        )
        _, height, width = step.sides(self.buffers[source][1:])
        if min(height, width) >= 1:
            self.steps.append(step)
            self.buffers.append(Buffer(self.buffers[source].channels, height, width))

    def add(self, count: int, size: tuple[int, int], **fields: Any) -> int:
        """A convolution of 1 x 1, or what is added to one; the buffer of its result."""
        reads = fields.pop("reads")
        if fields.get("residual") is None:
            weight = self.random.standard_normal((count, len(reads), 1, 1)).astype(np.float32) / np.sqrt(len(reads))
            bias = self.random.standard_normal(count).astype(np.float32)
            fields["stages"] = (Stage(weight=weight.astype(np.float32), bias=bias),)
        order = tuple(range(count))
        self.steps.append(Conv(reads=reads, writes=len(self.buffers), order=order, **fields))
        self.buffers.append(Buffer(count, *size))
        return len(self.buffers) - 1

    def octave(self, source: int) -> None:
        """relu(high + up(low) + another), and relu(low + low of the pooled + another), as graphs have them."""
        buffer = self.buffers[source]
        size, count = buffer[1:], self.draw(st.sampled_from((16, 32, 24)))
        self.buffers.append(Buffer(buffer.channels, -(-size[0] // 2), -(-size[1] // 2)))
        pooled, small = len(self.buffers) - 1, self.buffers[-1][1:]
        window = {"kernel": (1, 2, 2), "stride": (1, 2, 2), "largest": False, "ceil": True, "counted": False}
        self.steps.append(Window(reads=self.whole(source), writes=pooled, **window))
        high = self.add(count, size, reads=self.whole(source))
        low = self.add(count, small, reads=self.whole(pooled))
        self.buffers.append(Buffer(count, *size))
        risen = len(self.buffers) - 1
        self.steps.append(Repeat(reads=self.whole(low), writes=risen, times=(2, 2)))
        both = self.add(count, size, reads=self.whole(high), residual=self.whole(risen))
        other = self.add(count, size, reads=self.whole(source))
        self.add(count, size, reads=self.whole(both), residual=self.whole(other), activation=Activation(low=0.0))
        fallen = self.add(count, small, reads=self.whole(pooled))
        again = self.add(count, small, reads=self.whole(pooled))
        both = self.add(count, small, reads=self.whole(fallen), residual=self.whole(again))
        self.add(count, small, reads=self.whole(both), residual=self.whole(low), activation=Activation(low=0.0))

    def second(self) -> None:
        """The last convolution followed by a pointwise one in the same step."""
        last = self.steps[-1]
        if not isinstance(last, Conv) or not last.stages or last.residual is not None:
            return
        count = len(last.stages[0].weight)
        between = tuple(int(slot) for slot in self.random.integers(-1, count, 20))
        weight = self.random.standard_normal((32, 20, 1, 1)).astype(np.float32) / 5
        then = Stage(weight=weight, bias=self.random.standard_normal(32).astype(np.float32))
        made = self.buffers[-1]
        self.buffers[-1] = Buffer(32, made.height, made.width)
        self.steps[-1] = Conv(
            reads=last.reads,
            writes=last.writes,
            order=tuple(range(32)),
            stages=(last.stages[0], then),
            between=between,
            inner=last.activation,
            activation=self.draw(st.sampled_from((NOTHING, *ACTIVATIONS))),
        )


@st.composite
def dense_programs(draw: st.DrawFn) -> Program:
    """Programs of a few steps, the first of them a convolution, on maps of 1 x 1 to 33 x 33."""
    data = draw(st.data())
    one = _Draw(data)
    sides = st.sampled_from((1, 2, 3, 5, 7, 8, 9, 14, 15, 16, 17, 29, 33))
    one.buffers.append(Buffer(draw(st.sampled_from((1, 3, 3, 16, 20, 32))), draw(sides), draw(sides)))
    for _ in range(draw(st.integers(1, 5))):
        one.step()
    if draw(st.booleans()):
        one.second()
    last = len(one.buffers) - 1
    outputs = [one.whole(last)]
    if draw(st.booleans()):
        wires = one.whole(draw(st.integers(0, last)))
        outputs.append(tuple(wires[int(index)] for index in one.random.integers(len(wires), size=5)))
    return Program(buffers=tuple(one.buffers), steps=tuple(one.steps), inputs=(0,), outputs=tuple(outputs))
