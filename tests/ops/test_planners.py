"""The planners against brute force, and the laws that must hold for any channel counts."""

from __future__ import annotations

from itertools import product
from math import gcd, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.errors import PlanError
from leanconv.ops.igc import InterleavedGroup
from leanconv.ops.osep import OptimizedSeparable, exact_groups, paper_groups, relaxed_channels_per_group
from leanconv.ops.separable import inner_width
from leanconv.plan import Plan, Stage
from leanconv.spec import ConvSpec

channel_counts = st.integers(8, 160)
kernels = st.sampled_from([(3, 3), (5, 5), (3, 5)])


def conv(inputs: int, outputs: int, kernel: tuple[int, ...]) -> ConvSpec:
    return ConvSpec(in_channels=inputs, out_channels=outputs, kernel_size=kernel)


@settings(deadline=None, max_examples=150)
@given(channel_counts, channel_counts, kernels, st.sampled_from(["paper", "exact"]))
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


def test_overlap_runs_from_depthwise_to_dense() -> None:
    """Table 2: the sweep of gamma; coverage and cost rise together, and the ends are the two classics."""
    spec = conv(64, 64, (3, 3))
    sweep = [OptimizedSeparable(overlap=gamma).plan(spec) for gamma in (1 / 64, 1 / 16, 1 / 4, 1, 4, 16)]
    assert [plan.params for plan in sweep] == sorted(plan.params for plan in sweep)
    assert [plan.coverage for plan in sweep] == sorted(plan.coverage for plan in sweep)
    assert sweep[0].stages[0].conv.groups == 64
    assert sweep[3].coverage == 1 > sweep[2].coverage


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
