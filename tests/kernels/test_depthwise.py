"""Depthwise convolutions in blocks of sixteen channels: a filter for each, of any kernel, stride and dilation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from checked_plans import Checked
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels_library import assert_near, library, run
from leanconv.kernels.blocks import in_blocks, lies_in_blocks
from leanconv.kernels.library import Runnable
from leanconv.kernels.program import ZERO, Activation, Buffer, Conv, Program, Repeat, Stage, Wire, out_side
from random_programs import computed

_PIXELS, _DEPTHWISE, _GATHER = 7, 11, 13


@pytest.fixture(autouse=True)
def _there() -> None:
    library()


def whole(number: int, channels: int) -> tuple[Wire, ...]:
    return tuple(Wire(number, channel) for channel in range(channels))


def stage(
    channels: int, kernel: tuple[int, int] = (3, 3), groups: int | None = None, **geometry: tuple[int, int]
) -> Stage:
    rng = np.random.default_rng(0)
    groups = channels if groups is None else groups
    weight = rng.standard_normal((channels, channels // groups, *kernel)) / np.sqrt(
        np.prod(kernel) * channels // groups
    )
    bias = rng.standard_normal(channels).astype(np.float32)
    geometry = {"padding": (kernel[0] // 2, kernel[1] // 2), **geometry}
    return Stage(weight=weight.astype(np.float32), bias=bias, groups=groups, **geometry)


def single(one: Stage, size: tuple[int, int], activation: Activation | None = None) -> Program:
    count = len(one.weight)
    made = Buffer(count, out_side(size[0], one, 0), out_side(size[1], one, 1))
    order = tuple(range(count))
    step = Conv(reads=whole(0, count), writes=1, order=order, stages=(one,), activation=activation or Activation())
    return Program(buffers=(Buffer(count, *size), made), steps=(step,), inputs=(0,), outputs=(whole(1, count),))


def kinds(program: Program) -> list[int]:
    """The kinds of the steps of a plan."""
    packed = in_blocks(program, 8, 16)
    assert packed is not None
    plan = packed.plan
    first = 10 + 6 * int(plan[3] + plan[4])
    return [int(plan[plan[first + index]]) for index in range(int(plan[5]))]


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from((16, 27, 32, 58)),
    st.sampled_from(((3, 3), (3, 3), (5, 5), (7, 7), (9, 9), (1, 3), (5, 1), (2, 2), (1, 1))),
    st.sampled_from(((1, 1), (2, 2), (2, 1), (1, 2), (3, 3))),
    st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 2))),
    st.tuples(st.integers(1, 19), st.integers(1, 33)),
    st.sampled_from((Activation(), Activation(low=0.0), Activation(low=0.0, high=6.0), Activation(curve="silu"))),
)
def test_outputs_are_torchs(
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    activation: Activation,
) -> None:
    reach = [gap * (k - 1) + 1 for gap, k in zip(dilation, kernel, strict=True)]
    padding = tuple(max(r // 2, -(-(r - side) // 2)) for r, side in zip(reach, size, strict=True))
    program = single(stage(channels, kernel, stride=stride, dilation=dilation, padding=padding), size, activation)
    assume(channels % 16 == 0 or lies_in_blocks(program))
    assert kinds(program) == [_DEPTHWISE]
    x = torch.randn(3, channels, *size)
    wanted = computed(program, [x.double()])
    for lanes in (library().lanes, 8):
        runnable = Runnable(program, library(), lanes)
        run(program, [x], runnable=runnable)
        got = run(program, [x], runnable=runnable)  # in an arena that was used before
        assert_near(got, wanted)
        assert torch.equal(run(program, [x], runnable=runnable, threads=2, least=1)[0], got[0])
        assert torch.equal(run(program, [x[:1]], runnable=runnable, threads=3, least=1)[0], got[0][:1])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1)])
def test_what_is_added_at_whole_and_at_half_the_resolution(order: tuple[int, ...]) -> None:
    """relu(filter(x) + y + up(low)) of an odd map, its blocks in any order."""
    channels = tuple(16 * block + channel for block in order for channel in range(16))
    large, small = Buffer(64, 13, 15), Buffer(64, 7, 8)
    steps = (
        Conv(reads=whole(0, 64), writes=1, order=tuple(range(64)), stages=(stage(64, (1, 1), groups=1),)),
        Conv(reads=whole(1, 64), writes=2, order=tuple(range(64)), strides=(2, 2)),
        Repeat(reads=whole(2, 64), writes=3, times=(2, 2)),
        Conv(reads=whole(0, 64), writes=4, order=channels, stages=(stage(64, (5, 5)),), residual=whole(3, 64)),
        Conv(
            reads=whole(4, 64),
            writes=5,
            order=tuple(range(64)),
            residual=whole(1, 64),
            activation=Activation(low=0.0),
        ),
    )
    program = Program(
        buffers=(large, large, small, large, large, large), steps=steps, inputs=(0,), outputs=(whole(5, 64),)
    )
    found = kinds(program)
    assert _DEPTHWISE in found
    x = torch.randn(2, 64, 13, 15)
    for lanes in (library().lanes, 8):
        assert_near(run(program, [x], runnable=Runnable(program, library(), lanes)), computed(program, [x.double()]))


def test_which_programs_lie_in_blocks() -> None:
    size = (14, 14)
    assert lies_in_blocks(single(stage(32), size))
    assert lies_in_blocks(single(stage(32, groups=1), size))
    assert not lies_in_blocks(single(stage(32, groups=2), size))  # grouped, but no filters of channels
    assert not lies_in_blocks(single(stage(17), size))  # fifteen of thirty-two outputs would be idle
    assert lies_in_blocks(single(stage(30), size))  # less is than row by row, where two of sixteen columns are
    assert not lies_in_blocks(single(stage(30), (16, 16)))


def test_what_stands_elsewhere_is_gathered_where_that_is_little() -> None:
    """A filter of channels of two buffers in any order, zeros among them, and a shortcut with channels of zeros."""
    rng = np.random.default_rng(0)
    there = (*whole(1, 64), *whole(0, 32))
    mixed = tuple(ZERO if k % 9 == 5 else there[k] for k in rng.permutation(96)[:64].tolist())
    padded = (*[ZERO] * 16, ZERO, *whole(0, 32)[::2], *[ZERO] * 31)
    wide, first = stage(64, (1, 1), groups=1), stage(64, (3, 3), groups=1)
    first = replace(first, weight=first.weight[:, :32])
    order = tuple(rng.permutation(64).tolist())
    steps = (
        Conv(reads=whole(0, 32), writes=1, order=tuple(range(64)), stages=(first,)),
        Conv(reads=mixed, writes=2, order=order, stages=(stage(64, stride=(2, 2)),)),
        Conv(reads=padded, writes=3, order=tuple(range(64)), strides=(2, 2)),
        Conv(reads=whole(2, 64), writes=4, order=tuple(range(64)), stages=(wide,), residual=whole(3, 64)),
        Conv(
            reads=whole(4, 64)[::-1],
            writes=5,
            order=order,
            residual=whole(2, 64),
            activation=Activation(curve="sigmoid"),
        ),
    )
    large, small = Buffer(64, 13, 15), Buffer(64, 7, 8)
    program = Program(
        buffers=(Buffer(32, 13, 15), large, *[small] * 4), steps=steps, inputs=(0,), outputs=(whole(5, 64),)
    )
    assert kinds(program).count(_GATHER) == 3
    x = torch.randn(2, 32, 13, 15)
    for lanes in (library().lanes, 8):
        runnable = Runnable(program, library(), lanes)
        run(program, [torch.full_like(x, float("nan"))], runnable=runnable)  # what is left in the arena is not read
        got = run(program, [x], runnable=runnable)
        assert_near(got, computed(program, [x.double()]))
        assert torch.equal(run(program, [x], runnable=runnable, threads=2, least=1)[0], got[0])
    packed = in_blocks(program, 8, 16)
    assert packed is not None
    assert Checked(library().path).check(packed.plan)[0] is None
    only = replace(program, steps=steps[1:2], buffers=(large, large, small), inputs=(0, 1), outputs=(whole(2, 64),))
    assert not lies_in_blocks(only)  # gathering would take longer than the filter


def test_plans_that_were_received_are_checked() -> None:
    """Whichever number of a depthwise step is damaged, it can be so that it is refused."""
    program = single(stage(32, stride=(2, 2)), (9, 9))
    packed = in_blocks(program, 8, 16)
    assert packed is not None
    checked = Checked(library().path)
    assert checked.check(packed.plan) == (None, len(packed.weights) - 16)
    at = int(packed.plan[10 + 12])
    assert packed.plan[at] == _DEPTHWISE
    refused = set()
    for field in range(23):
        for value in (-1, 0, 1 << 20, 1 << 40):
            plan = packed.plan.copy()
            plan[at + field] = value
            if checked.check(plan)[0] is not None:
                refused.add(field)
    assert refused == set(range(23))


def test_pixels_beside_a_map_are_not_read() -> None:
    """A plan that somebody sent may say that a map is narrower than windows reach: what is beside it counts nothing."""
    steps = (
        Conv(reads=whole(0, 16), writes=1, order=tuple(range(16)), stages=(stage(16, (1, 1), groups=1),)),
        Conv(reads=whole(1, 16), writes=2, order=tuple(range(16)), strides=(2, 2)),
    )
    buffers = (Buffer(16, 4, 8), Buffer(16, 4, 8), Buffer(16, 2, 4))
    program = Program(buffers=buffers, steps=steps, inputs=(0,), outputs=(whole(2, 16),))
    packed = in_blocks(program, 8, 16)
    assert packed is not None
    at = int(packed.plan[10 + 12 + 1])
    assert (packed.plan[at], packed.plan[at + 8]) == (_PIXELS, 8)
    checked = Checked(library().path)
    (before,) = checked.run(packed.plan, packed.weights)
    packed.plan[at + 8] = 3
    assert checked.check(packed.plan)[0] is None
    (after,) = checked.run(packed.plan, packed.weights)
    before, after = before.reshape(2, 16, 2, 4), after.reshape(2, 16, 2, 4)
    assert np.array_equal(after[..., :2], before[..., :2])
    assert (before[..., 2:] != 0).all()
    assert (after[..., 2:] == 0).all()
