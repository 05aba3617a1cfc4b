"""A convolution as a chain of grouped convolutions with channel shuffles between: plain integers, no tensors.

Every operator of the library except OctConv is a planner that returns a `Plan`; `ops.chain.ConvChain` runs any plan.

    x -> [zero-pad channels] -> conv_1 -> shuffle_1 -> conv_2 -> ... -> conv_N -> [shuffle_N] -> [crop channels] -> y

A stage whose group count does not divide its channels is built on *slots*: g * ceil(C / g) of them. Spare slots at the
entrance read zeros and spare slots at the exit are cropped (optimized separable convolution, appendix E; they are
counted, as its tables do). Between two stages nothing is padded: the slots of the next stage are filled from the
slots of the last one in shuffled order, starting again from the first where they run out. This is what lets 62
channels meet through 21 x 3 groups, which the channel condition (eq. 5) alone says they cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, get_args

from leanconv.errors import PlanError
from leanconv.spec import ConvSpec

__all__ = [
    "NarrowedPlan",
    "NarrowedStage",
    "Plan",
    "Share",
    "Stage",
    "WidthPolicy",
    "grouped_stage",
    "inner_width",
    "narrowed_plan",
    "shared_kernel",
    "stage_axes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One grouped convolution over channel slots, and the channel shuffle of `shuffle` groups that follows it."""

    conv: ConvSpec
    shuffle: int = 1

    def __post_init__(self) -> None:
        if self.shuffle < 1 or self.conv.out_channels % self.shuffle:
            raise PlanError(
                f"a shuffle of {self.shuffle} groups must divide the stage's {self.conv.out_channels} output channels"
            )

    def __str__(self) -> str:
        conv = self.conv
        text = f"{'x'.join(map(str, conv.kernel_size))} {conv.in_channels}->{conv.out_channels}"
        text += f" g{conv.groups}" if conv.groups > 1 else ""
        text += f" /{'x'.join(map(str, conv.stride))}" if max(conv.stride) > 1 else ""
        return text + (f", shuffle {self.shuffle}" if self.shuffle > 1 else "")


def _shuffled(slots: int, groups: int) -> list[int]:
    """Order in which a shuffle of `groups` groups reads its slots: the first of each group, the second of each, ..."""
    per_group = slots // groups
    return [(k % groups) * per_group + k // groups for k in range(slots)]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The chain of `stages` that stands for the dense convolution `spec`.

    Every spatial axis is padded once, before anything convolves it, and strided once, after all that do; the kernels
    of the stages that convolve it add up: 3 and 3 see 5 positions. So the chain equals one dense convolution with
    `spec`'s stride, padding and dilation whatever the weights are.

    Raises:
        PlanError: if the stages do not add up to `spec`.
    """

    spec: ConvSpec
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise PlanError("a plan needs at least one stage")
        first, last = self.stages[0].conv, self.stages[-1].conv
        if first.in_channels < self.spec.in_channels or last.out_channels < self.spec.out_channels:
            raise PlanError(
                f"the chain takes {first.in_channels} and gives {last.out_channels} channels, "
                f"but the convolution has {self.spec.in_channels} and {self.spec.out_channels}"
            )
        for axis in range(self.spec.ndim):
            self._check_axis(axis)
        if any(stage.conv.bias for stage in self.stages[:-1]):
            raise PlanError("only the last stage may have a bias: an inner one would break zero padding")

    def _check_axis(self, axis: int) -> None:
        given = {
            name: [getattr(stage.conv, name)[axis] for stage in self.stages]
            for name in ("kernel_size", "stride", "dilation")
        }
        kernel, stride, dilation = given.values()
        adds_up = {
            "kernel_size": sum(size - 1 for size in kernel) == self.spec.kernel_size[axis] - 1,
            "stride": prod(stride) == self.spec.stride[axis] and sum(step > 1 for step in stride) < 2,
            "dilation": {far for far, size in zip(dilation, kernel, strict=True) if size > 1 or far > 1}
            <= {self.spec.dilation[axis]},
        }
        for name, right in adds_up.items():
            if not right:
                raise PlanError(f"{name} of axis {axis} is {getattr(self.spec, name)[axis]}, stages have {given[name]}")
        convolving = [index for index, size in enumerate(kernel) if size > 1]
        if not convolving:
            return
        if any(step > 1 for step in stride[: convolving[-1]]):
            raise PlanError(f"axis {axis} is strided by {stride} before stage {convolving[-1] + 1} convolves it")
        padding = [stage.conv.padding for stage in self.stages[convolving[0] + 1 :]]
        if len(convolving) > 1 and any(isinstance(pad, str) or pad[axis] for pad in padding):
            raise PlanError(
                f"axis {axis} is padded after stage {convolving[0] + 1} has convolved it, so at the border the chain"
                " would be no single convolution"
            )

    @property
    def params(self) -> int:
        """Kernel weights of all stages, spare slots included."""
        return sum(stage.conv.params for stage in self.stages)

    @property
    def interactions(self) -> int:
        """Channel interactions of all stages (CSN, eq. 3)."""
        return sum(stage.conv.interactions for stage in self.stages)

    def macs(self, in_size: tuple[int, ...]) -> int:
        """Multiply-adds for one image whose *input* map has `in_size`."""
        total = 0
        for stage in self.stages:
            in_size = stage.conv.out_size(in_size)
            total += stage.conv.macs(in_size)
        return total

    def wiring(self, index: int) -> tuple[int, ...]:
        """For each slot read after stage `index`, the output slot of that stage which feeds it."""
        stage = self.stages[index]
        order = _shuffled(stage.conv.out_channels, stage.shuffle)
        if index + 1 == len(self.stages):
            return tuple(order[: self.spec.out_channels])
        wanted = self.stages[index + 1].conv.in_channels
        return tuple(order[k % len(order)] for k in range(wanted))

    @cached_property
    def channel_field(self) -> tuple[int, ...]:
        """For each output channel the set of input channels it can see, as the bits of one integer."""
        seen = [1 << channel for channel in range(self.spec.in_channels)]
        seen += [0] * (self.stages[0].conv.in_channels - self.spec.in_channels)
        for index, stage in enumerate(self.stages):
            conv = stage.conv
            per_in, per_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
            outputs: list[int] = []
            for group in range(conv.groups):
                field = 0
                for mask in seen[group * per_in : (group + 1) * per_in]:
                    field |= mask
                outputs += [field] * per_out
            seen = [outputs[slot] for slot in self.wiring(index)]
        return tuple(seen)

    @property
    def coverage(self) -> float:
        """Share of the (output, input) channel pairs that are connected; 1.0 keeps the volumetric receptive field."""
        pairs = self.spec.in_channels * self.spec.out_channels
        return sum(mask.bit_count() for mask in self.channel_field) / pairs

    @property
    def overlap(self) -> float:
        """Channels per group, multiplied over the stages, per input channel: the gamma that this chain reaches.

        No chain of as many stages that reaches it has fewer weights than `relaxed_cost` says for it.
        """
        return prod(stage.conv.in_channels // stage.conv.groups for stage in self.stages) / self.spec.in_channels

    def __str__(self) -> str:
        return "; ".join(map(str, self.stages))


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one stage does of the convolving of a layer: the arguments of `ConvSpec` along the axes."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]


def stage_axes(spec: ConvSpec, axes: Iterable[int]) -> Share:
    """The share of the stage that convolves `axes` of `spec` alone, and passes the others."""
    chosen = set(axes)

    def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
        return tuple(value if axis in chosen else neutral for axis, value in enumerate(values))

    padding: tuple[int, ...] | str
    if isinstance(spec.padding, str):
        padding = spec.padding if chosen else (0,) * spec.ndim
    else:
        padding = pick(spec.padding, 0)
    return Share(
        kernel_size=pick(spec.kernel_size, 1),
        stride=pick(spec.stride, 1),
        padding=padding,
        dilation=pick(spec.dilation, 1),
    )


def shared_kernel(spec: ConvSpec, kernels: Sequence[int]) -> tuple[Share, ...]:
    """The shares of stages that convolve every axis of `spec` by these kernels, one behind the other.

    An axis of one tap is convolved by none. All padding is done by the first of them and the stride by the last.

    Raises `PlanError` where the kernels see more or fewer positions than that of the layer.
    """
    convolving = [index for index, size in enumerate(kernels) if size > 1] or [0]
    reach = 1 + sum(size - 1 for size in kernels)
    if any(size not in (1, reach) for size in spec.kernel_size):
        raise PlanError(
            f"stages with kernels of {', '.join(map(str, kernels))} see {reach} positions of an axis, the layer's"
            f" kernel {spec.kernel_size} sees others: they must add up to it, like 3 and 3 to 5"
        )
    whole = _padding(spec)
    return tuple(
        Share(
            kernel_size=tuple(size if of > 1 else 1 for of in spec.kernel_size),
            stride=spec.stride if index == convolving[-1] else (1,) * spec.ndim,
            padding=whole if index == convolving[0] else (0,) * spec.ndim,
            dilation=tuple(
                far if size > 1 and of > 1 else 1 for far, of in zip(spec.dilation, spec.kernel_size, strict=True)
            ),
        )
        for index, size in enumerate(kernels)
    )


def _padding(spec: ConvSpec) -> tuple[int, ...]:
    """What a layer pads at both ends of every axis, in numbers."""
    if not isinstance(spec.padding, str):
        return spec.padding
    both = [
        far * (size - 1) * (spec.padding == "same") for far, size in zip(spec.dilation, spec.kernel_size, strict=True)
    ]
    if any(amount % 2 for amount in both):
        raise PlanError(
            f"padding 'same' of kernel {spec.kernel_size} is not the same at both ends: no stage pads so alone"
        )
    return tuple(amount // 2 for amount in both)


def grouped_stage(
    spec: ConvSpec,
    axes: Iterable[int] | Share,
    in_channels: int,
    out_channels: int,
    groups: int,
    *,
    shuffle: int = 1,
    last: bool = False,
) -> Stage:
    """The stage of `groups` groups that convolves `axes` of `spec`, or its share of them all, on as many spare slots as
    it takes to divide."""
    share = axes if isinstance(axes, Share) else stage_axes(spec, axes)
    conv = ConvSpec(
        in_channels=groups * -(-in_channels // groups),
        out_channels=groups * -(-out_channels // groups),
        groups=groups,
        bias=spec.bias and last,
        padding_mode=spec.padding_mode,
        kernel_size=share.kernel_size,
        stride=share.stride,
        padding=share.padding,
        dilation=share.dilation,
    )
    return Stage(conv=conv, shuffle=shuffle)


WidthPolicy = Literal["normal", "linear", "bottleneck", "inverted_residual"]


def inner_width(policy: WidthPolicy, in_channels: int, out_channels: int, step: int, steps: int) -> int:
    """Channels between stage `step` and the next of `steps` stages (optimized separable convolution, section 2.3)."""
    if policy == "normal":
        return min(in_channels, out_channels)
    if policy == "linear":
        return round(in_channels + (out_channels - in_channels) * step / steps)
    if policy == "bottleneck":
        return max(1, max(in_channels, out_channels) // 4)
    if policy == "inverted_residual":
        return 4 * min(in_channels, out_channels)
    raise PlanError(f"width must be one of {', '.join(get_args(WidthPolicy))}, got {policy!r}")


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
    """What of `plan` is left when only the input channels `inputs` are there and only `outputs` are wanted.

    Of every stage it keeps what lies on a way between the two:

        a group         that reads a kept channel and that a kept output needs
        inside, in      the places at which some kept group has something to read
        inside, out     the places at which a later stage, or the output, needs something of some kept group

    So an interleaved pair drops whole primary partitions, and its secondary ones shrink inside; an optimized separable
    pair drops whole groups of both stages. A place that only some groups use is one in all: the others read zero there.
    """
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
