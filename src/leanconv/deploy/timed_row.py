"""What every row of a benchmark says, of answers and of training steps alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from leanconv.cost.latency import Latency
from leanconv.dryrun import Sizes

__all__ = ["TimedRow"]


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
