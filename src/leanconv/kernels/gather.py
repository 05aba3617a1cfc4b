"""Channels that are read in whole blocks, gathered where they do not stand so.

Dense convolutions read channels one by one, in any order. Everything else reads blocks of sixteen: what stands
elsewhere, after a shuffle, a crop, a padding or a concatenation of odd parts, is put into blocks of its own before.
"""

from __future__ import annotations

from dataclasses import replace

from leanconv.kernels.block_layout import whole
from leanconv.kernels.layout import size_of
from leanconv.kernels.merge import Halves
from leanconv.kernels.program import NOTHING, ZERO, Buffer, Conv, Pool, Product, Program, Repeat, Step, Window, Wire

__all__ = ["gathered", "is_depthwise", "is_gather"]


def is_depthwise(step: Conv) -> bool:
    """Whether a convolution is a filter for each channel."""
    stage = step.first
    return bool(step.stages) and stage.groups == len(stage.weight) == stage.in_channels > 1


def is_gather(step: Conv) -> bool:
    """Whether a step puts channels that are no blocks into some, and does nothing else."""
    return not step.stages and step.residual is None and step.activation == NOTHING and whole(step.reads) is None


def gathered(program: Program, halves: Halves) -> tuple[Program, Halves] | None:
    """The same program, in which only dense convolutions and steps that gather read channels that are no blocks.

    None where a step needs nothing but zeros.
    """
    buffers, steps, found, made = list(program.buffers), list[Step](), dict(halves), dict[tuple[Wire, ...], int]()

    def blocks(wires: tuple[Wire, ...]) -> tuple[Wire, ...]:
        if whole(wires) is not None:
            return wires
        if wires not in made:
            made[wires] = len(buffers)
            buffers.append(Buffer(len(wires), *size_of(program, wires)))
            steps.append(Conv(reads=wires, writes=made[wires], order=tuple(range(len(wires)))))
        return tuple(Wire(made[wires], channel) for channel in range(len(wires)))

    for step in program.steps:
        if isinstance(step, (Conv, Product, Repeat)) and step.residual is not None:
            step = replace(step, residual=blocks(step.residual))
        if isinstance(step, Conv) and (is_depthwise(step) or not step.stages):
            order, count = list(step.order), len(step.order)
            reads = tuple(step.reads[channel] for channel in order)
            if set(reads) == {ZERO}:
                return None
            stages = tuple(
                replace(one, weight=one.weight[order], bias=one.bias[order], groups=count) for one in step.stages
            )
            step = replace(step, reads=reads, stages=stages, order=tuple(range(count)))
            step = step if is_gather(step) else replace(step, reads=blocks(reads))
        elif isinstance(step, Product):
            step = replace(step, reads=blocks(step.reads), by=blocks(step.by))
        elif isinstance(step, (Pool, Repeat, Window)):
            step = replace(step, reads=blocks(step.reads))
        if (number := getattr(step, "writes", None)) in found:
            found[number] = blocks(found[number])
        steps.append(step)
    return replace(program, buffers=tuple(buffers), steps=tuple(steps)), found
