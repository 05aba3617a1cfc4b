"""What benchmarks of answers and of training steps have in common: what a row says, and that there is one."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from leanconv.cost.latency import Latency
from leanconv.dryrun import Sizes
from leanconv.errors import LeanconvError

__all__ = ["TimedRow", "refuse_nothing"]


@dataclass(frozen=True, kw_only=True)
class TimedRow:
    """One model on one backend: milliseconds per call of `batch` inputs of `size`, `macs` multiply-adds per input.

    `low_ms` and `high_ms` bound the middle 80 % of the rounds; `ratio` is the median over the rounds of the time
    divided by the first row's. What could not be measured has None there and the reason in `problem`;
    `share_not_counted` is the part of the parameters that belongs to operations outside `macs`.
    """

    model: str
    backend: str
    size: Sizes
    batch: int
    threads: int
    macs: int
    params: int
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    rounds: int = 0
    share_not_counted: float = 0.0
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {**asdict(self), "size": list(self.size)}

    def timed(self, latency: Latency) -> Self:
        """The row with what was measured."""
        return replace(
            self,
            median_ms=latency.median_ms,
            low_ms=latency.low_ms,
            high_ms=latency.high_ms,
            ratio=latency.ratio,
            ratio_low=latency.ratio_low,
            ratio_high=latency.ratio_high,
            rounds=latency.rounds,
        )


def refuse_nothing(what: str, models: Sized, backends: Sized, *, batch: int, threads: int, rounds: int) -> None:
    """Raise `LeanconvError`, naming `what`, where there would be nothing to measure."""
    if not models or not backends or min(batch, threads, rounds) < 1:
        raise LeanconvError(
            f"{what} needs at least one model, one backend, and batch, threads and rounds of at least 1, got "
            f"{len(models)} models, {len(backends)} backends, batch={batch}, threads={threads}, rounds={rounds}"
        )
