"""The functions of torch that are given channel counts as numbers: what they do to channels, and the same at a width.

`x.split([32, 96], 1)`, `x.view(b, 8, 48, n)`, `x[:, :32]`, `layer_norm(x, (96,))` and `conv2d(..., groups=96)` hold
counts that the model's own code took from attributes made for the full network. Each such `Form` reads the numbers out
of a call, tells by the rows of its tensors which of them are counts of channels, and makes the same call with others.
Beside them are the products of tensors, whose many aten decompositions say less than the call itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.elastic.coupling.aten_ops import Call, broadcast, contract, hold, loose, refixed
from leanconv.elastic.coupling.rows import Row, Segment, align, cut, pin
from leanconv.elastic.coupling.shapes import Dims, Unknown, reshaped

__all__ = ["FORMS", "Answer", "Count", "Form"]

Numbers = list[int]


class Count(NamedTuple):
    """A number that counts the channels of `row`, `per` at a time."""

    row: Row
    per: int = 1


class Answer(NamedTuple):
    """The dims of every result of a call, and which of its numbers (by position) count channels."""

    dims: Sequence[Dims]
    counts: dict[int, Count]


class Form(NamedTuple):
    """How one function holds counts; without `numbers` and `again` it holds none, and only its rule is of interest.

    `numbers` answers None for a call that holds none after all (a view as another dtype).
    """

    rule: Callable[[Call, Numbers], Answer]
    numbers: Callable[[tuple[Any, ...], dict[str, Any]], Numbers | None] | None = None
    again: Callable[[Any, tuple[Any, ...], dict[str, Any], Numbers], Any] | None = None


def _given(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, *names: str, default: Any = None) -> Any:
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), default)


# ------------------------------------------------------------------------------------------------- shapes


def _sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Numbers | None:
    """Of x.view(2, 3), x.view((2, 3)), torch.reshape(x, shape=(2, 3))."""
    sizes = args[1:] if len(args) > 1 else (_given(args, kwargs, 1, "size", "shape"),)
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    return list(sizes) if all(isinstance(size, int) for size in sizes) else None


def _sized_again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], numbers: Numbers) -> Any:
    return func(args[0], numbers)


def _inner_sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Numbers:
    return list(_given(args, kwargs, 2, "sizes"))


def _unflatten_again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], numbers: Numbers) -> Any:
    return func(args[0], _given(args, kwargs, 1, "dim"), numbers)


def _viewed(call: Call, numbers: Numbers) -> Answer:
    computed = numbers.index(-1) if -1 in numbers else None
    dims = reshaped(call.name, call.dims, call.x.shape, call.result.shape, computed)
    return Answer([dims], _counted(dims, numbers))


def _counted(dims: Dims, numbers: Numbers) -> dict[int, Count]:
    return {i: Count(row) for i, (row, number) in enumerate(zip(dims, numbers, strict=True)) if row and number != -1}


def _expanded(call: Call, numbers: Numbers) -> Answer:
    dims = (*(None,) * (len(numbers) - call.x.ndim), *call.dims)
    return Answer([dims], _counted(dims, numbers))


def _unflattened(call: Call, numbers: Numbers) -> Answer:
    axis = int(_given(call.args, call.kwargs, 1, "dim")) % call.x.ndim
    computed = axis + numbers.index(-1) if -1 in numbers else None
    dims = reshaped(call.name, call.dims, call.x.shape, call.result.shape, computed)
    return Answer([dims], _counted(dims[axis : axis + len(numbers)], numbers))


# ------------------------------------------------------------------------------------------------- parts


def _axis_of_parts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return int(_given(args, kwargs, 2, "dim", default=0))


def _lengths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Numbers:
    """The lengths of the parts of a split, of one length or of several."""
    size = _given(args, kwargs, 1, "split_size_or_sections", "split_size", "split_sizes")
    whole = int(args[0].shape[_axis_of_parts(args, kwargs)])
    return [min(size, whole - start) for start in range(0, whole, size)] if isinstance(size, int) else list(size)


def _equal_lengths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Numbers:
    """The lengths of the parts of a chunk."""
    whole = int(args[0].shape[_axis_of_parts(args, kwargs)])
    size = ceil(whole / int(_given(args, kwargs, 1, "chunks")))
    return [min(size, whole - start) for start in range(0, whole, size)]


def _split_again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], numbers: Numbers) -> Any:
    return torch.split(args[0], numbers, _axis_of_parts(args, kwargs))


def _parts(call: Call, numbers: Numbers) -> Answer:
    axis = _axis_of_parts(call.args, call.kwargs) % call.x.ndim
    row = call.dims[axis]
    parts: list[Row | None] = []
    for number in numbers:
        if row is None or not loose(row):
            parts.append(refixed(row, number))
        else:
            part, row = cut(row, number)
            parts.append(part)
    dims = [(*call.dims[:axis], part, *call.dims[axis + 1 :]) for part in parts]
    return Answer(dims, {i: Count(part) for i, part in enumerate(parts) if part})


def _items(args: tuple[Any, ...]) -> list[tuple[Any, int | None]]:
    """Every item of x[...] with the axis that it takes; the ellipsis written out."""
    x, index = args
    items = list(index) if isinstance(index, tuple) else [index]
    taken = sum(item is not None and item is not Ellipsis and not isinstance(item, bool) for item in items)
    rest = [slice(None)] * (x.ndim - taken)
    dots = next((i for i, item in enumerate(items) if item is Ellipsis), None)
    items = [*items, *rest] if dots is None else [*items[:dots], *rest, *items[dots + 1 :]]
    axes = iter(range(x.ndim))
    return [(item, None if item is None else next(axes)) for item in items]


def _ends(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Numbers | None:
    """Start and stop of every slice; None for an index with something else than numbers and slices."""
    items = _items(args)
    if any(not (item is None or isinstance(item, (slice, int, Tensor))) or isinstance(item, bool) for item, _ in items):
        return None
    if any(isinstance(item, Tensor) and (item.dtype == torch.bool or item.ndim == 0) for item, _ in items):
        return None
    slices = ((item, axis) for item, axis in items if isinstance(item, slice) and axis is not None)
    return [end for item, axis in slices for end in item.indices(int(args[0].shape[axis]))[:2]]


def _indexed(call: Call, numbers: Numbers) -> Answer:
    ends = iter(range(0, len(numbers), 2))
    out: list[Row | None] = []
    counts: dict[int, Count] = {}
    for item, axis in _items(call.args):
        if axis is None:
            out.append(None)
            continue
        row = call.dims[axis]
        if isinstance(item, Tensor):
            if sum(isinstance(other, Tensor) for other, _ in _items(call.args)) > 1:
                raise Unknown("it is indexed by several tensors")
            hold(row, "an index of numbers picks fixed channels")
            out += [None] * item.ndim
        elif isinstance(item, int):
            hold(row, f"an index picks channel {item}")
        else:
            place = next(ends)
            start, stop = numbers[place : place + 2]
            if row is None or not loose(row):
                out.append(refixed(row, len(range(start, stop, item.step or 1))))
            elif item.step not in (None, 1):
                hold(row, "a slice with steps picks fixed channels")
                out.append(refixed(row, len(range(start, stop, item.step))))
            else:
                before, rest = cut(row, start)
                part, _ = cut(rest, stop - start)
                out.append(part)
                counts |= {place: Count(before), place + 1: Count((*before, *part))}
    return Answer([tuple(out)], counts)


def _index_again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], numbers: Numbers) -> Any:
    ends = iter(numbers)
    return args[0][
        tuple(slice(next(ends), next(ends), item.step) if isinstance(item, slice) else item for item, _ in _items(args))
    ]


# ------------------------------------------------------------------------------------------------- layers


def _with_number(position: int, *names: str) -> Callable[[Any, tuple[Any, ...], dict[str, Any], Numbers], Any]:
    """The same call with another number (or tuple of one) at that place."""

    def again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], numbers: Numbers) -> Any:
        old = _given(args, kwargs, position, *names)
        new = numbers[0] if isinstance(old, int) else type(old)(numbers)
        if len(args) > position:
            return func(*args[:position], new, *args[position + 1 :], **kwargs)
        return func(*args, **{**kwargs, next(name for name in names if name in kwargs): new})

    return again


def _affine(call: Call, axis: int, tensors: Sequence[Any]) -> Row | None:
    """The row on `axis` of the input, one with those of weight, bias and statistics."""
    size = int(call.x.shape[axis])
    meeting = [(call.dims[axis], size), *((call.of(t)[0], size) for t in tensors if isinstance(t, Tensor))]
    return broadcast(call.name, meeting)


def _layer_norm(call: Call, numbers: Numbers) -> Answer:
    dims = call.dims
    if len(numbers) > 1:
        for row in dims[-len(numbers) :]:
            hold(row, f"{call.name} over {len(numbers)} axes at once")
        return Answer([dims], {})
    row = _affine(call, call.x.ndim - 1, (*call.args[2:], *call.kwargs.values()))
    return Answer([(*dims[:-1], row)], {0: Count(row)} if row else {})


def _group_norm(call: Call, numbers: Numbers) -> Answer:
    """Whole groups are dropped; a single group is a norm over all channels that are there."""
    row = _affine(call, 1, (*call.args[2:], *call.kwargs.values()))
    dims = (call.dims[0], row, *call.dims[2:])
    if row is None or numbers[0] == 1:
        return Answer([dims], {})
    per = int(call.x.shape[1]) // numbers[0]
    return Answer([dims], {0: Count(align(row, per), per)})


def _channel_norm(call: Call, numbers: Numbers) -> Answer:
    row = _affine(call, 1, (*call.args[1:], *call.kwargs.values()))
    return Answer([(call.dims[0], row, *call.dims[2:])], {})


def _groups(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Numbers:
    return [int(_given(args, kwargs, 6, "groups", default=1))]


def _convolution(call: Call, numbers: Numbers) -> Answer:
    """A convolution whose weight is a parameter or a buffer of the module that calls it."""
    weight, bias = call.args[1], _given(call.args, call.kwargs, 2, "bias")
    row, (outs, ins, *_) = call.dims[1], call.of(weight)
    groups, behind = numbers[0], (None,) * (call.x.ndim - 2)
    counts: dict[int, Count] = {}
    if groups == 1:
        broadcast(call.name, [(row, call.x.shape[1]), (ins, weight.shape[1])])
    elif row is not None:
        if ins is not None:
            pin(ins, "it counts the channels of one group")
        per = int(call.x.shape[1]) // groups
        row = align(row, per)
        made = tuple(Segment(axis, unit * weight.shape[0] // call.x.shape[1]) for axis, unit in row)
        outs = broadcast(call.name, [(made, weight.shape[0]), (outs, weight.shape[0])])
        counts[0] = Count(row, per)
    if isinstance(bias, Tensor):
        outs = broadcast(call.name, [(outs, weight.shape[0]), (call.of(bias)[0], weight.shape[0])])
    return Answer([(call.dims[0], outs, *behind)], counts)


def _pooled(call: Call, numbers: Numbers) -> Answer:
    """Adaptive pools, which aten writes in several ways."""
    axes = int(call.name[-2])
    for row in call.dims[-axes:]:
        hold(row, f"{call.name} runs along the channels")
    return Answer([(*call.dims[:-axes], *(None,) * axes)], {})


def _normalized(call: Call, numbers: Numbers) -> Answer:
    """Division by the norm of what is there."""
    return Answer([call.dims], {})


# ------------------------------------------------------------------------------------------------- products


LETTERS = "abcdefgh"
"""For batch axes, from the left."""


def _matmul(call: Call, numbers: Numbers) -> Answer:
    a, b = call.args[0], _given(call.args, call.kwargs, 1, "other", "mat2")
    if a.ndim < 2 or b.ndim < 2:
        raise Unknown(f"{call.name} of a vector")
    batch = LETTERS[: max(a.ndim, b.ndim) - 2]
    operands = [(x, batch[len(batch) - x.ndim + 2 :] + inner) for x, inner in ((a, "ij"), (b, "jk"))]
    return Answer([contract(call, operands, batch + "ik")], {})


def _attention(call: Call, numbers: Numbers) -> Answer:
    """Scaled dot-product attention; left to itself it scales by the length that a head has."""
    tensors = [_given(call.args, call.kwargs, i, name) for i, name in enumerate(("query", "key", "value", "attn_mask"))]
    batch = LETTERS[: tensors[0].ndim - 2]
    operands = [
        (x, (batch + inner)[-x.ndim :])
        for x, inner in zip(tensors, ("id", "jd", "jv", "ij"), strict=True)
        if isinstance(x, Tensor)
    ]
    return Answer([contract(call, operands, batch + "iv")], {})


def _einsum(call: Call, numbers: Numbers) -> Answer:
    equation, *operands = call.args
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = list(operands[0])
    terms, arrow, out = str(equation).replace(" ", "").partition("->")
    if not arrow or "." in terms or any(len(set(term)) < len(term) for term in terms.split(",")):
        raise Unknown(f"einsum({equation!r}) has no rule")
    return Answer([contract(call, list(zip(operands, terms.split(","), strict=True)), out)], {})


FORMS: dict[Any, Form] = {
    **dict.fromkeys((Tensor.view, Tensor.reshape, torch.reshape), Form(_viewed, _sizes, _sized_again)),
    Tensor.expand: Form(_expanded, _sizes, _sized_again),
    **dict.fromkeys((Tensor.unflatten, torch.unflatten), Form(_unflattened, _inner_sizes, _unflatten_again)),
    **dict.fromkeys(
        (Tensor.split, torch.split, Tensor.split_with_sizes, torch.split_with_sizes),
        Form(_parts, _lengths, _split_again),
    ),
    **dict.fromkeys((Tensor.chunk, torch.chunk), Form(_parts, _equal_lengths, _split_again)),
    Tensor.__getitem__: Form(_indexed, _ends, _index_again),
    **dict.fromkeys(
        (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm),
        Form(
            _layer_norm,
            lambda args, kwargs: list(_given(args, kwargs, 1, "normalized_shape")),
            _with_number(1, "normalized_shape"),
        ),
    ),
    **dict.fromkeys(
        (F.group_norm, torch.group_norm),
        Form(
            _group_norm,
            lambda args, kwargs: [int(_given(args, kwargs, 1, "num_groups"))],
            _with_number(1, "num_groups"),
        ),
    ),
    **dict.fromkeys((F.batch_norm, torch.batch_norm, F.instance_norm, torch.instance_norm), Form(_channel_norm)),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), Form(_convolution, _groups, _with_number(6, "groups"))),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__, torch.matmul, torch.bmm, Tensor.bmm), Form(_matmul)),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), Form(_pooled)),
    F.normalize: Form(_normalized),
    F.scaled_dot_product_attention: Form(_attention),
    torch.einsum: Form(_einsum),
}
"""The functions that are looked at as a whole."""
