"""A program laid out for the vectors of one machine: the plan that the library runs, and its weights in reading order.

A plan is 64-bit integers, records of fixed fields (`native/plan.h`, in the same order) that name positions of tables
and of other records. Every decision is taken here: tiles, bands, places. The library only obeys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanconv.kernels.layout import LINE, Geometry, Places, geometries, needed, odd_lines, places, size_of, up
from leanconv.kernels.program import (
    NOTHING,
    ZERO,
    Activation,
    Conv,
    Floats,
    Pool,
    Program,
    Spread,
    Stage,
    Step,
    Sums,
    Volume,
    Wire,
)
from leanconv.kernels.sort import Sorted, ends_of, sorted_columns, sorted_flat
from leanconv.kernels.sums import pack_sums
from leanconv.kernels.tiles import FLAT, FLAT_ROUND, THREE, flat_tile, parts, tile
from leanconv.kernels.volumes import fields as volume_fields
from leanconv.kernels.volumes import scratch_of

__all__ = ["PLAN_VERSION", "Packed", "pack"]

PLAN_VERSION = 4
_CONV, _POOL, _SPREAD, _SUMS, _VOLUME = range(5)
_CURVES = ("none", "silu", "hardswish")
_BAND_PIXELS = 1024
"""A band has at least so many pixels where there is room: the beginnings and ends of tiles and of rows cost."""
_SLAB_FLOATS = {16: 12288, 8: 3072, 4: 3072}
"""What a single stage reads of a band for one tile, by lanes: a fraction of the first cache, which grew with them."""
_TIGHT_FLOATS = {16: 32768, 8: 6144, 4: 6144}
"""The same of tight maps, whose bands are of whole tiles of `_TIGHT_VECTORS` at least."""
_TIGHT_VECTORS = 4
_MIDDLE_FLOATS = 96 * 1024
"""The band between two stages stays within the second cache."""
_SORTED_FLOATS = 4608
"""What is sorted for one tile and then forgotten stays in the first cache, with what it is sorted from."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """What the library is given; `floats` is the size of the arena, `stamp` tells plans apart.

    A run leaves so many `sums`; `summed` says for each `Sums` step which of them its numbers are (-1: always zero).
    """

    plan: NDArray[np.int64]
    weights: Floats
    floats: int
    stamp: int
    sums: int = 0
    summed: tuple[NDArray[np.int64], ...] = ()


def pack(program: Program, *, lanes: int, registers: int) -> Packed:
    """Lay `program` out for vectors of at most `lanes` floats and so many registers."""
    return _Packer(program, lanes, registers).packed()


@dataclass(slots=True)
class _Scratch:
    """Positions within the scratch of a step: columns sorted by phase, then what stands between two stages."""

    band: int
    sorted: Sorted | None = None
    sorted_channels: int = 0
    ends: tuple[int, ...] | None = ()
    middle_pitch: int = 0
    middle_plane: int = 0
    middle_channels: int = 0

    @property
    def sorted_floats(self) -> int:
        return 0 if self.sorted is None else self.sorted.plane * self.sorted_channels

    @property
    def floats(self) -> int:
        return self.sorted_floats + self.middle_plane * self.middle_channels


def _passes(step: Conv) -> bool:
    """Whether pixels only go from one place to another."""
    return not step.stages and step.residual is None and step.activation == NOTHING


def _passing(step: Conv) -> Volume:
    """The same of clips of one frame, for which the library has a copy of its own."""
    return Volume(
        reads=tuple(step.reads[slot] for slot in step.order), writes=step.writes, frames=1, stride=(1, *step.strides)
    )


class _Packer:
    def __init__(self, program: Program, lanes: int, registers: int) -> None:
        self.program, self.lanes, self.registers = program, lanes, registers
        self.needed = needed(program)
        self.geometry = geometries(program, lanes)
        self.scratch = {
            step.writes: self._scratch(step) for step in program.steps if isinstance(step, Conv) and not _passes(step)
        }
        planes = [geometry.plane + geometry.lead for geometry in self.geometry.values()]
        planes += [max(one.sorted.plane if one.sorted else 0, one.middle_plane) for one in self.scratch.values()]
        volumes = (scratch_of(*self._volume_sizes(step), lanes) for step in program.steps if isinstance(step, Volume))
        floats = max([0, *(one.floats for one in self.scratch.values()), *(one.floats for one in volumes)])
        self.places: Places = places(program, self.geometry, max(planes), floats)
        self.numbers: list[int] = []
        self.weights: list[Floats] = []
        self.weight_floats = 0
        self.sums = 0
        self.summed: list[NDArray[np.int64]] = []

    def packed(self) -> Packed:
        program = self.program
        ports = [tuple(Wire(number, c) for c in range(program.buffers[number].channels)) for number in program.inputs]
        ports += list(program.outputs)
        steps = sum(step.kernel[1] if isinstance(step, Sums) and step.kernel[1] != 3 else 1 for step in program.steps)
        head = 9 + 5 * len(ports) + steps
        self.numbers = [0] * head
        records = [record for step in program.steps for record in self._records(step)]
        fields: list[int] = []
        for wires in ports:
            height, width = size_of(program, wires)
            fields += [len(wires), height, width, self.geometry[height, width].pitch]
            fields.append(self._table(self._origin(wire) for wire in wires))
        at_sums = up(self.places.floats, LINE)
        floats = at_sums + self.sums * LINE
        weights = np.concatenate([*self.weights, np.zeros(16, np.float32)])
        counts = [len(program.inputs), len(program.outputs), len(records), self.lanes, self.sums, at_sums]
        self.numbers[:head] = [PLAN_VERSION, 0, floats, *counts, *fields, *records]
        plan = np.array(self.numbers, dtype=np.int64)
        stamp = int.from_bytes(hashlib.sha256(plan.tobytes()).digest()[:7], "little") + 1
        plan[1] = stamp
        return Packed(plan, weights, floats, stamp, self.sums, tuple(self.summed))

    # ------------------------------------------------------------------------------------------------------- pieces

    def _table(self, numbers: Iterable[int]) -> int:
        position = len(self.numbers)
        self.numbers += numbers
        return position

    def _floats(self, values: Floats) -> int:
        position = self.weight_floats
        self.weights.append(np.ascontiguousarray(values, dtype=np.float32).ravel())
        self.weight_floats += values.size
        return position

    def _of(self, wires: tuple[Wire, ...]) -> Geometry:
        return self.geometry[size_of(self.program, wires)]

    def _to(self, number: int) -> Geometry:
        buffer = self.program.buffers[number]
        return self.geometry[buffer.height, buffer.width]

    def _origin(self, wire: Wire) -> int:
        if wire == ZERO:
            return self.places.zeros
        return self.places.origins[wire.buffer] + wire.channel * self._to(wire.buffer).plane

    def _scratch(self, step: Conv) -> _Scratch:
        out, geometry, stage = self.program.buffers[step.writes], self._to(step.writes), step.first
        found = _Scratch(band=self._band(step))
        width, pitch = size_of(self.program, step.reads)[1], self._of(step.reads).pitch
        if geometry.flat:
            found.ends = None if pitch != geometry.pitch else ends_of(stage, width, out.width, geometry)
            if found.ends is None:
                found.sorted = sorted_flat(stage, found.band, out.width, width, pitch, geometry)
        elif stage.stride[1] > 1:
            found.sorted = sorted_columns(stage, found.band, out.width, pitch, geometry)
        found.sorted_channels = int(stage.weight.shape[1])
        if len(step.stages) == 2:
            found.middle_pitch = geometry.row if geometry.flat else up(out.width, geometry.lanes)
            found.middle_plane = odd_lines(up(found.band * found.middle_pitch, geometry.lanes))
            found.middle_channels = len(stage.weight)
        return found

    def _band(self, step: Conv) -> int:
        out, geometry = self.program.buffers[step.writes], self._to(step.writes)
        # The last vector of a band must not reach into the next one: what is added there may lie where the sum goes.
        least = max(1, geometry.lanes // geometry.pitch) if geometry.flat else 1
        if geometry.tight:  # in pixels
            least = _TIGHT_VECTORS * geometry.lanes
            most = _MIDDLE_FLOATS if len(step.stages) == 2 else _TIGHT_FLOATS[self.lanes]
            channels = int(max(step.first.weight.shape[1], len(step.first.weight) if len(step.stages) == 2 else 0))
            return min(max(least, most // channels // least * least), out.height * out.width)
        band = max(4, least)
        while band * out.width < _BAND_PIXELS and band < out.height:
            band += max(4, least)
        if len(step.stages) == 2:
            while band > least and len(step.stages[0].weight) * band * out.width > _MIDDLE_FLOATS:
                band //= 2
        else:
            while band > max(2, least) and step.first.weight.shape[1] * band * out.width > _SLAB_FLOATS[self.lanes]:
                band //= 2
        stage = step.first
        tiles = parts(len(stage.weight) // stage.groups)
        if stage.stride[1] > 1 and not geometry.flat and len(tiles) == 1:
            row = 2 * up(out.width, geometry.lanes) * stage.stride[1]
            while band > 4 and stage.weight.shape[1] * band * stage.stride[0] * row > _SORTED_FLOATS:
                band //= 2
        return min(band, out.height)

    # -------------------------------------------------------------------------------------------------------- steps

    def _records(self, step: Step) -> list[int]:
        if isinstance(step, Conv):
            return [self._volume(_passing(step)) if _passes(step) else self._conv(step)]
        if isinstance(step, Pool):
            return [self._pool(step)]
        if isinstance(step, Spread):
            return [self._spread(step)]
        if isinstance(step, Volume):
            return [self._volume(step)]
        size = size_of(self.program, step.reads)
        read, gradient = (
            [None if wire == ZERO else self._origin(wire) for wire in wires] for wires in (step.reads, step.gradient)
        )
        registers = 16 if self._of(step.reads).lanes == 8 else self.registers
        found = pack_sums(step, size, self._of(step.reads), read, gradient, registers, self.sums, self._table)
        self.sums = found.sums
        self.summed.append(found.numbers)
        return [self._table([_SUMS, *record]) for record in found.records]

    def _spread(self, step: Spread) -> int:
        (height, width), out = size_of(self.program, step.reads), self.program.buffers[step.writes]
        into = self._table(self._origin(wire) for wire in step.reads)
        made = self._table(self._origin(Wire(step.writes, channel)) for channel in range(out.channels))
        fields = [_SPREAD, out.channels, height, width, self._of(step.reads).pitch, *step.strides]
        return self._table([*fields, out.height, out.width, self._to(step.writes).pitch, into, made])

    def _kept(self, step: Pool | Volume) -> tuple[list[int], tuple[int, int, int]]:
        """The channels that somebody reads; how many they are, and tables of what each is made of and where it goes."""
        kept = [channel for channel in range(len(step.reads)) if channel in self.needed[step.writes]]
        into = self._table(self._origin(step.reads[channel]) for channel in kept)
        return kept, (len(kept), into, self._table(self._origin(Wire(step.writes, channel)) for channel in kept))

    def _volume_sizes(self, step: Volume) -> tuple[Volume, tuple[int, int], tuple[int, int, int]]:
        size = size_of(self.program, step.reads)
        return step, size, step.sides(size)

    def _volume(self, step: Volume) -> int:
        kept, tables = self._kept(step)
        at = [0, 0, 0]
        if step.weight is not None and step.bias is not None:
            bounds = np.array([step.activation.low, step.activation.high], dtype=np.float32)
            at = [self._floats(values) for values in (step.weight[kept], step.bias[kept], bounds)]
        found = volume_fields(
            *(step, size_of(self.program, step.reads), (self._of(step.reads), self._to(step.writes)), self.lanes),
            *(self.places.scratch, tables, (at[0], at[1], at[2]), self.registers),
            _CURVES.index(step.activation.curve),
        )
        return self._table([_VOLUME, *found])

    def _pool(self, step: Pool) -> int:
        height, width = size_of(self.program, step.reads)
        _, (count, into, out) = self._kept(step)
        pitch, lanes = self._of(step.reads).pitch, self._of(step.reads).lanes
        return self._table([_POOL, lanes, count, height, width, pitch, into, out])

    def _conv(self, step: Conv) -> int:
        out, scratch = self.program.buffers[step.writes], self.scratch[step.writes]
        targets: dict[int, list[int]] = {}  # output of the last stage -> channels of the buffer
        for channel, slot in enumerate(step.order):
            if channel in self.needed[step.writes]:
                targets.setdefault(slot, []).append(channel)
        stages = [self._first(step, scratch, targets)]
        if len(step.stages) == 2:
            stages.append(self._second(step, scratch, targets))
        geometry = self._to(step.writes)
        rows = out.height * out.width if geometry.tight else out.height
        record = [_CONV, rows, out.width, scratch.band, geometry.row if geometry.flat else 0, len(stages)]
        return self._table([*record, *(number for stage in stages for number in stage)])

    def _sorting(self, step: Conv, read: Sequence[Wire]) -> int:
        """What sorts the channels that a group reads, just before its tiles do: they are in the first cache then."""
        found, geometry = self.scratch[step.writes].sorted, self._to(step.writes)
        if found is None:
            return -1
        table = self._table(self._origin(wire) for wire in read)
        parts = self._table(number for part in found.parts for number in part)
        in_row = step.first.stride[0] * self._of(step.reads).pitch
        fields = [geometry.lanes, len(read), table, self.places.scratch, found.plane, in_row, step.first.stride[1]]
        fields += [found.wanted, found.length, found.before, found.count, geometry.flat, len(found.parts), parts]
        return self._table(fields)

    def _first(self, step: Conv, scratch: _Scratch, targets: dict[int, list[int]]) -> list[int]:
        stage, found = step.first, scratch.sorted
        live = [wire != ZERO for wire in step.reads]
        if found is not None:
            base, in_row, rstep, rows, columns = self.places.scratch, 0, found.rstep, found.rows, found.columns
            origins = []
            for slot in range(len(live)):  # each group has the scratch for itself
                first = slot // stage.weight.shape[1] * stage.weight.shape[1]
                origins.append(sum(live[first:slot]) * found.plane)
        else:
            base, pitch = 0, self._of(step.reads).row
            in_row = rstep = stage.stride[0] * pitch
            rows = [(tap * stage.dilation[0] - stage.padding[0]) * pitch for tap in range(stage.kernel[0])]
            columns = [tap * stage.dilation[1] - stage.padding[1] for tap in range(stage.kernel[1])]
            origins = [0 if wire == ZERO else self._origin(wire) for wire in step.reads]
        inputs = _Inputs(True, base, in_row, rstep, rows, columns, origins, live, self.places.zeros - base)
        if len(step.stages) == 2:
            middle = self.places.scratch + scratch.sorted_floats
            used = {slot: [slot] for slot in sorted(set(step.between) - {-1})}
            place = _Outputs(used, lambda slot: middle + slot * scratch.middle_plane, 0, scratch.middle_pitch)
            return self._stage(step, stage, inputs, place, step.inner, None)
        return self._stage(step, stage, inputs, self._last(step, targets), step.activation, step.residual)

    def _second(self, step: Conv, scratch: _Scratch, targets: dict[int, list[int]]) -> list[int]:
        middle = self.places.scratch + scratch.sorted_floats
        origins = [middle + slot * scratch.middle_plane for slot in step.between]
        live = [slot >= 0 for slot in step.between]
        pitch = scratch.middle_pitch
        inputs = _Inputs(False, 0, 0, pitch, [0], [0], origins, live, self.places.zeros)
        return self._stage(step, step.stages[1], inputs, self._last(step, targets), step.activation, step.residual)

    def _last(self, step: Conv, targets: dict[int, list[int]]) -> _Outputs:
        pitch = self._to(step.writes).row
        return _Outputs(targets, lambda channel: self._origin(Wire(step.writes, channel)), pitch, pitch)

    def _stage(
        self,
        step: Conv,
        stage: Stage,
        inputs: _Inputs,
        outputs: _Outputs,
        activation: Activation,
        residual: tuple[Wire, ...] | None,
    ) -> list[int]:
        width, geometry = self.program.buffers[step.writes].width, self._to(step.writes)
        lanes, band = geometry.lanes, self._band(step)
        three = stage.kernel[1] == 3
        shares = stage.kernel == (3, 3) and stage.dilation == stage.stride == (1, 1)
        ends = (self.scratch[step.writes].ends or ()) if inputs.first else ()
        group_in, group_out = stage.weight.shape[1], len(stage.weight) // stage.groups
        fields: list[int] = []
        shared: tuple[list[int], int] | None = None
        count = 0
        for group in range(stage.groups):
            # A slot of an output stands in the list as often as the buffer has channels of it.
            wanted = [
                (slot, channel)
                for slot in range(group * group_out, (group + 1) * group_out)
                for channel in outputs.targets.get(slot, ())
            ]
            slots = range(group * group_in, (group + 1) * group_in)
            read = [(slot, slot - group * group_in) for slot in slots if inputs.live[slot]]
            sorting = -1
            if inputs.first and wanted and read:
                sorting = self._sorting(step, [step.reads[slot] for slot, _ in read])
            for part in parts(len(wanted)) if wanted else ():
                chosen = [wanted[index] for index in part]
                if geometry.flat:
                    shape = flat_tile(
                        *(len(chosen), up(band * geometry.row, lanes), geometry.row, lanes),
                        registers=self.registers,
                        shares_rows=shares,
                        three=three,
                    )
                else:
                    shape = tile(len(chosen), width, lanes, registers=self.registers, shares_rows=shares, three=three)
                kernel = stage.weight[[slot for slot, _ in chosen]][:, [inner for _, inner in read]]
                table, taps = inputs.slots([slot for slot, _ in read], kernel, shape.kind)
                if shared is None or shared[0] != table:  # neighbouring tiles read by one table
                    shared = table, self._table(table)
                fields += [sorting, shape.kind, bool(ends), len(chosen), shape.rows, shape.vectors]
                fields += [shared[1], len(table), self._floats(taps)]
                fields.append(self._floats(stage.bias[[slot for slot, _ in chosen]]))
                fields.append(self._table(outputs.place(channel) for _, channel in chosen))
                added = None if residual is None else [self._origin(residual[channel]) for _, channel in chosen]
                fields.append(-1 if added is None else self._table(added))
                count, sorting = count + 1, -1
        bounds = self._floats(np.array([activation.low, activation.high], dtype=np.float32))
        kstep = inputs.rows[1] - inputs.rows[0] if len(inputs.rows) > 1 else 0
        return [
            *(lanes, inputs.base, inputs.in_row, inputs.rstep, kstep, *[*inputs.columns, 0, 0][:3], *(ends or (0, 0))),
            *(outputs.row, outputs.pitch, bounds, _CURVES.index(activation.curve), count, self._table(fields)),
        ]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Where a stage reads: where the rows and columns of its taps are, and for each slot its origin.

    `live` says which slots hold anything, `first` whether it is the first stage of its step.
    """

    first: bool
    base: int
    in_row: int
    rstep: int
    rows: list[int]
    columns: list[int]
    origins: list[int]
    live: list[bool]
    zeros: int

    def slots(self, read: Sequence[int], kernel: Floats, kind: int) -> tuple[list[int], Floats]:
        """The table of slots, and the weights of one tile, (C_out, C_in, k_h, k_w), in the order in which it reads."""
        ordered = kernel.transpose(1, 2, 3, 0)  # channel, tap, output
        if kind != FLAT:
            rows = self.rows if kind == THREE else self.rows[:1]
            return [self.origins[slot] + row for slot in read for row in rows], ordered
        taps = [row + column for row in self.rows for column in self.columns]
        table = [self.origins[slot] + tap for slot in read for tap in taps]
        spare = -len(table) % FLAT_ROUND
        table += [self.zeros] * spare
        weights = ordered.reshape(-1, len(kernel))
        return table, np.concatenate([weights, np.zeros((spare, len(kernel)), dtype=np.float32)])


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Where a stage writes: the channels of each output, the place of a channel, floats from row to row."""

    targets: dict[int, list[int]]
    place: Callable[[int], int]
    row: int
    pitch: int
