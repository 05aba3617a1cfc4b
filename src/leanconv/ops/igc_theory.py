"""Interleaved group convolution on paper: its width for a budget of weights, and the convolutions it contains.

    T_igc = L M^2 S + M L^2 = G^2 (S / L + 1 / M),   G = L M                                (eq. 7)
    T_rc  = C^2 S                                                                            (eq. 8)
    G > C when L / (L - 1) < M S                                                             (eq. 9)
    G <= (T / (2 sqrt(S)))^(2/3), reached where L = M S                                      (eq. 10 to 15)

Section 4 of the paper: with a fixed secondary convolution of zeros and ones the block is a regular convolution or a
summation fusion, with M = 1 it is Xception's.
"""

from __future__ import annotations

from math import isqrt, prod
from typing import NamedTuple

from leanconv.errors import PlanError
from leanconv.ops.igc import InterleavedGroup
from leanconv.plan import Plan
from leanconv.spec import ConvSpec

__all__ = [
    "SpecialCase",
    "Width",
    "igc_params",
    "is_wider",
    "regular_convolution",
    "regular_params",
    "summation_fusion",
    "widest",
    "width_bound",
    "widths_for_budget",
    "xception",
]


def igc_params(primary: int, secondary: int, taps: int = 9) -> int:
    """T_igc, the weights of a block of L = `primary` and M = `secondary` partitions (eq. 7).

    >>> igc_params(28, 3), igc_params(64, 1)
    (4620, 4672)
    """
    return primary * secondary**2 * taps + secondary * primary**2


def regular_params(width: int, taps: int = 9) -> int:
    """T_rc, the weights of a regular convolution of `width` channels (eq. 8)."""
    return width**2 * taps


def is_wider(primary: int, secondary: int, taps: int = 9) -> bool:
    """Whether the block is wider than a regular convolution of as many weights (eq. 9).

    >>> is_wider(2, 16), is_wider(1, 23)
    (True, False)
    """
    return primary > 1 and primary < secondary * taps * (primary - 1)


def width_bound(budget: float, taps: int = 9) -> float:
    """The greatest width that `budget` weights allow, (T / (2 sqrt(S)))^(2/3) (eq. 15).

    >>> round(width_bound(4672), 1)
    84.6
    """
    return float((budget / (2 * taps**0.5)) ** (2 / 3))


class Width(NamedTuple):
    """A row of table 1: the partitions, the weights and the width G = L M of a block."""

    primary: int
    secondary: int
    params: int
    width: int


def widths_for_budget(budget: int, taps: int = 9) -> tuple[Width, ...]:
    """For every L the M whose weights come nearest to `budget` (table 1 prints some of these rows).

    >>> widths_for_budget(4672)[27]
    Width(primary=28, secondary=3, params=4620, width=84)
    """
    if budget < taps + 1:
        raise PlanError(f"a block of one channel has {taps + 1} weights, more than the budget of {budget}")
    rows = []
    primary = 1
    while igc_params(primary, 1, taps) <= budget or primary == 1:
        # 9 L M^2 + L^2 M = T has one positive root; its neighbours are the candidates.
        root = (isqrt(primary**4 + 4 * primary * taps * budget) - primary**2) // (2 * primary * taps)
        options = {max(1, root), root + 1}
        secondary = min(options, key=lambda m: abs(igc_params(primary, m, taps) - budget))
        rows.append(Width(primary, secondary, igc_params(primary, secondary, taps), primary * secondary))
        primary += 1
    return tuple(rows)


def widest(budget: int, taps: int = 9) -> Width:
    """The widest block of at most `budget` weights, by exhaustive search; L is near M S.

    >>> widest(4672)
    Width(primary=28, secondary=3, params=4620, width=84)
    """
    best = Width(1, 1, igc_params(1, 1, taps), 1)
    if best.params > budget:
        raise PlanError(f"a block of one channel has {best.params} weights, more than the budget of {budget}")
    secondary = 1
    while igc_params(1, secondary, taps) <= budget:
        # The largest L for this M: M L^2 + M^2 S L <= T.
        reach = isqrt(secondary**4 * taps**2 + 4 * secondary * budget)
        primary = max(1, (reach - secondary**2 * taps) // (2 * secondary))
        row = Width(primary, secondary, igc_params(primary, secondary, taps), primary * secondary)
        if row.params <= budget:
            best = max(best, row, key=lambda r: (r.width, -r.params))
        secondary += 1
    return best


class SpecialCase(NamedTuple):
    """A convolution as an interleaved group one: the input is repeated `copies` times, each of the M blocks of the
    secondary convolution is the fixed matrix `secondary` (None: it is learned), and so is the output."""

    plan: Plan
    copies: int
    secondary: tuple[tuple[int, ...], ...] | None


def regular_convolution(spec: ConvSpec, parts: int = 2) -> SpecialCase:
    """A dense convolution: its kernel in `parts` x `parts` blocks is the primary, L = parts^2 (eq. 17 to 20).

    Branch (i, j) convolves part j of the input with block W_ij; the secondary adds up the branches of one output part.
    The repeated input is x, x, ... and so is the output.

    >>> regular_convolution(ConvSpec(in_channels=4, out_channels=4, kernel_size=(3, 3))).secondary
    ((1, 1, 0, 0), (0, 0, 1, 1), (1, 1, 0, 0), (0, 0, 1, 1))
    """
    _square(spec)
    if parts < 1 or spec.in_channels % parts:
        raise PlanError(f"parts (={parts}) must divide the {spec.in_channels} channels")
    branches = parts * parts
    rows = tuple(tuple(int(column // parts == row % parts) for column in range(branches)) for row in range(branches))
    return SpecialCase(_repeated(spec, parts, branches), parts, rows)


def summation_fusion(spec: ConvSpec, branches: int = 4) -> SpecialCase:
    """`branches` convolutions of the same input, added up: the secondary is all ones (eq. 21, 22).

    >>> summation_fusion(ConvSpec(in_channels=8, out_channels=8, kernel_size=(3, 3))).plan.params
    2432
    """
    _square(spec)
    if branches < 1:
        raise PlanError(f"branches must be at least 1, got {branches}")
    return SpecialCase(_repeated(spec, branches, branches), branches, ((1,) * branches,) * branches)


def xception(spec: ConvSpec) -> SpecialCase:
    """M = 1: a convolution per channel, then a learned 1x1 over all of them.

    >>> print(xception(ConvSpec(in_channels=8, out_channels=8, kernel_size=(3, 3))).plan)
    3x3 8->8 g8, shuffle 8; 1x1 8->8
    """
    _square(spec)
    return SpecialCase(InterleavedGroup(primary_partitions=spec.in_channels).plan(spec), 1, None)


def _square(spec: ConvSpec) -> None:
    if spec.in_channels != spec.out_channels or spec.groups != 1 or prod(spec.kernel_size) < 1:
        raise PlanError(
            "the paper's special cases are dense convolutions that keep the number of channels, got "
            f"{spec.in_channels}->{spec.out_channels} with groups={spec.groups}"
        )


def _repeated(spec: ConvSpec, copies: int, branches: int) -> Plan:
    """The interleaved block of `branches` partitions on `copies` times the channels."""
    wide = ConvSpec(
        in_channels=copies * spec.in_channels,
        out_channels=copies * spec.out_channels,
        kernel_size=spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        padding_mode=spec.padding_mode,
    )
    return InterleavedGroup(primary_partitions=branches).plan(wide)
