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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanconv.errors import LeanconvError
from leanconv.kernels.build import LIBRARY, compiler, digest
from leanconv.kernels.pack import PLAN_VERSION, pack
from leanconv.kernels.program import Floats, Program
from leanconv.kernels.winograd import Winograd

__all__ = ["NAMES", "Library", "NoLibrary", "Runnable", "load", "missing"]

NAMES = {16: "AVX-512", 8: "AVX2", 4: "vectors of four"}
_REGISTERS = {16: 32, 8: 16}
_ALIGNMENT = 64
_TEAM_BYTES = 256  # as in native/leanconv_kernels.h
_LEAST_MACS = 500_000
"""Of a piece of a step for another thread: some five microseconds, to begin and end it takes one or two."""


Call = tuple[int, int, int, object, object, int]
"""Addresses of a plan, weights and an arena, those of inputs and of outputs, and how many images."""


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
        self._next, self._together = library.leanconv_run_next, library.leanconv_run_together
        self._help, self._release, self._floats = (
            library.leanconv_help,
            library.leanconv_release,
            library.leanconv_floats,
        )
        self._run.restype, self._time.restype = ctypes.c_int, None
        self._run.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64]
        self._next.argtypes = [*self._run.argtypes, ctypes.c_void_p]
        self._together.argtypes = [*self._next.argtypes, ctypes.c_int, ctypes.c_int64]
        self._time.argtypes = [ctypes.c_void_p] * 4
        self._help.argtypes, self._help.restype = [ctypes.c_void_p, ctypes.c_int], None
        self._release.argtypes, self._release.restype = [ctypes.c_void_p], None
        self._floats.argtypes, self._floats.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int64
        self._peak.argtypes, self._peak.restype = [ctypes.c_int, ctypes.c_int64], ctypes.c_int64

    def run(self, call: Call) -> None:
        """Run a plan."""
        self._ran(self._run(*call))

    def run_next(self, call: Call, taken: object) -> None:
        """Run images that no other thread has `taken`."""
        self._ran(self._next(*call, taken))

    def run_together(self, call: Call, team: int, workers: int, least: int) -> None:
        """Run images with threads that `help`, until the others are told that it is over."""
        try:
            self._ran(self._together(*call, team, workers, least))
        finally:
            self._release(team)

    def help(self, team: int, worker: int) -> None:
        """Take pieces of what runs together, as thread number `worker`, until it is over."""
        self._help(team, worker)

    def floats(self, plan: int, workers: int) -> int:
        """The arena that a plan needs for so many threads that run one image."""
        return int(self._floats(plan, workers))

    def _ran(self, code: int) -> None:
        if code:
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
    """A program, packed for this machine: takes contiguous arrays and fills others, from any number of threads.

    `winograd` is that of `pack`.
    """

    def __init__(
        self, program: Program, library: Library | None = None, lanes: int | None = None, *, winograd: Winograd = "here"
    ) -> None:
        self.library = library or load()
        lanes = lanes or self.library.lanes
        self.packed = pack(
            program, lanes=lanes, registers=_REGISTERS.get(lanes, self.library.registers), winograd=winograd
        )
        self.inputs = tuple(program.buffers[number] for number in program.inputs)
        self.outputs = program.sizes
        self.steps = int(self.packed.plan[5])  # others than the program's, where steps were cut or joined
        self.macs = program.macs
        self._plan, self._weights = self.packed.plan.ctypes.data, self.packed.weights.ctypes.data
        self._arenas: deque[_Arena] = deque()

    def run(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        images: int,
        threads: int = 1,
        weights: int | None = None,
        *,
        least: int = _LEAST_MACS,
    ) -> Floats:
        """Run `images` images. `inputs` and `outputs` are addresses of contiguous float32 arrays (images, C, H, W).

        Every thread takes whole images; where there are fewer images than threads they share each, in pieces of `least`
        multiply-adds or more. `weights` is the address of others than were packed. Returns the sums that the program
        makes over all images: empty for most.
        """
        weights = weights or self._weights
        if self.packed.sums:
            return self._summed(inputs, outputs, images, threads, weights)
        ins, outs = _pointers(inputs), _pointers(outputs)
        if images < threads and self.macs < 4 * least:  # nothing to share
            threads = images
        if threads <= 1:
            with self._arena() as arena:
                self.library.run((self._plan, weights, arena, ins, outs, images))
        elif images >= threads:
            taken = ctypes.c_int64()

            def some(_: int) -> None:
                with self._arena() as arena:
                    self.library.run_next((self._plan, weights, arena, ins, outs, images), ctypes.byref(taken))

            _by_all(some, threads, optional=True)
        else:
            team = np.zeros(2 * _TEAM_BYTES, dtype=np.uint8)
            at = -(-team.ctypes.data // _ALIGNMENT) * _ALIGNMENT

            def together(worker: int) -> None:
                if worker:
                    self.library.help(at, worker)
                    return
                with self._arena(threads) as arena:
                    self.library.run_together((self._plan, weights, arena, ins, outs, images), at, threads, least)

            _by_all(together, threads, optional=True)
        return np.zeros(0, dtype=np.float32)

    def _summed(self, inputs: Sequence[int], outputs: Sequence[int], images: int, threads: int, weights: int) -> Floats:
        """Every thread takes as many images, and always the same: the order in which sums are added does not change."""
        parts = max(1, min(threads, images))
        sums = np.zeros((parts, self.packed.sums), dtype=np.float32)

        def part(index: int) -> None:
            first, last = (images * at // parts for at in (index, index + 1))
            ins = _pointers(_moved(inputs, self.inputs, first))
            outs = _pointers([*_moved(outputs, self.outputs, first), sums[index].ctypes.data])
            with self._arena() as arena:
                self.library.run((self._plan, weights, arena, ins, outs, last - first))

        _by_all(part, parts)
        total: Floats = sums.sum(0) if parts > 1 else sums[0]
        return total

    def time(self) -> NDArray[np.int64]:
        """Nanoseconds of each step, once, on what the last image has left."""
        found = np.zeros(self.steps, dtype=np.int64)
        with self._arena() as arena:
            self.library.time(self._plan, self._weights, arena, found.ctypes.data)
        return found

    @contextmanager
    def _arena(self, workers: int = 1) -> Iterator[int]:
        """The address of memory that no other thread uses."""
        floats = self.packed.floats if workers == 1 else self.library.floats(self._plan, workers)
        try:
            arena = self._arenas.pop()
        except IndexError:
            arena = _Arena(floats)
        if arena.floats < floats:
            arena = _Arena(floats)
        try:
            yield arena.address
        finally:
            self._arenas.append(arena)


class _Arena:
    def __init__(self, floats: int) -> None:
        self.floats = floats
        self.memory = np.empty(floats + _ALIGNMENT // 4, dtype=np.float32)
        self.memory[: _ALIGNMENT // 4 * 2] = 0  # whatever the memory held must not pass for a stamp
        self.address = -(-self.memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT


def _by_all(work: Callable[[int], None], threads: int, *, optional: bool = False) -> None:
    """`work(index)` by so many threads, this one as the first; those that are `optional` begin before that ends."""
    if threads == 1:
        work(0)
        return
    pool = _pool(os.getpid(), threads)
    others = [pool.submit(work, index) for index in range(1, threads)]
    try:
        work(0)
    finally:
        if optional:
            others = [other for other in others if not other.cancel()]
        wait(others)  # they write to memory that the caller may let go
    for other in others:
        other.result()


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
