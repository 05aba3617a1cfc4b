"""A chain of grouped convolutions at a width: which groups and which places inside them are left, in plain integers.

Of its input a chain gets the kept channels, of its output it owes the kept ones, each in its own place, and of every
stage it keeps what lies on a way between the two:

    a group         that reads a kept channel and that a kept output needs
    inside, in      the places at which some kept group has something to read
    inside, out     the places at which a later stage, or the output, needs something of some kept group

So an interleaved pair drops whole primary partitions, and its secondary ones shrink inside; an optimized separable pair
drops whole groups of both stages. A place that only some groups use is one in all: the others read zero there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leanconv.plan import Plan

__all__ = ["Border", "NarrowedPlan", "NarrowedStage", "narrowed_plan"]

Border = tuple[int, ...]
"""For each slot behind a border the number of the channel before it that it reads; -1 reads zero."""


@dataclass(frozen=True, slots=True)
class NarrowedStage:
    """What is left of one grouped convolution: its groups, the places inside a group that it reads and makes."""

    groups: tuple[int, ...]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    per_in: int
    per_out: int

    @property
    def slots(self) -> tuple[int, ...]:
        """The input slots, by their numbers in the whole stage."""
        return tuple(group * self.per_in + place for group in self.groups for place in self.reads)

    @property
    def rows(self) -> tuple[int, ...]:
        """The output slots, by their numbers in the whole stage."""
        return tuple(group * self.per_out + place for group in self.groups for place in self.makes)


@dataclass(frozen=True, slots=True)
class NarrowedPlan:
    """The stages that are left, and the borders before, between and behind them."""

    stages: tuple[NarrowedStage, ...]
    borders: tuple[Border, ...]


def narrowed_plan(plan: Plan, inputs: Sequence[int], outputs: Sequence[int]) -> NarrowedPlan:
    """What of `plan` is left when only the input channels `inputs` are there and only `outputs` are wanted."""
    convs = [stage.conv for stage in plan.stages]
    shapes = [(conv.in_channels // conv.groups, conv.out_channels // conv.groups) for conv in convs]
    last = len(convs) - 1
    sources: list[Sequence[int]] = [range(plan.spec.in_channels), *map(plan.wiring, range(last))]
    ends = plan.wiring(last)
    # At full width everything stays, also what lies on no way: a group that reads only spare slots, say.
    whole = len(inputs) == plan.spec.in_channels and len(outputs) == plan.spec.out_channels
    alive = [set(inputs)]  # of each stage the slots before it that hold something
    for source, (ins, outs) in zip(sources, shapes, strict=True):
        fed_groups = {slot // ins for slot, channel in enumerate(source) if channel in alive[-1]}
        alive.append({group * outs + place for group in fed_groups for place in range(outs)})
    needed = {ends[channel] for channel in outputs}
    stages: list[NarrowedStage] = []
    for index in range(last, -1, -1):
        ins, outs = shapes[index]
        # The last stage makes what is wanted even of nothing: it may have a bias.
        wanted = needed if index == last else needed & alive[index + 1]
        groups = set(range(convs[index].groups)) if whole else {slot // outs for slot in wanted}
        source = sources[index]
        fed = {slot for slot, channel in enumerate(source) if slot // ins in groups and channel in alive[index]}
        reads = set(range(ins)) if whole else {slot % ins for slot in fed} or {0}
        makes = set(range(outs)) if whole else {slot % outs for slot in wanted}
        stages.insert(0, NarrowedStage(tuple(sorted(groups)), tuple(sorted(reads)), tuple(sorted(makes)), ins, outs))
        needed = {source[slot] for slot in fed}
    borders: list[Border] = []
    have = {channel: number for number, channel in enumerate(inputs)}
    for stage, source in zip(stages, sources, strict=True):
        borders.append(tuple(have.get(source[slot], -1) if slot < len(source) else -1 for slot in stage.slots))
        have = {slot: number for number, slot in enumerate(stage.rows)}
    return NarrowedPlan(tuple(stages), (*borders, tuple(have[ends[channel]] for channel in outputs)))
