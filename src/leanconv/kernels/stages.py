"""One stage of a convolution as its tiles: which outputs each computes, what it reads, its weights in that order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from leanconv.kernels.layout import Geometry, up
from leanconv.kernels.program import Activation, Floats, Stage
from leanconv.kernels.tiles import FLAT, FLAT_ROUND, THREE, flat_tile, parts, tile

__all__ = ["CURVES", "Inputs", "Outputs", "Plane", "packed_stage"]

CURVES = ("none", "silu", "hardswish", "sigmoid", "hardsigmoid")
"""As in native/kernels.h."""
_OWN_IN, _OWN_OUT = 1, 2
"""As in native/plan.h: each thread has a scratch of its own."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where a stage reads: where the rows and columns of its taps are, and for each slot its origin.

    `live` says which slots hold anything; so many slots, of whole groups, are sorted `together`: 0 in a second stage,
    which reads what the first has written. What stands for a spare tap are `zeros`. Slots are in so many `equal` parts,
    `equal_step` floats apart, each of which a tile may be given alone.
    """

    together: int
    base: int
    in_row: int
    rstep: int
    rows: list[int]
    columns: list[int]
    origins: list[int]
    live: list[bool]
    zeros: int
    equal: int = 1
    equal_step: int = 0

    def slots(self, read: Sequence[int], kernel: Floats, kind: int) -> tuple[list[int], Floats]:
        """The table of slots, and the weights of one tile, (C_out, C_in, k_h, k_w), in the order in which it reads."""
        ordered = kernel.transpose(1, 2, 3, 0)  # channel, tap, output
        if kind != FLAT:
            rows = self.rows if kind == THREE else self.rows[:1]
            return [self.origins[slot] + row for slot in read for row in rows], ordered
        taps = [row + column for row in self.rows for column in self.columns]
        each = len(read) // self.equal
        spare = -(each * len(taps)) % FLAT_ROUND
        table: list[int] = []
        for part in range(self.equal):
            table += [self.origins[slot] + tap for slot in read[part * each : (part + 1) * each] for tap in taps]
            table += [self.zeros + part * self.equal_step] * spare
        weights = ordered.reshape(self.equal, each * len(taps), len(kernel))
        return table, np.pad(weights, ((0, 0), (0, spare), (0, 0))).reshape(-1, len(kernel))


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a stage writes: the channels of each output, the place of a channel from `base` on, floats from row to row.

    `base` is 0 where those are maps, else a position of the scratch.
    """

    targets: dict[int, list[int]]
    base: int
    place: Callable[[int], int]
    row: int
    pitch: int


@dataclass(frozen=True, slots=True)
class Plane:
    """What a stage writes for one channel of a band: `width` columns, as `geometry` says, on so many registers.

    `ends` are the lanes that the first and the last of three taps take, empty where all.
    """

    width: int
    band: int
    geometry: Geometry
    registers: int
    ends: tuple[int, ...]


def packed_stage(
    stage: Stage,
    inputs: Inputs,
    outputs: Outputs,
    plane: Plane,
    activation: Activation,
    *,
    added: Callable[[int], int] | None,
    sorting: Callable[[Sequence[int]], int],
    table: Callable[[Iterable[int]], int],
    floats: Callable[[Floats], int],
) -> list[int]:
    """The record of a stage, as in native/plan.h.

    `added` is the place of what is added to a channel, `sorting` makes the record of what sorts those slots, `table`
    and `floats` put numbers and weights into the plan.
    """
    geometry, lanes, ends = plane.geometry, plane.geometry.lanes, plane.ends
    three = stage.kernel[1] == 3
    shares = stage.kernel == (3, 3) and stage.dilation == stage.stride == (1, 1)
    group_in, group_out = stage.weight.shape[1], len(stage.weight) // stage.groups
    fields: list[int] = []
    shared: tuple[list[int], int] | None = None
    count, sorted_to = 0, 0  # slots before that are sorted
    for group in range(stage.groups):
        # A slot of an output stands in the list as often as the buffer has channels of it.
        wanted = [
            (slot, channel)
            for slot in range(group * group_out, (group + 1) * group_out)
            for channel in outputs.targets.get(slot, ())
        ]
        slots = range(group * group_in, (group + 1) * group_in)
        read = [(slot, slot - group * group_in) for slot in slots if inputs.live[slot]]
        due = -1
        if inputs.together and wanted and read and read[0][0] >= sorted_to:
            begin = read[0][0] // inputs.together * inputs.together
            sorted_to = begin + inputs.together
            due = sorting([slot for slot in range(begin, min(sorted_to, stage.in_channels)) if inputs.live[slot]])
        for part in parts(len(wanted)) if wanted else ():
            chosen = [wanted[index] for index in part]
            if geometry.flat:
                shape = flat_tile(
                    *(len(chosen), up(plane.band * geometry.row, lanes), geometry.row, lanes),
                    registers=plane.registers,
                    shares_rows=shares,
                    three=three,
                )
            else:
                shape = tile(
                    len(chosen), plane.width, lanes, registers=plane.registers, shares_rows=shares, three=three
                )
            kernel = stage.weight[[slot for slot, _ in chosen]][:, [inner for _, inner in read]]
            slots_read, taps = inputs.slots([slot for slot, _ in read], kernel, shape.kind)
            if shared is None or shared[0] != slots_read:  # neighbouring tiles read by one table
                shared = slots_read, table(slots_read)
            fields += [due, shape.kind, bool(ends), len(chosen), shape.rows, shape.vectors]
            fields += [shared[1], len(slots_read), floats(taps)]
            fields.append(floats(stage.bias[[slot for slot, _ in chosen]]))
            fields.append(table(outputs.place(channel) for _, channel in chosen))
            fields.append(-1 if added is None else table(added(channel) for _, channel in chosen))
            count, due = count + 1, -1
    bounds = floats(np.array([activation.low, activation.high], dtype=np.float32))
    kstep = inputs.rows[1] - inputs.rows[0] if len(inputs.rows) > 1 else 0
    return [
        *(lanes, inputs.base, inputs.in_row, inputs.rstep, kstep, *[*inputs.columns, 0, 0][:3], *(ends or (0, 0))),
        *(outputs.base, outputs.row, outputs.pitch, bounds, CURVES.index(activation.curve), count, table(fields)),
        bool(inputs.base) * _OWN_IN + bool(outputs.base) * _OWN_OUT,
    ]
