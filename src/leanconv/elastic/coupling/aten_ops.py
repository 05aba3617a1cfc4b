"""What happens to the channels of a tensor in every operation between the layers.

A tensor's `dims` hold, for each of its axes, the row of channel segments that lies there, or None. A rule gets the
inputs' dims and answers the output's; an operation without a rule is an obstacle, unless all its channels are fixed.
These are single aten operations, so there are no rules for the many ways to write `relu` or `+` in Python;
`functions` has those of the few that are given channel counts as numbers. What an operation does to axes, whatever lies
on them, stands in `dryrun.axes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from leanconv.dryrun.axes import PRODUCTS, Effect, axis_of, effects
from leanconv.dryrun.operators import bind, is_pointwise
from leanconv.dryrun.size import tensors_of
from leanconv.elastic.coupling import rows
from leanconv.elastic.coupling.rows import Axis, CannotFollow, Dims, Row, Segment


@dataclass(frozen=True)
class Call:
    """One call of an operation or a function; while coupling is found, with its result and where dims are looked up."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    lookup: Callable[[object], Dims | None] = lambda tensor: None

    @property
    def name(self) -> str:
        """The bare name, without namespace, overload and the mark of in-place forms."""
        packet = getattr(self.func, "overloadpacket", self.func)
        return str(packet.__name__).rstrip("_") or "_"

    @property
    def x(self) -> Tensor:
        """The first argument."""
        tensor = self.args[0]
        if not isinstance(tensor, Tensor):
            raise CannotFollow("its first argument is no tensor")
        return tensor

    @property
    def dims(self) -> Dims:
        """The dims of the first argument."""
        return self.of(self.x)

    @cached_property
    def bound(self) -> dict[str, Any]:
        """The arguments of an operation by name."""
        return bind(self.func, self.args, self.kwargs)

    def of(self, tensor: Tensor) -> Dims:
        """The dims of a tensor."""
        return self.lookup(tensor) or (None,) * tensor.ndim

    def arg(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument given by position or under one of these names."""
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    def axis(self, position: int, name: str = "dim", default: int = 0) -> int:
        """An argument that counts an axis of the first tensor, from the front."""
        return int(self.arg(position, name, default=default)) % self.x.ndim


Rule = Callable[[Call], Dims]


def dims_after(call: Call) -> list[Dims]:
    """The dims of each of the call's results. Raises `CannotFollow`."""
    results = tensors_of(call.result)
    rule = _pointwise if is_pointwise(call.func) else ATEN_RULES.get(call.name)
    if rule is not None:
        dims = rule(call)
        return [dims if tensor.ndim == len(dims) else (None,) * tensor.ndim for tensor in results]
    found = effects(call.name, call.bound, call.x.shape, [tensor.shape for tensor in results])
    if not found:
        raise CannotFollow(f"{call.name} has no rule")
    return [follow(call, effect, tensor.shape) for effect, tensor in zip(found, results, strict=True)]


def follow(call: Call, effect: Effect, shape: Sequence[int]) -> Dims:
    """The dims of a result of `shape`: where it matters which channel is which, or how many, they must stay."""
    old = call.x.shape
    for axis in sorted(effect.ordered.union(effect.along)):
        rows.require_fixed(call.dims[axis], f"{call.name} {NEEDS.get(call.name, 'runs along the channels')}")
    places = zip(effect.source, shape, strict=True)
    return tuple(
        None if axis is None else call.dims[axis] if old[axis] == size else rows.of_length(call.dims[axis], size)
        for axis, size in places
    )


def _pointwise(call: Call) -> Dims:
    """Broadcast: rows that meet become one, and an add makes them a residual stream."""
    tensors = [arg for arg in (*call.args, *call.kwargs.values()) if isinstance(arg, Tensor) and arg.ndim]
    shape: tuple[int, ...] = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
    out = []
    for back in range(len(shape), 0, -1):
        here = [t for t in tensors if t.ndim >= back and t.shape[-back] == shape[-back]]
        meeting = [(call.of(tensor)[-back], int(tensor.shape[-back])) for tensor in here]
        out.append(broadcast(call.name, meeting, streams=call.name in ("add", "sub")))
    return tuple(out)


def broadcast(name: str, meeting: Sequence[tuple[Row | None, int]], *, streams: bool = False) -> Row | None:
    """The row of an axis on which these rows (and sizes) lie over each other."""
    given = [row for row, _ in meeting if row is not None]
    if not given:
        return None
    if any(row is None and size > 1 for row, size in meeting):
        for row in given:
            rows.require_fixed(row, f"{name} meets a tensor of {meeting[0][1]} channels that no layer makes")
        return None
    merged = given[0]
    for row in given[1:]:
        apart = {id(one.axis) for one in rows.resolve(merged)}.isdisjoint(id(one.axis) for one in rows.resolve(row))
        mark = streams and apart and rows.makers(merged) and rows.makers(row)
        merged = rows.unify(merged, row)
        for segment in rows.resolve(merged) if mark else ():
            segment.axis.stream = True
    return merged


def _aligned(call: Call, tensors: Sequence[Tensor], axis: int) -> Row | None:
    return broadcast(call.name, [(call.of(tensor)[axis], tensor.shape[axis]) for tensor in tensors])


def _cat(call: Call) -> Dims:
    """The rows of one axis one behind the other."""
    tensors = [tensor for tensor in call.args[0] if tensor.numel()]
    along = axis_of(call.bound["dim"], tensors[0].ndim)
    parts = [call.of(tensor)[along] for tensor in tensors]
    whole = [row or rows.fixed_row(t.shape[along], "it is a constant") for t, row in zip(tensors, parts, strict=True)]
    joined = sum(whole, start=()) if any(parts) else None
    return tuple(joined if axis == along else _aligned(call, tensors, axis) for axis in range(tensors[0].ndim))


def _stack(call: Call) -> Dims:
    tensors = call.args[0]
    dims = [_aligned(call, tensors, axis) for axis in range(tensors[0].ndim)]
    dims.insert(axis_of(call.bound["dim"], len(dims) + 1), None)
    return tuple(dims)


def product(call: Call, operands: Sequence[tuple[Tensor, str]], out: str) -> Dims:
    """`contract` for tensors whose last two axes have letters, and whose axes before them are those of the batch."""
    batch = "abcdefgh"[: max(tensor.ndim for tensor, _ in operands) - 2]
    return contract(call, [(tensor, (batch + letters)[-tensor.ndim :]) for tensor, letters in operands], batch + out)


def _matrices(call: Call) -> Dims:
    """Products of matrices, with a term added."""
    return product(call, [(call.bound[name], letters) for name, letters in PRODUCTS[call.name].items()], "ik")


def contract(call: Call, operands: Sequence[tuple[Tensor, str]], out: str) -> Dims:
    """The dims of a product of tensors, each with a letter for every axis: what is summed over must agree."""
    met: dict[str, list[tuple[Row | None, int]]] = {}
    for tensor, letters in operands:
        for letter, row, size in zip(letters, call.of(tensor), tensor.shape, strict=True):
            met.setdefault(letter, []).append((row, int(size)))
    found = {}
    for letter, meeting in met.items():
        full = max(size for _, size in meeting)
        found[letter] = broadcast(call.name, [(row, size) for row, size in meeting if size == full])
    return tuple(found[letter] for letter in out)


def _repeat(call: Call) -> Dims:
    """Copies one behind the other, of axes without channels."""
    times: Sequence[int] = call.args[1]
    dims = (*(None,) * (len(times) - call.x.ndim), *call.dims)
    for row, count in zip(dims, times, strict=True):
        if count > 1:
            rows.require_fixed(row, f"{call.name} repeats the channels")
    return tuple(rows.of_length(row, int(size)) for row, size in zip(dims, call.result.shape, strict=True))


def _pad(call: Call) -> Dims:
    """Zeros around the map; zeros appended to the channels (shortcut A) follow whatever they are added to."""
    dims = list(call.dims)
    amounts: Sequence[int] = call.args[1]
    for back in range(1, len(amounts) // 2 + 1):
        before, after = amounts[2 * back - 2 : 2 * back]
        row, size = dims[-back], int(call.result.shape[-back])
        if row is None or (before == 0 and after == 0):
            continue
        if not rows.is_sliceable(row):
            dims[-back] = rows.fixed_row(size, "it is padded")
        elif before or after < 0 or len(rows.resolve(row)) > 1:
            raise CannotFollow(f"{call.name} shifts or crops channels")
        else:
            dims[-back] = (Segment(Axis(size), 1),)
    return tuple(dims)


def _pixels_in_channels(call: Call) -> Dims:
    """The values of a window of pixels become neighbouring channels, or neighbouring channels such pixels."""
    side = call.bound.get("upscale_factor") or call.bound.get("downscale_factor")
    window = prod(call.bound["kernel_size"]) if side is None else side**2
    *batch, row = call.dims[: -1 if call.name == "col2im" else -2]
    moved = rows.scaled if call.name in ("im2col", "pixel_unshuffle") else rows.shrunk
    return (*batch, row and moved(row, window), *(None,) * (1 if call.name == "im2col" else 2))


NEEDS = {
    "select": "picks a fixed channel",
    "slice": "cuts out a fixed range of channels",
    **dict.fromkeys(("unbind", "split", "split_with_sizes"), "divides the channels at fixed places"),
}
"""Why an operation needs channels to stay, where it does not run along them."""

ATEN_RULES: dict[str, Rule] = {
    **{f"{name}_like": lambda call: call.dims for name in ("zeros", "ones", "empty", "full", "rand")},
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "_reshape_alias"),
        lambda call: rows.reshaped(call.name, call.dims, call.x.shape, call.result.shape),
    ),
    **dict.fromkeys(PRODUCTS, _matrices),
    **dict.fromkeys(("im2col", "col2im", "pixel_shuffle", "pixel_unshuffle"), _pixels_in_channels),
    "expand": lambda call: (None,) * (call.result.ndim - call.x.ndim) + call.dims,
    "constant_pad_nd": _pad,
    "repeat": _repeat,
    "stack": _stack,
    "cat": _cat,
}
"""Operations that do something to channels which is not the same for whatever lies on an axis."""
