"""The latency columns of a query table: every back-end that `bench` knows, any number of threads, any batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from leanconv.deploy.bench import BACKENDS, bench
from leanconv.elastic.width import Config
from leanconv.errors import LeanconvError, unknown
from leanconv.query.measure import input_size
from leanconv.query.rows import Setting, Time

if TYPE_CHECKING:
    from leanconv.elastic import ElasticNet
    from leanconv.query import QueryTable

__all__ = ["time_table"]


def time_table(table: QueryTable, net: ElasticNet, settings: Sequence[Setting], *, rounds: int = 20) -> QueryTable:
    """The table with the latency of every row of `net` in each of `settings`, on the CPU.

    All networks of one resolution, and all back-ends of the same threads and batch, are measured interleaved. Raises
    `UnknownName` for a back-end that is not in `BACKENDS`, and `LeanconvError` for one that fails on a row, with the
    reason, and for a table of another model.
    """
    table.check(net)
    for setting in settings:
        if setting.backend not in BACKENDS:
            raise unknown("backend", setting.backend, BACKENDS)
    found: dict[Setting, dict[Config, Time]] = {setting: {} for setting in settings}
    for (threads, batch), group in itertools.groupby(sorted(settings, key=_together), key=_together):
        backends = [setting.backend for setting in group]
        for resolution in dict.fromkeys(row.resolution for row in table.rows):
            configs = {str(row.config): row.config for row in table.rows if row.resolution == resolution}
            nets = {name: net.extract(*config).eval() for name, config in configs.items()}
            size = input_size(net, next(iter(configs.values())))
            for row in bench(nets, size, backends=backends, batch=batch, threads=threads, rounds=rounds):
                if row.median_ms is None or row.low_ms is None or row.high_ms is None:
                    raise LeanconvError(f"{row.model} cannot be timed with {row.backend}: {row.problem}")
                time = Time(row.median_ms, row.low_ms, row.high_ms)
                found[Setting(row.backend, threads, batch)][configs[row.model]] = time
    for setting in settings:
        table = table.with_times(setting, found[setting], rounds=rounds)
    return table


def _together(setting: Setting) -> tuple[int, int]:
    return setting.threads, setting.batch
