"""One feature map kept at two resolutions, which a network's own forward takes for the map it stands for.

    high  X^H  (B, c_h, [T,] h, w)
    low   X^L  (B, c_l, [T,] ceil(h/2), ceil(w/2))         stands for c_l channels of the same h and w

An `OctaveMap` is a tensor of shape (B, c_h + c_l, [T,] h, w). Functions of torch that have a rule work on its two
parts, and what they return is again such a map; any other function is given the merged map, the low part up-sampled.
The rules stand in a table, `RULES`, by function (`octave_rules` fills it): a rule more is a line more. Two things make
the map good for any forward:

* In place. A function with a rule changes the parts; one without changes the merged map, and the `OctaveMap` becomes
  that full map from then on, under all its names, so that nothing is lost.
* Gradients. They go through the parts. Where something never asks the class (a custom autograd function, TorchScript,
  autograd's own hooks), the map is a tensor of autograd's that was made of its parts, see `_Join` and `_Parts`. It is
  told when they change in place, see `rejoin`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from leanconv.errors import LeanconvError
from leanconv.ops.octave_parts import Runs, double, halve, interleave, take

__all__ = [
    "RULES",
    "MergeHere",
    "OctaveMap",
    "Rule",
    "become",
    "call",
    "full_map",
    "merge",
    "merged",
    "rejoin",
    "settled",
    "split",
]

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Called with the function, its arguments and its keywords; returns the result, or `MergeHere` with the reason."""

RULES: dict[Any, Rule] = {}
"""What each function does with maps at two resolutions."""


class MergeHere(NamedTuple):
    """Returned by a rule that does not hold for this call."""

    reason: str


class OctaveMap(Tensor):
    """`high` and `low` as one tensor; see the head of this file.

    Args:
        high: (B, c_h, [T,] h, w), at full resolution.
        low: (B, c_l, [T,] ceil(h/2), ceil(w/2)).
        runs: which channels of the whole are which, see `Runs`; by default the high ones come first.

    >>> x = OctaveMap(torch.ones(1, 6, 9, 9), torch.ones(1, 2, 5, 5))
    >>> x.shape, torch.relu(x).low.shape, x.flatten(2).shape
    (torch.Size([1, 8, 9, 9]), torch.Size([1, 2, 5, 5]), torch.Size([1, 8, 81]))
    """

    high: Tensor
    low: Tensor
    runs: Runs

    @staticmethod
    def __new__(cls, high: Tensor, low: Tensor, runs: Runs | None = None) -> OctaveMap:
        if _is_followed(high, low) and not torch.compiler.is_compiling():
            return cast(OctaveMap, _Join.apply(high, low, runs))
        size = high.shape
        return Tensor._make_wrapper_subclass(
            cls, (size[0], size[1] + low.shape[1], *size[2:]), dtype=high.dtype, device=high.device
        )

    def __init__(self, high: Tensor, low: Tensor, runs: Runs | None = None) -> None:
        self.high, self.low = high, low
        self.runs = (high.shape[1], low.shape[1]) if runs is None else runs
        self.whole: Whole | None = None
        self.joined = _is_followed(high, low)
        self.seen = _versions(self) if self.joined else None

    def __tensor_flatten__(self) -> tuple[list[str], Runs]:
        if torch.compiler.is_compiling() and torch.is_grad_enabled() and _has_history(self):
            raise LeanconvError(
                "a map at two resolutions enters a compiled region while gradients are recorded, and compilers do not "
                "lead them back to its two parts: compile the whole network (torch.compile(network, fullgraph=True) "
                "names what breaks it into regions), or this region without gradients"
            )
        return ["high", "low"], self.runs

    @staticmethod
    def __tensor_unflatten__(parts: Mapping[str, Tensor], runs: Runs, size: Any, stride: Any) -> OctaveMap:
        return OctaveMap(parts["high"], parts["low"], runs)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return call(func, args, kwargs or {})[0]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Below autograd: what reached the operators without asking the class."""
        if func.__name__.partition(".")[0] in _SAME and tuple(args[0].high.shape[2:]) == _sizes(args)[2:]:
            high, low = (part.detach() for part in (args[0].high, args[0].low))
            return OctaveMap(high, low, args[0].runs)
        return merged(func, args, kwargs or {})


def _is_followed(high: Tensor, low: Tensor) -> bool:
    """Whether autograd writes down what is done with the parts."""
    return torch.is_grad_enabled() and (high.requires_grad or low.requires_grad)


def _has_history(x: OctaveMap) -> bool:
    """Whether autograd leads a gradient of the map itself anywhere."""
    with torch._C.DisableTorchFunctionSubclass():
        return x.grad_fn is not None


def _versions(x: OctaveMap) -> tuple[int, int]:
    """How often the parts have been changed in place; a tensor of inference mode does not say."""
    high, low = (-1 if part.is_inference() else part._version for part in (x.high, x.low))
    return high, low


_SAME = frozenset(("alias", "detach", "view"))
"""Operators by which autograd makes another tensor of the same memory."""


def _sizes(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What `view` is asked for; the size that is there where nothing is."""
    return tuple(args[1]) if len(args) > 1 else (0, 0, *args[0].high.shape[2:])


class Whole(NamedTuple):
    """The merged map, kept so that it is made once however many read it.

    It is good while no part has changed since; and where it has been changed itself, through a view, it is what counts.
    """

    tensor: Tensor
    versions: tuple[int, int, int]
    viewed: bool = False


def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, str | None]:
    """`func` for maps at two resolutions: the result, and the reason where they were merged for it."""
    given = args
    args = cast("tuple[Any, ...]", settled(args))
    kwargs = cast("dict[str, Any]", settled(kwargs)) if kwargs else kwargs
    if not _holds_map(args) and not (kwargs and _holds_map(tuple(kwargs.values()))):
        result = func(*args, **kwargs)
        return (given[0] if args and result is args[0] else result), None
    rule = RULES.get(func)
    if rule is None:
        return merged(func, args, kwargs), f"no rule for {getattr(func, '__name__', func)}"
    result = rule(func, args, kwargs)
    if isinstance(result, MergeHere):
        return merged(func, args, kwargs), result.reason
    return result, None


# ---------------------------------------------------------------------------------------------- one map or another


def settled(value: Any) -> Any:
    """`value` with every map as it is now: a map that has become full is the plain tensor that it became."""
    if isinstance(value, OctaveMap):
        if not torch.compiler.is_compiling():
            _catch_up(value)
        return value.high if len(value.runs) == 1 else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[settled(item) for item in value])
    if isinstance(value, (tuple, list)):
        return type(value)([settled(item) for item in value])
    if isinstance(value, dict):
        return {key: settled(item) for key, item in value.items()}
    return value


def _holds_map(value: tuple[Any, ...] | list[Any]) -> bool:
    return any(isinstance(item, OctaveMap) or (isinstance(item, (tuple, list)) and _holds_map(item)) for item in value)


def _catch_up(x: OctaveMap) -> None:
    """Take note of what happened to `x` where its rules were not asked."""
    whole = x.whole
    if whole is not None and whole.tensor._version != whole.versions[2]:
        become(x, whole.tensor)  # written through a view of the merged map
    elif not torch.is_grad_enabled():
        return
    elif x.joined:
        if x.seen != _versions(x):
            rejoin(x)  # written through a view of a part
    else:
        with torch._C.DisableTorchFunction():
            node = x.grad_fn
        if node is not None:  # it comes out of a custom autograd function
            x.high, x.low = _Parts.apply(x, node.name() == "CompiledFunctionBackward")
            x.joined, x.seen = True, _versions(x)


def become(x: OctaveMap, full: Tensor) -> None:
    """Make `x` the full map `full` under all its names."""
    x.high, x.low, x.runs = full, full[:, :0], (full.shape[1] if full.ndim > 1 else 0,)
    x.whole = None
    rejoin(x)


def rejoin(x: OctaveMap) -> None:
    """Tell autograd that the parts of `x` have changed in place, or are others, and so has the map."""
    if torch.compiler.is_compiling():
        return
    if _is_followed(x.high, x.low):
        high, low = x.high, x.low
        with torch._C.DisableTorchFunctionSubclass():
            _Rejoin.apply(x, high, low)
        x.joined, x.seen = True, _versions(x)
    elif x.joined:
        torch.autograd.graph.increment_version(x)


def merged(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`func` given merged maps; what it changes in place, the maps become."""
    maps: list[OctaveMap] = []
    _find(args, maps)
    _find(kwargs, maps)
    fulls = [full_map(x) for x in maps]
    result = func(*_with(args, maps, fulls), **_with(kwargs, maps, fulls))
    name = getattr(func, "__name__", "").partition(".")[0]
    in_place = name in _WRITERS or (name.endswith("_") and not name.endswith("__"))
    for x, full in zip(maps, fulls, strict=True):
        if result is full or (in_place and args and x is args[0]) or kwargs.get("out") is x:
            become(x, full)
            result = x if result is full else result
        elif x.whole is not None and isinstance(result, Tensor) and result._base is full:
            x.whole = x.whole._replace(viewed=True)
    return result


_OPERATORS = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
    "matmul",
)
_WRITERS = frozenset((*(f"__i{name}__" for name in _OPERATORS), "__setitem__"))
"""What changes its first argument though its name does not end as those of functions in place do."""


def _find(value: Any, maps: list[OctaveMap]) -> None:
    """Collect the maps in nested arguments, each once."""
    if isinstance(value, OctaveMap):
        if not any(value is other for other in maps):
            maps.append(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            _find(item, maps)
    elif isinstance(value, dict):
        for item in value.values():
            _find(item, maps)


def _with(value: Any, maps: Sequence[OctaveMap], fulls: Sequence[Tensor]) -> Any:
    """`value` with the full maps in the place of the others."""
    if isinstance(value, OctaveMap):
        for x, full in zip(maps, fulls, strict=True):
            if x is value:
                return full
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_with(item, maps, fulls) for item in value])
    if isinstance(value, (tuple, list)):
        return type(value)([_with(item, maps, fulls) for item in value])
    if isinstance(value, dict):
        return {key: _with(item, maps, fulls) for key, item in value.items()}
    return value


def full_map(x: OctaveMap) -> Tensor:
    """`merge`, but made once: where nothing has changed since, the merged map that is there."""
    if torch.compiler.is_compiling():
        return merge(x)
    known = x.whole
    current = known is not None and known.versions[:2] == (x.high._version, x.low._version)
    if known is not None and current and (known.tensor.requires_grad or not _is_followed(x.high, x.low)):
        return known.tensor
    full = merge(x)
    if not (full.is_inference() or x.high.is_inference() or x.low.is_inference()):
        x.whole = Whole(full, (x.high._version, x.low._version, full._version))
    return full


def merge(x: OctaveMap) -> Tensor:
    """The map that `x` stands for, (B, c_h + c_l, *, h, w): the low part up-sampled, all channels in their order."""
    if x.low.shape[1] == 0:
        return x.high
    low = double(x.low, x.high)
    return interleave(x.high, low, x.runs)


def split(x: Tensor, runs: int | Runs) -> OctaveMap:
    """The channels of `x` that `runs` calls low (a number: the last) at half resolution; exactly undoes `merge`."""
    if isinstance(runs, int):
        runs = (x.shape[1] - runs, runs)
    high, low = take(x, runs)
    return OctaveMap(high, halve(low), runs)


# --------------------------------------------------------------------------------------------------- for autograd


class _Join(torch.autograd.Function):
    """(high, low) -> the map, for autograd: a gradient that reaches the map itself goes on to its parts."""

    @staticmethod
    def forward(ctx: Any, high: Tensor, low: Tensor, runs: Runs | None) -> OctaveMap:
        x = OctaveMap(high, low, runs)
        ctx.runs, ctx.sizes = x.runs, (high.shape, low.shape)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return *_of_parts(gradient, ctx.runs, ctx.sizes), None


class _Rejoin(torch.autograd.Function):
    """The same for a map that is there already, which forgets what it was made of."""

    @staticmethod
    def forward(ctx: Any, x: OctaveMap, high: Tensor, low: Tensor) -> OctaveMap:
        ctx.mark_dirty(x)
        ctx.runs, ctx.sizes = x.runs, (high.shape, low.shape)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, *_of_parts(gradient, ctx.runs, ctx.sizes)


def _of_parts(gradient: Tensor, runs: Runs, sizes: tuple[torch.Size, torch.Size]) -> tuple[Tensor, Tensor]:
    """The gradients of the parts, given that of the map; a full map has no low part."""
    if len(runs) == 1:
        return gradient, gradient.new_zeros(sizes[1])
    parts = [gradient.new_zeros(size, requires_grad=True) for size in sizes]
    with torch.enable_grad():
        full = merge(OctaveMap(parts[0], parts[1], runs))
    high, low = torch.autograd.grad(full, parts, _plain(gradient))
    return high, low


class _Parts(torch.autograd.Function):
    """The map -> (high, low), for a map that autograd has made; a compiler wants a map as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: OctaveMap, compiled: bool) -> tuple[Tensor, Tensor]:
        ctx.runs, ctx.compiled = x.runs, compiled
        return x.high.detach(), x.low.detach()

    @staticmethod
    def backward(ctx: Any, high: Tensor, low: Tensor) -> tuple[Tensor, None]:
        full = high.new_zeros((high.shape[0], sum(ctx.runs), *high.shape[2:]), requires_grad=True)
        with torch.enable_grad():
            x = split(full, ctx.runs)
        gradient = torch.autograd.grad((x.high, x.low), full, (_plain(high), _plain(low)))[0]
        return (split(gradient, ctx.runs) if ctx.compiled else gradient), None


def _plain(x: Tensor) -> Tensor:
    return merge(x) if isinstance(x, OctaveMap) else x
