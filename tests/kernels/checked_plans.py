"""Plans that were damaged, and what the library does with them: refused, or run within the memory that is theirs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray

from leanconv.kernels.fuse import fused
from leanconv.kernels.pack import pack
from leanconv.kernels.program import Buffer, ClipConv, Conv, Program, Stage, Volume, Window, Wire, out_side
from random_dense import dense_programs
from random_programs import programs

MARK = np.float32(12345.0)
MARGIN = 0 if os.environ.get("LEANCONV_EXACT") else 4096  # under a sanitizer what is beside is watched anyway


class Checked:
    """The functions of a library that take what was received."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.leanconv_check.restype = ctypes.c_char_p
        self.library.leanconv_check.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self.library.leanconv_run.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64]
        self.library.leanconv_run_together.argtypes = [
            *self.library.leanconv_run.argtypes, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        ]  # fmt: skip
        self.library.leanconv_help.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.library.leanconv_release.argtypes = [ctypes.c_void_p]
        self.library.leanconv_floats.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.library.leanconv_floats.restype = ctypes.c_int64

    def check(self, plan: NDArray[np.int64]) -> tuple[str | None, int]:
        """What is wrong with a plan, and how many weights it reads."""
        weights = ctypes.c_int64()
        problem = self.library.leanconv_check(plan.ctypes.data, len(plan), ctypes.byref(weights))
        return None if problem is None else problem.decode(), weights.value

    def run(self, plan: NDArray[np.int64], weights: NDArray[np.float32], workers: int = 1) -> list[NDArray[np.float32]]:
        """Two images, with nothing longer than the check allows and a margin around what is written to."""
        count_in, count_out = int(plan[3]), int(plan[4])
        ports = [plan[10 + 6 * index : 16 + 6 * index] for index in range(count_in + count_out)]
        sizes = [2 * int(np.prod(port[:3])) for port in ports]
        rng = np.random.default_rng(0)
        inputs = [rng.standard_normal(size).astype(np.float32) for size in sizes[:count_in]]
        outputs = [np.full(size + 2 * MARGIN, MARK) for size in sizes[count_in:]]
        arena = np.full(self.library.leanconv_floats(plan.ctypes.data, workers) + 2 * MARGIN, MARK)
        arena[MARGIN : MARGIN + 16] = 0
        addresses = [(ctypes.c_void_p * 64)(*(x.ctypes.data for x in inputs))]
        addresses.append((ctypes.c_void_p * 64)(*(x[MARGIN:].ctypes.data for x in outputs)))
        given = [plan.ctypes.data, weights.ctypes.data, arena[MARGIN:].ctypes.data, *addresses, 2]
        with np.errstate(all="ignore"):
            code = self._together(given, workers) if workers > 1 else self.library.leanconv_run(*given)
        assert code == 0
        for memory in (arena, *outputs):
            assert (memory[:MARGIN] == MARK).all()
            assert (memory[len(memory) - MARGIN :] == MARK).all()
        return [output[MARGIN : len(output) - MARGIN] for output in outputs]

    def _together(self, given: list[object], workers: int) -> int:
        """With pieces as small as can be, the threads that help being there first."""
        team = np.zeros(512, np.uint8)
        at = -(-team.ctypes.data // 64) * 64
        helpers = [Thread(target=self.library.leanconv_help, args=(at, index)) for index in range(1, workers)]
        for helper in helpers:
            helper.start()
        try:
            return int(self.library.leanconv_run_together(*given, at, workers, 1))
        finally:
            self.library.leanconv_release(at)
            for helper in helpers:
                helper.join()


def single(channels: int, groups: int, kernel: int, stride: int, height: int, width: int) -> Program:
    """One convolution with as many outputs as inputs, padded."""
    weight = np.ones((channels, channels // groups, kernel, kernel), np.float32)
    stage = Stage(
        weight=weight,
        bias=np.ones(channels, np.float32),
        groups=groups,
        stride=(stride, stride),
        padding=(kernel // 2, kernel // 2),
    )
    made = Buffer(channels, out_side(height, stage, 0), out_side(width, stage, 1))
    order = tuple(range(channels))
    step = Conv(reads=tuple(Wire(0, channel) for channel in order), writes=1, order=order, stages=(stage,))
    output = tuple(Wire(1, channel) for channel in order)
    return Program(buffers=(Buffer(channels, height, width), made), steps=(step,), inputs=(0,), outputs=(output,))


def over_time(kernel: tuple[int, int, int], stride: int, frames: int, height: int, width: int) -> Program:
    """One filter over time for each of two channels, padded, with rows of three; then a pointwise convolution."""
    wires = (Wire(0, 0), Wire(0, 1))
    step = Volume(
        reads=wires,
        writes=1,
        frames=frames,
        stride=(stride,) * 3,
        padding=tuple(side // 2 for side in kernel),  # type: ignore[arg-type]
        weight=np.ones((2, *kernel), np.float32),
        bias=np.ones(2, np.float32),
    )
    deep, high, wide = step.sides((frames * height, width))
    stage = Stage(weight=np.ones((2, 2, 1, 1), np.float32), bias=np.ones(2, np.float32))
    then = Conv(reads=(Wire(1, 0), Wire(1, 1)), writes=2, order=(0, 1), stages=(stage,))
    made = Buffer(2, deep * high, wide)
    output = (Wire(2, 0), Wire(2, 1))
    return Program(
        buffers=(Buffer(2, frames * height, width), made, made), steps=(step, then), inputs=(0,), outputs=(output,)
    )


def clip(channels: int, kernel: tuple[int, int, int], stride: int, frames: int, height: int, width: int) -> Program:
    """A convolution over time, padded, of as many channels as it has outputs."""
    step = ClipConv(
        reads=tuple(Wire(0, channel) for channel in range(channels)),
        writes=1,
        frames=frames,
        weight=np.ones((channels, channels, *kernel), np.float32),
        bias=np.ones(channels, np.float32),
        stride=(1, stride, stride),
        padding=tuple(side // 2 for side in kernel),  # type: ignore[arg-type]
    )
    deep, high, wide = step.sides((frames * height, width))
    output = tuple(Wire(1, channel) for channel in range(channels))
    buffers = (Buffer(channels, frames * height, width), Buffer(channels, deep * high, wide))
    return Program(buffers=buffers, steps=(step,), inputs=(0,), outputs=(output,))


def windows(largest: bool, kernel: int, stride: int, height: int, width: int) -> Program:
    """Windows over frames, rows and columns of two channels."""
    step = Window(
        reads=(Wire(0, 0), Wire(0, 1)),
        writes=1,
        kernel=(min(kernel, 2), kernel, kernel),
        largest=largest,
        frames=2,
        stride=(1, stride, stride),
        padding=(0, (kernel - 1) // 2, (kernel - 1) // 2),
    )
    deep, high, wide = step.sides((2 * height, width))
    buffers = (Buffer(2, 2 * height, width), Buffer(2, deep * high, wide))
    return Program(buffers=buffers, steps=(step,), inputs=(0,), outputs=((Wire(1, 0), Wire(1, 1)),))


def chosen() -> list[Program]:
    """Small plans, one for each way to run a convolution, that random programs seldom take."""
    return [
        single(2, 2, 3, 1, 9, 20),  # rows shared by the taps
        single(2, 2, 3, 1, 9, 4),  # two rows in a vector of eight
        single(2, 2, 3, 1, 9, 8),  # and of sixteen
        single(2, 1, 3, 2, 9, 40),  # columns sorted by two phases
        single(2, 1, 3, 3, 9, 60),  # and by three
        single(2, 1, 3, 2, 9, 8),  # flat, vector by vector
        single(2, 1, 5, 1, 9, 5),  # flat copies
        single(3, 3, 1, 1, 5, 33),  # single taps, one of them spare
        over_time((3, 3, 3), 1, 4, 5, 13),  # rows shared by the taps
        over_time((2, 5, 3), 2, 5, 6, 21),  # and not
        clip(1, (3, 3, 3), 1, 3, 5, 13),  # rows shared by the taps
        clip(3, (3, 3, 3), 2, 4, 5, 21),  # columns sorted
        clip(3, (2, 1, 5), 1, 3, 4, 17),  # single taps, one of each frame spare
        *(single(*sizes) for sizes in ((16, 1, 3, 1, 5, 7), (32, 1, 3, 2, 9, 15), (48, 1, 1, 1, 3, 3))),  # in blocks
        single(16, 1, 3, 1, 9, 11),  # and by tiles
        single(48, 1, 3, 1, 17, 8),  # with two blocks of outputs together and one alone, of vectors of sixteen
        windows(False, 2, 2, 6, 34),  # halves of rows
        windows(True, 3, 2, 7, 19),
        windows(True, 4, 3, 7, 19),  # a stride that has no vectors
    ]


def drawn(
    count: int,
    number: int,
    some: SearchStrategy[Program] = programs(),  # noqa: B008  # strategies do not change
) -> Iterator[Program]:
    found: list[Program] = []

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(some)
    def take(program: Program) -> None:
        found.append(program)

    take()
    yield from found


def fields(plan: NDArray[np.int64]) -> list[int]:
    """Where the fields of records are (native/plan.h): most other numbers are those of tables. What sorts, twice."""
    ports = 10 + 6 * int(plan[3] + plan[4])
    found = list(range(2, ports))
    for step in map(int, plan[ports : ports + int(plan[5])]):
        found += range(step, step + {4: 35, 5: 31, 6: 23, 7: 26, 8: 31, 10: 24}.get(int(plan[step]), 8))
        if plan[step] == 6:
            found += range(int(plan[step + 11]), int(plan[step + 11] + 2 * plan[step + 12]))
            found += range(int(plan[step + 22]), int(plan[step + 22] + 6 * plan[step + 21]))
        if plan[step] == 10:
            found += range(int(plan[step + 6]), int(plan[step + 6] + plan[step + 7]))
            found += range(int(plan[step + 9]), int(plan[step + 9] + 2 * plan[step + 10]))
            found += range(int(plan[step + 23]), int(plan[step + 23] + 6 * plan[step + 22]))
        if plan[step] not in (0, 8):
            continue
        first, stages = (step + 31, 1) if plan[step] == 8 else (step + 8, int(plan[step + 5]))
        for stage in range(first, first + 18 * stages, 18):
            found += range(stage, stage + 18)
            for tile in range(int(plan[stage + 16]), int(plan[stage + 16] + 12 * plan[stage + 15]), 12):
                found += range(tile, tile + 12)
                if (sorting := int(plan[tile])) >= 0 and plan[step] == 8:
                    found += [sorting, sorting + 1]
                elif sorting >= 0:
                    parts = range(int(plan[sorting + 13]), int(plan[sorting + 13] + 8 * plan[sorting + 12]))
                    found += 2 * [*range(sorting, sorting + 14), *parts]
    return found


def damaged(plan: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A plan with one to three numbers that are others, or cut off."""
    new, records = plan.copy(), fields(plan)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.choice(records)) if rng.random() < 0.7 else int(rng.integers(1, len(new)))
        value = int(new[at])
        near = [value + 1, value - 1, value + 16, value - 16, 2 * value, -value, 0, 1]
        far = [int(rng.choice(new[2:])), 1 << 20, 1 << 31, 1 << 33, -(1 << 33), 1 << 61, -(1 << 63)]
        chosen = (near + far)[rng.integers(len(near) + len(far))]
        new[at] = max(min(chosen, (1 << 63) - 1), -(1 << 63))
    return new[: int(rng.integers(1, len(new)))].copy() if rng.random() < 0.1 else new


def takes_long(plan: NDArray[np.int64]) -> bool:
    """Whether a plan has so large a number that a run of it would take seconds: allowed, and not waited for."""
    ports = [plan[10 + 6 * index : 13 + 6 * index] for index in range(int(plan[3] + plan[4]))]
    return bool((np.abs(plan[2:]) > 1 << 19).any()) or any(float(np.prod(port, dtype=float)) > 1e6 for port in ports)


def check_damaged(path: Path, lanes: int, registers: int, examples: int, number: int = 0) -> tuple[int, int]:
    """Damage plans of random programs and run what is not refused; how many were, and how many were run."""
    checked = Checked(path)
    rng = np.random.default_rng(number)
    refused = ran = 0
    plans = [(one, 40) for one in chosen()]
    plans += [(one, 20) for program in drawn(examples, number) for one in (program, fused(program))]
    plans += [(one, 20) for one in drawn(examples // 4, number, dense_programs())]
    for one, times in plans:
        packed = pack(one, lanes=lanes, registers=registers)
        problem, weights = checked.check(packed.plan.copy())
        assert problem is None, problem
        assert weights <= len(packed.weights)
        for _ in range(times):
            plan = damaged(packed.plan, rng)
            problem, weights = checked.check(plan)
            refused += problem is not None
            if problem is None and not takes_long(plan) and weights < 1 << 20:
                values = rng.standard_normal(weights).astype(np.float32)
                checked.run(plan, values)
                checked.run(plan, values, workers=2)
                ran += 1
    return refused, ran
