"""What happens to the channels of a tensor in every operation between the layers.

A tensor's `dims` hold, for each of its axes, the row of channel segments that lies there, or None. A rule gets the
inputs' dims and answers the output's; an operation without a rule is an obstacle, unless all its channels are fixed.
These are single aten operations, so there are no rules for the many ways to write `relu` or `+` in Python;
`functions` has those of the few that are given channel counts as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

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


def dims_after(call: Call) -> Dims:
    """The dims of the call's first result. Raises `CannotFollow`."""
    if torch.Tag.pointwise in call.func.tags or call.name in POINTWISE:
        return _pointwise(call)
    if maps := MAP_SIZE.search(call.name):
        return map_size(int(maps[1]))(call)
    if call.name not in ATEN_RULES:
        raise CannotFollow(f"{call.name} has no rule")
    return ATEN_RULES[call.name](call)


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
    along = int(call.arg(1, "dim", default=0)) % tensors[0].ndim
    parts = [call.of(tensor)[along] for tensor in tensors]
    whole = [row or rows.fixed_row(t.shape[along], "it is a constant") for t, row in zip(tensors, parts, strict=True)]
    joined = sum(whole, start=()) if any(parts) else None
    return tuple(joined if axis == along else _aligned(call, tensors, axis) for axis in range(tensors[0].ndim))


def _stack(call: Call) -> Dims:
    tensors = call.args[0]
    dims = [_aligned(call, tensors, axis) for axis in range(tensors[0].ndim)]
    dims.insert(int(call.arg(1, "dim", default=0)) % (len(dims) + 1), None)
    return tuple(dims)


def product(call: Call, operands: Sequence[tuple[Tensor, str]], out: str) -> Dims:
    """`contract` for tensors whose last two axes have letters, and whose axes before them are those of the batch."""
    batch = "abcdefgh"[: max(tensor.ndim for tensor, _ in operands) - 2]
    return contract(call, [(tensor, (batch + letters)[-tensor.ndim :]) for tensor, letters in operands], batch + out)


def _matrices(call: Call) -> Dims:
    """Products of matrices, with a term added."""
    *term, a, b = call.args[:3] if call.name in ("addmm", "baddbmm") else call.args[:2]
    return product(call, [(a, "ij"), (b, "jk"), *((tensor, "ik") for tensor in term)], "ik")


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


def not_along(
    argument: int | None,
    name: str = "dim",
    *,
    default: Any = 0,
    text: str = "runs along the channels",
    new: Dims | None = (None,),
) -> Rule:
    """Operations along axes that may hold no channels; `new` ones are there instead of each afterwards, None: the same.

    The axes are those that an argument names, or `default`.
    """

    def rule(call: Call) -> Dims:
        given = default if argument is None else call.arg(argument, name, default=default)
        axes = {axis % call.x.ndim for axis in (given if isinstance(given, Sequence) else (given,))}
        for axis in axes:
            rows.require_fixed(call.dims[axis], f"{call.name} {text}")
        return tuple(
            row for i, old in enumerate(call.dims) for row in (new if new is not None and i in axes else (old,))
        )

    return rule


def map_size(axes: int) -> Rule:
    """Pools, paddings and resizes of the last `axes` axes."""
    return not_along(None, default=range(-axes, 0))


def _reduce(position: int) -> Rule:
    """Means, sums and extrema over some axes, which may be those of channels."""

    def rule(call: Call) -> Dims:
        axes = call.arg(position, "dim")
        axes = range(call.x.ndim) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
        over = {axis % call.x.ndim for axis in axes}
        first = call.result[0] if isinstance(call.result, (tuple, list)) else call.result
        keep = first.ndim == call.x.ndim
        return tuple(None if i in over else row for i, row in enumerate(call.dims) if keep or i not in over)

    return rule


def _slice(call: Call) -> Dims:
    axis = call.axis(1)
    if call.result.shape == call.x.shape:
        return call.dims
    rows.require_fixed(call.dims[axis], f"{call.name} cuts out a fixed range of channels")
    return (*call.dims[:axis], rows.of_length(call.dims[axis], int(call.result.shape[axis])), *call.dims[axis + 1 :])


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


def _permute(call: Call) -> Dims:
    order = list(range(call.x.ndim))
    if call.name == "permute":
        order = list(call.args[1])
    else:
        a, b = (0, -1) if call.name == "t" else (call.axis(1, "dim0"), call.axis(2, "dim1"))
        order[a], order[b] = order[b], order[a]
    return tuple(call.dims[axis] for axis in order)


def _windows(call: Call) -> Dims:
    """Windows of maps as columns, each channel's values beside each other, and back."""
    batch, row, *_ = call.dims
    if call.name == "im2col":
        return (batch, row and rows.scaled(row, prod(call.args[1])), None)
    return (batch, row and rows.shrunk(row, prod(call.args[2])), None, None)


def _shuffled_pixels(call: Call) -> Dims:
    """Channels to pixels, whole groups of them, and back."""
    *batch, row, _, _ = call.dims
    moved = rows.shrunk if call.name == "pixel_shuffle" else rows.scaled
    return (*batch, row and moved(row, int(call.args[1]) ** 2), None, None)


POINTWISE = {
    *("hardswish", "_prelu_kernel", "_to_copy", "log_sigmoid_forward", "fill", "zero", "copy", "bernoulli"),
    *("native_dropout", "dropout"),
}
"""Elementwise operations that aten does not tag so."""

MAP_SIZE = re.compile(r"(?:pool|upsample_[a-z_]*|re(?:flection|plication)_pad)([123])d")
"""Pools, resizes and paddings, by their names."""

PARTED = "divides the channels at fixed places"

ATEN_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("detach", "alias", "lift_fresh", "contiguous", "_softmax", "_log_softmax"), lambda call: call.dims
    ),
    **{f"{name}_like": lambda call: call.dims for name in ("zeros", "ones", "empty", "full", "rand")},
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp"), _reduce(1)),
    "linalg_vector_norm": _reduce(2),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze"),
        lambda call: rows.reshaped(call.name, call.dims, call.x.shape, call.result.shape),
    ),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matrices),
    "flip": not_along(1, "dims", new=None),
    "roll": not_along(2, "dims", new=None),
    **dict.fromkeys(("cumsum", "cumprod"), not_along(1, new=None)),
    "topk": not_along(2, default=-1),
    "sort": not_along(1, default=-1),
    "select": not_along(1, text="picks a fixed channel", new=()),
    "unbind": not_along(1, text=PARTED, new=()),
    **dict.fromkeys(("split", "split_with_sizes"), not_along(2, text=PARTED)),
    "unfold": lambda call: (*not_along(1, "dimension")(call), None),
    **dict.fromkeys(("im2col", "col2im"), _windows),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffled_pixels),
    "expand": lambda call: (None,) * (call.result.ndim - call.x.ndim) + call.dims,
    "constant_pad_nd": _pad,
    "repeat": _repeat,
    "stack": _stack,
    "cat": _cat,
    "slice": _slice,
}
"""Which channels of a tensor an aten operation leaves where."""
