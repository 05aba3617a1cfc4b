"""Where maps lie, which tiles compute them, and what a plan says: without the library."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from leanconv.kernels.layout import Geometry, geometries, lanes_for, odd_lines, places, up
from leanconv.kernels.pack import PLAN_VERSION, pack
from leanconv.kernels.program import Buffer, Conv, Program, Stage, Volume, Wire
from leanconv.kernels.sort import sorted_flat
from leanconv.kernels.tiles import FLAT, ROWS, THREE, TWO_ROWS, Tile, flat_tile, parts, tile


def whole(buffer: int, channels: int) -> tuple[Wire, ...]:
    return tuple(Wire(buffer, channel) for channel in range(channels))


def three(channels: int, *, stride: int = 1) -> Stage:
    weight = np.arange(channels * channels * 9, dtype=np.float32).reshape(channels, channels, 3, 3)
    return Stage(weight=weight, bias=np.zeros(channels, np.float32), stride=(stride, stride), padding=(1, 1))


def rows(count: int) -> Program:
    """`count` convolutions of 3 x 3 on 32 x 32, one after the other, the input added to each."""
    steps = tuple(
        Conv(reads=whole(n, 2), writes=n + 1, order=(0, 1), stages=(three(2),), residual=whole(max(n - 1, 0), 2))
        for n in range(count)
    )
    return Program(
        buffers=tuple(Buffer(2, 32, 32) for _ in range(count + 1)),
        steps=steps,
        inputs=(0,),
        outputs=(whole(count, 2),),
    )


def test_padding_lies_between_rows_and_between_channels() -> None:
    # 33 rows of 40: one row of zeros between channels, a column (and what fills a vector) between rows.
    assert geometries(rows(1), 8) == {(32, 32): Geometry(pitch=40, plane=1320, lead=48, lanes=8)}
    assert geometries(rows(1), 16) == {(32, 32): Geometry(pitch=48, plane=1584, lead=64, lanes=16)}


def test_the_last_pixels_that_a_stride_leaves_out_need_no_padding() -> None:
    program = Program(
        buffers=(Buffer(2, 8, 8), Buffer(2, 4, 4)),
        steps=(Conv(reads=whole(0, 2), writes=1, order=(0, 1), stages=(three(2, stride=2),)),),
        inputs=(0,),
        outputs=(whole(1, 2),),
    )
    found = geometries(program, 8)
    assert found[8, 8] == Geometry(pitch=16, plane=144, lead=32, lanes=8)  # 1 before; after: 7 - 7 = 0
    assert found[4, 4] == Geometry(pitch=4, plane=16, lead=0, lanes=8, flat=True)


def flats(*widths: int, lanes: int, kernel: int = 3) -> list[bool]:
    """Whether the maps are flat of convolutions of stride 2, each of which makes one width of the one before."""
    sides = list(pairwise(widths))
    weight = np.ones((1, 1, kernel, kernel), np.float32)
    stage = Stage(weight=weight, bias=np.zeros(1, np.float32), stride=(2, 2), padding=(kernel // 2, kernel // 2))
    steps = tuple(Conv(reads=whole(n, 1), writes=n + 1, order=(0,), stages=(stage,)) for n in range(len(sides)))
    buffers = tuple(Buffer(1, width, width) for width in widths)
    program = Program(buffers=buffers, steps=steps, inputs=(0,), outputs=(whole(len(sides), 1),))
    found = geometries(program, lanes)
    return [found[width, width].flat for width in widths]


def clips(kernel: int) -> Program:
    """Pixels of two frames of 7 x 14 that pass, then a convolution of a kernel in each row of pixels."""
    weight = np.ones((1, 1, kernel, kernel), np.float32)
    stage = Stage(weight=weight, bias=np.zeros(1, np.float32), padding=(kernel // 2, kernel // 2))
    steps = (
        Volume(reads=whole(0, 1), writes=1, frames=2),
        Conv(reads=whole(1, 1), writes=2, order=(0,), stages=(stage,)),
    )
    buffers = tuple(Buffer(1, 14, 14) for _ in range(3))
    return Program(buffers=buffers, steps=steps, inputs=(0,), outputs=(whole(2, 1),))


def test_maps_of_clips_that_nobody_looks_around_in_are_tight() -> None:
    assert geometries(clips(1), 16)[14, 14] == Geometry(14, 208, 0, 16, flat=True, tight=True)  # 196 floats, odd lines
    assert geometries(clips(3), 16)[14, 14] == Geometry(pitch=16, plane=240, lead=32, lanes=16)


def test_maps_narrower_than_a_vector_are_flat() -> None:
    assert flats(32, 16, 8, 4, lanes=16) == [False, False, True, True]
    assert flats(32, 16, 8, 4, lanes=8) == [False, False, False, True]


def test_what_is_read_for_a_map_that_is_not_flat_is_not_flat() -> None:
    """Its rows would have no padding."""
    weight = np.ones((1, 1, 3, 3), np.float32)
    stage = Stage(weight=weight, bias=np.zeros(1, np.float32), padding=(6, 6))
    program = Program(
        buffers=(Buffer(1, 8, 8), Buffer(1, 18, 18)),
        steps=(Conv(reads=whole(0, 1), writes=1, order=(0,), stages=(stage,)),),
        inputs=(0,),
        outputs=(whole(1, 1),),
    )
    assert not geometries(program, 16)[8, 8].flat


def test_pixels_sorted_by_phase() -> None:
    """A kernel of 3 x 3 and stride 2 on 16 x 16: odd rows from -1 on, then even ones, for each column of the kernel."""
    out = Geometry(pitch=8, plane=80, lead=16, lanes=16, flat=True)
    found = sorted_flat(three(1, stride=2), 8, 8, 16, 32, out)
    assert [part.start for part in found.parts] == [-1, -33, 0, -32, 1, -31]
    assert [part.more for part in found.parts] == [0, 1] * 3
    assert [(part.first, part.last) for part in found.parts[::2]] == [(1, 8), (0, 8), (0, 8)]
    one = found.parts[1].to
    assert found.rows == [one, 0, one + 8]  # row 2 y - 1 is the row before row 2 y + 1
    assert found.columns == [0, 2 * one, 4 * one]


def test_maps_share_places_when_they_are_not_needed_any_more() -> None:
    found = places(rows(6), geometries(rows(6), 8), zeros=0, scratch=0)
    # The sum of step n is written over what it adds, buffer n - 1: two maps are enough for seven.
    assert len(set(found.origins.values())) == 2
    assert [found.origins[n] == found.origins[n - 2] for n in range(2, 7)] == [True] * 5


@pytest.mark.parametrize(("width", "lanes"), [(1, 8), (8, 8), (9, 16), (32, 16)])
def test_narrow_maps_take_short_vectors(width: int, lanes: int) -> None:
    assert lanes_for(width, 16) == lanes
    assert lanes_for(width, 8) == 8


def test_rounding() -> None:
    assert (up(33, 8), up(32, 8), odd_lines(1), odd_lines(32), odd_lines(33)) == (40, 32, 16, 48, 48)


@pytest.mark.parametrize(
    ("channels", "width", "made"),
    [
        (1, 32, Tile(ROWS, 4, 1)),
        (2, 32, Tile(ROWS, 4, 1)),
        (3, 32, Tile(THREE, 1, 4)),  # twelve sums
        (3, 16, Tile(THREE, 2, 2)),
        (4, 32, Tile(THREE, 3, 1)),
        (5, 32, Tile(THREE, 1, 2)),
        (6, 8, Tile(THREE, 2, 1)),
        (6, 7, Tile(THREE, 2, 1)),
    ],
)
def test_tiles_of_three_by_three(channels: int, width: int, made: Tile) -> None:
    assert tile(channels, width, 8, registers=16, shares_rows=True, three=True) == made


def test_tiles_of_flat_maps() -> None:
    eight = {"registers": 32, "three": True}
    assert flat_tile(6, 64, 8, 16, shares_rows=True, **eight) == Tile(THREE, 1, 4)  # the whole map
    assert flat_tile(3, 64, 8, 16, shares_rows=True, **eight) == Tile(THREE, 1, 4)
    assert flat_tile(1, 64, 8, 16, shares_rows=True, **eight) == Tile(TWO_ROWS, 4, 1)
    assert flat_tile(1, 16, 4, 16, shares_rows=True, **eight) == Tile(THREE, 1, 1)
    assert flat_tile(1, 64, 8, 16, shares_rows=False, **eight) == Tile(THREE, 1, 4)


def test_tiles_of_other_kernels_and_outputs_of_nearly_equal_size() -> None:
    assert tile(1, 32, 8, registers=16, shares_rows=False, three=False) == Tile(FLAT, 2, 4)
    assert tile(6, 32, 16, registers=32, shares_rows=False, three=False) == Tile(FLAT, 2, 2)
    assert [list(part) for part in parts(7)] == [[0, 1, 2], [3, 4, 5, 6]]


def test_the_head_of_a_plan_and_the_order_of_its_weights() -> None:
    packed = pack(rows(1), lanes=8, registers=16)
    assert packed.plan[:6].tolist() == [PLAN_VERSION, packed.stamp, packed.floats, 1, 1, 1]
    assert packed.plan[6:9].tolist() == [8, 0, packed.floats]  # vectors, and no sums
    assert packed.plan[10:14].tolist() == [2, 32, 32, 40]  # the input: channels, height, width, pitch
    # One tile of two outputs; channel, tap, output: outputs 0 and 1 of channel 0, tap 0 first, then of tap 1.
    assert packed.weights[:4].tolist() == [0.0, 18.0, 1.0, 19.0]
    assert packed.weights[18:20].tolist() == [9.0, 27.0]


def test_channels_that_nobody_reads_are_not_computed() -> None:
    program = rows(1)
    half = Program(buffers=program.buffers, steps=program.steps, inputs=(0,), outputs=((Wire(1, 1),),))
    assert len(pack(half, lanes=8, registers=16).weights) < len(pack(program, lanes=8, registers=16).weights)


def test_two_plans_have_two_stamps() -> None:
    assert pack(rows(1), lanes=8, registers=16).stamp != pack(rows(2), lanes=8, registers=16).stamp
