"""The C library for tests: built where it is missing or old and a compiler is there, else the tests are skipped."""

from __future__ import annotations

import fcntl
import functools
import subprocess
import tempfile
from pathlib import Path

import pytest

from leanconv.kernels.build import build, compiler
from leanconv.kernels.library import Library, load, missing

__all__ = ["library", "sanitized"]


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
