"""Operators that only move channels: views, shuffles, slices, gathers, concatenations and padding become wires."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from leanconv.deploy.lowering.builder import Builder, Map, Rule, Unfit, as_map
from leanconv.kernels.program import ZERO

__all__ = ["WIRES"]


def _same(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    if args.get("train"):
        raise Unfit("it drops at random")
    return as_map(next(iter(args.values())))


def _view(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    """Any change of shape that keeps whole maps, or takes the axes of maps of one pixel away."""
    x = build.settled(as_map(args["self"]))
    axes = len(x.sides)
    if axes and len(shape) > axes and shape[-axes:] == x.sides:
        return replace(x, wires=x.wires.reshape(*shape[:-axes], 2))
    if x.size == (1, 1) and prod(shape) == prod(x.lead) and len(shape) == 1:
        return replace(x, wires=x.wires.reshape(*shape, 2), flat=True, frames=None, line=False)
    line = build.axes == 1
    ones = (1,) if line else (1, 1)
    if x.flat and x.size == (1, 1) and shape[1:] == ones:
        return replace(x, wires=x.wires.reshape(shape[0], 2), flat=False, line=line)
    raise Unfit("it changes the shape of maps")


def _permute(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x = as_map(args["self"])
    rank = x.rank
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


def _shuffle(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, groups = as_map(args["self"]), args["groups"]
    if len(x.lead) != 1:
        raise Unfit("it shuffles other axes than channels")
    return replace(x, wires=x.wires.reshape(groups, -1, 2).transpose(1, 0, 2).reshape(-1, 2))


def _axis(x: Map, axis: int) -> int:
    """The axis of `x.wires` that an axis of the tensor is."""
    number = axis % x.rank - 1
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
    x = as_map(args["self"])
    if _everything(args):
        return x
    axis = args["dim"] % x.rank
    if axis <= len(x.lead):
        return replace(x, wires=x.wires[_channels(x, args)])
    if x.frames is not None:
        raise Unfit("it crops clips")
    which = axis - len(x.lead) - 1 + x.line
    side, end = -(-x.size[which] // x.strides[which]), args["end"]
    if args["start"] or not isinstance(end, (int, type(None))) or len(x.lead) != 1:
        raise Unfit("it crops maps")
    if end is not None and end < side:
        x, size = build.settled(x), [-(-side // by) for side, by in zip(x.size, x.strides, strict=True)]
        size[which] = max(0, end % side if end < 0 else end)
        if args["step"] != 1 or not size[which]:
            raise Unfit("it crops maps, and leaves pixels out")
        return build.repeated(x, (1, 1), (size[0], size[1]))
    strides = list(x.strides)
    strides[which] *= args["step"]
    return replace(x, strides=(strides[0], strides[1]))


def _slice_scatter(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    """What functional graphs make of a change in place of some channels."""
    x, part = build.settled(as_map(args["self"])), build.settled(as_map(args["src"]))
    if _everything(args):
        return part
    wires = x.wires.copy()
    wires[_channels(x, args)] = part.wires
    return replace(x, wires=wires)


def _index_select(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, index = as_map(args["self"]), args["index"]
    if not isinstance(index, Tensor):
        raise Unfit("it gathers by numbers that are computed")
    return replace(x, wires=np.take(x.wires, index.numpy(), axis=_axis(x, args["dim"])))


def _split(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> list[Map]:
    x = as_map(args["self"])
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
    return as_map(parts[args["index"]])


def _cat(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    parts = [build.settled(as_map(one)) for one in args["tensors"]]
    if len({(len(one.lead), one.sides) for one in parts}) != 1:
        raise Unfit("it joins maps of several sizes")
    return replace(parts[0], wires=np.concatenate([one.wires for one in parts], axis=_axis(parts[0], args["dim"])))


def _pad(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, pads = as_map(args["self"]), list(args["pad"])
    inner = 2 * len(x.sides)
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
        "dropout clone alias detach contiguous": _same,
        "view reshape _unsafe_view flatten squeeze unsqueeze": _view,
        "permute transpose": _permute,
        "channel_shuffle native_channel_shuffle": _shuffle,
        "slice": _slice,
        "slice_scatter": _slice_scatter,
        "index_select": _index_select,
        "split split_with_sizes chunk": _split,
        "getitem": _getitem,
        "cat": _cat,
        "pad constant_pad_nd": _pad,
    }
    return {name: rule for group, rule in names.items() for name in group.split()}


WIRES = _table()
"""Name of an operator -> its rule."""
