"""Programs of dense and depthwise convolutions, laid out in blocks: sixteen channels of a pixel lie side by side.

    [block][row][column][16]

There the weights of sixteen outputs are vectors, and a pixel is one number for all of them: no lane is idle on a narrow
map, pixels are read from one memory page after the other, and a map at half the resolution is added where the sums
still are in registers. All maps of a program lie so, but an input of few channels that convolutions alone read, which
stays as it came. A program with any other grouped convolution in it, or with channels in an order that cuts blocks, is
laid out row by row (`pack.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np

from leanconv.kernels.block_layout import BLOCK, BlockStep, Map, as_they_came, placed, whole
from leanconv.kernels.gather import gathered, is_depthwise, is_gather
from leanconv.kernels.layout import LINE, flat_pitch, size_of, up
from leanconv.kernels.merge import Halves, prepared
from leanconv.kernels.plans import MOST_NUMBER, Packed, Port, Writer
from leanconv.kernels.program import (
    NOTHING,
    ZERO,
    Activation,
    Buffer,
    Conv,
    Floats,
    Pool,
    Product,
    Program,
    Repeat,
    Stage,
    Step,
    Window,
    Wire,
)
from leanconv.kernels.stages import CURVES
from leanconv.kernels.winograd import NUMBERS, Tiling, Winograd, is_faster, tiling, weights_of

__all__ = ["in_blocks", "lies_in_blocks", "share_by_tiles"]

_DENSE, _PIXELS, _WINOGRAD, _DEPTHWISE, _GATHER = 6, 7, 10, 11, 13
_MOST_IDLE = 1.25
"""Multiply-adds with the outputs that fill up blocks, over those without: more is faster row by row."""
_BAND_FLOATS = {16: 192 * 1024, 8: 64 * 1024, 4: 64 * 1024}
"""What a band reads stays in the second cache, with the weights of two groups; by lanes, with which it grew."""
_MOST_DEPTHWISE_PIXELS = 8
"""Of a tile, as in native/kernels.h."""
_MOST_IDLE_OF_ROWS = 1.02
_MACS_OF_A_MOVE = 100
"""For each number that is gathered one by one, or more: it takes as long as ten, and a program a tenth longer."""
_NONE = -1


class _Run(NamedTuple):
    """Channels that stand one behind the other in a block and are read so: the slot of the first, and how many."""

    slot: int
    first: Wire
    length: int


def in_blocks(program: Program, lanes: int, registers: int, *, winograd: Winograd = "here") -> Packed | None:
    """The plan of a program that is faster in blocks; None for any other."""
    found = _prepared(program)
    return None if found is None else _Packer(*found, lanes, registers, winograd).packed()


def lies_in_blocks(program: Program) -> bool:
    """Whether a program is laid out in blocks."""
    return _prepared(program) is not None


def share_by_tiles(program: Program) -> float:
    """Of the multiply-adds of a program, how many are of convolutions that take less time by tiles, on any machine."""
    found = sum(
        stage.weight.size * _pixels(program, step)
        for step in program.steps
        if isinstance(step, Conv)
        for stage in step.stages
        if is_faster(stage, program.buffers[step.writes], stage.in_channels, len(stage.weight))
    )
    return found / max(1, program.macs)


def _prepared(program: Program) -> tuple[Program, Halves] | None:
    if any(isinstance(step, Conv) and len(step.stages) > 1 and max(step.between) < 0 for step in program.steps):
        return None  # a second stage that reads zeros alone
    found = gathered(*prepared(program))
    return found if found is not None and _suits(found[0]) else None


def _suits(program: Program) -> bool:
    """Whether a program is made of dense and depthwise convolutions, with what goes with them and little to gather.

    With depthwise ones only where about as few lanes are idle in blocks as row by row: measured, the ratio of the times
    is about that of the lanes.
    """
    macs, in_blocks, in_rows, moved, filters = 0, 0, 0.0, 0, False
    for step in program.steps:
        if isinstance(step, Conv) and step.stages:
            stage, made = step.first, program.buffers[step.writes]
            if not is_depthwise(step) and (stage.groups > 1 or stage.stride[1] > 2):
                return False
            filters |= is_depthwise(step)
            one = stage.weight[0].size * made.height * made.width
            macs += one * len(stage.weight)
            in_blocks += one * up(len(step.order), BLOCK)
            in_rows += one * len(stage.weight) * _idle_in_rows(made)
        elif not isinstance(step, (Conv, Pool, Product)) and not _plain(step):
            return False
        elif isinstance(step, Conv) and is_gather(step):
            made = program.buffers[step.writes]
            moved += made.channels * made.height * made.width
    most = _MOST_IDLE_OF_ROWS * in_rows if filters else _MOST_IDLE * macs
    return macs > 0 and in_blocks <= most and _MACS_OF_A_MOVE * moved <= macs


def _idle_in_rows(made: Buffer) -> float:
    """Lanes of vectors of eight over the pixels in them, row by row."""
    pitch = flat_pitch(made.width, 8)
    lanes = made.height * up(made.width, 8) if pitch is None else up(made.height * pitch, 8)
    return lanes / (made.height * made.width)


def _pixels(program: Program, step: Conv) -> int:
    return program.buffers[step.writes].height * program.buffers[step.writes].width


def _plain(step: Step) -> bool:
    """Whether windows are of one frame and without gaps, and means those of all pixels, or of those on the map.

    And whether pixels are repeated as a map of half the size is.
    """
    if isinstance(step, Repeat):
        return step.times in ((1, 1), (2, 2))
    if not isinstance(step, Window) or step.frames > 1 or step.kernel[0] > 1 or max(step.dilation) > 1:
        return False
    return step.largest or (step.divisor is None and not (step.counted and step.ceil and any(step.padding)))


class _Packer:
    def __init__(self, program: Program, halves: Halves, lanes: int, registers: int, winograd: Winograd) -> None:
        self.program, self.halves, self.lanes = program, halves, lanes
        self.steps = [step for step in program.steps if isinstance(step, BlockStep)]  # there are no others
        self.most = 14 if lanes == BLOCK else 2 if lanes == 4 and registers == 16 else 6
        self.each = 2 if lanes == BLOCK else 1  # blocks of outputs in a group
        self.tilings = {} if winograd == "never" else self._tilings(lanes if winograd == "here" else None)
        numbers = NUMBERS * BLOCK  # of a tile, for one block
        sizes = [(numbers * tiles.plane, tiles.blocks) for tiles in self.tilings.values()]
        self.own = LINE + self.each * max((size for size, _ in sizes), default=0)  # the products of a group
        start = self.own + max((size * blocks for size, blocks in sizes), default=0)
        self.maps, self.floats = placed(program, halves, self.steps, start, self.tilings)
        self.plan = Writer(len(program.inputs) + len(program.outputs), len(self.steps))

    def _tilings(self, known: int | None) -> dict[int, Tiling]:
        """The buffers that are made by tiles, and by which."""
        apart, found = as_they_came(self.program, self.halves, self.steps), dict[int, Tiling]()
        for step in self.steps:
            if not isinstance(step, Conv) or not step.stages:
                continue
            runs, made = _runs(step.reads), self.program.buffers[step.writes]
            if any(run.first.channel % BLOCK or run.first.buffer in apart for run in runs):
                continue
            inputs, outputs = sum(run.length for run in runs), up(len(step.order), BLOCK)
            if is_faster(step.first, made, inputs, outputs, known):
                found[step.writes] = tiling(made, len(runs), self.lanes, self.most)
        return found

    def packed(self) -> Packed:
        program, sizes = self.program, self.program.buffers
        inputs = [self._port(tuple(Wire(n, c) for c in range(sizes[n].channels))) for n in program.inputs]
        outputs = [self._port(wires) for wires in program.outputs]
        records, after = [0] * len(self.steps), 0
        for number in reversed(range(len(self.steps))):  # each knows which weights are read after its own
            step = self.steps[number]
            if isinstance(step, Conv) and step.stages and step.first.groups > 1:
                records[number] = self._depthwise(step)
            elif isinstance(step, Conv) and step.stages:
                records[number], after = self._dense(step, after)
            elif isinstance(step, Conv) and is_gather(step):
                records[number] = self._gather(step)
            else:
                records[number] = self._window(step)
        return self.plan.packed(self.lanes, inputs, outputs, records, self.floats, self.own)

    def _port(self, wires: tuple[Wire, ...]) -> Port:
        some = self.maps[next(wire.buffer for wire in wires if wire != ZERO)]
        height, width = size_of(self.program, wires)
        return Port(
            height, width, some.row, [self.maps[wire.buffer].channel(wire.channel) for wire in wires], some.pixel
        )

    # -------------------------------------------------------------------------------------------------------- steps

    def _dense(self, step: Conv, after: int) -> tuple[int, int]:
        """The record of a convolution, and where its weights are."""
        stage, made, to = step.first, self.program.buffers[step.writes], self.maps[step.writes]
        half, runs, tiles = self.halves.get(step.writes), _runs(step.reads), self.tilings.get(step.writes)
        read = next(self.maps[wire.buffer] for wire in step.reads if wire != ZERO)
        places = [self.maps[run.first.buffer].channel(run.first.channel) for run in runs]
        order, taps = list(step.order), _taps(stage, read)
        if tiles is None:
            pairs = [(at + tap, run.length) for at, run in zip(places, runs, strict=True) for tap in taps]
            panels = _panels(_padded(stage.weight[order]), runs)
        else:
            pairs = [(index * tiles.plane * BLOCK, run.length) for index, run in enumerate(runs)]
            panels = _panels_by_number(_padded(weights_of(stage.weight[order])), runs)
        weights, bias = self.plan.floats(panels), self.plan.floats(_padded(stage.bias[order]))
        groups, count = list[int](), -(-len(order) // BLOCK)
        for first in range(0, count, self.each):
            blocks = range(first, min(first + self.each, count))
            out = self.plan.table(to.channel(block * BLOCK) for block in blocks)
            groups += [len(blocks), weights + first * (panels.size // count), bias + first * BLOCK, out]
            groups += [self._blocks(step.residual, blocks), self._blocks(half, blocks)]
        read_by = [self.plan.table(chain.from_iterable(pairs)), len(pairs), sum(length for _, length in pairs)]
        record = [_DENSE if tiles is None else _WINOGRAD, self.lanes, made.height, made.width]
        if tiles is None:
            record += [*self._tile(step, stage, made, read), 0, stage.stride[0] * read.row]
            record += [stage.stride[1] * read.pixel, read.plane if read.pixel == 1 else 1, *read_by]
        else:
            starts = self.plan.table(at + taps[0] for at in places)
            record += [tiles.band, tiles.wide, starts, len(runs), read.row, *read_by]
            record += [self.own, LINE, self.plan.floats(np.zeros(2 * BLOCK, np.float32))]
        macs = min(stage.weight.size * made.height * made.width, MOST_NUMBER)
        record += [to.row, self._row(step.residual), self._row(half), *self._ends(step.activation), after, macs]
        return self.plan.table([*record, len(groups) // 6, self.plan.table(groups)]), weights

    def _depthwise(self, step: Conv) -> int:
        """The record of a convolution with a filter for each channel."""
        stage, made, to = step.first, self.program.buffers[step.writes], self.maps[step.writes]
        half, blocks = self.halves.get(step.writes), range(-(-made.channels // BLOCK))
        read, (rows, columns) = self.maps[step.reads[0].buffer], stage.kernel
        together = stage.dilation[1] == 1 and columns in (3, 5, 7) and stage.stride[1] <= 2
        across, taps = columns if together else 1, _taps(stage, read)
        weight = _padded(stage.weight.reshape(made.channels, -1)).reshape(len(blocks), BLOCK, -1).transpose(0, 2, 1)
        record = [_DEPTHWISE, self.lanes, made.height, made.width, _MOST_DEPTHWISE_PIXELS, len(blocks)]
        record += [self._blocks(step.reads, blocks), stage.stride[0] * read.row, stage.stride[1] * read.pixel]
        record += [self.plan.table(taps[::across]), rows * columns // across, across]
        record += [self.plan.floats(weight), self.plan.floats(_padded(stage.bias))]
        record += [self.plan.table(to.channel(b * BLOCK) for b in blocks), self._blocks(step.residual, blocks)]
        record += [self._blocks(half, blocks), to.row, self._row(step.residual), self._row(half)]
        record += self._ends(step.activation)
        return self.plan.table([*record, min(weight.size * made.height * made.width, MOST_NUMBER)])

    def _gather(self, step: Conv) -> int:
        """The record of channels that come from anywhere."""
        made, to = self.program.buffers[step.writes], self.maps[step.writes]
        blocks = range(-(-made.channels // BLOCK))
        read = next(self.maps[wire.buffer] for wire in step.reads if wire != ZERO)
        places = [_NONE if wire == ZERO else self.maps[wire.buffer].channel(wire.channel) for wire in step.reads]
        sources = self.plan.table([*places, *[_NONE] * (-len(places) % BLOCK)])
        record = [_GATHER, len(blocks), sources, self.plan.table(to.channel(b * BLOCK) for b in blocks)]
        record += [made.height, made.width, step.strides[0] * read.row, step.strides[1] * read.pixel, to.row]
        return self.plan.table([*record, min(made.channels * made.height * made.width, MOST_NUMBER)])

    def _tile(self, step: Conv, stage: Stage, made: Buffer, read: Map) -> tuple[int, int, int]:
        """Rows of a band, rows and pixels of a tile."""
        wide = -(-made.width // -(-made.width // self.most))
        high = 2 if 2 * wide <= self.most and made.height > 1 else 1
        floats = stage.in_channels * read.row // read.pixel * stage.stride[0]
        bands = -(-made.height * floats // _BAND_FLOATS[self.lanes])
        return min(up(-(-made.height // bands), high), made.height), high, wide

    def _blocks(self, wires: tuple[Wire, ...] | None, blocks: range) -> int:
        """The table of where blocks of what is added are."""
        found = None if wires is None else whole(wires)
        if found is None:
            return _NONE
        return self.plan.table(self.maps[found[b].buffer].channel(found[b].channel) for b in blocks)

    def _row(self, wires: Sequence[Wire] | None) -> int:
        return self.maps[wires[0].buffer].row if wires else 0

    def _ends(self, activation: Activation) -> tuple[int, int]:
        bounds = np.array([activation.low, activation.high], dtype=np.float32)
        return self.plan.floats(bounds), CURVES.index(activation.curve)

    def _window(self, step: BlockStep) -> int:
        made, (height, width) = self.program.buffers[step.writes], size_of(self.program, step.reads)
        blocks = range(-(-made.channels // BLOCK))
        residual = step.residual if isinstance(step, (Conv, Product, Repeat)) else None
        by = step.by if isinstance(step, Product) else None
        half, reads = self.halves.get(step.writes), step.reads
        window = [1, 1, 1, 1, 0, 0, 0, 0]
        if isinstance(step, Conv):
            window[2:4] = step.strides
        elif isinstance(step, Window):
            whole = step.counted and any(step.padding)
            window = [*step.kernel[1:], *step.stride[1:], *step.padding[1:], step.largest, whole]
        elif isinstance(step, Pool):
            window[:2] = height, width
        elif isinstance(step, Repeat) and step.times == (2, 2):  # nothing but what is added
            half, reads = step.reads, ()
        to = self.maps[step.writes]
        tables = [
            self._blocks(reads, blocks) if reads else _NONE,
            self.plan.table(to.channel(b * BLOCK) for b in blocks),
        ]
        tables += [self._blocks(residual, blocks), self._blocks(half, blocks)]
        rows = [height, width, self._row(reads), made.height, made.width, to.row, self._row(residual), self._row(half)]
        large = by is not None and size_of(self.program, by) == made[1:]
        rows += [self._blocks(by, blocks), self._row(by) if large else 0, BLOCK if large else 0]
        activation = step.activation if isinstance(step, (Conv, Product)) else NOTHING
        work = min(made.channels * made.height * made.width * window[0] * window[1], MOST_NUMBER)
        record = [_PIXELS, self.lanes, len(blocks), *tables, *rows, *window, *self._ends(activation), work]
        return self.plan.table(record)


def _taps(stage: Stage, read: Map) -> list[int]:
    """How far the taps of a kernel are from the pixel that an output starts from, in floats."""
    rows = [tap * stage.dilation[0] - stage.padding[0] for tap in range(stage.kernel[0])]
    columns = [tap * stage.dilation[1] - stage.padding[1] for tap in range(stage.kernel[1])]
    return [row * read.row + column * read.pixel for row in rows for column in columns]


def _padded(outputs: Floats) -> Floats:
    """Zeros behind the last of the first axis, up to a whole block."""
    return np.pad(outputs, [(0, -len(outputs) % BLOCK), *[(0, 0)] * (outputs.ndim - 1)])


def _runs(reads: Sequence[Wire]) -> list[_Run]:
    """The channels in their order, those that stand one behind the other together."""
    live = [(slot, wire) for slot, wire in enumerate(reads) if wire != ZERO]

    def block(pair: tuple[int, tuple[int, Wire]]) -> tuple[int, int, int, int]:
        index, (slot, wire) = pair
        return wire.buffer, wire.channel // BLOCK, slot - index, wire.channel - index

    parts = (list(part) for _, part in groupby(enumerate(live), block))
    return [_Run(*part[0][1], len(part)) for part in parts]


def _panels(weight: Floats, runs: Sequence[_Run]) -> Floats:
    """The weights (C_out, C_in, k_h, k_w) in the order in which they are read: (blocks of outputs, slots, 16)."""
    count = len(weight)
    parts = [
        weight[:, run.slot : run.slot + run.length].reshape(count, run.length, -1).transpose(2, 1, 0).reshape(-1, count)
        for run in runs
    ]
    return np.concatenate(parts).reshape(-1, count // BLOCK, BLOCK).transpose(1, 0, 2)


def _panels_by_number(weight: Floats, runs: Sequence[_Run]) -> Floats:
    """The weights (C_out, C_in, 16) of tiles in the order of reading: (blocks of outputs, number, slot, 16)."""
    slots = [slot for run in runs for slot in range(run.slot, run.slot + run.length)]
    return weight[:, slots].reshape(-1, BLOCK, len(slots), NUMBERS).transpose(0, 3, 2, 1)
