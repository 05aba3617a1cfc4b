"""Operators that compute: each becomes a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanconv.deploy.lowering.builder import Builder, Map, Rule, Unfit, as_map
from leanconv.kernels.program import MOST_FILTER_ROWS, NOTHING, Activation, Stage

__all__ = ["STEPS"]

_DENSE = 64 * 1024
"""Weights of one group from which on a k x k convolution runs as well elsewhere: they leave the second cache."""
_POINTWISE = 256 * 1024
_CLIP_POINTWISE = 2048 * 1024
"""The same of pixels of clips, which come in all frames."""
_LINEAR = 32 * 1024
"""Weights of a linear layer, whose maps of one pixel use one lane of a vector, that is worth leaving the piece for."""


def _array(value: Tensor | None, count: int) -> NDArray[np.float32]:
    if value is None:
        return np.zeros(count, dtype=np.float32)
    if not isinstance(value, Tensor) or value.dtype is not torch.float32:
        raise Unfit("its weights are computed, or not in float32")
    return value.detach().contiguous().numpy()


def _pair(value: int | Sequence[int], *, line: bool = False, other: int = 1) -> tuple[int, int]:
    """Rows and columns; of a `line` columns alone are given, and `other` for its one row."""
    if line:
        (columns,) = (value,) if isinstance(value, int) else tuple(value)
        return other, columns
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) == 1:
        sides = sides * 2
    if len(sides) != 2:
        raise Unfit("it has other than two axes")
    return sides


def _triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    sides = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(sides) == 1:
        sides = sides * 3
    if len(sides) != 3:
        raise Unfit("it has other than three axes")
    return sides


def _over_time(build: Builder, x: Map, args: dict[str, Any]) -> Map:
    """A convolution of clips: pixel by pixel, its stride apart before it; channel by channel; or any other."""
    weight, groups = _array(args["weight"], 0), args["groups"]
    bias = _array(args["bias"], len(weight))
    stride, padding, dilation = (_triple(args[name]) for name in ("stride", "padding", "dilation"))
    if x.frames is None:
        raise Unfit("it convolves something that is no clip")
    if weight.shape[2:] == (1, 1, 1) and not any(padding):
        _refuse_large(build, weight, groups, _CLIP_POINTWISE)
        if stride != (1, 1, 1):
            x = build.filtered(x, stride)
        return build.conv(x, Stage(weight=weight[..., 0], bias=bias, groups=groups))
    if weight.shape[1] == 1 and weight.shape[4] == 3 and prod(weight.shape[2:4]) <= MOST_FILTER_ROWS:
        return build.filtered(x, stride, padding, dilation, weight[:, 0], bias)
    _refuse_large(build, weight, groups, _DENSE)
    return build.clip_conv(x, weight, bias, groups, stride, padding, dilation)


def _refuse_large(build: Builder, weight: NDArray[np.float32], groups: int, most: int) -> None:
    if weight.size // groups > most and not build.any_size:
        raise Unfit(f"it has {weight.size // groups} weights in a group, more than the {most} up to which it gains")


def _convolution(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, given = as_map(args["input"]), args["weight"]
    if args.get("transposed"):
        raise Unfit("it is transposed")
    if isinstance(given, Tensor) and given.ndim == 5:
        return _over_time(build, x, args)
    if not isinstance(given, Tensor) or given.ndim != (3 if x.line else 4) or x.frames is not None:
        raise Unfit("its weights are computed, or it has other axes than the maps")
    weight = _array(given, 0)
    if x.line:
        weight = weight[:, :, None]
    groups = args["groups"]
    most = _POINTWISE if weight.shape[2:] == (1, 1) else _DENSE
    _refuse_large(build, weight, groups, most)
    stage = Stage(
        weight=weight,
        bias=_array(args["bias"], len(weight)),
        groups=groups,
        stride=_pair(args["stride"], line=x.line),
        padding=_pair(args["padding"], line=x.line, other=0),
        dilation=_pair(args["dilation"], line=x.line),
    )
    return build.conv(x, stage)


def _batch_norm(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x = as_map(args["input"])
    if args.get("training") or len(x.lead) != 1 or x.flat:
        raise Unfit("it is no norm of maps in evaluation")
    mean, var = _array(args["running_mean"], 0), _array(args["running_var"], 0)
    count = len(mean)
    scale = np.ones(count, np.float32) if args["weight"] is None else _array(args["weight"], count)
    factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + args["eps"])
    shift = _array(args["bias"], count) - mean * factor
    weight = factor.astype(np.float32).reshape(count, 1, 1, 1)
    return build.conv(x, Stage(weight=weight, bias=shift.astype(np.float32), groups=count))


def _over_frames(x: Map, value: int | Sequence[int], one: int) -> tuple[int, int, int]:
    """The option of a pool for frames, rows and columns; `one` is what changes nothing, for maps that are no clips."""
    if x.frames is not None:
        return _triple(value)
    return (one, *_pair(value, line=x.line, other=one))


def _pool(build: Builder, args: dict[str, Any], *, largest: bool, **options: Any) -> Map:
    x = as_map(args["self"])
    kernel, padding = _over_frames(x, args["kernel_size"], 1), _over_frames(x, args["padding"], 0)
    stride = _over_frames(x, args["stride"], 1) if args["stride"] else kernel
    ceil = bool(args["ceil_mode"])
    return build.windows(x, kernel, largest=largest, stride=stride, padding=padding, ceil=ceil, **options)


def _average(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    options = {"counted": bool(args["count_include_pad"]), "divisor": args.get("divisor_override")}
    return _pool(build, args, largest=False, **options)


def _greatest(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    dilation = _over_frames(as_map(args["self"]), args["dilation"], 1)
    return _pool(build, args, largest=True, dilation=dilation)


def _nearest(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x = build.settled(as_map(args["input"] if "input" in args else args["self"]))
    size, scales = tuple(shape[1:]), [args.get(name) for name in ("scales_h", "scales_w")]
    scales = list(args["scale_factors"]) if args.get("scale_factors") else scales
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise Unfit("it up-samples something that is no map of two axes")
    times = (size[0] // x.size[0], size[1] // x.size[1])
    exact = size == (x.size[0] * times[0], x.size[1] * times[1])
    if not exact or any(scale not in (None, by) for scale, by in zip(scales, times, strict=True)):
        raise Unfit("it resizes maps by other than whole factors")
    return build.repeated(x, times, size)


def _adaptive(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x = as_map(args["self"])
    if tuple(args["output_size"]) != (1,) * len(x.sides):
        raise Unfit("it pools to more than one pixel")
    return build.mean(x, flat=False)


def _mean(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x = as_map(args["self"])
    inner = set(range(x.rank - len(x.sides), x.rank))
    if x.flat or args["dim"] is None or {axis % x.rank for axis in args["dim"]} != inner:
        raise Unfit("it is the mean over other axes than height and width, and frames of clips")
    return build.mean(x, flat=not args["keepdim"])


def _linear(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    x, weight = as_map(args["input"]), _array(args["weight"], 0)
    if not x.flat or len(x.lead) != 1:
        raise Unfit("it is a linear layer on maps")
    if weight.size > _LINEAR and not build.any_size:
        raise Unfit(f"it is a linear layer of {weight.size} weights, more than the {_LINEAR} up to which it gains")
    stage = Stage(weight=weight.reshape(*weight.shape, 1, 1), bias=_array(args["bias"], len(weight)))
    return replace(build.conv(replace(x, flat=False), stage), flat=True)


def _activation(activation: Activation) -> Rule:
    return lambda build, args, shape: build.elementwise(as_map(args["self"]), activation)


def _clamp(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    low, high = args.get("min", args.get("min_val")), args.get("max", args.get("max_val"))
    activation = Activation(-inf if low is None else float(low), inf if high is None else float(high))
    return build.elementwise(as_map(args["self"]), activation)


def _add(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    if args["alpha"] != 1:
        raise Unfit("it adds a multiple")
    return build.elementwise(as_map(args["self"]), NOTHING, as_map(args["other"]))


def _multiply(build: Builder, args: dict[str, Any], shape: tuple[int, ...]) -> Map:
    return build.product(as_map(args["self"]), as_map(args["other"]))


STEPS: dict[str, Rule] = {
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "convolution": _convolution,
    "batch_norm": _batch_norm,
    "avg_pool1d": _average,
    "avg_pool2d": _average,
    "avg_pool3d": _average,
    "max_pool1d": _greatest,
    "max_pool2d": _greatest,
    "upsample_nearest2d": _nearest,
    "_upsample_nearest_exact2d": _nearest,
    "max_pool3d": _greatest,
    "adaptive_avg_pool1d": _adaptive,
    "adaptive_avg_pool2d": _adaptive,
    "adaptive_avg_pool3d": _adaptive,
    "mean": _mean,
    "linear": _linear,
    "relu": _activation(Activation(low=0.0)),
    "relu6": _activation(Activation(0.0, 6.0)),
    "silu": _activation(Activation(curve="silu")),
    "hardswish": _activation(Activation(curve="hardswish")),
    "sigmoid": _activation(Activation(curve="sigmoid")),
    "hardsigmoid": _activation(Activation(curve="hardsigmoid")),
    "hardtanh": _clamp,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "add": _add,
    "mul": _multiply,
}
"""Name of an operator -> its rule."""
