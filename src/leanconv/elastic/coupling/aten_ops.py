"""What happens to the channels of a tensor in every operation between the layers: the rules of the elastic trace.

A tensor's `dims` hold, for each of its axes, the row of channel segments that lies there, or None. A rule gets the
inputs' dims and answers the output's; an operation without a rule is an obstacle, unless all its channels are fixed.
Rules here are about single aten operations, so they know nothing of the many ways to write `relu` or `+` in Python;
`calls` has those of the few that are given channel counts as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from leanconv.elastic.coupling.rows import (
    Axis,
    Row,
    Segment,
    align,
    fixed_row,
    is_fixed,
    makers,
    pin,
    resolve,
    scaled,
    unify,
)
from leanconv.elastic.coupling.shapes import Dims, Unknown, reshaped

__all__ = ["Call", "Dims", "Unknown", "broadcast", "contract", "dims_after", "hold", "loose", "refixed"]


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
        packet = getattr(self.func, "overloadpacket", self.func)
        return str(packet.__name__).rstrip("_") or "_"

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
        return self.of(self.x)

    def of(self, tensor: Tensor) -> Dims:
        """The dims of a tensor."""
        return self.lookup(tensor) or (None,) * tensor.ndim

    def arg(self, position: int, name: str, default: Any) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def axis(self, position: int, name: str = "dim", default: int = 0, *, extra: int = 0) -> int:
        """An argument that counts an axis of the first tensor, from the front."""
        return int(self.arg(position, name, default)) % (self.x.ndim + extra)


def loose(row: Row | None) -> bool:
    """Whether some channels of the row may be sliced."""
    return row is not None and not is_fixed(row)


def hold(row: Row | None, reason: str) -> None:
    """Raise `Unknown` where an operation needs these channels to stay and a layer makes them; parameters' own stay."""
    if row is None or is_fixed(row):
        return
    if any(not segment.axis.passive and segment.axis.fixed is None for segment in resolve(row)):
        raise Unknown(reason)
    pin(row, reason)


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
    streams = call.name in ("add", "sub")
    return tuple(
        broadcast(
            call.name,
            [
                (call.of(tensor)[-back], int(tensor.shape[-back]))
                for tensor in tensors
                if tensor.ndim >= back and tensor.shape[-back] == shape[-back]
            ],
            streams=streams,
        )
        for back in range(len(shape), 0, -1)
    )


def broadcast(name: str, meeting: Sequence[tuple[Row | None, int]], *, streams: bool = False) -> Row | None:
    """The row of an axis on which these rows (and sizes) lie over each other."""
    rows = [row for row, _ in meeting if row is not None]
    if not rows:
        return None
    if any(row is None and size > 1 for row, size in meeting):
        for row in rows:
            hold(row, f"{name} meets a tensor of {meeting[0][1]} channels that no layer makes")
        return None
    merged = rows[0]
    for row in rows[1:]:
        mark = streams and _axes(merged).isdisjoint(_axes(row)) and makers(merged) and makers(row)
        merged = unify(merged, row)
        for segment in resolve(merged) if mark else ():
            segment.axis.stream = True
    return merged


def _axes(row: Row) -> set[int]:
    return {id(segment.axis) for segment in resolve(row)}


def _same(call: Call) -> Dims:
    return call.dims


def _map_size(axes: int) -> Callable[[Call], Dims]:
    """Pools and resizes over the last `axes` axes, which may hold no channels."""

    def rule(call: Call) -> Dims:
        dims = call.dims
        for row in dims[-axes:]:
            hold(row, f"{call.name} runs along the channels")
        return (*dims[:-axes], *(None,) * axes)

    return rule


def _along(position: int, name: str, default: Any) -> Callable[[Call], Dims]:
    """Operations along some axes that keep their lengths, and may not run along channels."""

    def rule(call: Call) -> Dims:
        axes = call.arg(position, name, default)
        for axis in axes if isinstance(axes, (list, tuple)) else (axes,):
            hold(call.dims[axis], f"{call.name} runs along the channels")
        return call.dims

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
        if not loose(row):
            dims[-back] = fixed_row(int(call.result.shape[-back]), "it is padded")
        elif before or after < 0 or len(resolve(row)) > 1:
            raise Unknown(f"{call.name} shifts or crops channels")
        else:
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


def _topk(call: Call) -> Dims:
    axis = call.axis(2, default=-1) if call.name == "topk" else call.axis(1, default=-1)
    hold(call.dims[axis], f"{call.name} runs along the channels")
    return (*call.dims[:axis], None, *call.dims[axis + 1 :])


def _cat(call: Call) -> Dims:
    tensors = [tensor for tensor in call.args[0] if tensor.numel()]
    along = int(call.arg(1, "dim", 0)) % tensors[0].ndim
    return tuple(
        _beside(tensors, i, call) if i == along else broadcast("cat", [(call.of(t)[i], t.shape[i]) for t in tensors])
        for i in range(tensors[0].ndim)
    )


def _beside(tensors: Sequence[Tensor], axis: int, call: Call) -> Row | None:
    """The rows of an axis one behind the other."""
    known = [(tensor, call.of(tensor)[axis]) for tensor in tensors]
    if all(row is None for _, row in known):
        return None
    return sum((row or fixed_row(int(t.shape[axis]), "it is a constant") for t, row in known), start=())


def _stack(call: Call) -> Dims:
    tensors = call.args[0]
    along = int(call.arg(1, "dim", 0)) % (tensors[0].ndim + 1)
    dims = [broadcast("stack", [(call.of(t)[i], t.shape[i]) for t in tensors]) for i in range(tensors[0].ndim)]
    return (*dims[:along], None, *dims[along:])


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
    if call.result.shape == call.x.shape:
        return call.dims
    hold(call.dims[axis], f"{call.name} cuts out a fixed range of channels")
    return (*call.dims[:axis], refixed(call.dims[axis], int(call.result.shape[axis])), *call.dims[axis + 1 :])


def refixed(row: Row | None, length: int) -> Row | None:
    """A fixed row at another length; others as they are."""
    if loose(row):
        return row
    return None if row is None else fixed_row(length, resolve(row)[0].axis.fixed or "")


def _select(call: Call) -> Dims:
    axis = call.axis(1)
    hold(call.dims[axis], f"{call.name} picks a fixed channel")
    return call.dims[:axis] + call.dims[axis + 1 :]


def _split(call: Call) -> Dims:
    axis = call.axis(2) if call.name != "unbind" else call.axis(1)
    hold(call.dims[axis], f"{call.name} divides the channels at fixed places")
    return call.dims[:axis] + ((None,) if call.name != "unbind" else ()) + call.dims[axis + 1 :]


def _expand(call: Call) -> Dims:
    added: int = call.result.ndim - call.x.ndim
    return (None,) * added + call.dims


def _repeat(call: Call) -> Dims:
    """Copies one behind the other, of axes without channels."""
    times: Sequence[int] = call.args[1]
    dims = (*(None,) * (len(times) - call.x.ndim), *call.dims)
    for row, count in zip(dims, times, strict=True):
        if count > 1:
            hold(row, f"{call.name} repeats the channels")
    return tuple(refixed(row, int(size)) for row, size in zip(dims, call.result.shape, strict=True))


def _unfold(call: Call) -> Dims:
    """Windows along one axis."""
    axis = call.axis(1, "dimension")
    hold(call.dims[axis], f"{call.name} runs along the channels")
    return (*call.dims[:axis], None, *call.dims[axis + 1 :], None)


def _windows(call: Call) -> Dims:
    """Windows of maps as columns, each channel's values beside each other, and back."""
    batch, row, *_ = call.dims
    taps = prod(call.args[1 if call.name == "im2col" else 2])
    if call.name == "im2col":
        return (batch, None if row is None else scaled(row, taps), None)
    row = None if row is None else tuple(Segment(axis, unit // taps) for axis, unit in align(row, taps))
    return (batch, row, None, None)


def _shuffled_pixels(call: Call) -> Dims:
    """Channels to pixels, whole groups of them, and back."""
    *batch, row, _, _ = call.dims
    factor = int(call.args[1]) ** 2
    if row is not None and call.name == "pixel_unshuffle":
        row = scaled(row, factor)
    elif row is not None:
        row = tuple(Segment(axis, unit // factor) for axis, unit in align(row, factor))
    return (*batch, row, None, None)


def _reshape(call: Call) -> Dims:
    return reshaped(call.name, call.dims, call.x.shape, call.result.shape)


def _product(call: Call) -> Dims:
    """Products of matrices, with a term added."""
    *term, a, b = call.args[:3] if call.name in ("addmm", "baddbmm") else call.args[:2]
    operands = [(a, "zij"[-a.ndim :]), (b, "zjk"[-b.ndim :]), *((tensor, "zik"[3 - tensor.ndim :]) for tensor in term)]
    return contract(call, operands, "zik"[-a.ndim :])


def contract(call: Call, operands: Sequence[tuple[Tensor, str]], out: str) -> Dims:
    """The dims of a product of tensors, each with a letter for every axis: what is summed over must agree."""
    met: dict[str, list[tuple[Row | None, int]]] = {}
    for tensor, letters in operands:
        for letter, row, size in zip(letters, call.of(tensor), tensor.shape, strict=True):
            met.setdefault(letter, []).append((row, int(size)))
    rows = {}
    for letter, meeting in met.items():
        full = max(size for _, size in meeting)
        rows[letter] = broadcast(call.name, [(row, size) for row, size in meeting if size == full])
    return tuple(rows[letter] for letter in out)


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
    **dict.fromkeys(("linalg_vector_norm",), lambda call: _reduce(_shifted(call))),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("split", "split_with_sizes", "unbind"), _split),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _product),
    **dict.fromkeys(("flip",), _along(1, "dims", ())),
    **dict.fromkeys(("roll",), _along(2, "dims", ())),
    **dict.fromkeys(("cumsum", "cumprod"), _along(1, "dim", 0)),
    **dict.fromkeys(("topk", "sort"), _topk),
    **dict.fromkeys(("im2col", "col2im"), _windows),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffled_pixels),
    "constant_pad_nd": _pad,
    "repeat": _repeat,
    "unfold": _unfold,
    "stack": _stack,
    "cat": _cat,
    "slice": _slice,
    "select": _select,
    "expand": _expand,
}
"""Which channels of a tensor an aten operation leaves where."""


def _shifted(call: Call) -> Call:
    """The call of a reduction whose axes come one place later."""
    return Call(call.func, (call.x, *call.args[2:]), call.kwargs, call.result, call.lookup)
