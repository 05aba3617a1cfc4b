"""From the operators of one forward to numbers: weights, activation bytes, and what is in no count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from leanconv.cost.products import Product, bias_of
from leanconv.cost.records import OpRecord, Origin, TensorRef, aten

__all__ = ["MOVES", "Outside", "activation_bytes", "is_view", "not_counted", "outside", "weights"]

MOVES = aten(
    "empty empty_strided empty_like zeros zeros_like ones ones_like full full_like fill zero arange linspace eye",
    "new_empty new_empty_strided new_zeros new_ones new_full scalar_tensor lift_fresh lift_fresh_copy",
    "clone copy contiguous _to_copy detach view _unsafe_view _reshape_alias cat stack constant_pad_nd flip roll repeat",
    "index_select split_with_sizes_copy pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
)
"""Operators that only make, move or rename numbers: no arithmetic to miss. Views are recognised by sharing memory."""


def weights(products: Iterable[Product], parameters: Mapping[int, int]) -> int:
    """Elements of the kernels that were used, each once however often.

    Only what comes from parameters is a weight: fixed kernels such as a blur, and kernels that the network computes
    from the image, are not.
    """
    kernels = (one.weight for one in products if one.weight is not None)
    return _elements((ref for ref in kernels if ref.parameters and ref.origin is not Origin.IMAGE), parameters)


def _elements(refs: Iterable[TensorRef], parameters: Mapping[int, int]) -> int:
    """The numbers in some weights, shared ones once.

    Weights made of the same parameters (overlapping slices, a kernel and its sum) are together at most as many numbers
    as those; `parameters` has the elements of each.
    """
    used: dict[Hashable, TensorRef] = {}
    for ref in refs:
        if ref.identity not in used or ref.weight_numel > used[ref.identity].weight_numel:
            used[ref.identity] = ref
    return sum(
        min(sum(ref.weight_numel for ref in group), sum(parameters[one] for one in sources))
        for sources, group in _together(used.values())
    )


def _together(refs: Iterable[TensorRef]) -> list[tuple[frozenset[int], list[TensorRef]]]:
    """The weights in groups that share no parameter, each with all its parameters."""
    groups: dict[int, tuple[frozenset[int], list[TensorRef]]] = {}
    for ref in refs:
        sources, mine = ref.parameters, [ref]
        for known, others in {id(groups[one]): groups[one] for one in sources if one in groups}.values():
            sources |= known
            mine += others
        groups.update(dict.fromkeys(sources, (sources, mine)))
    return list({id(group): group for group in groups.values()}.values())


def activation_bytes(record: OpRecord) -> int:
    """Bytes of floating-point memory that `record` newly fills with numbers that depend on the image.

    Views and in-place operators fill none; indices (of max pooling) and computed weights do not count.
    """
    return sum(
        ref.storage_bytes
        for ref, fresh in zip(record.outputs, record.fresh, strict=True)
        if fresh and ref.floating and ref.origin is Origin.IMAGE
    )


def not_counted(records: Sequence[OpRecord], found: Sequence[Sequence[Product]]) -> dict[str, int]:
    """Operators that compute something and are in no `macs`, with how often they ran, the most frequent first."""
    missed: Counter[str] = Counter()
    for record, products in zip(records, found, strict=True):
        if not is_view(record) and record.name not in MOVES and all(one.weight is None for one in products):
            missed[record.name] += 1
    return dict(missed.most_common())


def is_view(record: OpRecord) -> bool:
    """Whether it only looks at memory that is there already."""
    return not record.writes and not any(record.fresh)


class Outside(NamedTuple):
    """Elements of parameters that no convolution or linear layer read: by the operator that read them first, as they
    ran (a slice counts as the slice), and those of parameters that nothing read which works on the input."""

    read: dict[str, int]
    unread: int


def outside(records: Sequence[OpRecord], found: Sequence[Sequence[Product]], parameters: Mapping[int, int]) -> Outside:
    """Where the parameters are that belong to no layer in `macs`; a weight stands for all that it was computed of."""
    counted: set[int] = set()
    reader: dict[int, str] = {}
    seen: dict[tuple[Hashable, int], TensorRef] = {}
    widths: dict[int, int] = {}
    for record, products in zip(records, found, strict=True):
        layers = [one for one in products if one.weight is not None]
        if not layers and not any(ref.active for ref in record.outputs):
            continue
        last = Origin.STATE if layers else Origin.WEIGHT  # a kernel may be computed for each image
        read = [ref for ref in record.inputs if ref.parameters and ref.origin <= last]
        if layers:
            output = record.outputs[0]
            widths[output.storage] = output.shape[1 if "input" in record.args else -1] if output.shape else 1
        if layers or bias_of(record, widths):
            counted.update(*(ref.parameters for ref in read))
            continue
        for ref in read:
            seen[ref.identity, ref.weight_numel] = ref
            for one in ref.parameters:
                reader.setdefault(one, record.name)
    belongs: dict[str, list[TensorRef]] = {}
    for ref in seen.values():
        if left := ref.parameters - counted:
            belongs.setdefault(reader[min(left)], []).append(ref)
    by_operator = Counter({name: _elements(refs, parameters) for name, refs in belongs.items()})
    unread = sum(numel for one, numel in parameters.items() if one not in counted and one not in reader)
    return Outside(dict(by_operator.most_common()), unread)
