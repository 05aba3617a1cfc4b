"""Octave rules for operations that change the size of maps: pools, reductions over space, up-sampling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional

from leanconv.ops.octave import match
from leanconv.rewrites.layout import Layout, Leave, Pair, Value, on_parts, pair_of

__all__ = [
    "POOLS",
    "global_function",
    "global_module",
    "interpolate",
    "pool_function",
    "pool_module",
    "reduce",
    "upsample_module",
]


POOLS: dict[object, Callable[..., Tensor]] = {
    functional.max_pool2d: functional.max_pool2d,
    functional.max_pool3d: functional.max_pool3d,
    functional.avg_pool2d: functional.avg_pool2d,
    functional.avg_pool3d: functional.avg_pool3d,
    torch.max_pool2d: functional.max_pool2d,
    torch.max_pool3d: functional.max_pool3d,
}


def pool_module(layout: Layout, node: fx.Node) -> Value:
    """A pool for each part; the low one rounds up and is cropped, so that it stays half of the high one."""
    pair = pair_of(layout, node)
    pool: Any = layout.module(node)
    if getattr(pool, "return_indices", False):
        raise Leave("it returns indices")
    _check_pool(pool.kernel_size, pool.stride, pool.padding, getattr(pool, "dilation", 1), pool.ceil_mode)
    high = layout.graph.call_module(str(node.target), (pair.high,))
    if pool.ceil_mode or _ones(pool.stride):
        low = layout.graph.call_module(str(node.target), (pair.low,))
    else:
        rounded = copy.deepcopy(pool)
        rounded.ceil_mode = True
        name = f"{node.target}_low"
        layout.captured.root.get_submodule(name.rpartition(".")[0]).add_module(name.rpartition(".")[2], rounded)
        low = layout.graph.call_module(name, (pair.low,))
    return pair._replace(high=high, low=layout.graph.call_function(match, (low, high)))


def pool_function(layout: Layout, node: fx.Node) -> Value:
    pair = pair_of(layout, node)
    last = "dilation" if "max" in str(node.target) else "ceil_mode"
    names = ("input", "kernel_size", "stride", "padding", last)
    call = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if len(node.args) > len(names) or call.get("return_indices") or len(node.all_input_nodes) > 1:
        raise Leave("it is called in an unusual way")
    stride = call.get("stride") or call["kernel_size"]
    padding, dilation, ceil_mode = call.get("padding", 0), call.get("dilation", 1), bool(call.get("ceil_mode", False))
    _check_pool(call["kernel_size"], stride, padding, dilation, ceil_mode)
    del call["input"]
    high = layout.graph.call_function(cast(Any, node.target), (pair.high,), call)
    low = layout.graph.call_function(cast(Any, node.target), (pair.low,), call | {"ceil_mode": True})
    return pair._replace(high=high, low=layout.graph.call_function(match, (low, high)))


def _ones(value: Any) -> bool:
    return all(number == 1 for number in (value if isinstance(value, tuple) else (value,)))


def _check_pool(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> None:
    """Raise `Leave` unless the low map, pooled and rounded up, covers half of the high one at every input size."""
    given = (kernel, stride, padding, dilation)
    settings = [value[-2:] if isinstance(value, (tuple, list)) else (value,) * 2 for value in given]
    for k, s, p, d in zip(*settings, strict=True):
        for size in range(d * (k - 1) + 1, d * (k - 1) + 40):
            full = _pooled(size, k, s, p, d, ceil_mode)
            if _pooled((size + 1) // 2, k, s, p, d, True) < (full + 1) // 2:
                raise Leave(f"a pool with kernel {k}, stride {s} and padding {p} has no counterpart at half resolution")


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """The output length of a pool, by torch's rule."""
    length = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (length + (stride - 1 if ceil_mode else 0)) // stride + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def global_module(layout: Layout, node: fx.Node) -> Value:
    """An adaptive pool to one pixel ends the pair."""
    pool: Any = layout.module(node)
    return _global(layout, node, pool.output_size, getattr(pool, "return_indices", False))


def global_function(layout: Layout, node: fx.Node) -> Value:
    size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
    return _global(layout, node, size, bool(node.kwargs.get("return_indices")))


def _global(layout: Layout, node: fx.Node, size: Any, indices: bool) -> Value:
    pair = pair_of(layout, node)
    if indices or size is None or not _ones(tuple(size) if isinstance(size, (list, tuple)) else size):
        raise Leave(f"an adaptive pool to {size} needs the whole map")
    return _pooled_parts(layout, node, pair)


def _pooled_parts(layout: Layout, node: fx.Node, pair: Pair) -> fx.Node:
    parts = on_parts(layout, node, pair)
    whole = layout.call(torch.cat, [parts.high, parts.low], 1)
    layout.tell(node, "merge", "pooled parts are concatenated")
    return layout.in_order(whole, (*pair.high_channels, *pair.low_channels))


def reduce(layout: Layout, node: fx.Node) -> Value:
    """mean, amax, ... over all of space ends the pair."""
    pair = pair_of(layout, node)
    rank = len(cast(fx.Node, node.args[0]).meta["shape"])
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis"))
    if not isinstance(axes, (list, tuple)) or not all(isinstance(axis, int) for axis in axes):
        raise Leave("it reduces along something else than space")
    chosen = {cast(int, axis) % rank for axis in axes}
    if chosen != set(range(2, rank)):
        raise Leave("it reduces along something else than space")
    return _pooled_parts(layout, node, pair)


def interpolate(layout: Layout, node: fx.Node) -> Value:
    """Nearest up-sampling by a whole factor."""
    pair = pair_of(layout, node)
    names = ("input", "size", "scale_factor", "mode", "align_corners")
    call = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    del call["input"]
    _check_upsampling(call.get("size"), call.get("scale_factor"), call.get("mode", "nearest"))
    high = layout.graph.call_function(functional.interpolate, (pair.high,), call)
    low = layout.graph.call_function(functional.interpolate, (pair.low,), call)
    return pair._replace(high=high, low=layout.graph.call_function(match, (low, high)))


def upsample_module(layout: Layout, node: fx.Node) -> Value:
    pair = pair_of(layout, node)
    module: Any = layout.module(node)
    _check_upsampling(module.size, module.scale_factor, module.mode)
    parts = on_parts(layout, node, pair)
    return parts._replace(low=layout.graph.call_function(match, (parts.low, parts.high)))


def _check_upsampling(size: Any, scale: Any, mode: Any) -> None:
    scales = scale if isinstance(scale, (tuple, list)) else (scale,)
    if size is not None or mode != "nearest" or any(not isinstance(s, (int, float)) or s != int(s) for s in scales):
        raise Leave("only nearest up-sampling by a whole factor keeps two resolutions aligned")
