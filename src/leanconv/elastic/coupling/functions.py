"""The functions of torch that are given channel counts as numbers: what they do to channels, and the same at a width.

`x.split([32, 96], 1)`, `x.view(b, 8, 48, n)`, `x[:, :32]`, `layer_norm(x, (96,))` and `conv2d(..., groups=96)` hold
counts that the model's own code took from attributes made for the full network. Each such `FunctionRule` reads the
numbers out of a call, says by the rows of its tensors which of them are counts of channels, and makes the same call
with others. There are also the products of tensors, whose many aten decompositions say less than the call itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.dryrun.axes import ATTENTION, on_maps
from leanconv.elastic.coupling import rows
from leanconv.elastic.coupling.aten_ops import Call, broadcast, contract, follow, product
from leanconv.elastic.coupling.rows import CannotFollow, Dims, Row, Segment

Numbers = list[int]

Counted = dict[int, tuple[Row, int]]
"""Which numbers (by position) count channels: the row, and how many of it are counted as one."""

Outcome = tuple[Sequence[Dims], Counted]
"""The dims of every result, and which numbers are counts."""


class FunctionRule(NamedTuple):
    """How one function holds counts, unless it only has a rule: its numbers, and the same call with others.

    `numbers` is None for a call that holds none after all (a view as another dtype).
    """

    rule: Callable[[Call, Numbers], Outcome]
    numbers: Callable[[Call], Numbers | None] | None = None
    again: Callable[[Call, Numbers], Any] | None = None


def _sizes(call: Call) -> Numbers | None:
    """Of x.view(2, 3), x.view((2, 3)), torch.reshape(x, shape=(2, 3))."""
    sizes = call.args[1:] if len(call.args) > 1 else (call.arg(1, "size", "shape"),)
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    return list(sizes) if all(isinstance(size, int) for size in sizes) else None


def _sized_again(call: Call, numbers: Numbers) -> Any:
    return call.func(call.x, numbers)


def _counted(dims: Dims, numbers: Numbers) -> Counted:
    return {i: (row, 1) for i, (row, number) in enumerate(zip(dims, numbers, strict=True)) if row and number != -1}


def _viewed(call: Call, numbers: Numbers) -> Outcome:
    """A view, or one axis of it divided."""
    start = call.axis(1) if call.name == "unflatten" else 0
    computed = start + numbers.index(-1) if -1 in numbers else None
    dims = rows.reshaped(call.name, call.dims, call.x.shape, call.result.shape, computed)
    return [dims], _counted(dims[start : start + len(numbers)], numbers)


def _expanded(call: Call, numbers: Numbers) -> Outcome:
    dims = (*(None,) * (len(numbers) - call.x.ndim), *call.dims)
    return [dims], _counted(dims, numbers)


def _lengths(call: Call) -> Numbers:
    """The lengths of the parts of a split, of one length or of several, or of a chunk."""
    whole = int(call.x.shape[call.axis(2)])
    if call.name == "chunk":
        size: Any = ceil(whole / int(call.arg(1, "chunks")))
    else:
        size = call.arg(1, "split_size_or_sections", "split_size", "split_sizes")
    return [min(size, whole - start) for start in range(0, whole, size)] if isinstance(size, int) else list(size)


def _parts(call: Call, numbers: Numbers) -> Outcome:
    axis = call.axis(2)
    rest = call.dims[axis]
    parts: list[Row | None] = []
    for number in numbers:
        part, rest = (None, None) if rest is None else rows.cut(rest, number)
        parts.append(part)
    dims = [(*call.dims[:axis], part, *call.dims[axis + 1 :]) for part in parts]
    return dims, {i: (part, 1) for i, part in enumerate(parts) if part}


def _items(call: Call) -> list[tuple[Any, int | None]]:
    """Every item of x[...] with the axis that it takes; the ellipsis written out."""
    x, index = call.args
    items = list(index) if isinstance(index, tuple) else [index]
    taken = sum(item is not None and item is not Ellipsis and not isinstance(item, bool) for item in items)
    rest = [slice(None)] * (x.ndim - taken)
    dots = next((i for i, item in enumerate(items) if item is Ellipsis), None)
    items = [*items, *rest] if dots is None else [*items[:dots], *rest, *items[dots + 1 :]]
    axes = iter(range(x.ndim))
    return [(item, None if item is None else next(axes)) for item in items]


def _ends(call: Call) -> Numbers | None:
    """Start and stop of every slice; None for an index with something else than numbers and slices."""
    items = _items(call)
    if any(not (item is None or isinstance(item, (slice, int, Tensor))) or isinstance(item, bool) for item, _ in items):
        return None
    if any(isinstance(item, Tensor) and (item.dtype == torch.bool or item.ndim == 0) for item, _ in items):
        return None
    slices = ((item, axis) for item, axis in items if isinstance(item, slice) and axis is not None)
    return [end for item, axis in slices for end in item.indices(int(call.x.shape[axis]))[:2]]


def _indexed(call: Call, numbers: Numbers) -> Outcome:
    places = iter(range(0, len(numbers), 2))
    items = _items(call)
    out: list[Row | None] = []
    counts: Counted = {}
    for item, axis in items:
        row = None if axis is None else call.dims[axis]
        if axis is None:
            out.append(None)
        elif isinstance(item, Tensor):
            if sum(isinstance(other, Tensor) for other, _ in items) > 1:
                raise CannotFollow("it is indexed by several tensors")
            rows.require_fixed(row, "an index of numbers picks fixed channels")
            out += [None] * item.ndim
        elif isinstance(item, int):
            rows.require_fixed(row, f"an index picks channel {item}")
        else:
            place = next(places)
            start, stop = numbers[place : place + 2]
            if item.step not in (None, 1):
                rows.require_fixed(row, "a slice with steps picks fixed channels")
                out.append(rows.of_length(row, len(range(start, stop, item.step))))
            elif row is None:
                out.append(None)
            else:
                before, rest = rows.cut(row, start)
                part, _ = rows.cut(rest, stop - start)
                out.append(part)
                if rows.is_sliceable(row):
                    counts |= {place: (before, 1), place + 1: ((*before, *part), 1)}
    return [tuple(out)], counts


def _index_again(call: Call, numbers: Numbers) -> Any:
    ends = iter(numbers)
    items = (item for item, _ in _items(call))
    return call.x[tuple(slice(next(ends), next(ends), one.step) if isinstance(one, slice) else one for one in items)]


def _affine(call: Call, axis: int, first: int) -> tuple[Dims, Row | None]:
    """The dims where the row on `axis` is one with those of weight, bias and statistics, arguments from `first` on."""
    tensors = [tensor for tensor in (*call.args[first:], *call.kwargs.values()) if isinstance(tensor, Tensor)]
    size = int(call.x.shape[axis])
    row = broadcast(call.name, [(call.dims[axis], size), *((call.of(tensor)[0], size) for tensor in tensors)])
    return (*call.dims[:axis], row, *call.dims[axis + 1 :]), row


def _layer_norm(call: Call, numbers: Numbers) -> Outcome:
    if len(numbers) > 1:
        for row in call.dims[-len(numbers) :]:
            rows.require_fixed(row, f"{call.name} over {len(numbers)} axes at once")
        return [call.dims], {}
    dims, row = _affine(call, call.x.ndim - 1, 2)
    return [dims], {0: (row, 1)} if row else {}


def _group_norm(call: Call, numbers: Numbers) -> Outcome:
    """Whole groups are dropped; a single group is a norm over all channels that are there."""
    dims, row = _affine(call, 1, 2)
    per = int(call.x.shape[1]) // numbers[0]
    return [dims], {0: (rows.align(row, per), per)} if row and numbers[0] > 1 else {}


def _convolution(call: Call, numbers: Numbers) -> Outcome:
    """A convolution whose weight is a parameter or a buffer of the module that calls it."""
    weight, bias = call.args[1], call.arg(2, "bias")
    row, (outs, ins, *_) = call.dims[1], call.of(weight)
    counts: Counted = {}
    if numbers[0] == 1:
        broadcast(call.name, [(row, call.x.shape[1]), (ins, weight.shape[1])])
    elif row is not None:
        if ins is not None:
            rows.fix(ins, "it counts the channels of one group")
        per = int(call.x.shape[1]) // numbers[0]
        row = rows.align(row, per)
        made = tuple(Segment(axis, unit * weight.shape[0] // call.x.shape[1]) for axis, unit in row)
        outs = broadcast(call.name, [(made, weight.shape[0]), (outs, weight.shape[0])])
        counts[0] = row, per
    if isinstance(bias, Tensor):
        outs = broadcast(call.name, [(outs, weight.shape[0]), (call.of(bias)[0], weight.shape[0])])
    return [(call.dims[0], outs, *(None,) * (call.x.ndim - 2))], counts


def _matmul(call: Call) -> Dims:
    a, b = call.x, call.arg(1, "other", "mat2")
    if a.ndim < 2 or b.ndim < 2:
        raise CannotFollow(f"{call.name} of a vector")
    return product(call, [(a, "ij"), (b, "jk")], "ik")


def _attention(call: Call) -> Dims:
    """Scaled dot-product attention; left to itself it scales by the length that a head has."""
    letters = {**ATTENTION, "attn_mask": "il"}
    given = [(call.arg(i, name), two) for i, (name, two) in enumerate(letters.items())]
    return product(call, [(x, two) for x, two in given if isinstance(x, Tensor)], "ik")


def _pooled(call: Call) -> Dims:
    return follow(call, on_maps(call.x.ndim, int(call.name[-2])), call.result.shape)


def _around(call: Call) -> Numbers | None:
    """Nothing to count; None for the paddings that are one operator each."""
    return [] if call.arg(2, "mode", default="constant") == "circular" else None


def _circular(call: Call, numbers: Numbers) -> Outcome:
    return [follow(call, on_maps(call.x.ndim, len(call.arg(1, "pad")) // 2), call.result.shape)], {}


def _einsum(call: Call) -> Dims:
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    terms, arrow, out = str(equation).replace(" ", "").partition("->")
    if not arrow or "." in terms or any(len(set(term)) < len(term) for term in terms.split(",")):
        raise CannotFollow(f"einsum({equation!r}) has no rule")
    return contract(call, list(zip(operands, terms.split(","), strict=True)), out)


def _no_counts(rule: Callable[[Call], Dims]) -> FunctionRule:
    return FunctionRule(lambda call, numbers: ([rule(call)], {}))


def _one_argument(position: int, name: str, rule: Any, default: int | None = None) -> FunctionRule:
    """A function with one argument that is a count, or a sequence with one."""

    def numbers(call: Call) -> Numbers:
        given = call.arg(position, name, default=default)
        return [given] if isinstance(given, int) else list(given)

    def again(call: Call, numbers: Numbers) -> Any:
        given = call.arg(position, name)
        new = numbers[0] if isinstance(given, int) else type(given)(numbers)
        if len(call.args) > position:
            return call.func(*call.args[:position], new, *call.args[position + 1 :], **call.kwargs)
        return call.func(*call.args, **{**call.kwargs, name: new})

    return FunctionRule(rule, numbers, again)


PARTS = FunctionRule(_parts, _lengths, lambda call, numbers: torch.split(call.x, numbers, call.axis(2)))
LAYER_NORM = _one_argument(1, "normalized_shape", _layer_norm)
CHANNEL_NORM = _no_counts(lambda call: _affine(call, 1, 1)[0])

FUNCTION_RULES: dict[Any, FunctionRule] = {
    **dict.fromkeys((Tensor.view, Tensor.reshape, torch.reshape), FunctionRule(_viewed, _sizes, _sized_again)),
    Tensor.expand: FunctionRule(_expanded, _sizes, _sized_again),
    **dict.fromkeys((Tensor.unflatten, torch.unflatten), _one_argument(2, "sizes", _viewed)),
    **dict.fromkeys((Tensor.split, torch.split, Tensor.split_with_sizes, torch.split_with_sizes), PARTS),
    **dict.fromkeys((Tensor.chunk, torch.chunk), PARTS),
    Tensor.__getitem__: FunctionRule(_indexed, _ends, _index_again),
    **dict.fromkeys((F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm), LAYER_NORM),
    **dict.fromkeys((F.group_norm, torch.group_norm), _one_argument(1, "num_groups", _group_norm)),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _one_argument(6, "groups", _convolution, default=1)),
    **dict.fromkeys((F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm), CHANNEL_NORM),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__, torch.matmul, torch.bmm, Tensor.bmm), _no_counts(_matmul)),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), _no_counts(_pooled)),
    F.pad: FunctionRule(_circular, _around),
    F.normalize: _no_counts(lambda call: call.dims),
    F.scaled_dot_product_attention: _no_counts(_attention),
    torch.einsum: _no_counts(_einsum),
}
"""The functions that are looked at as a whole."""
