"""What the functions of torch do with a map at two resolutions: the rules, and their table at the end.

Pointwise functions work on each part: that is exact, because they commute with nearest up-sampling. Norms and pools do
so, too, each part with its own statistics and at its own resolution, as in the authors' networks; pools over all of
space end a map, because pooled parts need only be put together. Where a tensor without resolution meets a map (a
squeeze-and-excitation gate, a layer scale, one number per image), its channels are dealt to the parts. Where a full map
meets one, that is merged: leaving is exact, entering would lose detail.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanconv.ops.octave_answers import (
    answer,
    ask_high,
    backward,
    both,
    grad,
    grad_fn,
    gradient,
    is_leaf,
    requires_grad,
    retains_grad,
    set_data,
    set_each,
    storage,
    stride,
    watch,
)
from leanconv.ops.octave_channels import cat, index, narrow, parts
from leanconv.ops.octave_map import RULES, MergeHere, OctaveMap, merge, rejoin
from leanconv.ops.octave_parts import Runs, take
from leanconv.ops.octave_sizes import adaptive_pool, interpolate, pool, reduce

__all__ = ["deal", "each"]

FULL = "it joins a map at two resolutions and one at full resolution"


# ----------------------------------------------------------------------------------------------------- each part


def each(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same call for each part; what the parts answer alike (a dtype, a device) is the answer."""
    like = _first(args, kwargs)
    parts: tuple[list[Any], list[Any]] = ([], [])
    for value in args:
        dealt = deal(value, like)
        if isinstance(dealt, MergeHere):
            return dealt
        parts[0].append(dealt[0])
        parts[1].append(dealt[1])
    named: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, value in kwargs.items():
        dealt = deal(value, like)
        if isinstance(dealt, MergeHere):
            return dealt
        named[0][name], named[1][name] = dealt
    high, low = func(*parts[0], **named[0]), func(*parts[1], **named[1])
    if not isinstance(high, Tensor):
        return high
    if high is like.high and low is like.low:  # in place, or nothing to do
        return _changed(like)
    return OctaveMap(high, low, like.runs)


def _changed(x: OctaveMap) -> OctaveMap:
    """`x`, whose parts may have been changed in place: autograd and whoever holds a view of the merged map see it."""
    rejoin(x)
    if not torch.compiler.is_compiling() and x.whole is not None and x.whole.viewed:
        full = x.whole.tensor
        if x.whole.versions[:2] != (x.high._version, x.low._version):
            full.copy_(merge(x))  # its version tells the map that this is what counts from now on
    return x


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> OctaveMap:
    """The first map among the arguments."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, OctaveMap):
            return value
    raise AssertionError("the only maps are in a list")


def deal(value: Any, like: OctaveMap) -> tuple[Any, Any] | MergeHere:
    """What the high part meets of an argument, and what the low part does."""
    if isinstance(value, OctaveMap):
        if value.runs != like.runs:
            return MergeHere("it joins maps whose low channels are different ones")
        return value.high, value.low
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value, value
    rank = like.high.ndim
    axis = value.ndim - (rank - 1)  # where the channels are
    if axis > 1 or any(size != 1 for size in value.shape[max(axis + 1, 0) :]):
        return MergeHere(FULL)
    if axis < 0 or value.shape[axis] == 1:
        return value, value
    if value.shape[axis] != sum(like.runs):
        return MergeHere(FULL)
    return take(value, like.runs, axis)


# ----------------------------------------------------------------------------------------- one number per channel


def norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A norm or an activation whose weights and statistics have one number per channel, each part with its own."""
    x, *others = args
    if not isinstance(x, OctaveMap):
        return MergeHere("its input is passed by keyword")
    if len(x.runs) > 2 and _measures(func, args, kwargs):
        return MergeHere("it measures statistics of channels that are not in a row")
    count = sum(x.runs)
    parts: tuple[list[Any], list[Any]] = ([x.high], [x.low])
    for value in others:
        dealt = _per_channel(value, count, x.runs)
        parts[0].append(dealt[0])
        parts[1].append(dealt[1])
    named: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, value in kwargs.items():
        named[0][name], named[1][name] = _per_channel(value, count, x.runs)
    return OctaveMap(func(*parts[0], **named[0]), func(*parts[1], **named[1]), x.runs)


def _per_channel(value: Any, count: int, runs: Runs) -> tuple[Any, Any]:
    if not isinstance(value, Tensor) or value.ndim != 1 or value.shape[0] != count:
        return value, value
    return take(value, runs, 0)


def _measures(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call changes the statistics that it is given, in place."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    given = dict(zip(names, args, strict=False)) | kwargs
    asked = given.get("training", given.get("use_input_stats", func is functional.instance_norm))
    return bool(asked) and given.get("running_mean") is not None


def expand_as(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """gate.expand_as(map): the gate dealt to the parts."""
    gate, like = args
    dealt = MergeHere("it expands a map") if isinstance(gate, OctaveMap) else deal(gate, like)
    if isinstance(dealt, MergeHere):
        return dealt
    return OctaveMap(func(dealt[0], like.high), func(dealt[1], like.low), like.runs)


# ---------------------------------------------------------------------------------------------------- the table

_HOMES = (torch, Tensor, functional, torch.special, torch._C._nn)


def _all(names: str, spellings: str = "{} {}_") -> Iterator[Any]:
    """Every function and method of torch that has one of these names, and its form in place."""
    for name in names.split():
        for spelling in spellings.format(*(name,) * spellings.count("{}")).split():
            for home in _HOMES:
                if (found := getattr(home, spelling, None)) is not None:
                    yield found


def _attributes(names: str) -> Iterator[Any]:
    """The functions behind attributes of a tensor."""
    return (getattr(Tensor, name).__get__ for name in names.split() if hasattr(Tensor, name))


POINTWISE = """
    abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh
    atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil clamp
    clamp_max clamp_min clip copysign cos cosh deg2rad digamma div divide eq erf erfc erfinv exp exp2 expit expm1 fix
    float_power floor floor_divide fmax fmin fmod frac gcd ge greater greater_equal gt heaviside hypot i0 igamma igammac
    isfinite isinf isnan isneginf isposinf lcm ldexp le lerp less less_equal lgamma log log10 log1p log2 logaddexp
    logaddexp2 logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mul multiply mvlgamma
    nan_to_num ne neg negative nextafter not_equal positive pow rad2deg reciprocal relu remainder round rsqrt rsub sgn
    sigmoid sign signbit sin sinc sinh sqrt square sub subtract tan tanh true_divide trunc where xlogy
"""
ACTIVATIONS = """
    celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish relu6 rrelu selu silu softplus
    softshrink softsign tanhshrink threshold alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout
"""
OPERATORS = "abs add and eq floordiv ge gt invert le lshift lt mod mul ne neg or pos pow rshift sub truediv xor div"
MOVES = """
    bfloat16 bool clone contiguous copy_ cpu cuda detach detach_ double empty_like fill_ float full_like half int long
    ones_like requires_grad_ short to type type_as view_as zero_ zeros_like
"""
QUESTIONS = """
    _is_view _is_zerotensor dim element_size get_device is_complex is_conj is_floating_point is_neg is_same_size
    is_signed is_tensor ndimension nelement numel size storage_offset
"""
ATTRIBUTES = """
    _base _cdata _has_symbolic_sizes_strides _python_dispatch _version device dtype itemsize layout name names nbytes
    ndim output_nr shape volatile
"""
KINDS = " ".join(name for name in dir(Tensor) if name.startswith("is_") and not callable(getattr(Tensor, name)))

RULES.update(
    {
        **dict.fromkeys(_all(POINTWISE), each),
        **dict.fromkeys(_all(ACTIVATIONS), each),
        **dict.fromkeys(_all(OPERATORS, "__{}__ __i{}__ __r{}__"), each),
        **dict.fromkeys(_all(MOVES, "{}"), each),
        **dict.fromkeys(_attributes("data"), each),
        **dict.fromkeys((functional.batch_norm, functional.instance_norm, functional.prelu, torch.prelu), norm),
        **dict.fromkeys(_all("max_pool2d max_pool3d avg_pool2d avg_pool3d", "{}"), pool),
        **dict.fromkeys(
            _all("adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d", "{}"), adaptive_pool
        ),
        **dict.fromkeys(_all("mean sum amax amin", "{}"), reduce),
        functional.interpolate: interpolate,
        **dict.fromkeys(_all("cat concat concatenate", "{}"), cat),
        Tensor.__getitem__: index,
        **dict.fromkeys(_all("chunk split split_with_sizes tensor_split", "{}"), parts),
        **dict.fromkeys(_all("narrow", "{}"), narrow),
        Tensor.expand_as: expand_as,
        **dict.fromkeys(_all(QUESTIONS, "{}"), answer),
        **dict.fromkeys(_attributes(f"{ATTRIBUTES} {KINDS}"), answer),
        Tensor.__len__: answer,
        **dict.fromkeys(_attributes("requires_grad"), requires_grad),
        **dict.fromkeys(_attributes("is_leaf"), is_leaf),
        **dict.fromkeys(_attributes("grad_fn"), grad_fn),
        Tensor.is_contiguous: both,
        Tensor.stride: stride,
        Tensor.untyped_storage: storage,
        **dict.fromkeys(_all("data_ptr new_empty new_full new_ones new_tensor new_zeros", "{}"), ask_high),
        Tensor.requires_grad.__set__: set_each,  # type: ignore[attr-defined]
        Tensor.data.__set__: set_data,  # type: ignore[attr-defined]
        **dict.fromkeys((Tensor.register_hook, Tensor.retain_grad), watch),
        **dict.fromkeys(_attributes("grad"), gradient),
        **dict.fromkeys(_attributes("retains_grad"), retains_grad),
        **dict.fromkeys((Tensor.backward, torch.autograd.backward), backward),
        torch.autograd.grad: grad,
    }
)
