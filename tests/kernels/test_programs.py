"""Programs and what merges their steps, as plain data: no library, no torch but to say what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from leanconv.errors import LeanconvError, PlanError
from leanconv.kernels.fuse import fused
from leanconv.kernels.program import (
    NOTHING,
    ZERO,
    Activation,
    Buffer,
    ClipConv,
    Conv,
    Pool,
    Program,
    Repeat,
    Stage,
    Volume,
    Window,
    Wire,
)
from leanconv.kernels.written import read, write
from random_programs import computed, programs

RELU = Activation(low=0.0)


def stage(out: int, into: int, kernel: int = 1, *, groups: int = 1, stride: int = 1) -> Stage:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((out, into // groups, kernel, kernel)).astype(np.float32)
    bias = rng.standard_normal(out).astype(np.float32)
    return Stage(weight=weight, bias=bias, groups=groups, stride=(stride, stride), padding=(kernel // 2, kernel // 2))


def whole(buffer: int, channels: int) -> tuple[Wire, ...]:
    return tuple(Wire(buffer, channel) for channel in range(channels))


def block() -> Program:
    """relu(conv1(conv3(x)) + x), written as a graph has it: convolution by convolution, the sum, the ReLU."""
    shuffled = tuple(Wire(1, channel) for channel in (0, 2, 1, 3))
    return Program(
        buffers=tuple(Buffer(4, 5, 6) for _ in range(5)),
        steps=(
            Conv(reads=whole(0, 4), writes=1, order=(0, 1, 2, 3), stages=(stage(4, 4, 3, groups=2),)),
            Conv(reads=shuffled, writes=2, order=(0, 1, 2, 3), stages=(stage(4, 4, groups=2),)),
            Conv(reads=whole(2, 4)[::-1], writes=3, order=(0, 1, 2, 3), residual=whole(0, 4)),
            Conv(reads=whole(3, 4), writes=4, order=(0, 1, 2, 3), activation=RELU),
        ),
        inputs=(0,),
        outputs=(whole(4, 4),),
    )


def test_a_block_becomes_one_step() -> None:
    (step,) = fused(block()).steps
    assert isinstance(step, Conv)
    assert [one.kernel for one in step.stages] == [(3, 3), (1, 1)]
    assert step.reads == whole(0, 4)
    assert step.between == (0, 2, 1, 3)  # the shuffle
    assert step.order == (3, 2, 1, 0)  # what the sum read
    assert step.residual == whole(0, 4)
    assert (step.inner, step.activation, step.writes) == (NOTHING, RELU, 4)


def test_macs_and_interactions() -> None:
    assert block().macs == 5 * 6 * (4 * 2 * 9 + 4 * 2) == fused(block()).macs == 2400
    assert block().interactions == 4 + 4  # binom(2, 2) = 1 for each of eight outputs


def test_a_map_that_two_steps_read_stays() -> None:
    program = block()
    program = Program(buffers=program.buffers, steps=program.steps, inputs=(0,), outputs=(whole(4, 4), whole(1, 4)))
    first, second = fused(program).steps
    assert (first.writes, second.writes) == (1, 4)
    assert len(second.stages) == 1  # type: ignore[union-attr]


def test_an_activation_before_a_sum_stays_before_it() -> None:
    program = Program(
        buffers=tuple(Buffer(2, 3, 3) for _ in range(4)),
        steps=(
            Conv(reads=whole(0, 2), writes=1, order=(0, 1), stages=(stage(2, 2),)),
            Conv(reads=whole(1, 2), writes=2, order=(0, 1), activation=RELU),
            Conv(reads=whole(2, 2), writes=3, order=(0, 1), residual=whole(0, 2)),
        ),
        inputs=(0,),
        outputs=(whole(3, 2),),
    )
    first, second = fused(program).steps
    assert isinstance(first, Conv)
    assert isinstance(second, Conv)
    assert (first.activation, first.residual, second.residual) == (RELU, None, whole(0, 2))


def filters(channels: int, **changes: object) -> Volume:
    """Channelwise 3 x 3 x 3 on six frames of one row."""
    given = {
        "reads": whole(0, channels),
        "writes": 1,
        "frames": 6,
        "padding": (1, 1, 1),
        "weight": np.ones((channels, 3, 3, 3), np.float32),
        "bias": np.zeros(channels, np.float32),
    }
    return Volume(**(given | changes))  # type: ignore[arg-type]


def test_an_activation_and_a_choice_of_channels_join_the_filters_before_them() -> None:
    program = Program(
        buffers=(Buffer(3, 6, 5), Buffer(3, 6, 5), Buffer(2, 6, 5)),
        steps=(
            filters(3, bias=np.array([1, 2, 3], np.float32)),
            Conv(reads=(Wire(1, 2), Wire(1, 0)), writes=2, order=(0, 1), activation=RELU),
        ),
        inputs=(0,),
        outputs=(whole(2, 2),),
    )
    (step,) = fused(program).steps
    assert isinstance(step, Volume)
    assert (step.reads, step.writes, step.activation) == ((Wire(0, 2), Wire(0, 0)), 2, RELU)
    assert step.bias is not None
    assert step.bias.tolist() == [3, 1]
    assert (program.macs, fused(program).macs, fused(program).interactions) == (3 * 27 * 30, 2 * 27 * 30, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 4}, r"step 0 reads maps of \(6, 5\) as 4 frames"),
        ({"stride": (2, 1, 1)}, r"step 0 makes 2 maps of \(3, 5\), its buffer is"),
        ({"weight": np.ones((2, 3, 3, 2), np.float32), "padding": (1, 1, 0)}, r"makes 2 maps of \(6, 4\)"),
        ({"weight": np.ones((2, 3, 3, 5), np.float32), "padding": (1, 1, 2)}, r"filters of \(2, 3, 3, 5\)"),
        ({"weight": np.ones((2, 5, 13, 3), np.float32), "padding": (2, 6, 1)}, "of at most 64 rows, with a bias"),
        ({"bias": None}, "filters of"),
        ({"weight": None, "bias": None, "padding": (0, 0, 0), "activation": RELU}, "passes pixels, and has a bias"),
    ],
)
def test_filters_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Program(
            buffers=(Buffer(2, 6, 5), Buffer(2, 6, 5)),
            steps=(filters(2, **changes),),
            inputs=(0,),
            outputs=(whole(1, 2),),
        )


def test_a_program_that_was_written_before_there_were_clips_is_read() -> None:
    written = write(block())
    old = written.text.replace('"version":3', '"version":1')
    assert read(old, written.weights).macs == block().macs


def test_an_activation_joins_the_convolution_of_clips_before_it() -> None:
    step = ClipConv(
        reads=whole(0, 2),
        writes=1,
        frames=3,
        weight=np.ones((4, 1, 2, 1, 1), np.float32),
        bias=np.zeros(4, np.float32),
        groups=2,
    )
    program = Program(
        buffers=(Buffer(2, 6, 5), Buffer(4, 4, 5), Buffer(4, 4, 5)),
        steps=(step, Conv(reads=whole(1, 4), writes=2, order=(0, 1, 2, 3), activation=RELU)),
        inputs=(0,),
        outputs=(whole(2, 4),),
    )
    (one,) = fused(program).steps
    assert isinstance(one, ClipConv)
    assert (one.writes, one.activation) == (2, RELU)
    assert (program.macs, program.interactions) == (4 * 2 * 20, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 4}, r"reads maps of \(6, 5\) as 4 frames"),
        ({"groups": 3}, r"weights of \(4, 1, 2, 1, 1\) and \(4,\) biases, 2 channels are read"),
        ({"stride": (1, 1, 31)}, "columns are 31 apart, more than 30"),
        ({"padding": (1, 0, 0)}, r"makes 4 maps of \(8, 5\), its buffer is"),
    ],
)
def test_convolutions_of_clips_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"reads": whole(0, 2), "writes": 1, "frames": 3, "groups": 2}
    given |= {"weight": np.ones((4, 1, 2, 1, 1), np.float32), "bias": np.zeros(4, np.float32)}
    with pytest.raises(PlanError, match=words):
        Program(
            buffers=(Buffer(2, 6, 5), Buffer(4, 4, 5)),
            steps=(ClipConv(**(given | changes)),),
            inputs=(0,),
            outputs=(whole(1, 4),),
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 4}, r"reads maps of \(6, 5\) as 4 frames"),
        ({"kernel": (1, 3, 3)}, r"makes 2 maps of \(2, 2\), its buffer is"),
        ({"padding": (0, 2, 0)}, "more than half of them"),
        ({"largest": False, "dilation": (1, 2, 1)}, r"is a mean of pixels \(1, 2, 1\) apart"),
    ],
)
def test_windows_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"reads": whole(0, 2), "writes": 1, "kernel": (1, 2, 2), "largest": True}
    with pytest.raises(PlanError, match=words):
        Program(
            buffers=(Buffer(2, 6, 5), Buffer(2, 3, 2)),
            steps=(Window(**(given | {"stride": (1, 2, 2)} | changes)),),
            inputs=(0,),
            outputs=(whole(1, 2),),
        )


def test_a_stride_between_is_no_second_stage() -> None:
    program = Program(
        buffers=(Buffer(2, 4, 4), Buffer(2, 4, 4), Buffer(2, 2, 2)),
        steps=(
            Conv(reads=whole(0, 2), writes=1, order=(0, 1), stages=(stage(2, 2, 3),)),
            Conv(reads=whole(1, 2), writes=2, order=(0, 1), stages=(stage(2, 2, stride=2),)),
        ),
        inputs=(0,),
        outputs=(whole(2, 2),),
    )
    assert len(fused(program).steps) == 2


@settings(max_examples=40, deadline=None)
@given(programs())
def test_merging_and_writing_change_nothing(program: Program) -> None:
    inputs = [torch.randn(2, *program.buffers[number], dtype=torch.float64) for number in program.inputs]
    again = read(*write(fused(program))[:2])
    assert len(again.steps) <= len(program.steps)
    assert again.macs == program.macs
    for expected, got in zip(computed(program, inputs), computed(again, inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_written_program_has_a_name_of_its_own() -> None:
    one = write(block())
    program = block()
    program.steps[0].stages[0].weight[0, 0, 0, 0] += 1  # type: ignore[union-attr]
    assert write(block()).key == one.key != write(program).key


def test_a_program_of_another_version_is_refused() -> None:
    written = write(block())
    with pytest.raises(LeanconvError, match="of version 7 was written by another leanconv, this one reads 4"):
        read(written.text.replace('"version":4', '"version":7'), written.weights)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((Pool(reads=whole(1, 2), writes=2),), "step 0 reads buffer 1 before any step has written it"),
        ((Pool(reads=whole(0, 3), writes=2),), "step 0 reads channel 2 of buffer 0"),
        ((Pool(reads=whole(0, 2), writes=0),), "step 0 writes buffer 0 again"),
        ((Pool(reads=whole(0, 2), writes=1),), "step 0 makes 2 maps of one pixel, its buffer is Buffer"),
        ((Pool(reads=(ZERO, ZERO), writes=2),), "step 0 must read maps of one size, got zeros alone"),
        (
            (Conv(reads=whole(0, 2), writes=1, order=(0, 1), stages=(stage(2, 3),)),),
            "step 0: stage 0 takes 3 channels, 2 are read",
        ),
        (
            (Conv(reads=whole(0, 2), writes=1, order=(0, 5), stages=(stage(2, 2),)),),
            "step 0: its order names channels outside of 2",
        ),
        (
            (Conv(reads=whole(0, 2), writes=1, order=(0, 1), stages=(stage(2, 2, stride=2),)),),
            r"step 0: 1 stages make 2 maps of \(2, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(steps: tuple[Conv | Pool, ...], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Program(
            buffers=(Buffer(2, 4, 4), Buffer(2, 4, 4), Buffer(2, 1, 1)),
            steps=steps,
            inputs=(0,),
            outputs=(whole(0, 2),),
        )


def test_what_is_up_sampled_and_added_joins_the_convolution_before_it() -> None:
    """relu((conv(x) + up(y)) + z) adds z to up(y), and that to the convolution."""
    channels = (0, 1)
    program = Program(
        buffers=(Buffer(2, 5, 5), Buffer(2, 3, 3), *(Buffer(2, side, side) for side in (5, 6, 5, 5, 5, 5))),
        steps=(
            Conv(reads=whole(0, 2), writes=2, order=channels, stages=(stage(2, 2),)),
            Repeat(reads=whole(1, 2), writes=3, times=(2, 2)),
            Repeat(reads=whole(3, 2), writes=4, times=(1, 1)),  # cropped
            Conv(reads=whole(2, 2), writes=5, order=channels, residual=whole(4, 2)),
            Conv(reads=whole(5, 2), writes=6, order=channels, residual=whole(0, 2)),
            Conv(reads=whole(6, 2), writes=7, order=channels, activation=RELU),
        ),
        inputs=(0, 1),
        outputs=(whole(7, 2),),
    )
    rising, last = fused(program).steps
    assert isinstance(rising, Repeat)
    assert isinstance(last, Conv)
    assert (rising.reads, rising.times, rising.residual) == (whole(1, 2), (2, 2), whole(0, 2))
    assert (last.reads, last.residual, last.activation, last.writes) == (whole(0, 2), whole(4, 2), RELU, 7)
    inputs = [torch.randn(1, *program.buffers[number], dtype=torch.float64) for number in program.inputs]
    torch.testing.assert_close(computed(fused(program), inputs), computed(program, inputs))


def test_pixels_are_repeated_no_further_than_they_reach() -> None:
    with pytest.raises(PlanError, match=r"step 0 repeats 1 maps of \(2, 2\) \(2, 2\) times, its buffer is"):
        Program(
            buffers=(Buffer(1, 2, 2), Buffer(1, 4, 5)),
            steps=(Repeat(reads=whole(0, 1), writes=1, times=(2, 2)),),
            inputs=(0,),
            outputs=(whole(1, 1),),
        )
