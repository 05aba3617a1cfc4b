"""A chain of grouped convolutions at a width: which groups and which places inside them are left, in plain integers.

A chain never asks anything of the channels around it. Of its input it gets the kept ones, of its output it owes the
kept ones, each in its own place, and of every stage it keeps what lies on a way between the two:

    a group         that reads a kept channel and that a kept output needs
    inside, in      the places at which some kept group has something to read
    inside, out     the places at which a later stage, or the output, needs something of some kept group

So an interleaved pair drops whole primary partitions, and its secondary partitions all stay and shrink inside; an
optimized separable pair drops whole groups of the first stage, and of the second those that make dropped channels.
Between the stages the shuffle acts on what is left. At full width that is everything, and the chain is what it was.
Groups have one shape, so a place that only some of them use is a place in all: the others read zero there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leanconv.plan import Plan

__all__ = ["Border", "LeftStage", "Subplan", "left_of"]


@dataclass(frozen=True, slots=True)
class LeftStage:
    """What is left of one grouped convolution: its groups, the places inside a group that it reads and makes."""

    groups: tuple[int, ...]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    per_out: int

    @property
    def rows(self) -> tuple[int, ...]:
        """The output slots, by their numbers in the whole stage."""
        return tuple(group * self.per_out + place for group in self.groups for place in self.makes)


Border = tuple[int, ...]
"""For each slot behind a border the number of the channel before it that it reads; -1 reads zero."""


@dataclass(frozen=True, slots=True)
class Subplan:
    """The stages that are left, and the borders before, between and behind them."""

    stages: tuple[LeftStage, ...]
    borders: tuple[Border, ...]


def left_of(plan: Plan, inputs: Sequence[int], outputs: Sequence[int]) -> Subplan:
    """What of `plan` is left when only the input channels `inputs` are there and only `outputs` are wanted.

    >>> from leanconv.ops.igc import InterleavedGroup
    >>> from leanconv.spec import ConvSpec
    >>> plan = InterleavedGroup(primary_partitions=4).plan(ConvSpec(in_channels=8, out_channels=8, kernel_size=(3, 3)))
    >>> left = left_of(plan, range(4), range(4))
    >>> [(stage.groups, stage.reads, stage.makes) for stage in left.stages]
    [((0, 1), (0, 1), (0, 1)), ((0, 1), (0, 1), (0, 1))]
    """
    convs = [stage.conv for stage in plan.stages]
    last = len(convs) - 1
    if len(inputs) == plan.spec.in_channels and len(outputs) == plan.spec.out_channels:
        return _everything(plan)
    sources: list[Sequence[int]] = [range(plan.spec.in_channels), *map(plan.wiring, range(last))]
    alive = [set(inputs)]  # of each stage the slots before it that hold something
    for index, conv in enumerate(convs):
        per_in, per_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        groups = {slot // per_in for slot, source in enumerate(sources[index]) if source in alive[index]}
        alive.append({group * per_out + place for group in groups for place in range(per_out)})
    wiring = plan.wiring(last)
    needed = {wiring[channel] for channel in outputs}
    stages: list[LeftStage] = []
    for index in range(last, -1, -1):
        conv = convs[index]
        per_in, per_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        # The last stage makes what is wanted even of nothing: it may have a bias.
        wanted = needed if index == last else needed & alive[index + 1]
        groups = {slot // per_out for slot in wanted}
        fed = {
            slot for slot, source in enumerate(sources[index]) if slot // per_in in groups and source in alive[index]
        }
        stages.append(
            LeftStage(
                tuple(sorted(groups)),
                tuple(sorted({slot % per_in for slot in fed})) or (0,),
                tuple(sorted({slot % per_out for slot in wanted})),
                per_out,
            )
        )
        needed = {sources[index][slot] for slot in fed}
    stages.reverse()
    borders: list[Border] = []
    have = {channel: number for number, channel in enumerate(inputs)}
    for index, stage in enumerate(stages):
        per_in = convs[index].in_channels // convs[index].groups
        slots = (group * per_in + place for group in stage.groups for place in stage.reads)
        source = sources[index]
        borders.append(tuple(have.get(source[slot], -1) if slot < len(source) else -1 for slot in slots))
        have = {slot: number for number, slot in enumerate(stage.rows)}
    borders.append(tuple(have[wiring[channel]] for channel in outputs))
    return Subplan(tuple(stages), tuple(borders))


def _everything(plan: Plan) -> Subplan:
    """The whole chain, with what in it lies on no way: a group that reads only spare slots, say."""
    stages = []
    borders: list[Border] = [tuple(range(plan.spec.in_channels))]
    for index, stage in enumerate(plan.stages):
        conv = stage.conv
        per_in, per_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        stages.append(LeftStage(tuple(range(conv.groups)), tuple(range(per_in)), tuple(range(per_out)), per_out))
        borders[-1] += (-1,) * (conv.in_channels - len(borders[-1]))
        borders.append(plan.wiring(index))
    return Subplan(tuple(stages), tuple(borders))
