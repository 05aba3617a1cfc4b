"""Convolutions of 3 x 3 by Winograd's minimal filtering: the outputs of the taps, as exact, with less arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checked_plans import Checked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels_library import library, run
from leanconv.kernels.blocks import in_blocks
from leanconv.kernels.library import Runnable
from leanconv.kernels.portable import portable
from leanconv.kernels.program import Activation, Buffer, Conv, Program, Repeat, Stage, Wire, out_side
from leanconv.kernels.winograd import Winograd, is_faster, weights_of
from random_programs import computed

_BY_TAPS, _BY_TILES = 6, 10


@pytest.fixture(autouse=True)
def _there() -> None:
    library()


def whole(number: int, channels: int) -> tuple[Wire, ...]:
    return tuple(Wire(number, channel) for channel in range(channels))


def stage(inputs: int, outputs: int, padding: tuple[int, int] = (1, 1), seed: int = 0, kernel: int = 3) -> Stage:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, inputs, kernel, kernel)) / np.sqrt(kernel * kernel * inputs)
    return Stage(
        weight=weight.astype(np.float32), bias=rng.standard_normal(outputs).astype(np.float32), padding=padding
    )


def single(one: Stage, height: int, width: int, activation: Activation | None = None) -> Program:
    inputs, outputs = one.weight.shape[1], len(one.weight)
    size = Buffer(outputs, out_side(height, one, 0), out_side(width, one, 1))
    order = tuple(range(outputs))
    step = Conv(reads=whole(0, inputs), writes=1, order=order, stages=(one,), activation=activation or Activation())
    buffers = (Buffer(inputs, height, width), size)
    return Program(buffers=buffers, steps=(step,), inputs=(0,), outputs=(whole(1, outputs),))


def kinds(program: Program, lanes: int, *, winograd: Winograd = "here") -> list[int]:
    """The kinds of the steps of a plan."""
    packed = in_blocks(program, lanes, 16, winograd=winograd)
    assert packed is not None
    plan = packed.plan
    first = 10 + 6 * int(plan[3] + plan[4])
    return [int(plan[plan[first + index]]) for index in range(int(plan[5]))]


def made(
    program: Program, x: Tensor, *, threads: int = 1, lanes: int | None = None, winograd: Winograd = "here"
) -> Tensor:
    """The output, in an arena that was used before."""
    runnable = Runnable(program, library(), lanes, winograd=winograd)
    run(program, [x], runnable=runnable, threads=threads, least=1)
    return run(program, [x], runnable=runnable, threads=threads, least=1)[0]


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from((16, 20, 32, 64)),
    st.sampled_from((16, 32, 48, 58)),
    st.integers(8, 19),
    st.integers(8, 33),
    st.sampled_from(((0, 0), (1, 1), (2, 1), (0, 2))),
    st.sampled_from((Activation(), Activation(low=0.0), Activation(low=0.0, high=6.0), Activation(curve="silu"))),
    st.integers(0, 1000),
)
def test_outputs_are_those_of_the_taps(
    inputs: int, outputs: int, height: int, width: int, padding: tuple[int, int], activation: Activation, seed: int
) -> None:
    program = single(stage(inputs, outputs, padding, seed), height, width, activation)
    x = torch.randn(3, inputs, height, width, generator=torch.Generator().manual_seed(seed))
    (wanted,) = computed(program, [x.double()])
    for lanes in (library().lanes, 8):
        alone = made(program, x, lanes=lanes)
        assert error(alone, wanted) <= 2e-6
        assert torch.equal(made(program, x, lanes=lanes, threads=2), alone)  # images by both
        assert torch.equal(made(program, x[:1], lanes=lanes, threads=3), alone[:1])  # one in pieces


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (14, 14), (15, 28), (56, 56)])
def test_they_are_as_exact_as_by_taps(size: tuple[int, int]) -> None:
    """Not only near: the largest error is at most three times that of the taps one by one."""
    program, x = single(stage(64, 64), *size), torch.randn(1, 64, *size)
    assert (kinds(program, 8), kinds(program, 8, winograd="never")) == ([_BY_TILES], [_BY_TAPS])
    (wanted,) = computed(program, [x.double()])
    assert error(made(program, x), wanted) <= 3 * error(made(program, x, winograd="never"), wanted)


def test_what_is_added_at_whole_and_at_half_the_resolution() -> None:
    """relu(conv(x) + x + up(low)) of an odd map, whose last tiles have a row and a column less."""
    low = stage(32, 32, (0, 0), seed=1, kernel=1)
    half = Conv(reads=whole(0, 32), writes=2, order=tuple(range(32)), strides=(2, 2))
    steps = (
        half,
        Conv(reads=whole(2, 32), writes=3, order=tuple(range(32)), stages=(low,)),
        Repeat(reads=whole(3, 32), writes=4, times=(2, 2)),
        Conv(reads=whole(0, 32), writes=1, order=tuple(range(32)), stages=(stage(32, 32),), residual=whole(4, 32)),
        Conv(
            reads=whole(1, 32), writes=5, order=tuple(range(32)), residual=whole(0, 32), activation=Activation(low=0.0)
        ),
    )
    large, small = Buffer(32, 15, 13), Buffer(32, 8, 7)
    program = Program(
        buffers=(large, large, small, small, large, large), steps=steps, inputs=(0,), outputs=(whole(5, 32),)
    )
    assert _BY_TILES in kinds(program, 8)
    x = torch.randn(2, 32, 15, 13)
    (wanted,) = computed(program, [x.double()])
    for lanes in (library().lanes, 8):
        assert error(made(program, x, lanes=lanes), wanted) <= 2e-6


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_stays_in_its_tiles(value: float) -> None:
    """Wherever the taps give no finite number there is none; whatever is two pixels and more away is as it was."""
    program, x = single(stage(16, 16), 16, 16), torch.randn(1, 16, 16, 16)
    x[0, 3, 7, 4] = value
    (wanted,) = computed(program, [x.double()])
    got = made(program, x)
    assert not got[~wanted.isfinite()].isfinite().any()
    far = torch.ones(16, 16, dtype=torch.bool)
    far[7 - 2 : 7 + 3, 4 - 2 : 4 + 3] = False
    torch.testing.assert_close(got[..., far].double(), wanted[..., far], rtol=1e-5, atol=1e-5)


def test_which_convolutions_are_computed_so() -> None:
    one, large = stage(64, 64), Buffer(64, 28, 28)
    assert is_faster(one, large, 64, 64, 8)
    assert not is_faster(stage(64, 64, kernel=1), large, 64, 64, 8)
    for changes in ({"stride": (2, 2)}, {"dilation": (2, 2)}, {"stride": (1, 2)}):
        assert not is_faster(Stage(weight=one.weight, bias=one.bias, padding=(1, 1), **changes), large, 64, 64, 8)
    assert not is_faster(one, Buffer(64, 5, 5), 64, 64, 8)  # few tiles: weights come from memory
    assert not is_faster(one, Buffer(64, 7, 7), 64, 64, 16)
    assert not is_faster(one, Buffer(64, 1, 64), 64, 64, 8)  # half of each tile would be idle


@pytest.mark.parametrize(("side", "chosen"), [(8, _BY_TAPS), (14, _BY_TILES)])
def test_a_file_holds_the_same_weights_for_all_vectors(side: int, chosen: int) -> None:
    """A map of 8 x 8 is computed by tiles with some vectors and by taps with others, but not in a file for both."""
    program = single(stage(64, 64), side, side)
    assert kinds(program, 8) == [_BY_TILES]
    assert kinds(program, 8, winograd="everywhere") == kinds(program, 16, winograd="everywhere") == [chosen]
    plans = portable(program).plans
    assert sorted(plans) == [4, 8, 16]
    assert Checked(library().path).check(plans[8]) == (None, len(portable(program).weights) - 16)


def test_the_numbers_of_a_kernel() -> None:
    """A kernel of its middle alone, by hand: the product of (0, 1/2, -1/2, 0) with itself."""
    kernel = np.zeros((1, 1, 3, 3), np.float32)
    kernel[0, 0, 1, 1] = 1
    column = np.array([0, 0.5, -0.5, 0])
    assert weights_of(kernel).reshape(4, 4).tolist() == np.outer(column, column).tolist()
