"""Operators of a network's graph as steps of a program: what each of them becomes, or why it cannot be one.

Views, shuffles, slices, gathers, concatenations and padding of channels become wires, which cost nothing; everything
else becomes a step. The rules are for the graph that `torch.export` makes, functional and in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanconv.kernels.program import (
    NOTHING,
    ZERO,
    Activation,
    Buffer,
    Conv,
    Pool,
    Program,
    Stage,
    Step,
    Wire,
    out_side,
)

__all__ = ["RULES", "Builder", "Map", "Unfit"]

_DENSE = 64 * 1024
"""Weights of one group from which on a k x k convolution runs as well elsewhere: they leave the second cache."""
_POINTWISE = 256 * 1024
_LINEAR = 32 * 1024
"""Weights of a linear layer, whose maps of one pixel use one lane of a vector, that is worth leaving the piece for."""


class Unfit(Exception):
    """Why an operator cannot be a step."""


@dataclass(frozen=True, eq=False)
class Map:
    """A tensor of the graph in terms of wires: (B, *lead, height, width), or (B, *lead) where it is `flat`.

    `wires` is (*lead, 2): buffer and channel. Every `strides`-th row and column of them is meant.
    """

    wires: NDArray[np.int64]
    size: tuple[int, int]
    flat: bool = False
    strides: tuple[int, int] = (1, 1)

    @property
    def lead(self) -> tuple[int, ...]:
        return self.wires.shape[:-1]

    def channels(self) -> tuple[Wire, ...]:
        """The wires in order."""
        return tuple(Wire(int(buffer), int(channel)) for buffer, channel in self.wires.reshape(-1, 2))


class Builder:
    """Collects the buffers and steps of one program."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.steps: list[Step] = []
        self.inputs: list[int] = []

    def input(self, shape: Sequence[int]) -> Map:
        """An input of a shape without its batch axis: the channels, in one axis or in several, and height and width.

        Raises `Unfit` for other shapes.
        """
        if len(shape) == 2 or not shape or not all(isinstance(side, int) for side in shape):
            raise Unfit(f"its input of shape (B, {', '.join(map(str, shape))}) is no map of two axes")
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
        return self._whole(number, size)

    def elementwise(self, x: Map, activation: Activation, other: Map | None = None) -> Map:
        """`activation(x + other)`."""
        x, other = self.settled(x), None if other is None else self.settled(other)
        if other is not None and (x.lead, x.size, x.flat) != (other.lead, other.size, other.flat):
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
        return Map(_wires(number, prod(x.lead)).reshape(*x.lead, 2), x.size, x.flat)

    def mean(self, x: Map, *, flat: bool) -> Map:
        """The mean of each channel."""
        x = self.settled(x)
        number = self._buffer(prod(x.lead), (1, 1))
        self.steps.append(Pool(reads=x.channels(), writes=number))
        return Map(_wires(number, prod(x.lead)).reshape(*x.lead, 2), (1, 1), flat)

    def settled(self, x: Map) -> Map:
        """`x` with every row and column meant: a step copies those that were not skipped."""
        if x.strides == (1, 1):
            return x
        size = (-(-x.size[0] // x.strides[0]), -(-x.size[1] // x.strides[1]))
        number = self._buffer(prod(x.lead), size)
        order = tuple(range(prod(x.lead)))
        self.steps.append(Conv(reads=x.channels(), writes=number, order=order, strides=x.strides))
        return self._whole(number, size)

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


def _array(value: Tensor | None, count: int) -> NDArray[np.float32]:
    if value is None:
        return np.zeros(count, dtype=np.float32)
    if not isinstance(value, Tensor) or value.dtype is not torch.float32:
        raise Unfit("its weights are computed, or not in float32")
    return value.detach().contiguous().numpy()


def _map(value: object) -> Map:
    if not isinstance(value, Map):
        raise Unfit("one of its operands is no map of the image")
    return value


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) == 1:
        sides = sides * 2
    if len(sides) != 2:
        raise Unfit("it has other than two axes")
    return sides


def _convolution(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, given = _map(args["input"]), args["weight"]
    if args.get("transposed"):
        raise Unfit("it is transposed")
    if not isinstance(given, Tensor) or given.ndim != 4:
        raise Unfit("its weights are computed, or it has other than two axes")
    weight = _array(given, 0)
    groups = args["groups"]
    most = _POINTWISE if weight.shape[2:] == (1, 1) else _DENSE
    if weight.size // groups > most:
        raise Unfit(f"it has {weight.size // groups} weights in a group, more than the {most} up to which it gains")
    stage = Stage(
        weight=weight,
        bias=_array(args["bias"], len(weight)),
        groups=groups,
        stride=_pair(args["stride"]),
        padding=_pair(args["padding"]),
        dilation=_pair(args["dilation"]),
    )
    return build.conv(x, stage)


def _batch_norm(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x = _map(args["input"])
    if args.get("training") or len(x.lead) != 1 or x.flat:
        raise Unfit("it is no norm of maps in evaluation")
    mean, var = _array(args["running_mean"], 0), _array(args["running_var"], 0)
    count = len(mean)
    scale = np.ones(count, np.float32) if args["weight"] is None else _array(args["weight"], count)
    factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + args["eps"])
    shift = _array(args["bias"], count) - mean * factor
    weight = factor.astype(np.float32).reshape(count, 1, 1, 1)
    return build.conv(x, Stage(weight=weight, bias=shift.astype(np.float32), groups=count))


def _average(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, kernel, padding = _map(args["self"]), _pair(args["kernel_size"]), _pair(args["padding"])
    if args["ceil_mode"] or args["divisor_override"] or (any(padding) and not args["count_include_pad"]):
        raise Unfit("it averages fewer pixels at the border than inside")
    stride = _pair(args["stride"]) if args["stride"] else kernel
    count = prod(x.lead)
    weight = np.full((count, 1, *kernel), 1 / prod(kernel), dtype=np.float32)
    bias = np.zeros(count, dtype=np.float32)
    return build.conv(x, Stage(weight=weight, bias=bias, groups=count, stride=stride, padding=padding))


def _adaptive(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    if tuple(args["output_size"]) != (1, 1):
        raise Unfit("it pools to more than one pixel")
    return build.mean(_map(args["self"]), flat=False)


def _mean(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x = _map(args["self"])
    rank = len(x.lead) + 3
    if x.flat or args["dim"] is None or {axis % rank for axis in args["dim"]} != {rank - 2, rank - 1}:
        raise Unfit("it is the mean over other axes than height and width")
    return build.mean(x, flat=not args["keepdim"])


def _linear(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, weight = _map(args["input"]), _array(args["weight"], 0)
    if not x.flat or len(x.lead) != 1:
        raise Unfit("it is a linear layer on maps")
    if weight.size > _LINEAR:
        raise Unfit(f"it is a linear layer of {weight.size} weights, more than the {_LINEAR} up to which it gains")
    stage = Stage(weight=weight.reshape(*weight.shape, 1, 1), bias=_array(args["bias"], len(weight)))
    return replace(build.conv(replace(x, flat=False), stage), flat=True)


def _activation(activation: Activation) -> Rule:
    return lambda build, args, shape: build.elementwise(_map(args["self"]), activation)


def _clamp(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    low, high = args.get("min", args.get("min_val")), args.get("max", args.get("max_val"))
    activation = Activation(-inf if low is None else float(low), inf if high is None else float(high))
    return build.elementwise(_map(args["self"]), activation)


def _add(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    if args["alpha"] != 1:
        raise Unfit("it adds a multiple")
    return build.elementwise(_map(args["self"]), NOTHING, _map(args["other"]))


def _same(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    if args.get("train"):
        raise Unfit("it drops at random")
    return _map(next(iter(args.values())))


def _view(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    """Any change of shape that keeps whole maps, or takes the axes of maps of one pixel away."""
    x = build.settled(_map(args["self"]))
    if not x.flat and len(shape) >= 3 and shape[-2:] == x.size:
        return replace(x, wires=x.wires.reshape(*shape[:-2], 2))
    if x.size == (1, 1) and prod(shape) == prod(x.lead) and len(shape) == 1:
        return replace(x, wires=x.wires.reshape(*shape, 2), flat=True)
    if x.flat and x.size == (1, 1) and shape[-2:] == (1, 1) and len(shape) == 3:
        return replace(x, wires=x.wires.reshape(shape[0], 2), flat=False)
    raise Unfit("it changes the shape of maps")


def _permute(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x = _map(args["self"])
    rank = 1 + len(x.lead) + (0 if x.flat else 2)
    if "dims" in args:
        axes = [axis % rank for axis in args["dims"]]
    else:
        axes = list(range(rank))
        first, second = args["dim0"] % rank, args["dim1"] % rank
        axes[first], axes[second] = second, first
    last = len(x.lead) + 1
    if axes[0] != 0 or axes[last:] != list(range(last, rank)):
        raise Unfit("it moves the batch, or the rows and columns of maps")
    return replace(x, wires=x.wires.transpose(*(axis - 1 for axis in axes[1:last]), len(x.lead)))


def _axis(x: Map, axis: int) -> int:
    """The axis of `x.wires` that an axis of the tensor is."""
    rank = 1 + len(x.lead) + (0 if x.flat else 2)
    number = axis % rank - 1
    if not 0 <= number < len(x.lead):
        raise Unfit("it takes parts of something else than channels")
    return number


def _everything(args: dict[str, Any]) -> bool:
    """Whether a slice leaves nothing out."""
    end, step = args["end"], args["step"]
    return not args["start"] and step == 1 and (end is None or (isinstance(end, int) and end > 2**31))


def _channels(x: Map, args: dict[str, Any]) -> tuple[slice, ...]:
    """A slice along an axis of channels, as an index of the wires."""
    bounds = args["start"], args["end"], args["step"]
    if not all(isinstance(one, (int, type(None))) for one in bounds):
        raise Unfit("it takes as much as the input says")
    return (*(slice(None) for _ in range(_axis(x, args["dim"]))), slice(*bounds))


def _slice(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x = _map(args["self"])
    if _everything(args):
        return x
    axis = args["dim"] % (1 + len(x.lead) + (0 if x.flat else 2))
    if axis <= len(x.lead):
        return replace(x, wires=x.wires[_channels(x, args)])
    which = axis - len(x.lead) - 1
    side, end = -(-x.size[which] // x.strides[which]), args["end"]
    if args["start"] or not isinstance(end, (int, type(None))) or (end or side) < side or len(x.lead) != 1:
        raise Unfit("it crops maps")
    strides = list(x.strides)
    strides[which] *= args["step"]
    return replace(x, strides=(strides[0], strides[1]))


def _slice_scatter(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    """What functional graphs make of a change in place of some channels."""
    x, part = build.settled(_map(args["self"])), build.settled(_map(args["src"]))
    if _everything(args):
        return part
    wires = x.wires.copy()
    wires[_channels(x, args)] = part.wires
    return replace(x, wires=wires)


def _index_select(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, index = _map(args["self"]), args["index"]
    if not isinstance(index, Tensor):
        raise Unfit("it gathers by numbers that are computed")
    return replace(x, wires=np.take(x.wires, index.numpy(), axis=_axis(x, args["dim"])))


def _split(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> list[Map]:
    x = _map(args["self"])
    axis = _axis(x, args["dim"])
    count = x.lead[axis]
    given = next(args[name] for name in ("split_size", "split_sizes", "chunks") if name in args)
    if "chunks" in args:
        given = -(-count // given)
    sizes = [min(given, count - first) for first in range(0, count, given)] if isinstance(given, int) else list(given)
    cuts = np.cumsum(sizes)[:-1]
    return [replace(x, wires=part) for part in np.split(x.wires, cuts, axis=axis)]


def _getitem(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    parts = args["self"]
    if not isinstance(parts, list):
        raise Unfit("it takes an element of something that is no list of maps")
    return _map(parts[args["index"]])


def _cat(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    parts = [build.settled(_map(one)) for one in args["tensors"]]
    if len({(len(one.lead), one.size, one.flat) for one in parts}) != 1:
        raise Unfit("it joins maps of several sizes")
    return replace(parts[0], wires=np.concatenate([one.wires for one in parts], axis=_axis(parts[0], args["dim"])))


def _pad(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, pads = _map(args["self"]), list(args["pad"])
    inner = 0 if x.flat else 4
    if args.get("mode", "constant") != "constant" or args.get("value") or any(pads[:inner]) or min(pads) < 0:
        raise Unfit("it pads maps by something else than channels of zeros")
    wires = x.wires
    for axis, first in enumerate(range(inner, len(pads), 2)):
        shapes = [list(wires.shape) for _ in range(2)]
        at = len(x.lead) - 1 - axis
        if at < 0:
            raise Unfit("it pads the batch")
        shapes[0][at], shapes[1][at] = pads[first], pads[first + 1]
        before, after = (np.full(one, 0, np.int64) for one in shapes)
        for one in (before, after):
            one[...] = ZERO
        wires = np.concatenate([before, wires, after], axis=at)
    return replace(x, wires=wires)


def _table() -> dict[str, Rule]:
    names: dict[str, Rule] = {
        "conv2d convolution": _convolution,
        "batch_norm": _batch_norm,
        "avg_pool2d": _average,
        "adaptive_avg_pool2d": _adaptive,
        "mean": _mean,
        "linear": _linear,
        "relu": _activation(Activation(low=0.0)),
        "relu6": _activation(Activation(0.0, 6.0)),
        "silu": _activation(Activation(curve="silu")),
        "hardswish": _activation(Activation(curve="hardswish")),
        "hardtanh clamp clamp_min": _clamp,
        "add": _add,
        "dropout clone alias detach contiguous": _same,
        "view reshape _unsafe_view flatten squeeze unsqueeze": _view,
        "permute transpose": _permute,
        "slice": _slice,
        "slice_scatter": _slice_scatter,
        "index_select": _index_select,
        "split split_with_sizes chunk": _split,
        "getitem": _getitem,
        "cat": _cat,
        "pad constant_pad_nd": _pad,
    }
    return {name: rule for group, rule in names.items() for name in group.split()}


RULES = _table()
"""Name of an operator -> its rule."""
