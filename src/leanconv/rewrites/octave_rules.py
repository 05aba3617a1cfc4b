"""What every operation does with a pair of maps at two resolutions: the rule table of the octave layout.

Pointwise operations and BatchNorm work on each part (with each part's own statistics, as in the authors' networks),
pools too; a global pool ends a pair exactly, because pooled parts need only be concatenated. Where a tensor without
resolution meets a pair (a squeeze-and-excitation gate, a layer scale), its channels are dealt to the parts. Where a
full map is added to a pair, the pair merges: leaving is exact, entering would lose detail.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.rewrites.layout import Layout, Leave, Pair, Rule, Value, on_parts, pair_of
from leanconv.rewrites.octave_pools import (
    POOLS,
    global_function,
    global_module,
    interpolate,
    pool_function,
    pool_module,
    reduce,
    upsample_module,
)

__all__ = ["OctDrop", "OctNorm", "rule_tables"]


class OctNorm(nn.Module):
    """A BatchNorm, or another layer with parameters per channel, as two: `high` and `low`, called one by one."""

    def __init__(self, high: nn.Module, low: nn.Module) -> None:
        super().__init__()
        self.high, self.low = high, low


class OctDrop(nn.Module):
    """Drop path for a pair: one draw per image for both parts, because they are one residual."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c_h, *), (B, c_l, *) to the same; nothing is dropped in evaluation."""
        if not self.training:
            return high, low
        mask = self.drop(high.new_ones(high.shape[0], *(1,) * (high.ndim - 1)))
        return high * mask, low * mask


def _each(layout: Layout, node: fx.Node) -> Value:
    """The same call for each part, every other argument a constant."""
    pair = pair_of(layout, node)
    if len(node.all_input_nodes) > 1:
        raise Leave("it reads other tensors, too")
    return on_parts(layout, node, pair)


def _per_channel(layout: Layout, node: fx.Node) -> Value:
    """A module whose parameters and buffers have one entry per channel, as two with their own shares."""
    pair = pair_of(layout, node)
    module = layout.module(node)
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return on_parts(layout, node, pair)
    if not layout.called_once(node):
        raise Leave("it is called several times, on maps that may have different low channels")
    halves = [_share(module, channels, pair.channels) for channels in (pair.high_channels, pair.low_channels)]
    layout.put(node, OctNorm(*halves).train(module.training))
    high = layout.graph.call_module(f"{node.target}.high", (pair.high,))
    low = layout.graph.call_module(f"{node.target}.low", (pair.low,))
    return pair._replace(high=high, low=low)


def _share(module: nn.Module, channels: Sequence[int], of: int) -> nn.Module:
    """A copy of `module` for some of its channels."""
    part = copy.deepcopy(module)
    index = torch.tensor(channels, dtype=torch.long)
    for owner in part.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.shape[:1] == (of,):
                kept = parameter.detach()[index.to(parameter.device)].clone()
                owner._parameters[name] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.shape[:1] == (of,):
                owner._buffers[name] = buffer[index.to(buffer.device)].clone()
        for name in ("num_features", "num_parameters"):
            if getattr(owner, name, None) == of:
                setattr(owner, name, len(channels))
    return part


def _combine(layout: Layout, node: fx.Node) -> Value:
    """add, sub, mul, div, maximum, ...: of two pairs part by part, of a pair and what has no resolution."""
    if len(node.args) < 2 or set(node.kwargs) - {"inplace"}:
        raise Leave("it is called in an unusual way")
    operands: tuple[Any, ...] = node.args[:2]
    pairs = [arg for arg in operands if isinstance(layout.value(arg), Pair)]
    if len(node.args) > 2 or len(node.all_input_nodes) > len(operands):
        raise Leave("it is called in an unusual way")
    if len(pairs) == 2:
        both = layout.same_channels(pairs)
        parts = {part: iter([getattr(one, part) for one in both]) for part in ("high", "low")}
        high, low = (_again(layout, node, [next(parts[part]), next(parts[part])]) for part in ("high", "low"))
        return both[0]._replace(high=high, low=low)
    pair: Pair = layout.value(pairs[0])
    dealt: dict[str, list[Any]] = {"high": [], "low": []}
    both_parts: tuple[Any, Any]
    for arg in operands:
        if arg is pairs[0]:
            both_parts = pair.high, pair.low
        elif isinstance(arg, fx.Node):
            both_parts = _deal(layout, arg, pair, len(pairs[0].meta["shape"]))
        else:
            both_parts = arg, arg
        for part, value in zip(("high", "low"), both_parts, strict=True):
            dealt[part].append(value)
    return pair._replace(high=_again(layout, node, dealt["high"]), low=_again(layout, node, dealt["low"]))


def _again(layout: Layout, node: fx.Node, args: Sequence[Any]) -> fx.Node:
    return layout.graph.create_node(node.op, node.target, tuple(args), dict(node.kwargs))


def _deal(layout: Layout, node: fx.Node, pair: Pair, rank: int) -> tuple[Any, Any]:
    """The parts of a tensor without resolution: its channels dealt out, or itself where it has only one."""
    value = layout.value(node)
    if not isinstance(value, fx.Node):
        return value, value
    shape = node.meta.get("shape")
    if shape is None:
        raise Leave("it reads a value that is no tensor")
    if all(size == 1 for size in shape):
        return value, value
    axis = len(shape) - (rank - 1)
    if axis >= 0 and shape[axis] == pair.channels and all(size == 1 for size in shape[axis + 1 :]):
        return (
            layout.take(value, pair.high_channels, pair.channels, axis),
            layout.take(value, pair.low_channels, pair.channels, axis),
        )
    if axis == 1 and all(size == 1 for size in shape[1:]):
        return value, value  # one number per image
    raise Leave("it joins a pair and a map at full resolution")


def _expand_as(layout: Layout, node: fx.Node) -> Value:
    """gate.expand_as(pair): the gate dealt to the parts."""
    gate, target = node.args[0], layout.value(node.args[1])
    if not isinstance(target, Pair) or not isinstance(gate, fx.Node) or isinstance(layout.value(gate), Pair):
        raise Leave("it expands a pair")
    high, low = _deal(layout, gate, target, len(node.meta["shape"]))
    return target._replace(
        high=layout.graph.call_method("expand_as", (high, target.high)),
        low=layout.graph.call_method("expand_as", (low, target.low)),
    )


def _concatenate(layout: Layout, node: fx.Node) -> Value:
    """All high parts, and all low parts; maps at full resolution join the high ones."""
    given = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
    tensors, axis = given.get("tensors"), given.get("dim", given.get("axis", 0))
    if not isinstance(tensors, (list, tuple)):
        raise Leave("it concatenates a computed list")
    rank = next(len(arg.meta["shape"]) for arg in tensors if isinstance(layout.value(arg), Pair))
    if axis not in (1, 1 - rank):
        raise Leave(f"it concatenates along axis {axis}, not along channels")
    highs: list[Any] = []
    lows: list[Any] = []
    high_channels: list[int] = []
    low_channels: list[int] = []
    start = 0
    for arg in tensors:
        value = layout.value(arg)
        if isinstance(value, Pair):
            highs.append(value.high)
            lows.append(value.low)
            high_channels += [start + channel for channel in value.high_channels]
            low_channels += [start + channel for channel in value.low_channels]
            start += value.channels
        else:
            width = arg.meta["shape"][1]
            highs.append(value)
            high_channels += range(start, start + width)
            start += width
    high = layout.graph.call_function(torch.cat, (highs, 1))
    low = lows[0] if len(lows) == 1 else layout.graph.call_function(torch.cat, (lows, 1))
    return Pair(high, low, tuple(high_channels), tuple(low_channels))


def _drop_path(layout: Layout, node: fx.Node) -> Value:
    """The same draw for both parts."""
    pair = pair_of(layout, node)
    if not layout.called_once(node):
        raise Leave("it is called several times")
    drop = layout.module(node)
    layout.put(node, OctDrop(drop).train(drop.training))
    both = layout.graph.call_module(str(node.target), (pair.high, pair.low))
    high, low = (layout.graph.call_function(operator.getitem, (both, part)) for part in (0, 1))
    return pair._replace(high=high, low=low)


def _identity(layout: Layout, node: fx.Node) -> Value:
    return pair_of(layout, node)


def _size(layout: Layout, node: fx.Node) -> Value:
    """x.size(k) and x.shape[k]: of the high part, and the sum of the channels of both."""
    pair = pair_of(layout, node)
    rank = len(cast(fx.Node, node.args[0]).meta["shape"])
    if node.target == "size":
        if len(node.args) == 2 and isinstance(node.args[1], int):
            axis = node.args[1] % rank
            return pair.channels if axis == 1 else layout.call(_axis_size, pair.high, axis)
    elif node.args[1] != "shape":
        raise Leave(f"it reads the attribute {node.args[1]}")
    return tuple(layout.call(_axis_size, pair.high, axis) if axis != 1 else pair.channels for axis in range(rank))


def _axis_size(x: Tensor, axis: int) -> int:
    return x.shape[axis]


_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink),
    *(nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.RReLU, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink),
    *(nn.Softplus, nn.Softsign, nn.Softshrink, nn.Threshold),
)
_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_POINTWISE = (
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "clip", "abs", "neg", "exp", "log"),
    *("sqrt", "square", "pow", "log1p", "erf", "rsqrt", "reciprocal"),
)
_POINTWISE_FUNCTIONAL = (
    *("relu", "relu_", "relu6", "silu", "gelu", "mish", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu"),
    *("leaky_relu_", "elu", "elu_", "selu", "celu", "rrelu", "sigmoid", "logsigmoid", "tanh", "softplus", "softsign"),
    *("softshrink", "hardshrink", "threshold", "dropout", "dropout2d", "dropout3d", "hardtanh_"),
)
_MOVES = ("contiguous", "clone", "detach", "float", "half", "double", "bfloat16", "to", "type")
_ARITHMETIC = ("add", "sub", "mul", "div", "maximum", "minimum", "add_", "sub_", "mul_", "div_")


def rule_tables() -> tuple[dict[type, Rule], dict[Callable[..., Any], Rule], dict[str, Rule]]:
    """The rules for modules, functions and methods; convolutions have theirs from `ConvRule`."""
    modules: dict[type, Rule] = dict.fromkeys((*_ACTIVATIONS, *_DROPOUTS), _each)
    modules |= {_BatchNorm: _per_channel, nn.PReLU: _per_channel, nn.Identity: _identity}
    modules |= dict.fromkeys((nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d), pool_module)
    modules |= dict.fromkeys(
        (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), global_module
    )
    modules |= dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d), upsample_module)
    modules |= dict.fromkeys(_drop_paths(), _drop_path)

    functions: dict[Callable[..., Any], Rule] = {}
    pointwise: tuple[tuple[Any, tuple[str, ...]], ...] = ((torch, _POINTWISE), (functional, _POINTWISE_FUNCTIONAL))
    for home, names in pointwise:
        functions |= {getattr(home, name): _each for name in names if hasattr(home, name)}
    functions |= {operator.neg: _each, operator.pow: _each}
    operators = ("add", "sub", "mul", "truediv", "iadd", "isub", "imul")
    arithmetic: tuple[tuple[Any, tuple[str, ...]], ...] = ((torch, _ARITHMETIC), (operator, operators))
    for home, names in arithmetic:
        functions |= {getattr(home, name): _combine for name in names if hasattr(home, name)}
    functions |= {torch.cat: _concatenate, torch.concat: _concatenate}
    functions |= dict.fromkeys(cast("list[Callable[..., Any]]", list(POOLS)), pool_function)
    functions |= dict.fromkeys(
        (functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d, functional.adaptive_max_pool2d),
        global_function,
    )
    functions |= {torch.mean: reduce, torch.amax: reduce, functional.interpolate: interpolate, getattr: _size}

    methods: dict[str, Rule] = dict.fromkeys((*_POINTWISE, *_MOVES), _each)
    methods |= dict.fromkeys(_ARITHMETIC, _combine)
    methods |= {"mean": reduce, "amax": reduce, "expand_as": _expand_as, "size": _size}
    return modules, functions, methods


def _drop_paths() -> list[type]:
    """Stochastic depth as the libraries that are loaded define it."""
    import sys

    homes = (("timm.layers.drop", "DropPath"), ("torchvision.ops.stochastic_depth", "StochasticDepth"))
    return [getattr(sys.modules[home], name) for home, name in homes if home in sys.modules]
