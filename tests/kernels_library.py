"""The C library for tests: built where it is missing or old and a compiler is there, else the tests are skipped."""

from __future__ import annotations

import fcntl
import functools
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leanconv.kernels.build import build, compiler
from leanconv.kernels.library import Library, Runnable, load, missing
from leanconv.kernels.program import Program

__all__ = ["assert_near", "drawn", "library", "run", "sanitized"]


@functools.cache
def library() -> Library:
    """The library beside its sources."""
    with Path(tempfile.gettempdir(), "leanconv-kernels.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes of one test run must not all build it
        if missing() is not None:
            if compiler() is None:
                pytest.skip("no C++ compiler")
            build()
    return load()


def sanitized(folder: Path) -> tuple[Path, str]:
    """A library in `folder` that stops where memory is touched that is not its own, or C++ leaves open what happens.

    And what has to be preloaded into a process that loads it.
    """
    library()  # or skip
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-DLEANCONV_FEW_TILES")
    path = build(folder / "checked.so", vectors=(8,), flags=flags)
    command = compiler()
    assert command is not None
    asan = subprocess.run([command, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return path, asan.stdout.strip()


def run(
    program: Program, inputs: list[Tensor], *, threads: int = 1, runnable: Runnable | None = None, least: int = 500_000
) -> list[Tensor]:
    """What the library makes of a program; the outputs are full of sevens before."""
    runnable = runnable or Runnable(program, library())
    images = len(inputs[0])
    outputs = [torch.full((images, *size), 7.0) for size in program.sizes]
    runnable.run([x.data_ptr() for x in inputs], [x.data_ptr() for x in outputs], images, threads, least=least)
    return outputs


def drawn(program: Program, images: int = 2) -> list[Tensor]:
    return [torch.randn(images, *program.buffers[number]) for number in program.inputs]


def assert_near(got: list[Tensor], expected: list[Tensor]) -> None:
    """To 1e-5 of the largest number."""
    for one, wanted in zip(got, expected, strict=True):
        assert one.shape == wanted.shape
        assert float((one.double() - wanted).abs().max()) <= 1e-5 * max(float(wanted.abs().max()), 1e-2)
