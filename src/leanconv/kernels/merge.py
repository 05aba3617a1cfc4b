"""What a program of dense convolutions is before it is laid out in blocks, where sums cost nothing.

the same windows of the same channels twice    once
two convolutions whose results are added    one of the channels of both: no sum at all
a map up-sampled by two, then added         added where the sums still are in registers, at half the resolution
a step of two stages                        two steps
a map up-sampled by four, eight, ...        up-sampled by two several times
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from leanconv.kernels.fuse import fused
from leanconv.kernels.layout import also_read, size_of
from leanconv.kernels.program import (
    NOTHING,
    ZERO,
    Buffer,
    Conv,
    Product,
    Program,
    Repeat,
    Stage,
    Step,
    Sums,
    Window,
    Wire,
)

__all__ = ["Halves", "prepared"]

Halves = Mapping[int, tuple[Wire, ...]]
"""What the convolution that writes a buffer adds at half its height and width, each pixel to four."""


def prepared(program: Program) -> tuple[Program, Halves]:
    """The same program, and what its convolutions add at half the resolution."""
    once = _once(program)
    joined = _joined(once)
    return _halved(_doubled(_apart(fused(joined) if len(joined.steps) < len(once.steps) else joined)))


def _once(program: Program) -> Program:
    """The same windows of the same channels, which several layers may take, made once."""
    first, same = dict[tuple[Any, ...], int](), dict[int, int]()
    steps = list[Step]()

    def now(wires: tuple[Wire, ...]) -> tuple[Wire, ...]:
        return tuple(Wire(same.get(wire.buffer, wire.buffer), wire.channel) for wire in wires)

    for step in program.steps:
        if same and not isinstance(step, Sums):
            step = replace(step, reads=now(step.reads))
            if isinstance(step, Product):
                step = replace(step, by=now(step.by))
            if isinstance(step, (Conv, Product, Repeat)) and step.residual:
                step = replace(step, residual=now(step.residual))
        if isinstance(step, Window):
            options = {field.name: getattr(step, field.name) for field in fields(step) if field.name != "writes"}
            number = first.setdefault(tuple(options.values()), step.writes)
            if number != step.writes:
                same[step.writes] = number
                continue
        steps.append(step)
    outputs = tuple(now(wires) for wires in program.outputs)
    return replace(program, steps=tuple(steps), outputs=outputs) if same else program


def _sources(program: Program) -> tuple[Counter[int], dict[int, Step]]:
    """How many wires come from each buffer, and the step that writes it."""
    wires = Counter(wire.buffer for wires in program.outputs for wire in wires)
    written = {}
    for step in program.steps:
        wires.update(wire.buffer for wire in (*step.reads, *also_read(step)))
        if (number := getattr(step, "writes", None)) is not None:
            written[number] = step
    return wires, written


def _joined(program: Program) -> Program:
    """Convolutions of one kernel whose results are added, as one."""
    reads, written = _sources(program)
    gone, new = set[int](), dict[int, Step]()
    for step in program.steps:
        if not isinstance(step, Conv) or not step.residual or ZERO in step.residual or not _is_dense(step):
            continue
        number = step.residual[0].buffer
        other = new.get(number, written.get(number))
        if not isinstance(other, Conv) or not _is_dense(other) or other.activation != NOTHING:
            continue
        added = [wire.channel for wire in step.residual if wire.buffer == number]
        if len(set(added)) < len(step.residual) or reads[number] != len(added) or not _fit(program, step, other):
            continue
        pairs = list(zip(step.order, (other.order[channel] for channel in added), strict=True))
        one, two = step.stages[0], other.stages[0]
        stage = replace(
            one,
            weight=np.stack([np.concatenate([one.weight[i], two.weight[j]]) for i, j in pairs]),
            bias=np.stack([one.bias[i] + two.bias[j] for i, j in pairs]),
        )
        order, both = tuple(range(len(pairs))), (*step.reads, *other.reads)
        new[step.writes] = replace(step, reads=both, order=order, stages=(stage,), residual=other.residual)
        gone.add(number)
    kept = (step for step in program.steps if getattr(step, "writes", None) not in gone)
    return replace(program, steps=tuple(new.get(getattr(step, "writes", -1), step) for step in kept))


def _is_dense(step: Conv) -> bool:
    return len(step.stages) == 1 and step.stages[0].groups == 1


def _fit(program: Program, step: Conv, other: Conv) -> bool:
    """Whether two convolutions read pixels of the same places."""

    def geometry(stage: Stage) -> tuple[tuple[int, int], ...]:
        return stage.kernel, stage.stride, stage.padding, stage.dilation

    same = geometry(step.stages[0]) == geometry(other.stages[0])
    return same and size_of(program, step.reads) == size_of(program, other.reads)


def _apart(program: Program) -> Program:
    """Steps of two stages as two: what is between them is in the cache here as well."""
    buffers, steps = list(program.buffers), list[Step]()
    for step in program.steps:
        if not isinstance(step, Conv) or len(step.stages) < 2:
            steps.append(step)
            continue
        middle, made = len(buffers), program.buffers[step.writes]
        count = len(step.stages[0].weight)
        buffers.append(Buffer(count, made.height, made.width))
        first = replace(
            step,
            writes=middle,
            order=tuple(range(count)),
            stages=step.stages[:1],
            between=(),
            residual=None,
            activation=step.inner,
        )
        reads = tuple(ZERO if slot < 0 else Wire(middle, slot) for slot in step.between)
        steps += [first, replace(step, reads=reads, stages=step.stages[1:], between=())]
    return replace(program, buffers=tuple(buffers), steps=tuple(steps))


def _doubled(program: Program) -> Program:
    """Maps that are up-sampled by a power of two as those that are by two."""
    buffers, steps = list(program.buffers), list[Step]()
    for step in program.steps:
        while isinstance(step, Repeat) and step.times[0] == step.times[1] and step.times[0] % 4 == 0:
            by, made = step.times[0] // 2, program.buffers[step.writes]
            height, width = (-(-side // by) for side in made[1:])
            # Up-sampled by two first; the rest of it is left for the next round.
            steps.append(Repeat(reads=step.reads, writes=len(buffers), times=(2, 2)))
            step = replace(step, reads=tuple(Wire(len(buffers), c) for c in range(made.channels)), times=(by, by))
            buffers.append(Buffer(made.channels, height, width))
        steps.append(step)
    return replace(program, buffers=tuple(buffers), steps=tuple(steps))


def _halved(program: Program) -> tuple[Program, Halves]:
    """Maps up-sampled by two for one sum alone stay as they are, and are added from there."""
    reads, written = _sources(program)
    halves, gone, new = dict[int, tuple[Wire, ...]](), set[int](), dict[int, Step]()
    for step in program.steps:
        if not isinstance(step, Conv) or not step.residual:
            continue
        number = step.residual[0].buffer
        other = written.get(number)
        whole = tuple(Wire(number, channel) for channel in range(len(step.residual)))
        if not isinstance(other, Repeat) or other.times != (2, 2) or step.residual != whole:
            continue
        if reads[number] == len(whole) == len(other.reads):
            halves[step.writes] = other.reads
            new[step.writes] = replace(step, residual=other.residual)
            gone.add(number)
    kept = (step for step in program.steps if getattr(step, "writes", None) not in gone)
    steps = tuple(new.get(getattr(step, "writes", -1), step) for step in kept)
    return (replace(program, steps=steps), halves) if gone else (program, halves)
