"""What happens to the channels of a tensor in every operation between the layers: the rules of the elastic trace.

A tensor's `dims` hold, for each of its axes, the row of channel segments that lies there, or None. A rule gets the
inputs' dims and answers the output's; an operation without a rule is an obstacle, unless all its channels are fixed.
Rules are about single aten operations, so they know nothing of the many ways to write `relu` or `+` in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.elastic.channels import Axis, Row, Segment, resolve, unify

__all__ = ["Call", "Dims", "Unknown", "dims_after", "scaled"]

Dims = tuple[Row | None, ...]


class Unknown(Exception):
    """No rule says what this operation does to channels; the message is the reason."""


@dataclass(frozen=True)
class Call:
    """One operation at work: the function, its arguments, its result, and where the dims of its tensors are found."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    lookup: Callable[[object], Dims | None]

    @property
    def name(self) -> str:
        """The bare name, without namespace, overload and the mark of in-place forms."""
        return str(self.func.overloadpacket.__name__).rstrip("_") or "_"

    @property
    def x(self) -> Tensor:
        """The first argument."""
        tensor = self.args[0]
        if not isinstance(tensor, Tensor):
            raise Unknown("its first argument is no tensor")
        return tensor

    @property
    def dims(self) -> Dims:
        """The dims of the first argument."""
        return self.lookup(self.x) or (None,) * self.x.ndim

    def arg(self, position: int, name: str, default: Any) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def axis(self, position: int, name: str = "dim", default: int = 0, *, extra: int = 0) -> int:
        """An argument that counts an axis of the first tensor, from the front."""
        return int(self.arg(position, name, default)) % (self.x.ndim + extra)


def scaled(row: Row | None, times: int) -> Row | None:
    """The row where each channel has become `times` neighbours."""
    return None if row is None else tuple(Segment(axis, unit * times) for axis, unit in row)


def dims_after(call: Call) -> Dims:
    """The dims of the call's first result. Raises `Unknown` or `Misfit`."""
    if torch.Tag.pointwise in call.func.tags or call.name in POINTWISE:
        return _pointwise(call)
    rule = RULES.get(call.name)
    if rule is None:
        raise Unknown(f"{call.name} has no rule")
    return rule(call)


def _pointwise(call: Call) -> Dims:
    """Broadcast: rows that meet become one, and an add makes them a residual stream."""
    tensors = [arg for arg in (*call.args, *call.kwargs.values()) if isinstance(arg, Tensor) and arg.ndim]
    shape: tuple[int, ...] = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
    out: list[Row | None] = []
    for back in range(len(shape), 0, -1):
        rows: list[Row] = []
        constant = False
        for tensor in tensors:
            if tensor.ndim < back or tensor.shape[-back] != shape[-back]:
                continue
            dims = call.lookup(tensor)
            row = None if dims is None else dims[-back]
            if row is not None:
                rows.append(row)
            elif shape[-back] > 1:
                constant = True
        if not rows:
            out.append(None)
            continue
        if constant and any(segment.axis.fixed is None for row in rows for segment in resolve(row)):
            raise Unknown(f"{call.name} meets a tensor of {shape[-back]} channels that no layer makes")
        merged = rows[0]
        for row in rows[1:]:
            mark = call.name in ("add", "sub") and _makers(merged).isdisjoint(_makers(row))
            merged = unify(merged, row)
            for segment in merged if mark else ():
                segment.axis.stream = True
        out.append(merged)
    return tuple(out)


def _makers(row: Row) -> set[int]:
    return {id(segment.axis) for segment in resolve(row)}


def _same(call: Call) -> Dims:
    return call.dims


def _map_size(axes: int) -> Callable[[Call], Dims]:
    """Pools and resizes over the last `axes` axes, which may hold no channels."""

    def rule(call: Call) -> Dims:
        dims = call.dims
        if any(row is not None for row in dims[-axes:]):
            raise Unknown(f"{call.name} runs along the channels")
        return dims

    return rule


def _pad(call: Call) -> Dims:
    """Zeros around the map; zeros appended to the channels (shortcut A) follow whatever they are added to."""
    dims = list(call.dims)
    amounts: Sequence[int] = call.args[1]
    for position in range(len(amounts) // 2):
        back, (before, after) = position + 1, amounts[2 * position : 2 * position + 2]
        row = dims[-back]
        if row is None or (before == 0 and after == 0):
            continue
        if before or after < 0 or len(resolve(row)) > 1:
            raise Unknown(f"{call.name} shifts or crops channels")
        dims[-back] = (Segment(Axis(int(call.result.shape[-back])), 1),)
    return tuple(dims)


def _reduce(call: Call) -> Dims:
    """Means, sums and extrema over some axes."""
    axes = call.arg(1, "dim", None)
    axes = range(call.x.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    gone = {axis % call.x.ndim for axis in axes}
    first = call.result[0] if isinstance(call.result, (tuple, list)) else call.result
    keep = first.ndim == call.x.ndim
    dims = call.dims
    return tuple(None if i in gone else dims[i] for i in range(len(dims)) if keep or i not in gone)


def _cat(call: Call) -> Dims:
    tensors = [tensor for tensor in call.args[0] if tensor.numel()]
    along = int(call.arg(1, "dim", 0)) % tensors[0].ndim
    out: list[Row | None] = []
    for i in range(tensors[0].ndim):
        known = [(tensor, (call.lookup(tensor) or (None,) * tensor.ndim)[i]) for tensor in tensors]
        rows = [row for _, row in known if row is not None]
        if not rows:
            out.append(None)
        elif i == along:
            out.append(
                sum(
                    (row or (Segment(Axis(t.shape[i], fixed="it is a constant"), 1),) for t, row in known),
                    start=(),
                )
            )
        elif len(rows) < len(known):
            raise Unknown("cat meets a tensor whose channels no layer makes")
        else:
            merged = rows[0]
            for row in rows[1:]:
                merged = unify(merged, row)
            out.append(merged)
    return tuple(out)


def _permute(call: Call) -> Dims:
    dims = call.dims
    if call.name == "t":
        return tuple(reversed(dims))
    if call.name == "transpose":
        a, b = call.axis(1, "dim0"), call.axis(2, "dim1")
        order = list(range(len(dims)))
        order[a], order[b] = b, a
    else:
        order = [axis % len(dims) for axis in call.args[1]]
    return tuple(dims[i] for i in order)


def _slice(call: Call) -> Dims:
    axis = call.axis(1)
    if call.dims[axis] is not None and call.result.shape != call.x.shape:
        raise Unknown(f"{call.name} cuts out a fixed range of channels")
    return call.dims


def _select(call: Call) -> Dims:
    axis = call.axis(1)
    if call.dims[axis] is not None:
        raise Unknown(f"{call.name} picks a fixed channel")
    return call.dims[:axis] + call.dims[axis + 1 :]


def _split(call: Call) -> Dims:
    axis = call.axis(2) if call.name != "unbind" else call.axis(1)
    if call.dims[axis] is not None:
        raise Unknown(f"{call.name} divides the channels at fixed places")
    return call.dims if call.name != "unbind" else call.dims[:axis] + call.dims[axis + 1 :]


def _expand(call: Call) -> Dims:
    added: int = call.result.ndim - call.x.ndim
    return (None,) * added + call.dims


def _reshape(call: Call) -> Dims:
    """Match the old axes to the new ones in groups of equal size; a row survives merging with the axes behind it."""
    old, new = tuple(call.x.shape), tuple(call.result.shape)
    dims = call.dims
    out: list[Row | None] = [None] * len(new)
    i = j = 0
    while i < len(old) or j < len(new):
        i_from, j_from = i, j
        left = old[i] if i < len(old) else 1
        right = new[j] if j < len(new) else 1
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= old[i]
                i += 1
            else:
                right *= new[j]
                j += 1
        group = range(i_from, min(i, len(old)))
        carriers = [k for k in group if dims[k] is not None]
        if not carriers:
            continue
        places = [k for k in range(j_from, min(j, len(new))) if new[k] > 1]
        before = [k for k in group if k < carriers[0] and old[k] > 1]
        if len(carriers) > 1 or before or len(places) != 1:
            raise Unknown(f"{call.name} from {list(old)} to {list(new)} divides or mixes the channels")
        behind = 1
        for k in group:
            behind *= old[k] if k > carriers[0] else 1
        out[places[0]] = scaled(dims[carriers[0]], behind)
    return tuple(out)


POINTWISE = {
    *("hardswish", "_prelu_kernel", "_to_copy", "log_sigmoid_forward", "fill", "zero", "copy", "bernoulli"),
    *("native_dropout", "dropout"),
}
"""Elementwise operations that aten does not tag so."""

RULES: dict[str, Callable[[Call], Dims]] = {
    **dict.fromkeys(
        (
            *("detach", "alias", "lift_fresh", "contiguous", "_softmax", "_log_softmax"),
            *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like"),
        ),
        _same,
    ),
    **{
        name.format(n): _map_size(n)
        for n in (1, 2, 3)
        for name in (
            *("max_pool{}d_with_indices", "avg_pool{}d", "_adaptive_avg_pool{}d", "adaptive_avg_pool{}d"),
            *("adaptive_max_pool{}d", "max_pool{}d", "upsample_nearest{}d", "_upsample_nearest_exact{}d"),
            *("reflection_pad{}d", "replication_pad{}d"),
        )
    },
    **dict.fromkeys(("upsample_linear1d",), _map_size(1)),
    **dict.fromkeys(("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d"), _map_size(2)),
    **dict.fromkeys(("_upsample_bicubic2d_aa",), _map_size(2)),
    **dict.fromkeys(("upsample_trilinear3d",), _map_size(3)),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp"), _reduce),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("split", "split_with_sizes", "unbind"), _split),
    "constant_pad_nd": _pad,
    "cat": _cat,
    "slice": _slice,
    "select": _select,
    "expand": _expand,
}
