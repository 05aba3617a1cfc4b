"""Latency of several candidates, measured interleaved in one run.

A machine drifts: clocks, temperature, neighbours. Timing one candidate after the other turns drift into a difference,
so every round times every candidate once, in a new order, and candidates are compared by their ratios within a round.
A candidate is any callable without arguments: a network on a fixed input, an onnxruntime session, anything.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from time import perf_counter

import torch

from leanconv.errors import LeanconvError

__all__ = ["Latency", "compare_latency", "torch_threads"]


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one call of one candidate, over `rounds` interleaved samples of `calls_per_sample` calls.

    median_ms, low_ms, high_ms: the median, the 10 % and the 90 % quantile.
    ratio, ratio_low, ratio_high: the same three of (this candidate / the first candidate) within each round.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int
    ratio: float
    ratio_low: float
    ratio_high: float
    calls_per_sample: int
    threads: int

    def to_json(self) -> dict[str, float | int]:
        """All fields as plain JSON values."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def compare_latency(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    threads: int = 1,
    min_sample_ms: float = 5.0,
    seed: int = 0,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, Latency]:
    """Time every candidate once per round, in an order shuffled by `seed`, and return their latencies by name.

    Before, each candidate runs `warmup` times and one call is timed: a sample repeats the call until it lasts about
    `min_sample_ms`. `threads` is the number of threads of torch during the run; other runtimes keep their own setting.
    Once CUDA is in use, every sample waits for the device. Gradients are the candidate's affair. `clock` gives seconds.

    Raises `LeanconvError` for no candidates or impossible settings; an error of a candidate passes through, with its
    name as a note.

    >>> result = compare_latency({"sum": lambda: sum(range(1000)), "twice": lambda: sum(range(2000))}, rounds=3)
    >>> result["sum"].ratio, result["twice"].rounds
    (1.0, 3)
    """
    _check(candidates, rounds, warmup, threads, min_sample_ms)
    names = list(candidates)
    order = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with torch_threads(threads), _no_collection():
        calls = {name: _calls(name, candidates[name], warmup, min_sample_ms, clock) for name in names}
        for _ in range(rounds):
            for name in order.sample(names, len(names)):
                samples[name].append(_sample(name, candidates[name], calls[name], clock))
    first = samples[names[0]]
    result = {}
    for name, mine in samples.items():
        ratios = [a / b for a, b in zip(mine, first, strict=True)]
        low, median, high = (_quantile(mine, q) for q in (0.1, 0.5, 0.9))
        ratio_low, ratio, ratio_high = (_quantile(ratios, q) for q in (0.1, 0.5, 0.9))
        result[name] = Latency(median, low, high, rounds, ratio, ratio_low, ratio_high, calls[name], threads)
    return result


def _check(
    candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int, threads: int, min_sample_ms: float
) -> None:
    if not candidates:
        raise LeanconvError("compare_latency: needs at least one candidate, got none")
    for name, candidate in candidates.items():
        if not callable(candidate):
            raise LeanconvError(
                f"compare_latency: candidate {name!r} must be a callable without arguments, got "
                f"{type(candidate).__name__}; wrap it, as in lambda: net(x)"
            )
    for what, value, least in (("rounds", rounds, 1), ("warmup", warmup, 0), ("threads", threads, 1)):
        if value < least:
            raise LeanconvError(f"compare_latency: {what} must be at least {least}, got {value}")
    if min_sample_ms < 0:
        raise LeanconvError(f"compare_latency: min_sample_ms must not be negative, got {min_sample_ms}")


def _calls(
    name: str, candidate: Callable[[], object], warmup: int, min_sample_ms: float, clock: Callable[[], float]
) -> int:
    """Warm up, and find how many calls make a sample long enough for the clock."""
    for _ in range(warmup):
        _sample(name, candidate, 1, clock)
    once = _sample(name, candidate, 1, clock)
    return max(1, round(min_sample_ms / once)) if once > 0 else 1


def _sample(name: str, candidate: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Milliseconds per call."""
    try:
        _wait()
        start = clock()
        for _ in range(calls):
            candidate()
        _wait()
        return (clock() - start) * 1000 / calls
    except Exception as error:
        error.add_note(f"while timing candidate {name!r}")
        raise


def _wait() -> None:
    """Let the device finish what was queued; nothing to do before the first use of CUDA."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch's number of threads for a while; compiled code takes it over when it is made."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the samples."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
