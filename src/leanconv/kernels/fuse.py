"""Steps of a program merged, so that fewer maps cross memory: nothing computed changes.

conv, then add, then activation    one step: both are done where the sums still are in registers
volume, then activation            likewise; and a convolution of clips, then activation
product, then add, then activation likewise
conv, then pointwise convolution   one step of two stages, band by band, the map between them in the cache
conv and what is up-sampled, then another sum      what is added goes to what is up-sampled
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TypeVar

from leanconv.kernels.layout import also_read
from leanconv.kernels.program import NOTHING, ZERO, ClipConv, Conv, Product, Program, Repeat, Step, Volume, Wire

__all__ = ["fused"]

_Kind = TypeVar("_Kind", ClipConv, Conv, Product, Volume, Repeat)


def fused(program: Program) -> Program:
    """The same program in fewer steps; buffers that nobody writes any more stay in the list.

    A step moves down to the only one that reads it, so the order stays one in which everything is written before it is
    read.
    """
    steps = list(program.steps)
    reads = Counter(wire.buffer for wires in program.outputs for wire in wires)
    for step in steps:
        reads.update(_buffers(step))
    position = 0
    while position < len(steps):
        step = steps[position]
        merged = _merged(steps, step, reads) if isinstance(step, (Conv, Repeat)) else None
        if merged is None:
            position += 1
        else:
            new, gone = merged
            steps[position : position + 1] = new
            for one in gone:
                steps.remove(one)
            for one in (step, *gone):
                reads.subtract(_buffers(one))
            for one in new:
                reads.update(_buffers(one))
            position += len(new) - 1 - len(gone)
    return replace(program, steps=tuple(steps))


def _buffers(step: Step) -> list[int]:
    """The buffer of each wire that a step reads."""
    return [wire.buffer for wire in (*step.reads, *also_read(step))]


_Merged = tuple[tuple[Step, ...], tuple[Step, ...]]
"""What takes the place of a step, and the steps before it that are needed no longer."""


def _merged(steps: list[Step], step: Conv | Repeat, reads: Counter[int]) -> _Merged | None:
    """`step` merged with one before it; None where there is none to merge with."""
    if isinstance(step, Repeat):
        return _cropped(steps, step, reads)
    if not step.stages and step.strides == (1, 1) and step.order == tuple(range(len(step.reads))):
        for merge in (_merged_with_volume, _merged_with_clip, _merged_with_product):
            if (merged := merge(steps, step, reads)) is not None:
                return merged
        operands = [(step.reads, step.residual)]
        if step.residual is not None:
            operands.append((step.residual, step.reads))
        for wires, other in operands:
            before = _only_source(steps, wires, reads, Conv)
            if before is None or before.activation != NOTHING or ZERO in wires or len(set(wires)) < len(wires):
                continue
            kept = [wire.channel for wire in wires]
            if other is not None and before.residual is not None:
                found = _added_before(steps, before, other, kept, reads)
                if found is None:
                    continue
                added, repeat = found
                whole = replace(
                    before,
                    writes=step.writes,
                    order=tuple(before.order[channel] for channel in kept),
                    residual=tuple(before.residual[channel] for channel in kept),
                    activation=step.activation,
                )
                return (added, whole), (repeat, before)
            residual = other if other is not None else before.residual
            if other is None and residual is not None:
                residual = tuple(residual[channel] for channel in kept)
            order = tuple(before.order[channel] for channel in kept)
            whole = replace(before, writes=step.writes, order=order, residual=residual, activation=step.activation)
            return (whole,), (before,)
    elif len(step.stages) == 1 and step.stages[0].pointwise:
        before = _only_source(steps, step.reads, reads, Conv)
        if before is not None and len(before.stages) == 1 and before.residual is None:
            between = tuple(-1 if wire == ZERO else before.order[wire.channel] for wire in step.reads)
            stages = (*before.stages, *step.stages)
            whole = replace(step, reads=before.reads, stages=stages, between=between, inner=before.activation)
            return (whole,), (before,)
    return None


def _cropped(steps: list[Step], step: Repeat, reads: Counter[int]) -> _Merged | None:
    """What is up-sampled and then cropped, as one."""
    before = _only_source(steps, step.reads, reads, Repeat)
    if before is None or step.times != (1, 1) or before.residual is not None or ZERO in step.reads:
        return None
    kept = tuple(before.reads[wire.channel] for wire in step.reads)
    return (replace(step, reads=kept, times=before.times),), (before,)


def _added_before(
    steps: list[Step], step: Conv, other: tuple[Wire, ...], kept: list[int], reads: Counter[int]
) -> tuple[Repeat, Repeat] | None:
    """What `step` adds, up-sampled: with `other`, to which its channels `kept` are added, and as it was."""
    assert step.residual is not None
    before = _only_source(steps, step.residual, reads, Repeat)
    if before is None or before.residual is not None or ZERO in step.residual:
        return None
    place = {step.residual[channel].channel: wire for channel, wire in zip(kept, other, strict=True)}
    if len(place) < len(before.reads) or len(kept) < len(step.residual):
        return None
    return replace(before, residual=tuple(place[channel] for channel in range(len(before.reads)))), before


def _merged_with_volume(steps: list[Step], step: Conv, reads: Counter[int]) -> _Merged | None:
    """An activation merged with the filters before it."""
    before = _only_source(steps, step.reads, reads, Volume)
    if before is None or before.weight is None or before.bias is None or before.activation != NOTHING:
        return None
    if step.residual is not None or ZERO in step.reads:
        return None
    kept = [wire.channel for wire in step.reads]
    merged = replace(
        before,
        reads=tuple(before.reads[channel] for channel in kept),
        writes=step.writes,
        weight=before.weight[kept],
        bias=before.bias[kept],
        activation=step.activation,
    )
    return (merged,), (before,)


def _merged_with_clip(steps: list[Step], step: Conv, reads: Counter[int]) -> _Merged | None:
    """An activation of all channels merged with the convolution of clips before it."""
    before = _only_source(steps, step.reads, reads, ClipConv)
    if before is None or before.activation != NOTHING or step.residual is not None:
        return None
    if step.reads != tuple(Wire(before.writes, channel) for channel in range(len(before.weight))):
        return None
    return (replace(before, writes=step.writes, activation=step.activation),), (before,)


def _merged_with_product(steps: list[Step], step: Conv, reads: Counter[int]) -> _Merged | None:
    """A sum and an activation merged with the product before it."""
    for wires, other in ((step.reads, step.residual), (step.residual or (), step.reads)):
        before = _only_source(steps, wires, reads, Product)
        if before is None or before.activation != NOTHING or ZERO in wires or len(set(wires)) < len(wires):
            continue
        if before.residual is not None and other is not None:
            continue
        kept = [wire.channel for wire in wires]
        residual = other if before.residual is None else tuple(before.residual[channel] for channel in kept)
        merged = replace(
            before,
            reads=tuple(before.reads[channel] for channel in kept),
            by=tuple(before.by[channel] for channel in kept),
            writes=step.writes,
            residual=residual,
            activation=step.activation,
        )
        return (merged,), (before,)
    return None


def _only_source(steps: list[Step], wires: tuple[Wire, ...], reads: Counter[int], kind: type[_Kind]) -> _Kind | None:
    """The step of a kind whose buffer these wires, and no others anywhere, read."""
    sources = {wire.buffer for wire in wires if wire != ZERO}
    if len(sources) != 1:
        return None
    (source,) = sources
    if reads[source] != sum(wire.buffer == source for wire in wires):
        return None
    return next((one for one in steps if isinstance(one, kind) and one.writes == source), None)
