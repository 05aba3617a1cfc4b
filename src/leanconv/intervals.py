"""How sure a measured accuracy is: 95 % intervals of a share, of the difference of two on the same items, of a mean.

Plain numbers, no torch: tables, plots and JSON all take their intervals from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import exp, lgamma, pi, sqrt
from typing import NamedTuple

from leanconv.errors import LeanconvError

__all__ = ["Z95", "Difference", "Interval", "Mean", "of_mean", "of_share", "paired_difference", "t95", "wilson"]

Z95 = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


class Interval(NamedTuple):
    """From `low` to `high`, both inside."""

    low: float
    high: float


class Difference(NamedTuple):
    """`value` with its 95 % interval; `only_first` and `only_second` items were right in one of the two alone."""

    value: float
    interval: Interval
    only_first: int
    only_second: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval.low > 0 or self.interval.high < 0


class Mean(NamedTuple):
    """The mean of `number` values, their standard deviation and the mean's 95 % interval: None for a single value."""

    value: float
    deviation: float | None
    interval: Interval | None
    number: int

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval, and it leaves out 0."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)


def wilson(right: int, count: int) -> Interval:
    """The 95 % interval of a share of which `right` of `count` items were seen (Wilson, 1927).

    Inside [0, 1], and of use where few items were seen or (almost) all of them were right.
    Raises `LeanconvError` for counts that are none.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.49, 0.943]
    """
    if not 0 <= right <= count or count < 1:
        raise LeanconvError(f"an interval needs at least one item, not more right ones than items: {right} of {count}")
    share, unsure = right / count, Z95**2 / count
    centre = (share + unsure / 2) / (1 + unsure)
    reach = Z95 * sqrt(share * (1 - share) / count + unsure / (4 * count)) / (1 + unsure)
    return Interval(max(0.0, centre - reach) if right else 0.0, min(1.0, centre + reach) if right < count else 1.0)


def of_share(share: float, count: int) -> Interval:
    """The 95 % interval (Wilson) of a measured `share` of `count` items, from 0 to 1.

    Raises `LeanconvError` for a share that is no number of items out of `count`.

    >>> of_share(0.8, 10) == wilson(8, 10)
    True
    """
    right = round(share * count)
    if abs(share * count - right) > 1e-3:
        raise LeanconvError(f"{share} is no share of {count} items, so nothing says how sure it is")
    return wilson(right, count)


def paired_difference(only_first: int, only_second: int, count: int) -> Difference:
    """The difference of two accuracies on the same `count` items, the first minus the second, with its 95 % interval.

    Items that both got right, or both wrong, cannot tell the two apart, so only the others count. The interval is
    the usual one for pairs with half an item added to each of the four cells (Agresti and Min, 2005), which keeps its
    95 % also where few items differ. Raises `LeanconvError` for counts that are none.

    >>> paired_difference(30, 10, 1000).value
    0.02
    >>> paired_difference(30, 10, 1000).is_clear, paired_difference(21, 19, 1000).is_clear
    (True, False)
    """
    if count < 1 or min(only_first, only_second) < 0 or only_first + only_second > count:
        raise LeanconvError(
            f"of {count} items, {only_first} and {only_second} cannot have been right in one of two networks alone"
        )
    first, second, all_items = only_first + 0.5, only_second + 0.5, count + 2
    centre = (first - second) / all_items
    reach = Z95 * sqrt((first + second) - (first - second) ** 2 / all_items) / all_items
    interval = Interval(max(-1.0, centre - reach), min(1.0, centre + reach))
    return Difference((only_first - only_second) / count, interval, only_first, only_second)


def of_mean(values: Sequence[float]) -> Mean:
    """The mean of independent `values` of one kind, as those of one recipe under several seeds.

    The interval is Student's: mean +- t * s / sqrt(n), with n - 1 degrees of freedom and s the standard deviation with
    n - 1 below it. One value has neither. Raises `LeanconvError` for none.

    >>> found = of_mean([0.5, 0.75, 1.0])
    >>> found.value, found.deviation, [round(end, 4) for end in found.interval]
    (0.75, 0.25, [0.129, 1.371])
    """
    count = len(values)
    if count < 1:
        raise LeanconvError("a mean needs at least one value")
    mean = sum(values) / count
    if count == 1:
        return Mean(mean, None, None, 1)
    deviation = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    reach = float(t95(count - 1)) * deviation / sqrt(count)
    return Mean(mean, deviation, Interval(mean - reach, mean + reach), count)


@cache
def t95(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution with that many degrees of freedom.

    >>> [round(t95(freedom), 3) for freedom in (1, 2, 4, 9)]
    [12.706, 4.303, 2.776, 2.262]
    """
    if freedom < 1:
        raise LeanconvError(f"Student's distribution has 1 degree of freedom or more, got {freedom}")
    low, high = Z95, 13.0
    for _ in range(60):  # halves of 11 down to the last digits of a double
        middle = (low + high) / 2
        low, high = (middle, high) if _upper_tail(middle, freedom) > 0.025 else (low, middle)
    return (low + high) / 2


def _upper_tail(t: float, freedom: int) -> float:
    """P(T > t), integrated by Simpson's rule over the density, whose integral from 0 on is a half."""
    shape = (freedom + 1) / 2
    scale = exp(lgamma(shape) - lgamma(freedom / 2)) / sqrt(freedom * pi)
    steps = 2000
    width = t / steps
    heights = [(1 + (width * index) ** 2 / freedom) ** -shape for index in range(steps + 1)]
    total = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    return float(0.5 - scale * total * width / 3)
