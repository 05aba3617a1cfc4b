"""The kernels built for ARM by a cross-compiler, run under emulation: vectors of four, and NEON's 32 registers.

On Debian: apt install g++-aarch64-linux-gnu qemu-user. Skipped where those are not.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy
from numpy.typing import NDArray

from leanconv.kernels import build as builder
from leanconv.kernels import trained
from leanconv.kernels.fuse import fused
from leanconv.kernels.pack import Packed, pack
from leanconv.kernels.program import Program
from leanconv.kernels.winograd import Winograd
from random_dense import dense_programs
from random_pieces import differences, pieces
from random_programs import computed, programs

COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
IMAGES = 2
T = TypeVar("T")


def taken(strategy: SearchStrategy[T], count: int) -> list[T]:
    found: list[T] = []

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def take(one: T) -> None:
        found.append(one)

    take()
    return found


def as_bytes(
    packed: Packed,
    weights: NDArray[np.float32],
    inputs: Sequence[NDArray[np.float32]],
    sizes: Sequence[int],
    images: int,
) -> bytes:
    """As run_plans.cpp reads it; `sizes` are the floats of each output."""
    head = [len(packed.plan), len(weights), packed.floats, images, len(inputs), len(sizes)]
    numbers = np.array([*head, *(x.size for x in inputs), *sizes], dtype=np.int64)
    return numbers.tobytes() + packed.plan.tobytes() + b"".join(array.tobytes() for array in (weights, *inputs))


class Arm:
    """The library and a program that runs plans by it, for ARM."""

    def __init__(self, folder: Path) -> None:
        assert COMPILER is not None
        library = builder.build(folder / "libkernels.so", vectors=(4,), flags=("-O1",), command=COMPILER)
        self.folder, self.driver, self.runs = folder, folder / "run_plans", 0
        source = Path(__file__).with_name("run_plans.cpp")
        command = [
            COMPILER,
            str(source),
            f"-I{builder.NATIVE}",
            str(library),
            "-Wl,-rpath,$ORIGIN",
            "-o",
            str(self.driver),
        ]
        subprocess.run(command, check=True)

    def run(self, plans: Sequence[bytes]) -> NDArray[np.float32]:
        """What plans make, one behind the other."""
        assert EMULATOR is not None
        given, made = self.folder / "plans", self.folder / "made"
        given.write_bytes(np.array([len(plans)], dtype=np.int64).tobytes() + b"".join(plans))
        command = [EMULATOR, "-L", "/usr/aarch64-linux-gnu", str(self.driver), str(given), str(made)]
        subprocess.run(command, check=True)
        self.runs += 1
        return np.fromfile(made, dtype=np.float32)


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    if COMPILER is None or EMULATOR is None:
        pytest.skip("no cross-compiler, or no emulator, for ARM")
    return Arm(tmp_path_factory.mktemp("arm"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_programs_on_an_emulated_arm(arm: Arm) -> None:
    chosen = [fused(one) for one in taken(programs() | dense_programs(), 60)]
    inputs = [[torch.randn(IMAGES, *one.buffers[number]) for number in one.inputs] for one in chosen]
    plans = []
    for one, x in zip(chosen, inputs, strict=True):
        packed = pack(one, lanes=4, registers=32)
        sizes = [IMAGES * int(np.prod(size)) for size in one.sizes]
        plans.append(as_bytes(packed, packed.weights, [value.numpy() for value in x], sizes, IMAGES))
    made, at = arm.run(plans), 0
    for one, x in zip(chosen, inputs, strict=True):
        for wanted in computed(one, [value.double() for value in x]):
            got = torch.from_numpy(made[at : at + wanted.numel()]).reshape(wanted.shape)
            at += wanted.numel()
            assert float((got.double() - wanted).abs().max()) <= 1e-5 * max(float(wanted.abs().max()), 1e-2)
    assert at == len(made)


class OnArm:
    """In place of `Runnable`: every run is one of the emulator."""

    arm: Arm

    def __init__(self, program: Program, *, winograd: Winograd) -> None:
        self.packed = pack(program, lanes=4, registers=32, winograd=winograd)
        self.inputs, self.outputs = [program.buffers[number] for number in program.inputs], program.sizes

    def run(
        self, inputs: Sequence[int], outputs: Sequence[int], images: int, threads: int, weights: int
    ) -> NDArray[np.float32]:
        def floats(address: int, count: int) -> NDArray[np.float32]:
            return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))

        given = [floats(at, images * int(np.prod(size))) for at, size in zip(inputs, self.inputs, strict=True)]
        made = [floats(at, images * int(np.prod(size))) for at, size in zip(outputs, self.outputs, strict=True)]
        sizes = [*(one.size for one in made), *[self.packed.sums] * bool(self.packed.sums)]
        plan = as_bytes(self.packed, floats(weights, len(self.packed.weights)), given, sizes, images)
        *found, sums = np.split(self.arm.run([plan]), np.cumsum([one.size for one in made]))
        for one, values in zip(made, found, strict=True):
            one[:] = values
        return sums


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gradients_of_random_pieces_on_an_emulated_arm(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnArm, "arm", arm, raising=False)
    monkeypatch.setattr("leanconv.kernels.trained.Runnable", OnArm)
    caches = (trained._forward_of, trained._backward_of)
    for cache in caches:
        cache.cache_clear()
    before = arm.runs
    try:
        for one, size in taken(pieces(), 25):
            assert differences(one, *size) <= 1e-5
        assert arm.runs == before + 2 * 25  # forward and backward
    finally:
        for cache in caches:
            cache.cache_clear()
