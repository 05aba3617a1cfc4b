"""How sure a measured accuracy is: 95 % intervals of a share, and of the difference of two on the same items.

Plain numbers, no torch: tables, plots and JSON all take their intervals from here.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from leanconv.errors import LeanconvError

__all__ = ["Z95", "Difference", "Interval", "of_share", "paired_difference", "wilson"]

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
