"""The C library for tests: built where it is missing or old and a compiler is there, else the tests are skipped."""

from __future__ import annotations

import fcntl
import functools
import tempfile
from pathlib import Path

import pytest

from leanconv.kernels.build import build, compiler
from leanconv.kernels.library import Library, load, missing

__all__ = ["library"]


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
