"""The two papers' analyses: costs over N and gamma, width for a budget, and the convolutions that are special cases."""

from __future__ import annotations

from itertools import product
from math import e, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanconv.errors import PlanError
from leanconv.ops.chain import ConvChain
from leanconv.ops.igc_theory import (
    SpecialCase,
    igc_params,
    is_wider,
    regular_convolution,
    regular_params,
    summation_fusion,
    widest,
    width_bound,
    widths_for_budget,
    xception,
)
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.osep_groups import best_stage_count, relaxed_cost, relaxed_minimum
from leanconv.ops.osep_linear import OptimizedSeparableLinear
from leanconv.ops.osep_theory import classics, overlap_sweep, relaxed_optimum, stage_sweep, two_stage_cost
from leanconv.spec import ConvSpec


def conv(inputs: int, outputs: int, kernel: int = 3) -> ConvSpec:
    return ConvSpec(in_channels=inputs, out_channels=outputs, kernel_size=(kernel, kernel), padding=(kernel // 2,) * 2)


def test_two_stages_cost_2_c_to_the_1_5_k() -> None:
    """Table 1: 2 C^(3/2) K."""
    for width, kernel in ((64, 3), (256, 3), (100, 5)):
        assert relaxed_cost([width] * 3, [kernel**2, 1], 1.0) == pytest.approx(2 * width**1.5 * kernel)
        assert relaxed_optimum(conv(width, width, kernel), OptimizedSeparable()) == pytest.approx(
            2 * width**1.5 * kernel
        )


@settings(deadline=None)
@given(st.integers(4, 512), st.integers(4, 512), st.sampled_from([1, 9, 25]), st.sampled_from([1.0, 4.0]))
def test_relaxed_cost_is_least_at_log_gamma_c_k2(inputs: int, outputs: int, taps: int, overlap: float) -> None:
    """Equations 21 and 22: no whole number of stages is below e C log(gamma C K^2), the nearest ones come close."""
    best = best_stage_count(inputs, outputs, taps, overlap)
    bound = relaxed_minimum(inputs, outputs, taps, overlap)
    costs = {
        count: relaxed_cost(
            [inputs, *[min(inputs, outputs)] * (count - 1), outputs], [taps] + [1] * (count - 1), overlap
        )
        for count in range(1, 20)
    }
    assert min(costs.values()) >= bound * (1 - 1e-9)
    assert abs(min(costs, key=costs.__getitem__) - max(1.0, best)) <= 1
    assert min(costs.values()) <= bound * 1.13


def test_minimum_of_uniform_channels_is_the_papers() -> None:
    assert best_stage_count(64, 64, 9) == pytest.approx(log(64 * 9))
    assert relaxed_minimum(64, 64, 9) == pytest.approx(e * 64 * log(64 * 9))


def test_stage_sweep_starts_dense_and_says_the_bound() -> None:
    rows = stage_sweep(conv(128, 128))
    assert [row.name for row in rows] == [f"N={count}" for count in range(1, 9)]
    params = [row.plan.params for row in rows if row.plan]
    assert params[0] == 128 * 128 * 9
    assert min(params) < params[1] < params[0] / 10
    best = stage_sweep(conv(128, 128), OptimizedSeparable(search="cheapest"))
    assert all(row.plan and row.relaxed and row.plan.params >= row.relaxed * (1 - 1e-9) for row in best)


def test_overlap_sweep_runs_from_depthwise_to_conventional() -> None:
    rows = overlap_sweep(conv(64, 64))
    plans = [row.plan for row in rows if row.plan]
    assert len(plans) == len(rows) == 8
    assert plans[0].params == 64 * 9
    assert plans[-1].params == 64 * 64 * 9
    assert [plan.params for plan in plans] == sorted(plan.params for plan in plans)
    assert [plan.coverage for plan in plans] == sorted(plan.coverage for plan in plans)
    assert [plan.coverage == 1 for plan in plans] == [False] * 3 + [True] * 5  # table 2, its row "Vol. RF"


def test_classics_are_the_columns_of_table_1() -> None:
    params = {row.name: row.plan.params for row in classics(conv(64, 64)) if row.plan}
    assert params == {
        "conventional": 64 * 64 * 9,
        "depthwise": 64 * 9,
        "depth separable": 64 * (64 + 9),
        "spatial separable": 2 * 64 * 64 * 3,
        "grouped (g=8)": 64 * 64 * 9 // 8,
        "point-wise": 64 * 64,
    }
    assert [row.name for row in classics(conv(62, 93)) if "grouped" in row.name] == ["grouped (g=1)"]
    missing = {row.name: row.reason for row in classics(conv(64, 100)) if row.plan is None}
    assert list(missing) == ["depthwise"]


@pytest.mark.parametrize(
    ("budget", "column"),
    [
        (4672, [(1, 23), (2, 16), (3, 13), (5, 10), (6, 9), (12, 6), (28, 3), (40, 2), (64, 1)]),
        (17536, [(4, 22), (12, 12), (14, 11), (23, 8), (28, 7), (41, 5), (64, 3), (85, 2), (128, 1)]),
    ],
)
def test_table_1_takes_the_nearest_m_for_each_l(budget: int, column: list[tuple[int, int]]) -> None:
    rows = {row.primary: row.secondary for row in widths_for_budget(budget)}
    assert {primary: rows[primary] for primary, _ in column} == dict(column)


@settings(deadline=None, max_examples=50)
@given(st.integers(30, 3000), st.sampled_from([4, 9, 25]))
def test_widest_block_is_the_brute_force_one(budget: int, taps: int) -> None:
    legal = [
        (primary * secondary, -igc_params(primary, secondary, taps))
        for primary, secondary in product(range(1, 60), repeat=2)
        if igc_params(primary, secondary, taps) <= budget
    ]
    found = widest(budget, taps)
    assert (found.width, -found.params) == max(legal)
    assert found.width <= width_bound(budget, taps) * (1 + 1e-12)


def test_bound_on_the_width_is_reached_where_l_is_m_s() -> None:
    for secondary in (1, 2, 5):
        assert width_bound(igc_params(9 * secondary, secondary)) == pytest.approx(9 * secondary**2)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([4, 9]))
def test_wider_than_a_regular_convolution(primary: int, secondary: int, taps: int) -> None:
    """Equation 9 against its meaning: a regular convolution of that width would need more weights."""
    width = primary * secondary
    assert is_wider(primary, secondary, taps) == (regular_params(width, taps) > igc_params(primary, secondary, taps))


def fixed_secondary(case: SpecialCase) -> ConvChain:
    """The chain of the special case with its secondary convolution set to the zeros and ones it needs."""
    chain = ConvChain(case.plan).double()
    second = chain.convs[1]
    assert case.secondary is not None
    blocks = second.groups
    pattern = torch.tensor(case.secondary, dtype=torch.float64).repeat(blocks, 1)
    second.weight.data = pattern.reshape(second.weight.shape)
    return chain


def repeated(x: torch.Tensor, copies: int) -> torch.Tensor:
    return torch.cat([x] * copies, 1)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_regular_convolution_is_an_interleaved_group_convolution(parts: int) -> None:
    """Equations 17 to 20: primary blocks W_ij, fixed secondary."""
    dense = nn.Conv2d(8, 8, 3, padding=1, bias=False, dtype=torch.float64)
    case = regular_convolution(conv(8, 8), parts)
    chain = fixed_secondary(case)
    size = 8 // parts
    blocks = [
        dense.weight.data[i * size : (i + 1) * size, j * size : (j + 1) * size]
        for i in range(parts)
        for j in range(parts)
    ]
    chain.convs[0].weight.data = torch.cat(blocks)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(chain(repeated(x, parts)), repeated(dense(x), parts))


def test_summation_fusion_is_an_interleaved_group_convolution() -> None:
    """Equation 22: the secondary is all ones, and every copy of the output is the sum of the branches."""
    case = summation_fusion(conv(6, 6), 4)
    chain = fixed_secondary(case)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    branches = chain.convs[0].weight.data.split(6)
    total = sum(nn.functional.conv2d(x, weight, padding=1) for weight in branches)
    torch.testing.assert_close(chain(repeated(x, 4)), repeated(total, 4))  # type: ignore[arg-type]


def test_xception_is_the_block_with_one_secondary_partition() -> None:
    plan = xception(conv(8, 8)).plan
    assert [(stage.conv.kernel_size, stage.conv.groups) for stage in plan.stages] == [((3, 3), 8), ((1, 1), 1)]
    assert plan.params == 8 * 9 + 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regular_convolution(conv(8, 8), 3), "must divide the 8 channels"),
        (lambda: regular_convolution(conv(8, 4)), "keep the number of channels, got 8->4"),
        (lambda: summation_fusion(conv(8, 8), 0), "branches must be at least 1"),
        (lambda: widest(5), "more than the budget of 5"),
        (lambda: widths_for_budget(3), "more than the budget of 3"),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make()  # type: ignore[operator]


def test_linear_layer_as_a_chain() -> None:
    linear = nn.Linear(64, 36, dtype=torch.float64)
    layer, error = OptimizedSeparableLinear.from_linear(linear)
    assert 0 < error < 1
    x = torch.randn(3, 5, 64, dtype=torch.float64)
    assert layer(x).shape == linear(x).shape
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.dense_weight(), layer.chain.dense_bias()))
    assert sum(p.numel() for p in layer.parameters()) < sum(p.numel() for p in linear.parameters()) / 2
    back, error = OptimizedSeparableLinear.from_linear(
        nn.Linear(64, 36, bias=False, dtype=torch.float64), num_separated=1
    )
    assert error == pytest.approx(0, abs=1e-12)
    assert back.chain.bias is None
    with pytest.raises(PlanError, match=r"expected an nn\.Linear, got Conv1d"):
        OptimizedSeparableLinear.from_linear(nn.Conv1d(4, 4, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("ndim", [1, 2])
def test_figure_2_is_a_saddle(ndim: int) -> None:
    """At C = 64, K = 5 nothing changes to first order round g1 = 8, K1 = 3, and the two curvatures have opposite signs.

    Along the line on which both change it falls on one side and rises on the other; the figure's axis is 2800 to 3600.
    """

    def f(g: float, k: float) -> float:
        return two_stage_cost(64, 5, g, k, ndim=ndim)

    step = 1e-4
    at = f(8, 3)
    slopes = [(f(8 + step, 3) - f(8 - step, 3)) / (2 * step), (f(8, 3 + step) - f(8, 3 - step)) / (2 * step)]
    assert slopes == pytest.approx([0, 0], abs=1e-3)
    bends = [
        (f(8 + step, 3) - 2 * at + f(8 - step, 3)) / step**2,
        (f(8, 3 + step) - 2 * at + f(8, 3 - step)) / step**2,
    ]
    mixed = (f(8 + step, 3 + step) - f(8 + step, 3 - step) - f(8 - step, 3 + step) + f(8 - step, 3 - step)) / (
        4 * step**2
    )
    # By hand: 2 K1^d C^2 / g^3, d (d - 1) K1^(d-2) C^2 (1 / g + g / C), -2 d K1^(d-1) C^2 / g^2.
    assert bends == pytest.approx([48, 0] if ndim == 1 else [144, 2048], abs=2)
    assert mixed == pytest.approx(-128 if ndim == 1 else -768, abs=2)
    assert bends[0] * bends[1] - mixed**2 < 0
    assert f(8.8, 3.3) < at < f(8.8, 2.7)
    if ndim == 1:
        assert 2800 < at < 3600
        assert two_stage_cost(64, 5, 64 / (5 * 64) ** 0.5, 1) < at  # all of the kernel in one stage costs less
