"""Steps of a program merged, so that fewer maps cross memory: nothing computed changes.

conv, then add, then activation    one step: both are done where the sums still are in registers
volume, then activation            likewise; and a convolution of clips, then activation
conv, then pointwise convolution   one step of two stages, band by band, the map between them in the cache
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TypeVar

from leanconv.kernels.program import NOTHING, ZERO, ClipConv, Conv, Program, Step, Volume, Wire

__all__ = ["fused"]

_Kind = TypeVar("_Kind", ClipConv, Conv, Volume)


def fused(program: Program) -> Program:
    """The same program in fewer steps; buffers that nobody writes any more stay in the list.

    A step moves down to the only one that reads it, so the order stays one in which everything is written before it is
    read.
    """
    steps = list(program.steps)
    position = 0
    while position < len(steps):
        step = steps[position]
        merged = _merged(steps, step, _reads(program, steps)) if isinstance(step, Conv) else None
        if merged is None:
            position += 1
        else:
            steps[position] = merged[0]
            steps.remove(merged[1])
            position = 0 if position == 0 else position - 1
    return replace(program, steps=tuple(steps))


def _reads(program: Program, steps: list[Step]) -> Counter[int]:
    """How many wires, over all steps and outputs, come from each buffer."""
    wires: Counter[int] = Counter(wire.buffer for wires in program.outputs for wire in wires)
    for step in steps:
        wires.update(wire.buffer for wire in step.reads)
        if isinstance(step, Conv) and step.residual is not None:
            wires.update(wire.buffer for wire in step.residual)
    return wires


def _merged(steps: list[Step], step: Conv, reads: Counter[int]) -> tuple[Step, Step] | None:
    """`step` merged with one before it, and that one; None where there is none to merge with."""
    if not step.stages and step.strides == (1, 1) and step.order == tuple(range(len(step.reads))):
        volume = _merged_with_volume(steps, step, reads) or _merged_with_clip(steps, step, reads)
        if volume is not None:
            return volume
        operands = [(step.reads, step.residual)]
        if step.residual is not None:
            operands.append((step.residual, step.reads))
        for wires, other in operands:
            before = _only_source(steps, wires, reads, Conv)
            if before is None or before.activation != NOTHING or ZERO in wires or len(set(wires)) < len(wires):
                continue
            if other is not None and before.residual is not None:
                continue
            kept = [wire.channel for wire in wires]
            residual = other if other is not None else before.residual
            if other is None and residual is not None:
                residual = tuple(residual[channel] for channel in kept)
            order = tuple(before.order[channel] for channel in kept)
            return replace(
                before, writes=step.writes, order=order, residual=residual, activation=step.activation
            ), before
    elif len(step.stages) == 1 and step.stages[0].pointwise:
        before = _only_source(steps, step.reads, reads, Conv)
        if before is not None and len(before.stages) == 1 and before.residual is None:
            between = tuple(-1 if wire == ZERO else before.order[wire.channel] for wire in step.reads)
            stages = (*before.stages, *step.stages)
            return replace(step, reads=before.reads, stages=stages, between=between, inner=before.activation), before
    return None


def _merged_with_volume(steps: list[Step], step: Conv, reads: Counter[int]) -> tuple[Volume, Volume] | None:
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
    return merged, before


def _merged_with_clip(steps: list[Step], step: Conv, reads: Counter[int]) -> tuple[ClipConv, ClipConv] | None:
    """An activation of all channels merged with the convolution of clips before it."""
    before = _only_source(steps, step.reads, reads, ClipConv)
    if before is None or before.activation != NOTHING or step.residual is not None:
        return None
    if step.reads != tuple(Wire(before.writes, channel) for channel in range(len(before.weight))):
        return None
    return replace(before, writes=step.writes, activation=step.activation), before


def _only_source(steps: list[Step], wires: tuple[Wire, ...], reads: Counter[int], kind: type[_Kind]) -> _Kind | None:
    """The step of a kind whose buffer these wires, and no others anywhere, read."""
    sources = {wire.buffer for wire in wires if wire != ZERO}
    if len(sources) != 1:
        return None
    (source,) = sources
    if reads[source] != sum(wire.buffer == source for wire in wires):
        return None
    return next((one for one in steps if isinstance(one, kind) and one.writes == source), None)
