"""Serving under a governor: one call after the other, each in the configuration that the calls before it suggest."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from leanconv.errors import LeanconvError
from leanconv.files import csv_text, write_text
from leanconv.serve.governor import Governor
from leanconv.serve.runtime import Runtime

__all__ = ["Call", "Phase", "ServeLog", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: when it began, how long it took, in which row, and under how many competing processes.

    `scale` is what the governor expected of the machine before the call, `accuracy` what the table says of the row.
    """

    second: float
    latency_ms: float
    width: float
    resolution: int
    accuracy: float
    scale: float
    load: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """The calls between two steps of the load, of which the governor needs the first, `settling`, to notice the step.

    `p95_ms` and `over`, the share of calls over the target, are of those after them; `accuracy` is the mean over all.
    """

    load: int
    second: float
    calls: int
    settling: int
    median_ms: float
    p95_ms: float
    over: float
    switches: int
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ServeLog:
    """All calls in order, and the target they were to keep."""

    target_ms: float
    calls: tuple[Call, ...]

    def phases(self, settling: int = 5) -> tuple[Phase, ...]:
        """The calls summed up, from step to step of the load."""
        found = []
        for load, group in itertools.groupby(self.calls, key=lambda call: call.load):
            calls = list(group)
            skipped = min(settling, len(calls) - 1)
            times = sorted(call.latency_ms for call in calls[skipped:])
            rows = [(call.width, call.resolution) for call in calls]
            found.append(
                Phase(
                    load=load,
                    second=calls[0].second,
                    calls=len(calls),
                    settling=skipped,
                    median_ms=times[len(times) // 2],
                    # The smallest time that at least 95 % of the calls keep.
                    p95_ms=times[-(-95 * len(times) // 100) - 1],
                    over=sum(time > self.target_ms for time in times) / len(times),
                    switches=sum(a != b for a, b in itertools.pairwise(rows)),
                    accuracy=sum(call.accuracy for call in calls) / len(calls),
                )
            )
        return tuple(found)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the calls as CSV; complete or not at all."""
        rows = [{**asdict(call), "target_ms": self.target_ms} for call in self.calls]
        columns = [*(one.name for one in fields(Call)), "target_ms"]
        return write_text(path, csv_text(rows, columns), what="the log of the calls")


def serve(
    runtime: Runtime,
    governor: Governor,
    inputs: Sequence[Tensor],
    *,
    seconds: float,
    load: Callable[[float], int] | None = None,
    clock: Callable[[], float] = perf_counter,
) -> ServeLog:
    """Answer `inputs`, round and round, for so many `seconds`, and log every call.

    Each input is (b, channels, *size), of the batch that the governor's latencies are for; `runtime` must be prepared
    for all its rows. A call is timed until its answer is there, a change of configuration before it included. `load`,
    for benchmarks, sets the competing load of each second, and gives the number of its processes.
    Raises `LeanconvError` for no inputs, and for rows that the runtime was not prepared for.
    """
    if not inputs:
        raise LeanconvError("there is nothing to serve: give at least one input")
    calls: list[Call] = []
    start = clock()
    for x in itertools.cycle(inputs):
        row, scale, second = governor.row, governor.scale, clock() - start
        if second >= seconds:
            break
        competing = 0 if load is None else load(second)
        before = clock()
        if runtime.config != row.config:
            runtime.use(*row.config)
        runtime(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        latency = (clock() - before) * 1000
        governor.record(latency)
        calls.append(
            Call(
                second=second,
                latency_ms=latency,
                width=row.width,
                resolution=row.resolution,
                accuracy=row.accuracy,
                scale=scale,
                load=competing,
            )
        )
    return ServeLog(target_ms=governor.target_ms, calls=tuple(calls))
