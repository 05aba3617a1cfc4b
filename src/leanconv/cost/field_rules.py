"""What each ATen operator does to the field of its input: the table that `receptive_field` looks up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

from leanconv.cost.field import Dim, Factor, Field, Walk, blank, join, merged, plain, regroup
from leanconv.cost.lattice import Lattice, Lost, adaptive, resize, transposed, window
from leanconv.cost.records import OpRecord, TensorRef

__all__ = ["Known", "Rule", "first_index", "rule_of"]

Known = Mapping[int, Field]  # fields of the inputs that depend on the image, by serial
Rule = Callable[[OpRecord, Known], list[Field]]


def rule_of(record: OpRecord) -> Rule | None:
    """The rule for a record; None when there is none, which ends the bookkeeping for its outputs."""
    return RULES.get(record.name, pointwise if record.pointwise else None)


def _of(record: OpRecord, known: Known, argument: str | None = None) -> Field:
    """The field of an argument, by default of the first tensor; without positions when it has none."""
    ref = next(iter(record.inputs)) if argument is None else record.args[argument]
    return known.get(ref.serial, Field(blank(ref.shape)))


def _per_axis(value: Any, rank: int, default: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value or [default])
    return values * rank if len(values) == 1 else values


def _axis(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def _chosen(value: int | Sequence[int] | None, rank: int) -> list[int]:
    """Non-negative axes from an argument `dim`; None and () mean all."""
    if value is None or value == ():
        return list(range(rank))
    return [_axis(d, rank) for d in ([value] if isinstance(value, int) else value)]


def first_index(start: int | None, size: int) -> int:
    """The first index of a slice that starts at `start`."""
    start = start or 0
    return max(0, start + size) if start < 0 else min(start, size)


def _trailing(field: Field, shape: Sequence[int], rank: int, rule: Callable[[Lattice, int], Lattice]) -> Field:
    """`rule(lattice, i)` on the i-th of the last `rank` axes; the leading ones stay."""
    first = len(shape) - rank
    dims = list(field.dims[:first])
    for i in range(rank):
        walk = field.walk(first + i)
        size = shape[first + i]
        dims.append(plain(size) if walk is None else (Factor(size, Walk(walk.axis, rule(walk.lattice, i))),))
    return merged(dims, [field])


def pointwise(record: OpRecord, known: Known) -> list[Field]:
    """Element by element, with broadcasting."""
    fields = [known[ref.serial] for ref in record.inputs if ref.serial in known]
    return [join(fields, ref.shape) for ref in record.outputs]


def _copy(record: OpRecord, known: Known) -> list[Field]:
    return [join([_of(record, known, "src")], record.outputs[0].shape)]


def _first(record: OpRecord, known: Known) -> list[Field]:
    return [_of(record, known)]


def _expand(record: OpRecord, known: Known) -> list[Field]:
    return [join([_of(record, known)], record.outputs[0].shape)]


def _view(record: OpRecord, known: Known) -> list[Field]:
    return [regroup(_of(record, known), record.outputs[0].shape)]


def _convolution(record: OpRecord, known: Known) -> list[Field]:
    weight: TensorRef = record.args["weight"]
    kernel = weight.shape[2:]
    rank = len(kernel)
    stride, dilation = (_per_axis(record.args[key], rank, 1) for key in ("stride", "dilation"))
    padding = _per_axis(record.args["padding"], rank, 0)
    kind = transposed if record.args["transposed"] else window

    def rule(lattice: Lattice, i: int) -> Lattice:
        return kind(lattice, kernel=kernel[i], stride=stride[i], padding=padding[i], dilation=dilation[i])

    source = _of(record, known, "input")
    shape = record.outputs[0].shape
    field = _trailing(source, shape, rank, rule).sees_whole(source.axes([1])).with_dim(1, plain(shape[1]))
    if weight.serial in known:  # a weight computed from the image
        made_of = known[weight.serial]
        field = merged(field.dims, [field, made_of]).sees_whole(made_of.axes())
    return [field]


def _pool(rank: int) -> Rule:
    def rule(record: OpRecord, known: Known) -> list[Field]:
        kernel = _per_axis(record.args["kernel_size"], rank, 1)
        stride = _per_axis(record.args["stride"] or kernel, rank, 1)
        padding = _per_axis(record.args["padding"], rank, 0)
        dilation = _per_axis(record.args.get("dilation"), rank, 1)

        def slide(lattice: Lattice, i: int) -> Lattice:
            return window(lattice, kernel=kernel[i], stride=stride[i], padding=padding[i], dilation=dilation[i])

        return [_trailing(_of(record, known), record.outputs[0].shape, rank, slide)]

    return rule


def _resample(rank: int, mode: str) -> Rule:
    def rule(record: OpRecord, known: Known) -> list[Field]:
        old, new = next(iter(record.inputs)).shape[-rank:], record.outputs[0].shape[-rank:]
        align = bool(record.args.get("align_corners"))

        def change(lattice: Lattice, i: int) -> Lattice:
            if mode == "adaptive":
                return adaptive(lattice, old=old[i], new=new[i])
            return resize(lattice, old=old[i], new=new[i], mode=mode, align_corners=align)

        return [_trailing(_of(record, known), record.outputs[0].shape, rank, change)]

    return rule


def _pad(record: OpRecord, known: Known) -> list[Field]:
    pad = record.args["pad" if "pad" in record.args else "padding"]
    before = [pad[2 * i] for i in range(len(pad) // 2)][::-1]  # the last axis comes first
    shape = record.outputs[0].shape
    return [_trailing(_of(record, known), shape, len(before), lambda l, i: window(l, kernel=1, padding=before[i]))]


def _reduce(record: OpRecord, known: Known) -> list[Field]:
    if "other" in record.args:  # aten.max.other is a maximum of two maps
        return pointwise(record, known)
    field = _of(record, known)
    rank = len(field.dims)
    dims = _chosen(record.args.get("dim"), rank)
    kept = len(record.outputs[0].shape) == rank
    rest = tuple(plain(1) if d in dims else dim for d, dim in enumerate(field.dims) if kept or d not in dims)
    return [merged(rest, [field]).sees_whole(field.axes(dims))] * len(record.outputs)


def _glu(record: OpRecord, known: Known) -> list[Field]:
    field = _of(record, known)
    dim = _axis(record.args["dim"], len(field.dims))
    return [field.sees_whole(field.axes([dim])).with_dim(dim, plain(record.outputs[0].shape[dim]))]


def _along(record: OpRecord, known: Known) -> list[Field]:
    field = _of(record, known)
    return [field.sees_whole(field.axes(_chosen(record.args["dim"], len(field.dims))))]


def _matmul(left: str, right: str) -> Rule:
    def rule(record: OpRecord, known: Known) -> list[Field]:
        a, b = _of(record, known, left), _of(record, known, right)
        shape = record.outputs[0].shape
        batch = join([Field(a.dims[:-2]), Field(b.dims[:-2])], shape[:-2]).dims
        product = merged((*batch, a.dims[-2], b.dims[-1]), [a, b]).sees_whole(a.axes([-1]) | b.axes([-2]))
        added = record.args.get("self") if left != "self" else None
        if isinstance(added, TensorRef) and added.serial in known:
            product = join([product, known[added.serial]], shape)
        return [product]

    return rule


def _attention(record: OpRecord, known: Known) -> list[Field]:
    query, key, value = (_of(record, known, name) for name in ("query", "key", "value"))
    contracted = query.axes([-1]) | key.axes([-2, -1]) | value.axes([-2])
    return [merged((*query.dims[:-1], value.dims[-1]), [query, key, value]).sees_whole(contracted)]


def _permute(record: OpRecord, known: Known) -> list[Field]:
    field = _of(record, known)
    rank = len(field.dims)
    order = list(range(rank))
    if record.name == "aten.permute":
        order = [_axis(d, rank) for d in record.args["dims"]]
    else:  # t swaps the last two
        i, j = (_axis(record.args.get(key, d), rank) for key, d in (("dim0", -2), ("dim1", -1)))
        order[i], order[j] = order[j], order[i]
    return [merged((field.dims[d] for d in order), [field])]


def _unsqueeze(record: OpRecord, known: Known) -> list[Field]:
    field = _of(record, known)
    at = _axis(record.args["dim"], len(field.dims) + 1)
    return [merged((*field.dims[:at], plain(1), *field.dims[at:]), [field])]


def _squeeze(record: OpRecord, known: Known) -> list[Field]:
    field = _of(record, known)
    shape = next(iter(record.inputs)).shape
    gone = {d for d in _chosen(record.args.get("dim"), len(shape)) if shape[d] == 1}
    return [merged((dim for d, dim in enumerate(field.dims) if d not in gone), [field])]


def _cut(field: Field, dim: int, start: int, step: int, size: int) -> Field:
    """Indices start, start + step, ... of `dim`."""
    walk = field.walk(dim)
    new = plain(size)
    if walk is not None:
        new = (Factor(size, Walk(walk.axis, window(walk.lattice, kernel=1, stride=step, padding=-start))),)
    return field.with_dim(dim, new)


def _slice(record: OpRecord, known: Known) -> list[Field]:
    shape = record.args["self"].shape
    dim = _axis(record.args["dim"], len(shape))
    start = first_index(record.args["start"], shape[dim])
    return [_cut(_of(record, known), dim, start, record.args["step"], record.outputs[0].shape[dim])]


def _split(record: OpRecord, known: Known) -> list[Field]:
    field = _of(record, known)
    dim = _axis(record.args["dim"], len(field.dims))
    sizes = [ref.shape[dim] for ref in record.outputs]
    starts = accumulate(sizes[:-1], initial=0)
    return [_cut(field, dim, start, 1, size) for start, size in zip(starts, sizes, strict=True)]


def _select(record: OpRecord, known: Known) -> list[Field]:
    field = _of(record, known)
    dim = _axis(record.args["dim"], len(field.dims))
    if field.axes([dim]) - field.whole and prod(f.size for f in field.dims[dim]) > 1:
        raise Lost("single positions are picked out of a spatial axis")
    return [merged((*field.dims[:dim], *field.dims[dim + 1 :]), [field])] * len(record.outputs)


def _stack(record: OpRecord, known: Known) -> list[Field]:
    fields = [known.get(ref.serial, Field(blank(ref.shape))) for ref in record.args["tensors"]]
    joined = join(fields, record.args["tensors"][0].shape)
    at = _axis(record.args["dim"], len(joined.dims) + 1)
    return [merged((*joined.dims[:at], plain(len(fields)), *joined.dims[at:]), [joined])]


def _cat(record: OpRecord, known: Known) -> list[Field]:
    shape = record.outputs[0].shape
    dim = _axis(record.args["dim"], len(shape))
    refs: Sequence[TensorRef] = record.args["tensors"]
    starts = accumulate((ref.shape[dim] for ref in refs[:-1]), initial=0)
    placed: list[Field] = []
    walks = 0
    for ref, start in zip(refs, starts, strict=True):
        if ref.serial not in known:
            continue
        field = known[ref.serial]
        walk = field.walk(dim)
        new: Dim = plain(shape[dim])
        if walk is not None:
            walks += 1
            new = (Factor(shape[dim], Walk(walk.axis, window(walk.lattice, kernel=1, padding=start))),)
        placed.append(field.with_dim(dim, new))
    if walks > 1:
        raise Lost("maps are concatenated along a spatial axis")
    return [join(placed, shape)]


def _pixel_shuffle(record: OpRecord, known: Known) -> list[Field]:
    shape = record.outputs[0].shape
    up = record.args.get("upscale_factor")
    down = record.args.get("downscale_factor")

    def rule(lattice: Lattice, i: int) -> Lattice:
        return resize(lattice, old=1, new=up, mode="nearest") if up else window(lattice, kernel=down, stride=down)

    return [_trailing(_of(record, known), shape, 2, rule).with_dim(len(shape) - 3, plain(shape[-3]))]


def _unfold(record: OpRecord, known: Known) -> list[Field]:
    field = _of(record, known)
    dim = _axis(record.args["dimension"], len(field.dims))
    size, step = record.args["size"], record.args["step"]
    walk = field.walk(dim)
    count = record.outputs[0].shape[dim]
    new = plain(count)
    if walk is not None:
        new = (Factor(count, Walk(walk.axis, window(walk.lattice, kernel=size, stride=step))),)
    field = field.with_dim(dim, new)
    return [merged((*field.dims, plain(size)), [field])]


def _im2col(record: OpRecord, known: Known) -> list[Field]:
    (height, width), size = record.args["self"].shape[-2:], _per_axis(record.args["kernel_size"], 2, 1)
    stride, dilation = (_per_axis(record.args[key], 2, 1) for key in ("stride", "dilation"))
    padding = _per_axis(record.args["padding"], 2, 0)
    maps = [
        (n + 2 * padding[i] - dilation[i] * (size[i] - 1) - 1) // stride[i] + 1 for i, n in enumerate((height, width))
    ]

    def rule(lattice: Lattice, i: int) -> Lattice:
        return window(lattice, kernel=size[i], stride=stride[i], padding=padding[i], dilation=dilation[i])

    *lead, channels, columns = record.outputs[0].shape
    source = _of(record, known)
    patches = _trailing(source, (*lead, channels, *maps), 2, rule).with_dim(len(lead), plain(channels))
    return [regroup(patches.sees_whole(source.axes([-3])), (*lead, channels, columns))]


def _roll(record: OpRecord, known: Known) -> list[Field]:
    field = _of(record, known)
    shape = record.outputs[0].shape
    for dim, shift in zip(_chosen(record.args["dims"], len(shape)), record.args["shifts"], strict=False):
        field = _cut(field, dim, -shift, 1, shape[dim])
    return [field]


def _table() -> dict[str, Rule]:
    named: dict[str, Rule] = {
        "copy": _copy,
        "glu": _glu,
        "expand": _expand,
        "convolution": _convolution,
        "constant_pad_nd": _pad,
        "mm": _matmul("self", "mat2"),
        "bmm": _matmul("self", "mat2"),
        "addmm": _matmul("mat1", "mat2"),
        "baddbmm": _matmul("batch1", "batch2"),
        "unsqueeze": _unsqueeze,
        "squeeze": _squeeze,
        "slice": _slice,
        "stack": _stack,
        "cat": _cat,
        "im2col": _im2col,
        "unfold": _unfold,
        "roll": _roll,
    }
    for rank, linear in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
        named |= {f"avg_pool{rank}d": _pool(rank), f"max_pool{rank}d_with_indices": _pool(rank)}
        named |= {f"_adaptive_avg_pool{rank}d": _resample(rank, "adaptive")}
        named |= {f"adaptive_{kind}_pool{rank}d": _resample(rank, "adaptive") for kind in ("avg", "max")}
        named |= {f"upsample_nearest{rank}d": _resample(rank, "nearest")}
        named |= {f"_upsample_nearest_exact{rank}d": _resample(rank, "nearest_exact")}
        named |= {f"upsample_{linear}{rank}d": _resample(rank, "linear")}
        named |= {f"{kind}_pad{rank}d": _pad for kind in ("reflection", "replication")}
    named["upsample_bicubic2d"] = _resample(2, "cubic")
    groups: dict[str, Rule] = {
        # Element by element, though not all versions of torch say so of them.
        "hardswish hardsigmoid hardtanh mish elu gelu silu leaky_relu prelu _prelu_kernel masked_fill bernoulli "
        "rrelu_with_noise fill zero": pointwise,
        # The same positions; of a normalisation the first output, its statistics held constant.
        "alias clone contiguous detach lift_fresh _to_copy native_batch_norm cudnn_batch_norm miopen_batch_norm "
        "_native_batch_norm_legit _native_batch_norm_legit_no_training native_group_norm native_layer_norm "
        "_fused_rms_norm channel_shuffle native_channel_shuffle": _first,
        "view _unsafe_view _reshape_alias": _view,
        "permute transpose t": _permute,
        "sum mean amax amin max min var std var_mean std_mean prod logsumexp norm linalg_vector_norm argmax argmin "
        "median all any": _reduce,
        "_softmax _safe_softmax _log_softmax cumsum": _along,
        "split split_with_sizes unsafe_split unsafe_chunk": _split,
        "select unbind": _select,
        "pixel_shuffle pixel_unshuffle": _pixel_shuffle,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable": _attention,
    }
    named |= {name: rule for names, rule in groups.items() for name in names.split()}
    return {f"aten.{name}": rule for name, rule in named.items()} | {"flex_attention": _attention}


RULES = _table()
