"""Programs for tests: random ones, and what they compute, by torch's own convolutions."""

from __future__ import annotations

from math import inf

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from leanconv.kernels.program import (
    NOTHING,
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
    Volume,
    Window,
    Wire,
    out_side,
)

ACTIVATIONS = (
    NOTHING,
    Activation(low=0.0),
    Activation(0.0, 6.0),
    Activation(curve="silu"),
    Activation(curve="hardswish"),
    Activation(curve="sigmoid"),
    Activation(curve="hardsigmoid"),
)


def activated(x: Tensor, activation: Activation) -> Tensor:
    x = x if (activation.low, activation.high) == (-inf, inf) else x.clamp(activation.low, activation.high)
    curves = {"silu": F.silu, "hardswish": F.hardswish, "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}
    return x if activation.curve == "none" else curves[activation.curve](x)


def computed(program: Program, inputs: list[Tensor]) -> list[Tensor]:
    """What a program computes, step by step as it is written."""
    buffers = dict(zip(program.inputs, inputs, strict=True))

    def gather(wires: tuple[Wire, ...]) -> Tensor:
        like = next(buffers[wire.buffer] for wire in wires if wire != ZERO)
        zeros = torch.zeros_like(like[:, 0])
        return torch.stack([zeros if wire == ZERO else buffers[wire.buffer][:, wire.channel] for wire in wires], 1)

    for step in program.steps:
        x = gather(step.reads)
        if isinstance(step, Pool):
            buffers[step.writes] = x.mean((2, 3), keepdim=True)
            continue
        if isinstance(step, Product):
            x = x * gather(step.by)
            x = x if step.residual is None else x + gather(step.residual)
            buffers[step.writes] = activated(x, step.activation)
            continue
        if isinstance(step, Repeat):
            _, height, width = program.buffers[step.writes]
            x = x.repeat_interleave(step.times[0], 2).repeat_interleave(step.times[1], 3)[..., :height, :width]
            buffers[step.writes] = x if step.residual is None else x + gather(step.residual)
            continue
        if isinstance(step, Volume):
            buffers[step.writes] = activated(_filtered(step, x), step.activation)
            continue
        if isinstance(step, ClipConv):
            buffers[step.writes] = activated(_convolved(step, x), step.activation)
            continue
        if isinstance(step, Window):
            buffers[step.writes] = _pooled(step, x)
            continue
        for index, stage in enumerate(step.stages):
            if index:
                x = activated(x, step.inner)
                x = torch.stack([torch.zeros_like(x[:, 0]) if slot < 0 else x[:, slot] for slot in step.between], 1)
            weight, bias = torch.from_numpy(stage.weight), torch.from_numpy(stage.bias)
            x = F.conv2d(x, weight.to(x), bias.to(x), stage.stride, stage.padding, stage.dilation, stage.groups)
        x = x[:, list(step.order), :: step.strides[0], :: step.strides[1]]
        x = x if step.residual is None else x + gather(step.residual)
        buffers[step.writes] = activated(x, step.activation)
    return [gather(wires) for wires in program.outputs]


def _filtered(step: Volume, x: Tensor) -> Tensor:
    x = x.unflatten(2, (step.frames, -1))
    if step.weight is None or step.bias is None:
        return x[:, :, :: step.stride[0], :: step.stride[1], :: step.stride[2]].flatten(2, 3)
    weight, bias = torch.from_numpy(step.weight)[:, None].to(x), torch.from_numpy(step.bias).to(x)
    return F.conv3d(x, weight, bias, step.stride, step.padding, step.dilation, x.shape[1]).flatten(2, 3)


def _convolved(step: ClipConv, x: Tensor) -> Tensor:
    x = x.unflatten(2, (step.frames, -1))
    weight, bias = torch.from_numpy(step.weight).to(x), torch.from_numpy(step.bias).to(x)
    return F.conv3d(x, weight, bias, step.stride, step.padding, step.dilation, step.groups).flatten(2, 3)


def _pooled(step: Window, x: Tensor) -> Tensor:
    x = x.unflatten(2, (step.frames, -1))
    if step.largest:
        return F.max_pool3d(x, step.kernel, step.stride, step.padding, step.dilation, step.ceil).flatten(2, 3)
    how = {"ceil_mode": step.ceil, "count_include_pad": step.counted, "divisor_override": step.divisor}
    return F.avg_pool3d(x, step.kernel, step.stride, step.padding, **how).flatten(2, 3)


class Draw:
    """Draws a program step by step; every size is odd as often as even."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.random = np.random.default_rng(self.draw(st.integers(0, 2**32 - 1), label="seed"))
        self.buffers: list[Buffer] = []
        self.steps: list[ClipConv | Conv | Pool | Product | Repeat | Volume | Window] = []

    def wires(self, count: int, size: tuple[int, int]) -> tuple[Wire, ...]:
        """`count` channels of maps of a size, in any order, some of them zeros."""
        there = [Wire(n, c) for n, b in enumerate(self.buffers) if b[1:] == size for c in range(b.channels)]
        picked = [there[int(self.random.integers(len(there)))] for _ in range(count)]
        zeros = self.random.random(count) < self.draw(st.sampled_from((0.0, 0.2)))
        zeros[0] = False
        return tuple(ZERO if zero else wire for zero, wire in zip(zeros, picked, strict=True))

    def stage(self, channels: int, size: tuple[int, int], *, pointwise: bool = False) -> Stage:
        groups = self.draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
        each = self.draw(st.integers(1, 13 if groups == 1 else 4))
        kernel = (
            (1, 1)
            if pointwise
            else self.draw(st.sampled_from(((1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (3, 1), (1, 5), (2, 2))))
        )
        stride = (1, 1) if pointwise else self.draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (2, 1), (1, 2), (3, 3))))
        dilation = (1, 1) if pointwise else self.draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 3))))
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        least = [max(0, -(-(r - side) // 2)) for r, side in zip(reach, size, strict=True)]
        padding = (
            (0, 0)
            if pointwise
            else tuple(max(low, self.draw(st.integers(0, r // 2))) for low, r in zip(least, reach, strict=True))
        )
        shape = (groups * each, channels // groups, *kernel)
        weight = self.random.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        bias = self.random.standard_normal(shape[0]).astype(np.float32)
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        return Stage(weight=weight.astype(np.float32), bias=bias, groups=groups, **geometry)

    def step(self) -> None:
        source = self.draw(st.sampled_from(self.buffers))
        size = (source.height, source.width)
        count = self.draw(st.sampled_from((1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 24)))
        reads, writes = self.wires(count, size), len(self.buffers)
        kind = self.draw(
            st.sampled_from(
                (
                    *("conv", "conv", "chain", "chain", "pass", "pool", "volume", "volume", "window", "clip"),
                    *("repeat", "product", "product"),
                )
            )
        )
        if kind == "pool":
            self.buffers.append(Buffer(count, 1, 1))
            self.steps.append(Pool(reads=reads, writes=writes))
            return
        if kind == "volume":
            self.volume(reads, size)
            return
        if kind == "clip":
            self.clip(reads, size)
            return
        if kind == "window":
            self.window(reads, size)
            return
        if kind == "product":
            pixels = [buffer[1:] for buffer in self.buffers if buffer[1:] == (1, 1)]
            by = self.wires(count, self.draw(st.sampled_from([size, *pixels])))
            residual = self.wires(count, size) if self.draw(st.booleans()) else None
            activation = self.draw(st.sampled_from(ACTIVATIONS))
            self.buffers.append(Buffer(count, *size))
            self.steps.append(Product(reads=reads, by=by, writes=writes, residual=residual, activation=activation))
            return
        if kind == "repeat":
            times = self.draw(st.sampled_from(((2, 2), (2, 2), (1, 3), (1, 1))))
            most = [side * by for side, by in zip(size, times, strict=True)]
            size = (self.draw(st.integers(1, most[0])), self.draw(st.integers(max(1, most[1] - 1), most[1])))
            residual = None
            if any(buffer[1:] == size for buffer in self.buffers) and self.draw(st.booleans()):
                residual = self.wires(count, size)
            self.buffers.append(Buffer(count, *size))
            self.steps.append(Repeat(reads=reads, writes=writes, times=times, residual=residual))
            return
        stages: list[Stage] = []
        strides = (1, 1)
        between: tuple[int, ...] = ()
        if kind == "pass":
            strides = self.draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 3))))
            size = (-(-size[0] // strides[0]), -(-size[1] // strides[1]))
        else:
            stages.append(self.stage(count, size))
            size = (out_side(size[0], stages[0], 0), out_side(size[1], stages[0], 1))
            count = len(stages[0].weight)
        if kind == "chain":
            slots = self.draw(st.integers(1, 2 * count))
            between = tuple(int(slot) for slot in self.random.integers(-1, count, slots))
            stages.append(self.stage(slots, size, pointwise=True))
            count = len(stages[1].weight)
        order = tuple(int(slot) for slot in self.random.permutation(count)[: self.draw(st.integers(1, count))])
        residual = None
        if any(buffer[1:] == size for buffer in self.buffers) and self.draw(st.booleans()):
            residual = self.wires(len(order), size)
            whole = [n for n, b in enumerate(self.buffers) if b == (len(order), *size)]
            if whole and self.draw(st.booleans()):  # the form that may be written over
                residual = tuple(Wire(whole[-1], c) for c in range(len(order)))
        self.buffers.append(Buffer(len(order), *size))
        activations = st.sampled_from(ACTIVATIONS)
        self.steps.append(
            Conv(
                reads=reads,
                writes=writes,
                order=order,
                stages=tuple(stages),
                strides=strides,
                between=between,
                inner=self.draw(activations) if kind == "chain" else NOTHING,
                residual=residual,
                activation=self.draw(activations),
            )
        )

    def clip(self, reads: tuple[Wire, ...], size: tuple[int, int]) -> None:
        """A dense or grouped convolution over frames, rows and columns."""
        frames = self.draw(st.sampled_from([n for n in range(1, 9) if size[0] % n == 0]))
        groups = self.draw(st.sampled_from([g for g in range(1, len(reads) + 1) if len(reads) % g == 0]))
        each = self.draw(st.integers(1, 9 if groups == 1 else 3))
        kernel = self.draw(
            st.sampled_from(((3, 3, 3), (3, 3, 3), (3, 1, 1), (1, 3, 3), (2, 2, 2), (3, 5, 7), (2, 3, 1)))
        )
        dilation = self.draw(st.sampled_from(((1, 1, 1), (1, 1, 1), (2, 1, 3), (1, 2, 1))))
        reach = [gap * (k - 1) + 1 for gap, k in zip(dilation, kernel, strict=True)]
        sides = (frames, size[0] // frames, size[1])
        padding = tuple(
            max(self.draw(st.sampled_from((0, r // 2))), -(-(r - side) // 2))
            for r, side in zip(reach, sides, strict=True)
        )
        shape = (groups * each, len(reads) // groups, *kernel)
        weight = self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        step = ClipConv(
            reads=reads,
            writes=len(self.buffers),
            frames=frames,
            weight=weight.astype(np.float32),
            bias=self.random.standard_normal(shape[0]).astype(np.float32),
            groups=groups,
            stride=self.draw(st.sampled_from(((1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 1, 2), (2, 3, 3)))),
            padding=padding,  # type: ignore[arg-type]
            dilation=dilation,
            activation=self.draw(st.sampled_from(ACTIVATIONS)),
        )
        made = step.sides(size)
        self.buffers.append(Buffer(shape[0], made[0] * made[1], made[2]))
        self.steps.append(step)

    def window(self, reads: tuple[Wire, ...], size: tuple[int, int]) -> None:
        """The greatest number or the mean of windows, as torch allows them: padded by half of them at most."""
        frames = self.draw(st.sampled_from([n for n in (1, 1, 2, 3, 4) if size[0] % n == 0]))
        sides = (frames, size[0] // frames, size[1])
        largest = self.draw(st.booleans())
        kernels = ((1, 2, 2), (1, 2, 2), (1, 3, 3), (1, 3, 3), (2, 3, 2), (3, 1, 5), (1, 4, 7), (2, 2, 2))
        kernel = tuple(min(k, side) for k, side in zip(self.draw(st.sampled_from(kernels)), sides, strict=True))
        padding = tuple(self.draw(st.integers(0, k // 2)) for k in kernel)
        gaps = self.draw(st.sampled_from(((1, 1, 1), (1, 2, 2), (1, 1, 3)))) if largest else (1, 1, 1)
        dilation = tuple(
            gap if gap * (k - 1) < side and not pad else 1  # a window without a pixel has no finite number
            for gap, k, side, pad in zip(gaps, kernel, sides, padding, strict=True)
        )
        step = Window(
            reads=reads,
            writes=len(self.buffers),
            kernel=kernel,  # type: ignore[arg-type]
            largest=largest,
            frames=frames,
            stride=self.draw(st.sampled_from(((1, 2, 2), (1, 2, 2), (1, 1, 1), (2, 1, 3), (1, 3, 2)))),
            padding=padding,  # type: ignore[arg-type]
            dilation=dilation,  # type: ignore[arg-type]
            ceil=self.draw(st.booleans()),
            counted=self.draw(st.booleans()),
            divisor=None if largest else self.draw(st.sampled_from((None, None, 3))),
        )
        made = step.sides(size)
        self.buffers.append(Buffer(len(reads), made[0] * made[1], made[2]))
        self.steps.append(step)

    def volume(self, reads: tuple[Wire, ...], size: tuple[int, int]) -> None:
        """Filters over time, or none, on maps whose rows are those of some frames; often a pointwise step follows."""
        frames = self.draw(st.sampled_from([n for n in range(1, 9) if size[0] % n == 0]))
        triples = st.tuples(*[st.sampled_from((1, 1, 2))] * 3)
        stride = self.draw(triples)
        step = Volume(reads=reads, writes=len(self.buffers), frames=frames, stride=stride)
        if self.draw(st.sampled_from((True, True, True, False))):
            kernel = (*self.draw(st.sampled_from(((3, 3), (3, 3), (1, 3), (3, 1), (2, 5)))), 3)
            dilation = self.draw(st.sampled_from(((1, 1, 1), (1, 1, 1), (2, 1, 3), (1, 2, 1))))
            reach = [gap * (k - 1) + 1 for gap, k in zip(dilation, kernel, strict=True)]
            sides = (frames, size[0] // frames, size[1])
            padding = tuple(max(r // 2, -(-(r - side) // 2)) for r, side in zip(reach, sides, strict=True))
            weight = self.random.standard_normal((len(reads), *kernel)) / np.sqrt(np.prod(kernel))
            step = Volume(
                reads=reads,
                writes=len(self.buffers),
                frames=frames,
                stride=stride,
                padding=padding,
                dilation=dilation,
                weight=weight.astype(np.float32),
                bias=self.random.standard_normal(len(reads)).astype(np.float32),
                activation=self.draw(st.sampled_from(ACTIVATIONS)),
            )
        frames, height, width = step.sides(size)
        self.buffers.append(Buffer(len(reads), frames * height, width))
        self.steps.append(step)
        if self.draw(st.booleans()):  # maps that only such steps and pointwise ones meet are tight
            stage = self.stage(len(reads), (frames * height, width), pointwise=True)
            order = tuple(range(len(stage.weight)))
            channels = tuple(Wire(step.writes, channel) for channel in range(len(reads)))
            residual = channels if len(order) == len(channels) else None
            self.buffers.append(Buffer(len(order), frames * height, width))
            self.steps.append(
                Conv(reads=channels, writes=step.writes + 1, order=order, stages=(stage,), residual=residual)
            )


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Programs of a few steps on maps of 1 x 1 to 41 x 70."""
    data = draw(st.data())
    one = Draw(data)
    sides = st.sampled_from((1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 24, 32, 33, 41))
    inputs = draw(st.integers(1, 2))
    height, width = draw(sides), draw(sides)
    one.buffers += [Buffer(draw(st.integers(1, 13)), height, width) for _ in range(inputs)]
    for _ in range(draw(st.integers(1, 5))):
        one.step()
    last = one.buffers[-1]
    outputs = [tuple(Wire(len(one.buffers) - 1, c) for c in range(last.channels))]
    if draw(st.booleans()):
        outputs.append(one.wires(draw(st.integers(1, 9)), (height, width)))
    return Program(
        buffers=tuple(one.buffers), steps=tuple(one.steps), inputs=tuple(range(inputs)), outputs=tuple(outputs)
    )
