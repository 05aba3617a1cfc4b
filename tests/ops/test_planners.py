"""The planners against brute force, and the laws that must hold for any channel counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import gcd, inf, prod

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from leanconv.errors import PlanError
from leanconv.ops.igc import InterleavedGroup
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.osep_groups import (
    cheapest_groups,
    exact_groups,
    paper_groups,
    relaxed_channels_per_group,
    relaxed_cost,
)
from leanconv.plan import Plan, Stage, inner_width
from leanconv.spec import ConvSpec

channel_counts = st.integers(8, 160)
kernels = st.sampled_from([(3, 3), (5, 5), (3, 5)])


def conv(inputs: int, outputs: int, kernel: tuple[int, ...]) -> ConvSpec:
    return ConvSpec(in_channels=inputs, out_channels=outputs, kernel_size=kernel)


@settings(deadline=None, max_examples=150)
@given(channel_counts, channel_counts, kernels, st.sampled_from(["paper", "exact", "cheapest"]))
def test_overlap_of_one_keeps_the_whole_field(inputs: int, outputs: int, kernel: tuple[int, ...], search: str) -> None:
    spec = conv(inputs, outputs, kernel)
    rewrite = OptimizedSeparable(search=search)  # type: ignore[arg-type]
    if search == "exact" and gcd(inputs, outputs) < 3:
        return  # coprime channel counts may leave nothing but the dense chain, which is refused
    plan = rewrite.plan(spec)
    assert plan.coverage == 1
    assert plan.params <= spec.params
    for stage in plan.stages:
        assert stage.conv.in_channels % stage.conv.groups == 0
        assert stage.conv.out_channels % stage.conv.groups == 0


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 4, 9]), st.sampled_from([0.3, 1.0, 2.5]))
def test_exact_search_equals_brute_force(inputs: int, outputs: int, taps: int, overlap: float) -> None:
    channels = [inputs, min(inputs, outputs), outputs]
    needed = min(overlap * inputs, channels[0] * channels[1])
    costs = [
        channels[1] * (channels[0] // g1) * taps + channels[2] * (channels[1] // g2)
        for g1, g2 in product(range(1, channels[1] + 1), repeat=2)
        if channels[0] % g1 == 0
        and channels[1] % g1 == 0
        and channels[1] % g2 == 0
        and channels[2] % g2 == 0
        and (channels[0] // g1) * (channels[1] // g2) >= needed
    ]
    g1, g2 = exact_groups(channels, [taps, 1], overlap, (None, None))
    assert channels[1] * (channels[0] // g1) * taps + channels[2] * (channels[1] // g2) == min(costs)


def slots(groups: int, channels: int) -> int:
    return groups * -(-channels // groups)


def padded_params(channels: list[int], taps: list[int], groups: tuple[int, ...]) -> int:
    return sum(slots(g, channels[l + 1]) * -(-channels[l] // g) * taps[l] for l, g in enumerate(groups))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 14), st.integers(2, 14), st.sampled_from([(1, 1), (3, 3)]))
def test_cheapest_of_all_equals_brute_force(inputs: int, outputs: int, kernel: tuple[int, ...]) -> None:
    """Every pair of group counts is tried, and only those count whose composed mask is full."""
    inner = min(inputs, outputs)
    spec = conv(inputs, outputs, kernel)
    costs = []
    for groups in product(range(1, inner + 1), repeat=2):
        plan = OptimizedSeparable(stage_groups=groups, overlap=0.01, at_most_dense=True).plan(spec)
        if plan.coverage == 1:
            costs.append(plan.params)
    assert OptimizedSeparable(search="cheapest", at_most_dense=True).plan(spec).params == min(costs)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 12), st.integers(2, 12), st.sampled_from([1, 4, 9]), st.sampled_from([0.3, 1.0, 2.5]), st.data())
def test_cheapest_under_the_channel_condition_equals_brute_force(
    inputs: int, outputs: int, taps: int, overlap: float, data: st.DataObject
) -> None:
    """Three stages, only n_1 n_2 n_3 >= gamma C_1 (eq. 15), also with one group count given."""
    inner = min(inputs, outputs)
    channels, sizes = [inputs, inner, inner, outputs], [taps, 1, 1]
    fixed = (None, data.draw(st.sampled_from([None, 1, inner])), None)
    needed = min(overlap * inputs, prod(channels[:3])) * (1 - 1e-9)
    legal = [
        groups
        for groups in product(range(1, inner + 1), repeat=3)
        if prod(-(-channels[l] // g) for l, g in enumerate(groups)) >= needed and fixed[1] in (None, groups[1])
    ]
    assume(legal)
    found = cheapest_groups(channels, sizes, overlap, fixed, (1, fixed[1] or 1, 1), lambda groups: True)
    assert padded_params(channels, sizes, found) == min(padded_params(channels, sizes, groups) for groups in legal)


@settings(deadline=None, max_examples=100)
@given(channel_counts, channel_counts, kernels, st.sampled_from([2, 3]), st.sampled_from([0.25, 1.0, 4.0]))
def test_integer_optimum_is_never_worse_than_the_papers_rounding(
    inputs: int, outputs: int, kernel: tuple[int, ...], count: int, overlap: float
) -> None:
    spec = conv(inputs, outputs, kernel)
    step = OptimizedSeparable(num_separated=count, overlap=overlap, at_most_dense=True)
    rounded = step.plan(spec)
    best = replace(step, search="cheapest").plan(spec)
    assert best.params <= rounded.params <= spec.params
    inner = [min(inputs, outputs)] * (count - 1)
    for plan in (rounded, best):
        if len(plan.stages) == count:  # not left dense
            bound = relaxed_cost([inputs, *inner, outputs], [prod(kernel), *(1,) * (count - 1)], plan.overlap)
            assert plan.params >= bound * (1 - 1e-9)
    if gcd(inputs, outputs) > 2 and overlap == 1:
        dividing = replace(step, search="exact").plan(spec)
        assert best.params <= dividing.params or dividing.coverage < 1


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(4, 512), min_size=3, max_size=4), st.sampled_from([1, 9, 27]), st.floats(0.1, 8))
def test_relaxed_optimum_balances_the_stages(channels: list[int], taps: int, overlap: float) -> None:
    """All stages cost the same and the channel condition holds with equality (proof of Theorem 1)."""
    sizes = [taps] + [1] * (len(channels) - 2)
    per_group = relaxed_channels_per_group(channels, sizes, overlap)
    costs = [n * channels[l + 1] * sizes[l] for l, n in enumerate(per_group)]
    assert costs == pytest.approx([costs[0]] * len(costs))
    assert prod(per_group) == pytest.approx(overlap * channels[0])


def test_groups_of_the_worked_examples() -> None:
    assert paper_groups([62, 62, 62], [9, 1], 1.0, (None, None)) == (21, 3)
    assert exact_groups([64, 64, 64], [9, 1], 1.0, (None, None)) == (32, 2)
    assert [round(n, 2) for n in relaxed_channels_per_group([62, 62, 62], [9, 1], 1.0)] == [2.62, 23.62]


def test_rounding_may_reach_less_than_the_overlap_asked_for() -> None:
    """64 channels at an overlap of 4: n = (5.33, 48) is rounded to (6, 48), groups to 11 and 2, slots to 6 and 32."""
    plan = OptimizedSeparable(overlap=4.0).plan(conv(64, 64, (3, 3)))
    assert [stage.conv.groups for stage in plan.stages] == [11, 2]
    assert plan.overlap == 6 * 32 / 64 == 3.0
    assert plan.params == 11 * 6 * 6 * 9 + 2 * 32 * 32 == 5612
    assert relaxed_cost([64, 64, 64], [9, 1], 4.0) == 6144 > plan.params
    assert relaxed_cost([64, 64, 64], [9, 1], 3.0) == pytest.approx(5320.9, abs=0.1)


def test_overlap_runs_from_depthwise_to_dense() -> None:
    """Table 2: the sweep of gamma; coverage and cost rise together, and the ends are the two classics."""
    spec = conv(64, 64, (3, 3))
    sweep = [OptimizedSeparable(overlap=gamma).plan(spec) for gamma in (1 / 64, 1 / 16, 1 / 4, 1, 4, 16)]
    assert [plan.params for plan in sweep] == sorted(plan.params for plan in sweep)
    assert [plan.coverage for plan in sweep] == sorted(plan.coverage for plan in sweep)
    assert sweep[0].stages[0].conv.groups == 64
    assert sweep[3].coverage == 1 > sweep[2].coverage


@pytest.mark.parametrize("gamma", [4.0, 16.0, 64.0, 1e6, inf])
def test_large_overlap_ends_at_the_dense_convolution(gamma: float) -> None:
    """Tables 2 and 4, their last column; narrow layers get there first."""
    for width in (16, 64):
        spec = conv(width, width, (3, 3))
        plan = OptimizedSeparable(overlap=gamma, at_most_dense=True).plan(spec)
        assert plan.coverage == 1
        assert plan.params <= spec.params
        if gamma > 1e3:
            assert [stage.conv.groups for stage in plan.stages] == [1]


def test_kernel_placement() -> None:
    spec = ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))

    def kernels_of(**options: object) -> list[tuple[int, ...]]:
        plan = OptimizedSeparable(**options).plan(spec)  # type: ignore[arg-type]
        assert [stage.conv.stride for stage in plan.stages if stage.conv.stride != (1, 1)] == [(2, 2)]
        assert plan.coverage == 1
        return [stage.conv.kernel_size for stage in plan.stages]

    assert kernels_of() == [(3, 3), (1, 1)]
    assert kernels_of(kernel_at="last") == [(1, 1), (3, 3)]
    assert kernels_of(num_separated=4) == [(1, 1), (3, 3), (1, 1), (1, 1)]
    assert kernels_of(num_separated=4, kernel_at="first") == [(3, 3), (1, 1), (1, 1), (1, 1)]


def test_interleaved_group_chooses_the_widest_block() -> None:
    """L = M S (eq. 15): for 64 channels and nine taps L = sqrt(64 * 9) = 24; 32 is the nearest divisor in ratio."""
    plan = InterleavedGroup().plan(conv(64, 64, (3, 3)))
    assert [stage.conv.groups for stage in plan.stages] == [32, 2]


def test_width_policies() -> None:
    assert [
        inner_width(policy, 32, 64, 1, 2) for policy in ("normal", "linear", "bottleneck", "inverted_residual")
    ] == [
        32,
        48,
        16,
        128,
    ]  # type: ignore[arg-type]


def test_plan_refuses_stages_that_do_not_add_up() -> None:
    spec = conv(8, 8, (3, 3))
    with pytest.raises(PlanError, match="kernel_size of axis 0 is 3"):
        Plan(spec=spec, stages=(Stage(conv=conv(8, 8, (5, 3))),))
    with pytest.raises(PlanError, match="takes 4 and gives 8"):
        Plan(spec=spec, stages=(Stage(conv=conv(4, 8, (3, 3))),))
    with pytest.raises(PlanError, match="at least one stage"):
        Plan(spec=spec, stages=())
    with pytest.raises(PlanError, match="must divide"):
        Stage(conv=conv(8, 8, (3, 3)), shuffle=3)


def test_declared_macs_of_a_strided_chain() -> None:
    spec = ConvSpec(in_channels=16, out_channels=32, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    assert OptimizedSeparable().plan(spec).macs((32, 32)) == (16 * 2 * 9 + 32 * 8) * 16 * 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": (1,)}, "stride must have 2 entries"),
        ({"padding": "full"}, "padding must be integers"),
        ({"groups": 3}, "must divide in_channels"),
        ({"kernel_size": (0, 3)}, "at least 1"),
    ],
)
def test_spec_refuses_what_no_convolution_is(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ConvSpec(**{"in_channels": 8, "out_channels": 8, "kernel_size": (3, 3), **settings})  # type: ignore[arg-type]


def test_spec_knows_output_sizes() -> None:
    spec = ConvSpec(in_channels=1, out_channels=1, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 2))
    assert spec.out_size((9, 9)) == (5, 4)
    assert ConvSpec(in_channels=1, out_channels=1, kernel_size=(4,), padding="same").out_size((7,)) == (7,)
