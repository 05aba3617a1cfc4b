"""A program laid out for the vectors of one machine: the plan that the library runs, and its weights in reading order.

A plan is 64-bit integers, records of fixed fields (`native/plan.h`, in the same order) that name positions of tables
and of other records. Every decision is taken here: tiles, bands, places. The library only obeys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from leanconv.kernels.bands import Scratch, scratch_of
from leanconv.kernels.blocks import in_blocks
from leanconv.kernels.clips import clip_scratch, packed_clip
from leanconv.kernels.layout import LINE, Geometry, Places, geometries, needed, places, size_of
from leanconv.kernels.plans import MOST_NUMBER, PLAN_VERSION, Packed, Port, Writer
from leanconv.kernels.program import (
    NOTHING,
    ZERO,
    Activation,
    ClipConv,
    Conv,
    Floats,
    Pool,
    Product,
    Program,
    Repeat,
    Spread,
    Stage,
    Step,
    Sums,
    Volume,
    Window,
    Wire,
)
from leanconv.kernels.stages import CURVES, Inputs, Outputs, Plane, packed_stage
from leanconv.kernels.sums import pack_sums
from leanconv.kernels.volumes import fields as volume_fields
from leanconv.kernels.volumes import scratch_of as volume_scratch_of
from leanconv.kernels.windows import fields as window_fields
from leanconv.kernels.windows import line_of
from leanconv.kernels.winograd import Winograd

__all__ = ["PLAN_VERSION", "Packed", "pack"]

_CONV, _POOL, _SPREAD, _SUMS, _VOLUME, _WINDOW = range(6)
_CLIP, _REPEAT, _PRODUCT = 8, 9, 12


def pack(program: Program, *, lanes: int, registers: int, winograd: Winograd = "here") -> Packed:
    """Lay `program` out for vectors of at most `lanes` floats and so many registers.

    Where `winograd` is "never" every weight of the plan is one of the program, and where it is "everywhere" all vectors
    take the same weights.
    """
    dense = in_blocks(program, lanes, registers, winograd=winograd)
    return dense if dense is not None else _Packer(program, lanes, registers).packed()


def _passes(step: Conv) -> bool:
    """Whether pixels only go from one place to another; zeros alone have no size of their own."""
    if step.stages or step.residual is not None or step.activation != NOTHING:
        return False
    return any(step.reads[slot] != ZERO for slot in step.order)


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
        beside = [one.floats for one in self.scratch.values()]
        for step in program.steps:
            if isinstance(step, Volume):
                beside.append(volume_scratch_of(*self._volume_sizes(step), lanes).floats)
            elif isinstance(step, ClipConv):
                beside.append(clip_scratch(step, size_of(program, step.reads), lanes).floats)
            elif isinstance(step, Window):
                beside.append(line_of(step, size_of(program, step.reads)).floats)
        floats = max(beside, default=0)
        self.places: Places = places(program, self.geometry, max(planes), floats)
        self.sums = 0
        self.summed: list[NDArray[np.int64]] = []

    def packed(self) -> Packed:
        program = self.program
        inputs = [self._port(tuple(Wire(n, c) for c in range(program.buffers[n].channels))) for n in program.inputs]
        outputs = [self._port(wires) for wires in program.outputs]
        steps = sum(step.kernel[1] if isinstance(step, Sums) and step.kernel[1] != 3 else 1 for step in program.steps)
        self.plan = Writer(len(inputs) + len(outputs), steps)
        records = [record for step in program.steps for record in self._records(step)]
        summed = tuple(self.summed)
        return self.plan.packed(
            self.lanes, inputs, outputs, records, self.places.floats, self.places.own, self.sums, summed
        )

    # ------------------------------------------------------------------------------------------------------- pieces

    def _table(self, numbers: Iterable[int]) -> int:
        return self.plan.table(numbers)

    def _floats(self, values: Floats) -> int:
        return self.plan.floats(values)

    def _port(self, wires: tuple[Wire, ...]) -> Port:
        height, width = size_of(self.program, wires)
        return Port(height, width, self.geometry[height, width].pitch, [self._origin(wire) for wire in wires])

    def _of(self, wires: tuple[Wire, ...]) -> Geometry:
        return self.geometry[size_of(self.program, wires)]

    def _to(self, number: int) -> Geometry:
        buffer = self.program.buffers[number]
        return self.geometry[buffer.height, buffer.width]

    def _origin(self, wire: Wire) -> int:
        if wire == ZERO:
            return self.places.zeros
        return self.places.origins[wire.buffer] + wire.channel * self._to(wire.buffer).plane

    def _scratch(self, step: Conv) -> Scratch:
        out, width, pitch = (
            self.program.buffers[step.writes],
            size_of(self.program, step.reads)[1],
            self._of(step.reads).pitch,
        )
        return scratch_of(step, width, pitch, out, self._to(step.writes), self.lanes)

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
        if isinstance(step, Window):
            return [self._window(step)]
        if isinstance(step, Product):
            return [self._product(step)]
        if isinstance(step, Repeat):
            return [self._repeat(step)]
        if isinstance(step, ClipConv):
            return [self._clip(step)]
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

    def _repeat(self, step: Repeat) -> int:
        kept, (count, into, out) = self._kept(step)
        added, made = -1, self.program.buffers[step.writes]
        if step.residual is not None:
            added = self._table(self._origin(step.residual[channel]) for channel in kept)
        fields = [_REPEAT, count, into, out, added, made.height, made.width]
        return self._table([*fields, self._of(step.reads).pitch, self._to(step.writes).pitch, *step.times])

    def _product(self, step: Product) -> int:
        kept, (count, into, out) = self._kept(step)
        by = self._table(self._origin(step.by[channel]) for channel in kept)
        residual = step.residual
        added = -1 if residual is None else self._table(self._origin(residual[channel]) for channel in kept)
        geometry, made = self._to(step.writes), self.program.buffers[step.writes]
        # Rows that follow each other without a gap are one.
        rows, width = (1, made.height * geometry.pitch) if geometry.flat else (made.height, made.width)
        by_row = geometry.pitch if size_of(self.program, step.by) == made[1:] else 0
        bounds = self._floats(np.array([step.activation.low, step.activation.high], dtype=np.float32))
        fields = [_PRODUCT, geometry.lanes, count, into, by, out, added, rows, width, geometry.pitch, by_row]
        macs = min(count * made.height * made.width, MOST_NUMBER)
        return self._table([*fields, by_row > 0, bounds, CURVES.index(step.activation.curve), macs])

    def _kept(self, step: Pool | Product | Repeat | Volume | Window) -> tuple[list[int], tuple[int, int, int]]:
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
            CURVES.index(step.activation.curve),
        )
        return self._table([_VOLUME, *found])

    def _window(self, step: Window) -> int:
        (_, tables), size, at = self._kept(step), size_of(self.program, step.reads), (0, 0)
        if not step.largest:
            frames, rows, columns = step.factors(size)
            spare = np.zeros(-len(columns) % LINE, dtype=np.float32)
            at = (self._floats(np.concatenate([columns, spare])), self._floats(np.concatenate([frames, rows])))
        geometries = self._of(step.reads), self._to(step.writes)
        found = window_fields(step, size, geometries, self.lanes, self.places.scratch, tables, at)
        return self._table([_WINDOW, *found])

    def _clip(self, step: ClipConv) -> int:
        found = packed_clip(
            *(step, size_of(self.program, step.reads), (self._of(step.reads), self._to(step.writes)), self.lanes),
            *(self.registers, self.places.scratch, [self._origin(wire) for wire in step.reads]),
            lambda channel: self._origin(Wire(step.writes, channel)),
            *(self.needed[step.writes], self._table, self._floats),
        )
        return self._table([_CLIP, *found])

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
        macs = sum(stage.weight.size for stage in step.stages) * out.height * out.width
        record = [_CONV, rows, out.width, scratch.band, geometry.row if geometry.flat else 0, len(stages)]
        record += [scratch.grain, min(macs, MOST_NUMBER)]
        return self._table([*record, *(number for stage in stages for number in stage)])

    def _sorting(self, step: Conv, read: Sequence[Wire]) -> int:
        """What sorts the channels of some groups just before their tiles read them: from the first cache then."""
        found, geometry = self.scratch[step.writes].sorted, self._to(step.writes)
        if found is None:
            return -1
        table = self._table(self._origin(wire) for wire in read)
        parts = self._table(number for part in found.parts for number in part)
        in_row = step.first.stride[0] * self._of(step.reads).row
        fields = [geometry.lanes, len(read), table, self.places.scratch, found.plane, in_row, step.first.stride[1]]
        fields += [found.wanted, found.length, found.before, found.count, geometry.flat, len(found.parts), parts]
        return self._table(fields)

    def _first(self, step: Conv, scratch: Scratch, targets: dict[int, list[int]]) -> list[int]:
        stage, found = step.first, scratch.sorted
        live = [wire != ZERO for wire in step.reads]
        if found is not None:
            base, in_row, rstep, rows, columns = self.places.scratch, 0, found.rstep, found.rows, found.columns
            origins = []
            for slot in range(len(live)):  # groups that are sorted together have the scratch for themselves
                first = slot // scratch.sorted_channels * scratch.sorted_channels
                origins.append(sum(live[first:slot]) * found.plane)
        else:
            base, pitch = 0, self._of(step.reads).row
            in_row = rstep = stage.stride[0] * pitch
            rows = [(tap * stage.dilation[0] - stage.padding[0]) * pitch for tap in range(stage.kernel[0])]
            columns = [tap * stage.dilation[1] - stage.padding[1] for tap in range(stage.kernel[1])]
            origins = [0 if wire == ZERO else self._origin(wire) for wire in step.reads]
        together = scratch.sorted_channels
        inputs = Inputs(together, base, in_row, rstep, rows, columns, origins, live, self.places.zeros - base)
        if len(step.stages) == 2:
            middle = self.places.scratch + scratch.sorted_floats
            used = {slot: [slot] for slot in sorted(set(step.between) - {-1})}
            place = Outputs(used, middle, lambda slot: slot * scratch.middle_plane, 0, scratch.middle_pitch)
            return self._stage(step, stage, inputs, place, step.inner, None)
        return self._stage(step, stage, inputs, self._last(step, targets), step.activation, step.residual)

    def _second(self, step: Conv, scratch: Scratch, targets: dict[int, list[int]]) -> list[int]:
        middle = self.places.scratch + scratch.sorted_floats
        origins = [slot * scratch.middle_plane for slot in step.between]
        live = [slot >= 0 for slot in step.between]
        pitch = scratch.middle_pitch
        inputs = Inputs(0, middle, 0, pitch, [0], [0], origins, live, self.places.zeros - middle)
        return self._stage(step, step.stages[1], inputs, self._last(step, targets), step.activation, step.residual)

    def _last(self, step: Conv, targets: dict[int, list[int]]) -> Outputs:
        pitch = self._to(step.writes).row
        return Outputs(targets, 0, lambda channel: self._origin(Wire(step.writes, channel)), pitch, pitch)

    def _stage(
        self,
        step: Conv,
        stage: Stage,
        inputs: Inputs,
        outputs: Outputs,
        activation: Activation,
        residual: tuple[Wire, ...] | None,
    ) -> list[int]:
        scratch = self.scratch[step.writes]
        ends = (scratch.ends or ()) if inputs.together else ()
        width, geometry = self.program.buffers[step.writes].width, self._to(step.writes)
        return packed_stage(
            *(stage, inputs, outputs, Plane(width, scratch.band, geometry, self.registers, ends), activation),
            added=None if residual is None else lambda channel: self._origin(residual[channel]),
            sorting=lambda slots: self._sorting(step, [step.reads[slot] for slot in slots]),
            table=self._table,
            floats=self._floats,
        )
