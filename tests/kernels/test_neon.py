"""The kernels built for ARM by a cross-compiler, run under emulation: vectors of four, and NEON's 32 registers.

On Debian: apt install g++-aarch64-linux-gnu qemu-user. Skipped where those are not.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from torch import Tensor

from leanconv.kernels import build as builder
from leanconv.kernels.fuse import fused
from leanconv.kernels.pack import pack
from leanconv.kernels.program import Program
from random_programs import computed, programs

COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
IMAGES = 2


def drawn(count: int) -> list[Program]:
    found: list[Program] = []

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(programs())
    def take(program: Program) -> None:
        found.append(fused(program))

    take()
    return found


def sizes(program: Program) -> list[int]:
    shapes = [program.buffers[number] for number in program.inputs] + list(program.sizes)
    return [IMAGES * channels * height * width for channels, height, width in shapes]


def as_bytes(program: Program, inputs: list[Tensor]) -> bytes:
    """As run_plans.cpp reads it."""
    packed = pack(program, lanes=4, registers=32)
    head = [len(packed.plan), len(packed.weights), packed.floats, IMAGES, len(inputs), len(program.outputs)]
    numbers = np.array([*head, *sizes(program)], dtype=np.int64)
    floats = [packed.weights, *(x.numpy() for x in inputs)]
    return numbers.tobytes() + packed.plan.tobytes() + b"".join(array.tobytes() for array in floats)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(COMPILER is None or EMULATOR is None, reason="no cross-compiler, or no emulator, for ARM")
def test_random_programs_on_an_emulated_arm(tmp_path: Path) -> None:
    assert COMPILER is not None
    assert EMULATOR is not None
    library = builder.build(tmp_path / "libkernels.so", vectors=(4,), flags=("-O1",), command=COMPILER)
    driver = tmp_path / "run_plans"
    source = Path(__file__).with_name("run_plans.cpp")
    command = [COMPILER, str(source), f"-I{builder.NATIVE}", str(library), "-Wl,-rpath,$ORIGIN", "-o", str(driver)]
    subprocess.run(command, check=True)
    chosen = drawn(40)
    inputs = [[torch.randn(IMAGES, *one.buffers[number]) for number in one.inputs] for one in chosen]
    given_bytes = b"".join(as_bytes(one, x) for one, x in zip(chosen, inputs, strict=True))
    (tmp_path / "plans").write_bytes(np.array([len(chosen)], dtype=np.int64).tobytes() + given_bytes)
    files = [str(tmp_path / "plans"), str(tmp_path / "made")]
    subprocess.run([EMULATOR, "-L", "/usr/aarch64-linux-gnu", str(driver), *files], check=True)
    made, at = np.fromfile(tmp_path / "made", dtype=np.float32), 0
    for one, x in zip(chosen, inputs, strict=True):
        for wanted in computed(one, [value.double() for value in x]):
            got = torch.from_numpy(made[at : at + wanted.numel()]).reshape(wanted.shape)
            at += wanted.numel()
            assert float((got.double() - wanted).abs().max()) <= 1e-5 * max(float(wanted.abs().max()), 1e-2)
    assert at == len(made)
