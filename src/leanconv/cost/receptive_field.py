"""Receptive field: how many input positions along each axis can reach one position of the last feature map.

Every tensor of the recording carries, for each of its axes, which input axis it goes along and what each index sees
there (`lattice`), and the input axes of which every element sees everything (after global pooling, a linear layer over
positions, or attention). Rules are about ATen operators (`field_rules`); a reshape keeps the factors of an axis apart
(`field`), so flattening, shuffles, patches and windows are followed too.

Conventions. The field is the theoretical one, far from the borders, and may exceed the input. Statistics of
normalisations count as constants. A reshape that cuts an axis into blocks counts every block as seen whole. An operator
without a rule ends the bookkeeping for its output, and the result says so instead of guessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from leanconv.cost.field import Factor, Field, Walk, blank, join, merged, plain
from leanconv.cost.field_rules import fields_after
from leanconv.cost.lattice import Lost, identity, transposed
from leanconv.cost.records import OpRecord, Origin, Recording, TensorRef
from leanconv.dryrun.axes import first_place

__all__ = ["ReceptiveField", "receptive_field"]


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """`size` in input positions per spatial axis, or None when there is no such number; `note` says of what, or why."""

    size: tuple[int, ...] | None
    note: str


def receptive_field(recording: Recording) -> ReceptiveField:
    """The receptive field of the network's output map or, when the output is no map, of the last map before it.

    The last map is the last tensor that still has all spatial axes; in a classifier it enters the global pooling or the
    first linear layer. Of several output maps the widest counts. Of several inputs it is the field in the first.
    """
    found = _field_in(recording, recording.inputs[0])
    return found if len(recording.inputs) == 1 else replace(found, note=f"{found.note}; in the first input")


def _field_in(recording: Recording, image: TensorRef) -> ReceptiveField:
    rank = len(image.shape) - 2
    if rank < 1:
        return ReceptiveField(None, "the input has no spatial axis")
    dims = tuple((Factor(n, Walk(i - 2, identity())),) if i >= 2 else plain(n) for i, n in enumerate(image.shape))
    book = _Book({image.serial: Field(dims)}, frozenset(range(rank)))
    last: list[tuple[Field, str]] = []
    for record in recording.records:
        for output, field in book.enter(record):
            if _is_map(field, book.everything) and output.floating:
                last = [(field, f"the output of {record.path or 'the network'}, shape {output.shape}")]
    seen = [(ref, book.fields[ref.serial]) for ref in recording.outputs if ref.serial in book.fields]
    maps = [(f, f"the network's output, shape {ref.shape}") for ref, f in seen if _is_map(f, book.everything)]
    lost = next((field for _, field in seen if field.lost), None)
    if not maps and lost is not None:
        return ReceptiveField(None, f"not known: {lost.why}")
    found = [_widest(field, note, rank) for field, note in maps or last]
    if not found:
        return ReceptiveField(None, "no operator keeps the spatial axes of the input")
    return max(found, key=lambda one: prod(one.size) if one.size else float("inf"))


def _is_map(field: Field, everything: frozenset[int]) -> bool:
    """Whether a tensor still has positions along all axes, be it after a layer that mixes those of some axes."""
    axes = field.axes()
    mixed = bool(axes) and axes | field.whole == everything and len(field.dims) == len(everything) + 2
    return axes == everything or mixed


def _widest(field: Field, note: str, rank: int) -> ReceptiveField:
    if field.lost:
        return ReceptiveField(None, f"not known: {field.why}")
    if field.whole:
        return ReceptiveField(None, f"every position sees the whole input: {field.why}")
    size = [0] * rank
    for walk in (factor.walk for dim in field.dims for factor in dim if factor.walk is not None):
        size[walk.axis] = max(size[walk.axis], walk.lattice.extent)
    return ReceptiveField(tuple(size), note)


class _Book:
    """The field of every tensor so far, and who is a slice of whom (for writes through a slice)."""

    def __init__(self, fields: dict[int, Field], everything: frozenset[int]) -> None:
        self.fields = fields
        self.everything = everything
        self._sharing: dict[int, dict[int, TensorRef]] = {}
        self._slices: dict[int, tuple[TensorRef, int, int, int]] = {}

    def enter(self, record: OpRecord) -> list[tuple[TensorRef, Field]]:
        """Work out the fields of a record's outputs."""
        for ref in (*record.inputs, *record.outputs):
            self._sharing.setdefault(ref.storage, {})[ref.serial] = ref
        if record.name == "aten.slice":
            base, dim = record.args["self"], record.args["dim"]
            start = first_place(record.args["start"], base.shape[dim])
            self._slices[record.outputs[0].serial] = (base, dim % len(base.shape), start, record.args["step"])
        known = {ref.serial: self.fields[ref.serial] for ref in record.inputs if ref.serial in self.fields}
        if not known or all(ref.origin is not Origin.IMAGE for ref in record.outputs):
            return []
        made: list[tuple[TensorRef, Field]] = []
        for ref, field in zip(record.outputs, self._fields(record, known), strict=True):
            changed = self.fields.get(ref.serial) != field
            self.fields[ref.serial] = field
            made.append((ref, field))
            if changed and any(ref.storage == written.storage for written in record.writes):
                self._write_through(ref, field)
        return made

    def _fields(self, record: OpRecord, known: dict[int, Field]) -> list[Field]:
        place = f"{record.name} in {record.path}" if record.path else record.name
        if not any(field.axes() for field in known.values()):  # no positions left to follow
            return [merged(blank(ref.shape), list(known.values())) for ref in record.outputs]
        try:
            fields = fields_after(record, known)
        except Lost as reason:
            fields, why = [], f"{place} ({reason})"
        else:  # of operators with side results, such as statistics, the rule speaks for the first
            fields, why = [f if f.why or not f.whole else replace(f, why=f"through {place}") for f in fields], place
        return fields + [self._lost(ref.shape, why) for ref in record.outputs[len(fields) :]]

    def _lost(self, shape: Sequence[int], why: str) -> Field:
        return Field(blank(shape), self.everything, f"the bookkeeping ends at {why}", lost=True)

    def _write_through(self, ref: TensorRef, field: Field) -> None:
        """After an in-place write: whoever shares the memory sees it too."""
        reached = {ref.serial}
        while ref.serial in self._slices:
            base, dim, start, step = self._slices[ref.serial]
            if field.axes([dim]) and 2 * ref.shape[dim] * step < base.shape[dim]:
                return  # a border patch, as in circular padding: borders are ignored
            try:
                field = _placed(field, base.shape, dim, start, step)
                if base.serial in self.fields:
                    field = join([field, self.fields[base.serial]], base.shape)
            except Lost as reason:
                field = self._lost(base.shape, f"an in-place write ({reason})")
            self.fields[base.serial] = field
            reached.add(base.serial)
            ref = base
        for serial, other in self._sharing[ref.storage].items():
            if serial not in reached and serial in self.fields:
                self.fields[serial] = self._lost(other.shape, "an in-place write through a view")


def _placed(field: Field, shape: Sequence[int], dim: int, start: int, step: int) -> Field:
    """The field of a base of `shape` into which `field` was written at start::step of `dim`."""
    rule = partial(transposed, kernel=1, stride=step, padding=-start)
    return field.with_dim(dim, field.moved(dim, shape[dim], rule))
