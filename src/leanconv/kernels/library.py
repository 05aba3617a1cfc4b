"""The C library, loaded where it was built, and one program ready to run on this machine.

It keeps nothing between calls but what is in the arenas, and those are here: one for each thread that runs a program at
the same time, given back and used again.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanconv.errors import LeanconvError
from leanconv.kernels.build import LIBRARY, compiler, digest
from leanconv.kernels.pack import PLAN_VERSION, pack
from leanconv.kernels.program import Floats, Program

__all__ = ["NAMES", "Library", "NoLibrary", "Runnable", "load", "missing"]

NAMES = {16: "AVX-512", 8: "AVX2", 4: "vectors of four"}
_REGISTERS = {16: 32, 8: 16}
_ALIGNMENT = 64


class NoLibrary(LeanconvError):
    """The C library of the kernels is not here, or is not one that this version and machine can use."""


class Library:
    """The functions of one shared library; `lanes` are the floats of the longest vectors that this machine runs.

    Raises `NoLibrary` for a file that is no such library, was built from other sources, or has no kernels for this
    machine.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(os.fspath(path))
            library.leanconv_sources.restype = ctypes.c_char_p
            built_from = library.leanconv_sources().decode()
        except (OSError, AttributeError) as error:
            raise NoLibrary(f"{path} is no library of leanconv's kernels: {error}") from error
        if built_from != digest():
            _ctypes.dlclose(library._handle)  # or the one that is built next would not be loaded: it has the same path
            raise NoLibrary(
                f"{path} was built from other sources than those beside it: build it again, "
                "python -m leanconv.kernels.build"
            )
        lanes = next((lanes for lanes in NAMES if library.leanconv_runs(lanes)), 0)
        if not lanes:
            raise NoLibrary("this CPU has neither AVX-512 nor AVX2 with FMA, for which the kernels were built")
        self.path, self.lanes = path, lanes
        self.registers = _REGISTERS.get(lanes, 32 if os.uname().machine in ("aarch64", "arm64") else 16)
        self._run, self._time, self._peak = library.leanconv_run, library.leanconv_time, library.leanconv_peak
        self._run.restype, self._time.restype = ctypes.c_int, None
        self._run.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64]
        self._time.argtypes = [ctypes.c_void_p] * 4
        self._peak.argtypes, self._peak.restype = [ctypes.c_int, ctypes.c_int64], ctypes.c_int64

    def run(self, plan: int, weights: int, arena: int, inputs: object, outputs: object, images: int) -> None:
        """Run a plan; all but `images` are addresses."""
        if self._run(plan, weights, arena, inputs, outputs, images):
            raise NoLibrary(f"{self.path} does not run plans of version {PLAN_VERSION}: build it again")

    def peak(self, rounds: int) -> int:
        """Compute multiply-adds that nothing holds up, and say how many floating-point operations that were."""
        return int(self._peak(self.lanes, rounds))

    def time(self, plan: int, weights: int, arena: int, nanoseconds: int) -> None:
        """How long each step took; all are addresses."""
        self._time(plan, weights, arena, nanoseconds)


@functools.cache
def load(path: Path = LIBRARY) -> Library:
    """The library beside this file.

    Raises `NoLibrary` with what to do.
    """
    if not path.is_file():
        how = (
            "python -m leanconv.kernels.build"
            if compiler()
            else "install g++ or clang++, then python -m leanconv.kernels.build"
        )
        raise NoLibrary(f"the C library of the kernels was not built (no {path.name}): {how}")
    return Library(path)


def missing() -> str | None:
    """Why programs cannot run here, in a sentence that says what to do; None where they can."""
    try:
        load()
    except NoLibrary as error:
        return str(error)
    return None


class Runnable:
    """A program, packed for this machine: takes contiguous arrays and fills others, from any number of threads."""

    def __init__(self, program: Program, library: Library | None = None, lanes: int | None = None) -> None:
        self.library = library or load()
        lanes = lanes or self.library.lanes
        self.packed = pack(program, lanes=lanes, registers=_REGISTERS.get(lanes, self.library.registers))
        self.inputs = tuple(program.buffers[number] for number in program.inputs)
        self.outputs = program.sizes
        self.steps = len(program.steps)
        self._plan, self._weights = self.packed.plan.ctypes.data, self.packed.weights.ctypes.data
        self._arenas: deque[tuple[int, NDArray[np.float32]]] = deque()

    def run(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        images: int,
        threads: int = 1,
        weights: int | None = None,
    ) -> Floats:
        """Run `images` images. `inputs` and `outputs` are addresses of contiguous float32 arrays (images, C, H, W).

        Every thread takes whole images. `weights` is the address of others than were packed. Returns the sums that the
        program makes over all images: empty for most.
        """
        parts = max(1, min(threads, images))
        sums = np.zeros((parts, self.packed.sums), dtype=np.float32)

        def part(index: int, first: int, last: int) -> None:
            self._part(inputs, outputs, first, last - first, weights or self._weights, sums[index].ctypes.data)

        if parts == 1:
            part(0, 0, images)
            alone: Floats = sums[0]
            return alone
        bounds = [images * index // parts for index in range(parts + 1)]
        pool = _pool(os.getpid(), threads)
        others = [pool.submit(part, index, *ends) for index, ends in enumerate(pairwise(bounds)) if index]
        try:
            part(0, 0, bounds[1])
        finally:
            wait(others)  # they write to memory that the caller may let go
        for other in others:
            other.result()
        total: Floats = sums.sum(0)
        return total

    def time(self) -> NDArray[np.int64]:
        """Nanoseconds of each step, once, on what the last image has left."""
        found = np.zeros(self.steps, dtype=np.int64)
        address, memory = self._take()
        try:
            self.library.time(self._plan, self._weights, address, found.ctypes.data)
        finally:
            self._arenas.append((address, memory))
        return found

    def _part(
        self, inputs: Sequence[int], outputs: Sequence[int], first: int, images: int, weights: int, sums: int
    ) -> None:
        ins = _pointers(_moved(inputs, self.inputs, first))
        outs = _pointers([*_moved(outputs, self.outputs, first), sums])
        address, memory = self._take()
        try:
            self.library.run(self._plan, weights, address, ins, outs, images)
        finally:
            self._arenas.append((address, memory))

    def _take(self) -> tuple[int, NDArray[np.float32]]:
        try:
            return self._arenas.pop()
        except IndexError:
            memory = np.empty(self.packed.floats + _ALIGNMENT // 4, dtype=np.float32)
            memory[: _ALIGNMENT // 4 * 2] = 0  # whatever the memory held must not pass for a stamp
            return -(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT, memory


def _moved(addresses: Sequence[int], shapes: Sequence[tuple[int, int, int]], first: int) -> list[int]:
    """The addresses of image number `first`."""
    return [
        address + 4 * first * channels * height * width
        for address, (channels, height, width) in zip(addresses, shapes, strict=True)
    ]


def _pointers(addresses: Sequence[int]) -> object:
    """As C takes them."""
    return (ctypes.c_void_p * len(addresses))(*addresses)


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has those of its parent in name only."""
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="leanconv-kernels")
