"""A piece of a network as a program: steps over maps of one image, with no torch in it.

Every buffer is written by one step, or is an input. The kinds of steps are in `steps.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import comb

from leanconv.errors import PlanError
from leanconv.kernels.steps import (
    MOST_FILTER_ROWS,
    MOST_STRIDE,
    NOTHING,
    ZERO,
    Activation,
    Buffer,
    ClipConv,
    Conv,
    Floats,
    Pool,
    Product,
    Repeat,
    Spread,
    Stage,
    Step,
    Sums,
    Volume,
    Window,
    Wire,
    out_side,
)

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
    "Program",
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
            elif isinstance(step, (ClipConv, Volume)) and step.weight is not None:
                total += step.weight.size * self.buffers[step.writes].height * self.buffers[step.writes].width
        return total

    @property
    def interactions(self) -> int:
        """Pairs of input channels that meet in an output channel, over all convolutions (CSN, eq. 3)."""
        stages = [stage for step in self.steps for stage in getattr(step, "stages", ())]
        weights = [stage.weight for stage in stages]
        weights += [step.weight for step in self.steps if isinstance(step, ClipConv)]
        return sum(len(weight) * comb(weight.shape[1], 2) for weight in weights)

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
    if isinstance(step, Product):
        by = program._size(step.by, written, what)
        if not len(step.reads) == len(step.by) == out.channels or size != out[1:] or by not in (size, (1, 1)):
            raise PlanError(
                f"{what} multiplies {len(step.reads)} maps of {size} by {len(step.by)} of {by}, its buffer is {out}"
            )
        _check_residual(program, what, step, written)
        return
    if isinstance(step, Spread):
        small = tuple(-(-side // by) for side, by in zip(out[1:], step.strides, strict=True))
        if small != size or len(step.reads) != out.channels:
            raise PlanError(f"{what} spreads {len(step.reads)} maps of {size} by {step.strides}, its buffer is {out}")
        return
    if isinstance(step, ClipConv):
        _check_clip(what, step, size, out)
        return
    if isinstance(step, Volume):
        _check_volume(what, step, size, out)
        return
    if isinstance(step, Window):
        _check_window(what, step, size, out)
        return
    if isinstance(step, Repeat):
        fits = len(step.reads) == out.channels and min(step.times) >= 1
        if not fits or any(made > side * by for made, side, by in zip(out[1:], size, step.times, strict=True)):
            raise PlanError(f"{what} repeats {len(step.reads)} maps of {size} {step.times} times, its buffer is {out}")
        _check_residual(program, what, step, written)
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
    _check_residual(program, what, step, written)


def _check_residual(program: Program, what: str, step: Conv | Product | Repeat, written: set[int]) -> None:
    out = program.buffers[step.writes]
    if step.residual is not None and (
        program._size(step.residual, written, what) != out[1:] or len(step.residual) != out.channels
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


def _check_clip(what: str, step: ClipConv, size: tuple[int, int], out: Buffer) -> None:
    frames, height, width = step.sides(size)
    if size[0] % step.frames or min(frames, height, width) < 1:
        raise PlanError(f"{what} reads maps of {size} as {step.frames} frames, and makes {(frames, height, width)}")
    shape, groups = step.weight.shape, step.groups
    if (len(step.reads), len(shape)) != (shape[1] * groups, 5) or shape[0] % groups or step.bias.shape != shape[:1]:
        raise PlanError(f"{what}: weights of {shape} and {step.bias.shape} biases, {len(step.reads)} channels are read")
    if step.stride[2] > MOST_STRIDE:
        raise PlanError(f"{what}: columns are {step.stride[2]} apart, more than {MOST_STRIDE}")
    if (shape[0], frames * height, width) != out:
        raise PlanError(f"{what} makes {shape[0]} maps of {(frames * height, width)}, its buffer is {out}")


def _check_window(what: str, step: Window, size: tuple[int, int], out: Buffer) -> None:
    if not step.largest and (any(gap != 1 for gap in step.dilation) or step.divisor == 0):
        raise PlanError(f"{what} is a mean of pixels {step.dilation} apart, divided by {step.divisor}")
    if any(2 * pad > gap * (k - 1) + 1 for pad, gap, k in zip(step.padding, step.dilation, step.kernel, strict=True)):
        raise PlanError(f"{what} has windows of {step.kernel} and padding of {step.padding}: more than half of them")
    frames, height, width = step.sides(size)
    if size[0] % step.frames or min(frames, height, width) < 1:
        raise PlanError(f"{what} reads maps of {size} as {step.frames} frames, and makes {(frames, height, width)}")
    if len(step.reads) != out.channels or (frames * height, width) != out[1:]:
        raise PlanError(f"{what} makes {len(step.reads)} maps of {(frames * height, width)}, its buffer is {out}")
