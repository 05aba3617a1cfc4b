"""What each ATen operator does to the field of its input: `dryrun.axes`, read as positions of the network's input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate

from leanconv.cost.field import Dim, Field, blank, join, merged, plain, regroup
from leanconv.cost.lattice import Lattice, Lost, adaptive, resize, transposed, window
from leanconv.cost.records import OpRecord, TensorRef
from leanconv.dryrun.axes import (
    ATTENTION,
    FUSED_ATTENTION,
    PRODUCTS,
    Effect,
    Resampling,
    Steps,
    axis_of,
    effects,
    windows,
)

__all__ = ["Known", "fields_after"]

Known = Mapping[int, Field]  # fields of the inputs that depend on the image, by serial
Rule = Callable[[OpRecord, Known], list[Field]]


def fields_after(record: OpRecord, known: Known) -> list[Field]:
    """The fields of a record's first outputs, as many as are known. Raises `Lost`."""
    rule = RULES.get(record.name)
    if rule is not None:
        return rule(record, known)
    name, shape = record.name.removeprefix("aten."), next(iter(record.inputs)).shape
    found = effects(name, record.args, shape, [ref.shape for ref in record.outputs])
    if found:
        field = _of(record, known)
        return [_after(field, shape, effect, ref.shape) for effect, ref in zip(found, record.outputs, strict=True)]
    if not record.pointwise:
        raise Lost("an operator without a rule")
    fields = [known[ref.serial] for ref in record.inputs if ref.serial in known]
    return [join(fields, ref.shape) for ref in record.outputs]


def _of(record: OpRecord, known: Known, argument: str | None = None) -> Field:
    """The field of an argument, by default of the first tensor; without positions when it has none."""
    ref = next(iter(record.inputs)) if argument is None else record.args[argument]
    return known.get(ref.serial, Field(blank(ref.shape)))


def _after(field: Field, old: Sequence[int], effect: Effect, new: Sequence[int]) -> Field:
    """The field of an output of shape `new`, made of one of shape `old`."""
    if any(field.axes([axis]) - field.whole and old[axis] > 1 for axis in effect.ordered - effect.mixed):
        raise Lost("single positions are picked out of a spatial axis, or it changes their order")
    dims: list[Dim] = []
    for axis, size in zip(effect.source, new, strict=True):
        if axis is None:
            dims.append(plain(size))
        elif axis in effect.along:
            dims.append(field.moved(axis, size, _along(effect.along[axis], old[axis], size)))
        else:
            dims.append(field.dims[axis])
    return merged(dims, [field]).sees_whole(field.axes(effect.mixed))


def _along(way: Steps | Resampling, old: int, new: int) -> Callable[[Lattice], Lattice]:
    if isinstance(way, Steps):
        return partial(window, **way._asdict())
    if way.mode == "adaptive":
        return partial(adaptive, old=old, new=new)
    return partial(resize, old=old, new=new, **way._asdict())


def _first(record: OpRecord, known: Known) -> list[Field]:
    return [_of(record, known)]


def _broadcast(record: OpRecord, known: Known) -> list[Field]:
    source = _of(record, known, "src" if "src" in record.args else None)
    return [join([source], record.outputs[0].shape)]


def _view(record: OpRecord, known: Known) -> list[Field]:
    return [regroup(_of(record, known), record.outputs[0].shape)]


def _slid(field: Field, shape: Sequence[int], steps: Sequence[Steps], *, back: bool = False) -> Field:
    """The field of a map of `shape`, each of whose values reads a window, or with `back` reaches one, and channels."""
    first = len(shape) - len(steps)
    dims = list(field.dims[: first - 1])
    dims.append(plain(shape[first - 1]))
    for dim, one in enumerate(steps, first):
        dims.append(field.moved(dim, shape[dim], partial(transposed if back else window, **one._asdict())))
    return merged(dims, [field]).sees_whole(field.axes([first - 1]))


def _convolution(record: OpRecord, known: Known) -> list[Field]:
    weight: TensorRef = record.args["weight"]
    steps = windows(record.args, weight.shape[2:])
    field = _slid(_of(record, known, "input"), record.outputs[0].shape, steps, back=record.args["transposed"])
    if weight.serial in known:  # a weight computed from the image
        made_of = known[weight.serial]
        field = merged(field.dims, [field, made_of]).sees_whole(made_of.axes())
    return [field]


def _im2col(record: OpRecord, known: Known) -> list[Field]:
    shape = record.args["self"].shape
    steps = windows(record.args, record.args["kernel_size"])
    maps = [
        (size + 2 * one.padding - one.dilation * (one.kernel - 1) - 1) // one.stride + 1
        for size, one in zip(shape[-2:], steps, strict=True)
    ]
    new = record.outputs[0].shape
    return [regroup(_slid(_of(record, known), (*new[:-1], *maps), steps), new)]


def _product(letters: Mapping[str, str], record: OpRecord, known: Known) -> list[Field]:
    shape = record.outputs[0].shape
    factors = [(_of(record, known, name), two) for name, two in letters.items() if two != "ik"]
    fields = [field for field, _ in factors]
    batch = join([Field(field.dims[:-2]) for field in fields], shape[:-2]).dims
    ends = [next(field.dims[two.index(end) - 2] for field, two in factors if end in two) for end in "ik"]
    summed = [field.axes([dim - 2 for dim in (0, 1) if two[dim] not in "ik"]) for field, two in factors]
    product = merged((*batch, *ends), fields).sees_whole(frozenset().union(*summed))
    added = record.args["self"] if letters.get("self") == "ik" else None
    return [join([product, known[added.serial]], shape) if added and added.serial in known else product]


def _stack(record: OpRecord, known: Known) -> list[Field]:
    fields = [known.get(ref.serial, Field(blank(ref.shape))) for ref in record.args["tensors"]]
    joined = join(fields, record.args["tensors"][0].shape)
    at = axis_of(record.args["dim"], len(joined.dims) + 1)
    return [merged((*joined.dims[:at], plain(len(fields)), *joined.dims[at:]), [joined])]


def _cat(record: OpRecord, known: Known) -> list[Field]:
    shape = record.outputs[0].shape
    dim = axis_of(record.args["dim"], len(shape))
    refs: Sequence[TensorRef] = record.args["tensors"]
    starts = accumulate((ref.shape[dim] for ref in refs[:-1]), initial=0)
    parts = [(known[ref.serial], start) for ref, start in zip(refs, starts, strict=True) if ref.serial in known]
    if sum(bool(field.axes([dim])) for field, _ in parts) > 1:
        raise Lost("maps are concatenated along a spatial axis")
    rules = [(field, partial(window, kernel=1, padding=start)) for field, start in parts]
    return [join([field.with_dim(dim, field.moved(dim, shape[dim], rule)) for field, rule in rules], shape)]


def _pixel_shuffle(record: OpRecord, known: Known) -> list[Field]:
    old, new = record.args["self"].shape, record.outputs[0].shape
    down: int | None = record.args.get("downscale_factor")
    way = Resampling("nearest") if down is None else Steps(down, down)
    last = len(new) - 1
    effect = Effect((*range(last - 2), None, last - 1, last), {last - 1: way, last: way})
    return [_after(_of(record, known), old, effect, new)]


_GROUPS: dict[str, Rule] = {
    # The same positions; of a normalisation the first output, its statistics held constant.
    "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training native_group_norm native_layer_norm _fused_rms_norm channel_shuffle "
    "native_channel_shuffle": _first,
    "copy expand": _broadcast,
    "view _unsafe_view _reshape_alias": _view,
    "convolution": _convolution,
    "im2col": _im2col,
    **{name: partial(_product, letters) for name, letters in PRODUCTS.items()},
    " ".join(FUSED_ATTENTION): partial(_product, ATTENTION),
    "stack": _stack,
    "cat": _cat,
    "pixel_shuffle pixel_unshuffle": _pixel_shuffle,
}
RULES = {f"aten.{name}": rule for names, rule in _GROUPS.items() for name in names.split()}
RULES |= {"flex_attention": partial(_product, ATTENTION)}
"""The operators that do more to positions than moving axes."""
