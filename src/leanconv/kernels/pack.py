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

from leanconv.kernels.layout import Geometry, Places, geometries, lanes_for, odd_lines, places, size_of, up
from leanconv.kernels.program import ZERO, Activation, Conv, Floats, Pool, Program, Stage, Wire
from leanconv.kernels.tiles import FLAT, FLAT_ROUND, parts, tile

__all__ = ["PLAN_VERSION", "Packed", "pack"]

PLAN_VERSION = 1
_CONV, _POOL = range(2)
_CURVES = ("none", "silu", "hardswish")
_BAND_PIXELS = 128
"""A band has at least so many pixels: fewer, and the beginnings and ends of tiles take over."""
_SLAB_FLOATS = 3072
"""What a single stage reads of a band for one tile: a fraction of the first cache."""
_MIDDLE_FLOATS = 48 * 1024
"""The band between two stages stays within the second cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """What the library is given; `floats` is the size of the arena, `stamp` tells plans apart."""

    plan: NDArray[np.int64]
    weights: Floats
    floats: int
    stamp: int


def pack(program: Program, *, lanes: int, registers: int) -> Packed:
    """Lay `program` out for vectors of at most `lanes` floats and so many registers."""
    return _Packer(program, lanes, registers).packed()


@dataclass(slots=True)
class _Scratch:
    """Positions within the scratch of a step: columns sorted by phase, then what stands between two stages."""

    band: int
    split_pitch: int = 0
    split_plane: int = 0
    split_length: int = 0
    sources: tuple[Wire, ...] = ()
    middle_pitch: int = 0
    middle_plane: int = 0
    middle_channels: int = 0

    @property
    def split_floats(self) -> int:
        return self.split_plane * len(self.sources)

    @property
    def floats(self) -> int:
        return self.split_floats + self.middle_plane * self.middle_channels


class _Packer:
    def __init__(self, program: Program, lanes: int, registers: int) -> None:
        self.program, self.lanes, self.registers = program, lanes, registers
        self.needed = _needed(program)
        self.geometry = geometries(program, lanes)
        self.scratch = {
            index: self._scratch(step) for index, step in enumerate(program.steps) if isinstance(step, Conv)
        }
        planes = [geometry.plane + geometry.lead for geometry in self.geometry.values()]
        planes += [max(one.split_plane, one.middle_plane) for one in self.scratch.values()]
        floats = max((one.floats for one in self.scratch.values()), default=0)
        self.places: Places = places(program, self.geometry, max(planes), floats)
        self.numbers: list[int] = []
        self.weights: list[Floats] = []
        self.weight_floats = 0

    def packed(self) -> Packed:
        program = self.program
        ports = [tuple(Wire(number, c) for c in range(program.buffers[number].channels)) for number in program.inputs]
        ports += list(program.outputs)
        head = 6 + 5 * len(ports) + len(program.steps)
        self.numbers = [0] * head
        records = [
            self._conv(index, step) if isinstance(step, Conv) else self._pool(step)
            for index, step in enumerate(program.steps)
        ]
        fields: list[int] = []
        for wires in ports:
            height, width = size_of(program, wires)
            fields += [len(wires), height, width, self.geometry[height, width].pitch]
            fields.append(self._table(self._origin(wire) for wire in wires))
        floats = self.places.floats
        weights = np.concatenate([*self.weights, np.zeros(16, np.float32)])
        counts = [len(program.inputs), len(program.outputs), len(program.steps)]
        self.numbers[:head] = [PLAN_VERSION, 0, floats, *counts, *fields, *records]
        plan = np.array(self.numbers, dtype=np.int64)
        stamp = int.from_bytes(hashlib.sha256(plan.tobytes()).digest()[:7], "little") + 1
        plan[1] = stamp
        return Packed(plan, weights, floats, stamp)

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
        out = self.program.buffers[step.writes]
        found = _Scratch(band=self._band(step))
        lanes, stage = lanes_for(out.width, self.lanes), step.first
        if stage.stride[1] > 1:
            count = out.width + (stage.kernel[1] - 1) * stage.dilation[1] // stage.stride[1]
            found.split_length = up(count, lanes)
            found.split_pitch = found.split_length * stage.stride[1]
            rows = found.band if stage.kernel[0] == 1 else (found.band - 1) * stage.stride[0] + _span(stage)
            found.split_plane = odd_lines(rows * found.split_pitch)
            found.sources = tuple(dict.fromkeys(wire for wire in step.reads if wire != ZERO))
        if len(step.stages) == 2:
            found.middle_pitch = up(out.width, lanes)
            found.middle_plane = odd_lines(found.band * found.middle_pitch)
            found.middle_channels = len(stage.weight)
        return found

    def _band(self, step: Conv) -> int:
        out = self.program.buffers[step.writes]
        band = 4
        while band * out.width < _BAND_PIXELS and band < out.height:
            band += 4
        if len(step.stages) == 2:
            while band > 1 and len(step.stages[0].weight) * band * out.width > _MIDDLE_FLOATS:
                band //= 2
        else:
            while band > 2 and step.first.weight.shape[1] * band * out.width > _SLAB_FLOATS:
                band //= 2
        return min(band, out.height)

    # -------------------------------------------------------------------------------------------------------- steps

    def _pool(self, step: Pool) -> int:
        height, width = size_of(self.program, step.reads)
        kept = [channel for channel in range(len(step.reads)) if channel in self.needed[step.writes]]
        into = self._table(self._origin(step.reads[channel]) for channel in kept)
        out = self._table(self._origin(Wire(step.writes, channel)) for channel in kept)
        pitch, lanes = self._of(step.reads).pitch, lanes_for(width, self.lanes)
        return self._table([_POOL, lanes, len(kept), height, width, pitch, into, out])

    def _conv(self, index: int, step: Conv) -> int:
        out, scratch = self.program.buffers[step.writes], self.scratch[index]
        split = self._split(step, scratch) if scratch.sources else -1
        targets: dict[int, list[int]] = {}  # output of the last stage -> channels of the buffer
        for channel, slot in enumerate(step.order):
            if channel in self.needed[step.writes]:
                targets.setdefault(slot, []).append(channel)
        stages = [self._first(step, scratch, targets)]
        if len(step.stages) == 2:
            stages.append(self._second(step, scratch, targets))
        record = [_CONV, out.height, out.width, scratch.band, split, len(stages)]
        return self._table([*record, *(number for stage in stages for number in stage)])

    def _split(self, step: Conv, scratch: _Scratch) -> int:
        stage, source, out = step.first, self._of(step.reads), self.program.buffers[step.writes]
        corner = -stage.padding[0] * source.pitch - stage.padding[1]
        table = self._table(self._origin(wire) + corner for wire in scratch.sources)
        phases = {tap * stage.dilation[1] % stage.stride[1] for tap in range(stage.kernel[1])}
        count = out.width + (stage.kernel[1] - 1) * stage.dilation[1] // stage.stride[1]
        lanes = lanes_for(out.width, self.lanes)
        fields = [lanes, len(scratch.sources), table, self.places.scratch, scratch.split_plane, scratch.split_pitch]
        fields += [scratch.split_length, count, stage.stride[1], sum(1 << phase for phase in phases)]
        row_step = stage.stride[0] if stage.kernel[0] == 1 else 1
        return self._table([*fields, source.pitch, stage.stride[0], row_step, _span(stage)])

    def _first(self, step: Conv, scratch: _Scratch, targets: dict[int, list[int]]) -> list[int]:
        stage = step.first
        (sy, sx), (dy, dx), (py, px) = stage.stride, stage.dilation, stage.padding
        if scratch.sources:
            at = {wire: number * scratch.split_plane for number, wire in enumerate(scratch.sources)}
            base, in_row, pitch = self.places.scratch, 0, scratch.split_pitch
            rstep = pitch * (1 if stage.kernel[0] == 1 else sy)
            columns = [tap * dx % sx * scratch.split_length + tap * dx // sx for tap in range(stage.kernel[1])]
            origins = [self.places.zeros - base if wire == ZERO else at[wire] for wire in step.reads]
        else:
            base, pitch = 0, self._of(step.reads).pitch
            in_row = rstep = sy * pitch
            columns = [tap * dx - px for tap in range(stage.kernel[1])]
            origins = [self._origin(wire) - py * pitch for wire in step.reads]
        origins = [0 if wire == ZERO else origin for wire, origin in zip(step.reads, origins, strict=True)]
        live = [wire != ZERO for wire in step.reads]
        inputs = _Inputs(base, in_row, rstep, dy * pitch, columns, origins, live, self.places.zeros - base)
        if len(step.stages) == 2:
            middle = self.places.scratch + scratch.split_floats
            used = {slot: [slot] for slot in sorted(set(step.between) - {-1})}
            place = _Outputs(used, lambda slot: middle + slot * scratch.middle_plane, 0, scratch.middle_pitch)
            return self._stage(step, stage, inputs, place, step.inner, None)
        return self._stage(step, stage, inputs, self._last(step, targets), step.activation, step.residual)

    def _second(self, step: Conv, scratch: _Scratch, targets: dict[int, list[int]]) -> list[int]:
        middle = self.places.scratch + scratch.split_floats
        origins = [middle + slot * scratch.middle_plane for slot in step.between]
        live = [slot >= 0 for slot in step.between]
        pitch = scratch.middle_pitch
        inputs = _Inputs(0, 0, pitch, pitch, [0], origins, live, self.places.zeros)
        return self._stage(step, step.stages[1], inputs, self._last(step, targets), step.activation, step.residual)

    def _last(self, step: Conv, targets: dict[int, list[int]]) -> _Outputs:
        pitch = self._to(step.writes).pitch
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
        width = self.program.buffers[step.writes].width
        lanes = lanes_for(width, self.lanes)
        three = stage.kernel == (3, 3)
        shares = three and inputs.rstep == inputs.kstep and stage.dilation[1] == stage.stride[1] == 1
        group_in, group_out = stage.weight.shape[1], len(stage.weight) // stage.groups
        fields: list[int] = []
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
            for part in parts(len(wanted)) if wanted else ():
                chosen = [wanted[index] for index in part]
                shape = tile(len(chosen), width, lanes, registers=self.registers, shares_rows=shares, three=three)
                kernel = stage.weight[[slot for slot, _ in chosen]][:, [inner for _, inner in read]]
                table, taps = inputs.slots([slot for slot, _ in read], kernel, flat=shape.kind == FLAT)
                fields += [shape.kind, len(chosen), shape.rows, shape.vectors, self._table(table), len(table)]
                fields += [self._floats(taps), self._floats(stage.bias[[slot for slot, _ in chosen]])]
                fields.append(self._table(outputs.place(channel) for _, channel in chosen))
                added = None if residual is None else [self._origin(residual[channel]) for _, channel in chosen]
                fields.append(-1 if added is None else self._table(added))
                count += 1
        bounds = self._floats(np.array([activation.low, activation.high], dtype=np.float32))
        columns = [*inputs.columns, 0, 0][:3]
        return [
            *(lanes, inputs.base, inputs.in_row, inputs.rstep, inputs.kstep, *columns),
            *(outputs.row, outputs.pitch, bounds, _CURVES.index(activation.curve), count, self._table(fields)),
        ]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Where a stage reads: row and column steps, and for each slot its origin and whether it holds anything."""

    base: int
    in_row: int
    rstep: int
    kstep: int
    columns: list[int]
    origins: list[int]
    live: list[bool]
    zeros: int

    def slots(self, read: Sequence[int], kernel: Floats, *, flat: bool) -> tuple[list[int], Floats]:
        """The table of slots, and the weights of one tile, (C_out, C_in, k_h, k_w), in the order in which it reads."""
        ordered = kernel.transpose(1, 2, 3, 0)  # channel, tap, output
        if not flat:
            return [self.origins[slot] for slot in read], ordered
        rows, columns = kernel.shape[2], kernel.shape[3]
        taps = [row * self.kstep + self.columns[column] for row in range(rows) for column in range(columns)]
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


def _span(stage: Stage) -> int:
    return (stage.kernel[0] - 1) * stage.dilation[0] + 1


def _needed(program: Program) -> dict[int, set[int]]:
    """The channels of each buffer that somebody reads."""
    found: dict[int, set[int]] = {number: set() for number in range(-1, len(program.buffers))}
    wires = [wire for output in program.outputs for wire in output]
    for step in program.steps:
        wires += [*step.reads, *((step.residual or ()) if isinstance(step, Conv) else ())]
    for wire in wires:
        found[wire.buffer].add(wire.channel)
    return found
