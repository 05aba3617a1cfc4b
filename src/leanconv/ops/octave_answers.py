"""Rules for what is asked about a map at two resolutions and for its gradient: as for the map it stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from leanconv.ops.octave_map import MergeHere, OctaveMap, become, full_map, merge, rejoin, split

__all__ = [
    "answer",
    "ask_high",
    "backward",
    "both",
    "grad",
    "grad_fn",
    "gradient",
    "is_leaf",
    "requires_grad",
    "retains_grad",
    "set_data",
    "set_each",
    "storage",
    "stride",
    "watch",
]


def answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What is true of the map that is stood for is what autograd's tensor of its shape says of itself."""
    with torch._C.DisableTorchFunction():
        return func(*args, **kwargs)


def ask_high(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Where its memory is, what is new and like it: those of the high part."""
    return func(args[0].high, *args[1:], **kwargs)


def storage(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """That of the high part; to a compiler, which knows of the parts, the map has one of its own."""
    return answer(func, args, kwargs) if torch.compiler.is_compiling() else ask_high(func, args, kwargs)


def both(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """True of the map where it is true of both parts."""
    return func(args[0].high, *args[1:], **kwargs) and func(args[0].low, *args[1:], **kwargs)


def is_leaf(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Where both parts are, and the map does not come out of a custom autograd function."""
    return both(func, args, kwargs) and (args[0].joined or answer(func, args, kwargs))


def grad_fn(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What autograd's tensor says, but a leaf has none, though it is made of its parts."""
    return None if args[0].is_leaf else answer(func, args, kwargs)


def requires_grad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Where a part does, or where the map comes out of a custom autograd function and is read without gradients."""
    return func(args[0].high) or func(args[0].low) or answer(func, args, kwargs)


def stride(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As a map of its shape lies in memory that lies as the high part does."""
    x = args[0]
    last = {4: torch.channels_last, 5: torch.channels_last_3d}[x.high.ndim]
    spread = x.high.is_contiguous(memory_format=last) and not x.high.is_contiguous()
    like = torch.empty(x.shape, device="meta", memory_format=last if spread else torch.contiguous_format)
    return func(like, *args[1:], **kwargs)


def set_each(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An attribute of both parts."""
    func(args[0].high, *args[1:], **kwargs)
    func(args[0].low, *args[1:], **kwargs)
    rejoin(args[0])


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
    rejoin(x)
    return func(full, *args[1:], **kwargs)


def gradient(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The gradient of the map, where it was kept, or of its parts where they are leaves."""
    x = args[0]
    kept = getattr(x, "kept", None)
    if kept is not None:
        return func(kept)
    return _gradient_of(x, *(part.grad if part.is_leaf else None for part in (x.high, x.low)))


def retains_grad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Whether the gradient of a map that is no leaf is kept."""
    kept = getattr(args[0], "kept", None)
    return kept is not None and func(kept)


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
