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
from torch.utils._pytree import tree_map

from leanconv.ops.octave_map import (
    RULES,
    MergeHere,
    OctaveMap,
    Runs,
    become,
    full_map,
    join_runs,
    merge,
    split,
    take,
)
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
    """`x`, whose parts may have been changed in place: whoever holds a view of the merged map sees it."""
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


# ----------------------------------------------------------------------------------------------------- channels


def cat(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All high parts, and all low parts; maps at full resolution join the high ones."""
    given = dict(zip(("tensors", "dim"), args, strict=False)) | kwargs
    tensors, axis = given.get("tensors"), given.get("dim", given.get("axis", 0))
    if not isinstance(tensors, (list, tuple)) or given.get("out") is not None:
        return MergeHere("it is called in an unusual way")
    maps = [value for value in tensors if isinstance(value, OctaveMap)]
    if not maps:
        return MergeHere("it is called in an unusual way")
    rank, runs = maps[0].high.ndim, maps[0].runs
    if axis == 0 and len(maps) == len(tensors) and all(x.runs == runs for x in maps):
        return OctaveMap(func([x.high for x in maps], 0), func([x.low for x in maps], 0), runs)
    if axis not in (1, 1 - rank):
        return MergeHere(f"it concatenates along axis {axis}, not along channels")
    highs = [value.high if isinstance(value, OctaveMap) else value for value in tensors]
    lows = [x.low for x in maps]
    pieces = [value.runs if isinstance(value, OctaveMap) else (value.shape[1],) for value in tensors]
    low = lows[0] if len(lows) == 1 else func(lows, 1)
    return OctaveMap(func(highs, 1), low, join_runs(pieces))


def index(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x[:, a:b] and x[i:j]: a row of channels, and some of the batch."""
    x, items = args
    if not isinstance(x, OctaveMap):
        return MergeHere("a map is what it is indexed by")
    items = items if isinstance(items, tuple) else (items,)
    rank = x.high.ndim
    if Ellipsis in [item for item in items if not isinstance(item, Tensor)]:
        at = items.index(Ellipsis)
        items = (*items[:at], *(slice(None),) * (rank - len(items) + 1), *items[at + 1 :])
    if not all(isinstance(item, slice) for item in items):
        return MergeHere("an index that is no slice needs the whole map")
    items = (*items, *(slice(None),) * (rank - len(items)))
    if any(item != slice(None) for item in items[2:]) or items[1].step not in (None, 1):
        return MergeHere("an index into space or with steps needs the whole map")
    start, stop, _ = items[1].indices(sum(x.runs))
    some = _channels(x, start, stop)
    return (
        some
        if items[0] == slice(None)
        else each(func, (some, items[0]), kwargs)
        if isinstance(some, OctaveMap)
        else some[items[0]]
    )


def parts(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """chunk, split: rows of channels."""
    given = dict(zip(("input", "sizes", "dim"), args, strict=False)) | kwargs
    x = given.get("input", given.get("self"))
    if not isinstance(x, OctaveMap) or given.get("dim", 0) not in (1, 1 - x.high.ndim):
        return MergeHere("it does not part the channels")
    numbers = func(
        torch.empty(sum(x.runs), device="meta"), *args[1:2], **{k: v for k, v in kwargs.items() if k != "dim"}
    )
    found, start = [], 0
    for part in numbers:
        found.append(_channels(x, start, start + len(part)))
        start += len(part)
    return tuple(found)


def narrow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A row of channels."""
    given = dict(zip(("input", "dim", "start", "length"), args, strict=False)) | kwargs
    x, start, length = given.get("input"), given.get("start"), given.get("length")
    if not isinstance(x, OctaveMap) or given.get("dim") not in (1, 1 - x.high.ndim) or not isinstance(start, int):
        return MergeHere("it is called in an unusual way")
    start = start % sum(x.runs)
    return _channels(x, start, start + int(length))


def _channels(x: OctaveMap, start: int, stop: int) -> OctaveMap | Tensor:
    """The channels from `start` to `stop`: a view of the high part where all of them are high."""
    ends = [[0, 0], [0, 0]]  # of the high part, of the low part
    runs: list[Runs] = []
    at, seen = 0, [0, 0]
    for position, count in enumerate(x.runs):
        part = position % 2
        first, last = min(max(start - at, 0), count), min(max(stop - at, 0), count)
        if last > first:
            if ends[part][0] == ends[part][1]:
                ends[part][0] = seen[part] + first
            ends[part][1] = seen[part] + last
            runs.append((last - first,) if part == 0 else (0, last - first))
        at += count
        seen[part] += count
    (a, b), (c, d) = ends
    high = x.high.narrow(1, a, b - a)
    return high if c == d else OctaveMap(high, x.low.narrow(1, c, d - c), join_runs(runs))


def expand_as(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """gate.expand_as(map): the gate dealt to the parts."""
    gate, like = args
    dealt = MergeHere("it expands a map") if isinstance(gate, OctaveMap) else deal(gate, like)
    if isinstance(dealt, MergeHere):
        return dealt
    return OctaveMap(func(dealt[0], like.high), func(dealt[1], like.low), like.runs)


# ---------------------------------------------------------------------------------------------------- questions


def answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What is true of the map that is stood for is what autograd's tensor of its shape says of itself."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def ask_high(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Where its memory is, what is new and like it: those of the high part."""
    return func(args[0].high, *args[1:], **kwargs)


def both(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """True of the map where it is true of both parts."""
    return func(args[0].high, *args[1:], **kwargs) and func(args[0].low, *args[1:], **kwargs)


def stride(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As a map of its shape lies in memory that lies as the high part does."""
    x = args[0]
    last = {4: torch.channels_last, 5: torch.channels_last_3d}[x.high.ndim]
    spread = x.high.is_contiguous(memory_format=last) and not x.high.is_contiguous()
    like = torch.empty(x.shape, device="meta", memory_format=last if spread else torch.contiguous_format)
    return func(like, *args[1:], **kwargs)


def either(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """True of the map where it is true of a part."""
    return func(args[0].high, *args[1:], **kwargs) or func(args[0].low, *args[1:], **kwargs)


def set_each(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An attribute of both parts."""
    func(args[0].high, *args[1:], **kwargs)
    func(args[0].low, *args[1:], **kwargs)


def set_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x.data = y."""
    x, value = args
    if isinstance(value, OctaveMap):
        x.high, x.low, x.runs = value.high.detach(), value.low.detach(), value.runs
    else:
        become(x, value.detach())


def watch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Hooks on the gradient and its keeping: the gradient of the whole map, through which the parts are led."""
    x = args[0]
    full = merge(x)
    x.kept = full
    again = split(full, x.runs)
    x.high, x.low = again.high, again.low
    return func(full, *args[1:], **kwargs)


def gradient(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The gradient of the map, where it was kept, or of its parts where they are leaves."""
    x = args[0]
    kept = getattr(x, "kept", None)
    if kept is not None:
        return func(kept)
    return _gradient_of(x, x.high.grad, x.low.grad)


def _gradient_of(x: OctaveMap, high: Tensor | None, low: Tensor | None) -> Tensor | None:
    """The gradient of the whole map, given those of its parts."""
    if high is None and low is None:
        return None
    with torch.enable_grad():
        full = x.high.new_zeros(x.high.shape[0], sum(x.runs), *x.high.shape[2:]).requires_grad_()
        again = split(full, x.runs)
        pairs = [(part, g) for part, g in ((again.high, high), (again.low, low)) if g is not None]
        return torch.autograd.grad([part for part, _ in pairs], full, [g for _, g in pairs])[0]


def backward(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """From maps: they are merged for autograd, whatever the mode."""
    with torch.enable_grad():
        args, kwargs = tree_map(_plain, (args, kwargs))
    return func(*args, **kwargs)


def grad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The gradients of maps, from those of their parts."""
    given = dict(zip(("outputs", "inputs", "grad_outputs"), args, strict=False)) | kwargs
    if len(args) > 3 or given.get("create_graph"):
        return MergeHere("it is called in an unusual way")
    inputs = given.pop("inputs")
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    with torch.enable_grad():
        outputs = tree_map(_plain, given)
    leaves = [part for x in inputs for part in ((x.high, x.low) if isinstance(x, OctaveMap) else (x,))]
    found = iter(func(inputs=leaves, **(outputs | {"allow_unused": True})))
    return tuple(_gradient_of(x, next(found), next(found)) if isinstance(x, OctaveMap) else next(found) for x in inputs)


def _plain(x: Any) -> Any:
    return full_map(x) if isinstance(x, OctaveMap) else x


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
    dim element_size get_device is_complex is_floating_point is_signed ndimension nelement numel size storage_offset
    is_same_size is_tensor is_conj is_neg
"""
ATTRIBUTES = "device dtype grad_fn itemsize layout name names nbytes ndim output_nr shape volatile " + " ".join(
    name for name in dir(Tensor) if name.startswith("is_") and not callable(getattr(Tensor, name))
)

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
        **dict.fromkeys(_attributes(ATTRIBUTES), answer),
        Tensor.__len__: answer,
        **dict.fromkeys(_attributes("requires_grad"), either),
        **dict.fromkeys(_attributes("is_leaf"), both),
        Tensor.is_contiguous: both,
        Tensor.stride: stride,
        **dict.fromkeys(_all("data_ptr new_empty new_full new_ones new_tensor new_zeros", "{}"), ask_high),
        Tensor.requires_grad.__set__: set_each,
        Tensor.data.__set__: set_data,
        **dict.fromkeys((Tensor.register_hook, Tensor.retain_grad), watch),
        **dict.fromkeys(_attributes("grad"), gradient),
        **dict.fromkeys((Tensor.backward, torch.autograd.backward), backward),
        torch.autograd.grad: grad,
    }
)
