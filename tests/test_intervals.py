"""Intervals: printed values, and that they hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from leanconv.errors import LeanconvError
from leanconv.intervals import Z95, of_mean, paired_difference, t95, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_printed(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson(count - right, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_solves_its_equation() -> None:
    """Its ends are the shares p from which the seen one is exactly z standard errors away."""
    for right, count in ((3, 17), (90, 100), (500, 10000)):
        for p in wilson(right, count):
            assert abs(right / count - p) == pytest.approx(Z95 * (p * (1 - p) / count) ** 0.5, rel=1e-9)


@pytest.mark.parametrize(("right", "count"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_refuses(right: int, count: int) -> None:
    with pytest.raises(LeanconvError, match="at least one item"):
        wilson(right, count)


@pytest.mark.parametrize(
    ("both", "first", "second"), [(0.70, 0.06, 0.06), (0.70, 0.08, 0.04), (0.3, 0.3, 0.2), (0.9, 0.02, 0.02)]
)
@pytest.mark.parametrize("count", [186, 1000])
def test_paired_difference_covers_the_truth(both: float, first: float, second: float, count: int) -> None:
    """Of 1,000 draws, 95 % within 2 points hold the true difference in their interval."""
    draws = np.random.default_rng(0).multinomial(count, [first, second, both, 1 - first - second - both], 1000)
    held = [paired_difference(int(a), int(b), count).interval for a, b, *_ in draws]
    share = np.mean([low <= first - second <= high for low, high in held])
    assert 0.93 <= share <= 0.97


def test_paired_difference_reads_as_it_should() -> None:
    better = paired_difference(60, 20, 1000)
    worse = paired_difference(20, 60, 1000)
    assert better.value == pytest.approx(0.04)
    assert better.is_clear
    assert worse.interval == pytest.approx((-better.interval.high, -better.interval.low))
    same = paired_difference(0, 0, 1000)
    assert same.value == 0
    assert not same.is_clear
    with pytest.raises(LeanconvError, match="in one of two networks alone"):
        paired_difference(600, 500, 1000)


@pytest.mark.parametrize(("freedom", "printed"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_student_as_printed_in_tables(freedom: int, printed: float) -> None:
    assert t95(freedom) == pytest.approx(printed, abs=5e-4)
    assert t95(10**6) == pytest.approx(Z95, abs=1e-5)


def test_the_interval_of_a_mean() -> None:
    """Against scipy's, and that 95 % of 2,000 draws of three hold the true mean."""
    stats = pytest.importorskip("scipy.stats")
    values = [0.861, 0.872, 0.868, 0.859]
    found = of_mean(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found.interval == pytest.approx((low, high), abs=1e-9)
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    draws = [of_mean(row).interval for row in np.random.default_rng(0).normal(1.0, 3.0, (2000, 3))]
    assert 0.94 <= np.mean([one.low <= 1.0 <= one.high for one in draws if one is not None]) <= 0.96


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert of_mean([0.5]) == (0.5, None, None, 1)
    assert not of_mean([0.5]).is_clear
    assert of_mean([0.01, 0.011]).is_clear
    assert not of_mean([0.01, -0.01]).is_clear
    with pytest.raises(LeanconvError, match="at least one value"):
        of_mean([])
    with pytest.raises(LeanconvError, match="1 degree"):
        t95(0)
