"""Serving under a governor: one call after the other, each in the configuration that the calls before it suggest."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from leanconv.deploy.load import Load
from leanconv.errors import LeanconvError
from leanconv.serve.governor import Governor
from leanconv.serve.runtime import Runtime

__all__ = ["Call", "Phase", "Trace", "serve"]


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
    """The calls between two steps of the load; the first few, while the governor learns of the step, count apart.

    `p95_ms` and `over`, the share of calls over the target, are of the calls after those `settling` first; `accuracy`
    is the mean over all.
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
class Trace:
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
        path = Path(path)
        out = io.StringIO()
        names = [one.name for one in fields(Call)]
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*names, "target_ms"])
        writer.writerows([*(getattr(call, name) for name in names), self.target_ms] for call in self.calls)
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(out.getvalue(), encoding="utf-8", newline="")
            os.replace(draft, path)
        except OSError as error:
            with suppress(OSError):  # also where a folder on the way is a file
                draft.unlink()
            raise LeanconvError(f"{path}: the trace cannot be written ({error.strerror or error})") from error
        return path


def serve(
    runtime: Runtime,
    governor: Governor,
    inputs: Sequence[Tensor],
    *,
    seconds: float,
    load: Load | None = None,
    clock: Callable[[], float] = perf_counter,
) -> Trace:
    """Answer `inputs`, round and round, for so many `seconds`, and tell of every call.

    Each input is (b, channels, *size), of the batch that the governor's latencies are for; `runtime` must be prepared
    for all its rows. A call is timed until its answer is there, a change of configuration before it included.
    Raises `LeanconvError` for no inputs, and for rows that the runtime was not prepared for.
    """
    if not inputs:
        raise LeanconvError("there is nothing to serve: give at least one input")
    calls: list[Call] = []
    start = clock()
    for x in itertools.cycle(inputs):
        row, scale = governor.row, governor.scale
        second = clock() - start
        if second >= seconds:
            break
        competing = 0 if load is None else load.follow(second)
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
    return Trace(target_ms=governor.target_ms, calls=tuple(calls))
