"""Printed numbers of "Interleaved Group Convolutions" (ICCV 2017)."""

from __future__ import annotations

import pytest

from leanconv.ops.igc import InterleavedGroup
from leanconv.spec import ConvSpec

# Table 1: L, M, #params, width for about 4672 and about 17536 parameters.
TABLE_1 = [
    (1, 23, 4784, 23), (2, 16, 4672, 32), (3, 13, 4680, 39), (5, 10, 4750, 50), (6, 9, 4698, 54),
    (12, 6, 4752, 72), (28, 3, 4620, 84), (40, 2, 4640, 80), (64, 1, 4672, 64),
    (1, 44, 17468, 44), (2, 31, 17422, 62), (4, 22, 17776, 88), (12, 12, 17280, 144), (14, 11, 17402, 154),
    (23, 8, 17480, 184), (28, 7, 17836, 196), (41, 5, 17630, 205), (64, 3, 17472, 192), (85, 2, 17510, 170),
    (128, 1, 17536, 128),
]  # fmt: skip

# L = 2, M = 31: the paper prints a width of 63, but L x M is 62 and only 62 gives its 17422 parameters.


@pytest.mark.parametrize(("primary", "secondary", "params", "width"), TABLE_1)
def test_table_1(primary: int, secondary: int, params: int, width: int) -> None:
    spec = ConvSpec(in_channels=width, out_channels=width, kernel_size=(3, 3), padding=(1, 1))
    plan = InterleavedGroup(primary_partitions=primary, secondary_partitions=secondary).plan(spec)
    assert primary * secondary == width
    assert plan.params == params
    assert plan.coverage == 1, "the composite kernel of an interleaved group convolution is dense"


def test_widest_block_is_where_l_is_about_nine_m() -> None:
    """Equation 15: for each budget of Table 1 the widest row is the one with L nearest to 9 M."""
    for rows in (TABLE_1[:9], TABLE_1[9:]):
        widest = max(rows, key=lambda row: row[3])
        assert widest == min(rows, key=lambda row: abs(row[0] - 9 * row[1]))
