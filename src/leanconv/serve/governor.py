"""The governor: keeps latency at a target while the load on the machine changes, by choosing rows of a query table.

    r_t = latency measured / latency in the table                     how much slower the machine is than it was
    s_t = the q-quantile of r_t, r_{t-1}, ... under weights 2^(-age / half_life)
    a row fits at margin m where   p(row) * s_t <= (1 - m) * target   (p: its latency in the table)

    down  at once, when the row in force no longer fits at `margin`: to the most accurate row that does
    up    when for `patience` calls in a row more accurate rows fitted at `headroom`: to the least of those calls' best

What is slow is the machine and not one network, so all rows share one scale. With q = 0.95 and a half life of 24 calls
the newest call alone weighs less than 1 - q once five calls have been seen: one straggler then changes nothing, two in
short order do. A step up that must be taken back doubles the patience, so that a row which the scale judges too kindly
is tried ever less often.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from leanconv.errors import LeanconvError
from leanconv.query.rows import Row, front

__all__ = ["Governor"]

MOST_PATIENT = 16
"""Patience doubles up to so many times itself."""


class Governor:
    """Chooses, call by call, the row to run so that a share `quantile` of the calls takes at most `target_ms`.

    Args:
        rows: of a query table with latencies of this machine; those on its front of latency are the choice.
        target_ms: milliseconds of one call.
        half_life: calls after which what was measured counts half.
        margin: share of the target that is kept free.
        headroom, patience: share of the target that must be free, and for how many calls in a row, before a more
            accurate row is taken.

    Attribute `rows` is the choice, from the fastest to the most accurate; `scale` how many times slower than in the
    table a call is to be expected. Raises `LeanconvError` for rows without latencies and options out of range.

    >>> rows = [Row(width=w, resolution=32, accuracy=w, macs=1, params=1, latency_ms=10 * w) for w in (0.25, 0.5, 1.0)]
    >>> governor = Governor(rows, target_ms=12)
    >>> [governor.record(slower * governor.row.latency_ms).width for slower in (1, 1, 1, 1, 1, 2, 2)]
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    """

    def __init__(
        self,
        rows: Sequence[Row],
        target_ms: float,
        *,
        quantile: float = 0.95,
        half_life: float = 24.0,
        margin: float = 0.05,
        headroom: float = 0.15,
        patience: int = 32,
    ) -> None:
        self.rows = front(rows, "latency_ms")
        if not self.rows:
            raise LeanconvError(
                "a governor needs rows with latencies: measure the query table with latency=True on this machine"
            )
        if not 0 < target_ms < math.inf:
            raise LeanconvError(f"the target must be a number of milliseconds above 0, got {target_ms!r}")
        if not 0 < quantile < 1 or not half_life > 0 or not 0 <= margin <= headroom < 1 or patience < 1:
            raise LeanconvError(
                "a governor needs 0 < quantile < 1, half_life > 0, 0 <= margin <= headroom < 1 and patience >= 1, got "
                f"quantile={quantile}, half_life={half_life}, margin={margin}, headroom={headroom}, "
                f"patience={patience}"
            )
        self.target_ms = float(target_ms)
        self.quantile, self.margin, self.headroom, self.patience = quantile, margin, headroom, patience
        length = math.ceil(6 * half_life)  # what is older weighs less than 2 %
        self._weights = [2.0 ** (-age / half_life) for age in range(length)]
        # Until calls say otherwise the machine is as it was.
        self._ratios: deque[float] = deque([1.0] * math.ceil(half_life), maxlen=length)
        self.scale = 1.0
        self._index = self._best(margin)
        self._chances: list[int] = []
        self._patience = patience
        self._since_up = 0

    @property
    def row(self) -> Row:
        """The row to run next."""
        return self.rows[self._index]

    @property
    def met(self) -> bool:
        """Whether `row` is expected to keep the target."""
        return self._fits(self._index, self.margin)

    def record(self, latency_ms: float) -> Row:
        """Take the latency of a call in `row`, and return the row for the next call."""
        if not 0 < latency_ms < math.inf:
            raise LeanconvError(f"a latency must be a number of milliseconds above 0, got {latency_ms!r}")
        self._ratios.appendleft(latency_ms / self._predicted(self._index))
        self.scale = self._expected()
        self._since_up += 1
        best = self._best(self.headroom)
        if not self.met and self._index:
            rash = self._since_up < self._patience  # the last step up should not have been taken
            self._patience = min(2 * self._patience, MOST_PATIENT * self.patience) if rash else self.patience
            self._index = self._best(self.margin)
            self._chances.clear()
        elif best <= self._index:
            self._chances.clear()
        else:
            self._chances.append(best)
            if len(self._chances) >= self._patience:
                self._index, self._since_up = min(self._chances), 0
                self._chances.clear()
        return self.row

    def _predicted(self, index: int) -> float:
        return float(self.rows[index].latency_ms or 0.0)

    def _fits(self, index: int, margin: float) -> bool:
        return self._predicted(index) * self.scale <= (1 - margin) * self.target_ms

    def _best(self, margin: float) -> int:
        """The most accurate row that fits, or the fastest."""
        return max((index for index in range(len(self.rows)) if self._fits(index, margin)), default=0)

    def _expected(self) -> float:
        """The weighted quantile: the largest ratio such that those above it weigh at most 1 - q of all."""
        pairs = sorted(zip(self._ratios, self._weights, strict=False), reverse=True)
        allowed = (1 - self.quantile) * sum(weight for _, weight in pairs)
        for ratio, weight in pairs:
            allowed -= weight
            if allowed < 0:
                return ratio
        return pairs[-1][0]
