"""The query table: what every (width, resolution) scores and costs, and the pick of the best one for a budget.

The paper's "simple way" to find the balance of width and resolution: measure them all once on held-out images, then
look up. Accuracy is top-1; MACs, parameters and memory are counted, and milliseconds taken, on the extracted network.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from leanconv.elastic.calibrate import as_configs
from leanconv.elastic.detector import ElasticDetector
from leanconv.elastic.net import ElasticNet
from leanconv.elastic.width import Config
from leanconv.errors import BudgetError, DataError, LeanconvError, NotCalibrated, UnknownName, shown, unknown
from leanconv.files import csv_text, write_text
from leanconv.plain_text import read_json
from leanconv.query import rows as tabular
from leanconv.query.detection import detection_row, precisions
from leanconv.query.measure import accuracies, describe, elsewhere, fingerprint, latencies, row_of
from leanconv.query.rows import EAGER, Row, Time, TimingSetup
from leanconv.ranks import from_first, rank_and_world
from leanconv.schema import Count, ListOf, MapOf, Maybe, Number, Plain, Record, Text

__all__ = ["QueryTable", "Row"]


@dataclass(frozen=True)
class QueryTable:
    """Rows in the order they were measured, and `about`: the model's story, the machine, the images, the date."""

    rows: tuple[Row, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        best = {id(row) for row in tabular.front(self.rows)}
        object.__setattr__(self, "rows", tuple(replace(row, pareto=id(row) in best) for row in self.rows))

    @classmethod
    def measure(
        cls,
        net: ElasticNet,
        loader: Iterable[Any],
        *,
        configs: Iterable[Config | tuple[float, int]] | None = None,
        latency: bool = True,
        threads: int = 1,
        batch: int = 1,
        rounds: int = 20,
    ) -> Self:
        """Measure `configs` (default: all that are calibrated; without BatchNorm the paper's grid).

        `loader` yields (inputs, labels) of the native resolution, images that were not trained on (of a detector
        images of any sizes, a list, and their objects); `threads` of torch,
        images in a `batch` and `rounds` are those of the timing. In a distributed run every process must call it, with
        its share of the images: all end with the same table of all images, with the first process's latencies.
        Raises `NotCalibrated` where statistics are missing and `DataError` for a loader without images.
        """
        if configs is None and net.norms:
            configs = net.calibrated
            if not configs:
                raise NotCalibrated(
                    "no configuration of this network is calibrated, and each has its own BatchNorm statistics: call "
                    "calibrate(net, loader) first, or name the configurations"
                )
        wanted = as_configs(net, configs)
        for norm in net.norms:
            for config in wanted:
                norm.statistics(config)  # raises where there are none
        if isinstance(net, ElasticDetector):
            scores, images = precisions(net, loader, wanted)
            rows = tuple(detection_row(net, config, scores[config], images) for config in wanted)
        else:
            accuracy, images = accuracies(net, loader, wanted)
            rows = tuple(row_of(net, config, accuracy[config], images) for config in wanted)
        table = cls(rows, describe(net, images))
        return table.timed(net, [TimingSetup(EAGER, threads, batch)], rounds=rounds) if latency else table

    def timed(self, net: ElasticNet, setups: Sequence[TimingSetup], *, rounds: int = 20) -> Self:
        """The table with the latency of every row of `net` in each of `setups`, see `query.measure.latencies`.

        In a distributed run the first process measures. Raises `LeanconvError` for a table of another model, and for a
        setup that it has already.
        """
        self.check(net)
        configs = [row.config for row in self.rows]
        found = latencies(net, configs, setups, rounds=rounds) if rank_and_world()[0] == 0 else {}
        table = self
        for setup, times in from_first(found).items():
            table = table.with_times(setup, times, rounds=rounds)
        return table

    def with_times(self, setup: TimingSetup, times: Mapping[Config, Time], *, rounds: int) -> Self:
        """The table with latencies measured in `setup`; the first ones are what `pick` goes by without `setup`.

        Configurations without a time keep none. Raises `LeanconvError` for a setup that the table has.
        """
        if setup.tag in self.setups:
            raise LeanconvError(f"the query table has latencies of {setup.tag} already: measure another setup")
        first = not self.setups
        rows = []
        for row in self.rows:
            time = times.get(row.config)
            if time is None:
                rows.append(row)
            elif first:
                median, low, high = time
                rows.append(replace(row, latency_ms=median, latency_low_ms=low, latency_high_ms=high))
            else:
                rows.append(replace(row, times={**row.times, setup.tag: time}))
        entry = {**setup._asdict(), "rounds": rounds}
        more = {"latency": entry} if first else {"latencies": {**self.about.get("latencies", {}), setup.tag: entry}}
        return replace(self, rows=tuple(rows), about={**self.about, **more})

    @property
    def setups(self) -> tuple[str, ...]:
        """The tags of the setups in which latency was measured, the first one first."""
        first = self._first_setup
        others = tuple(dict.fromkeys(tag for row in self.rows for tag in row.times))
        return others if first is None else (first, *others)

    @property
    def _first_setup(self) -> str | None:
        """The tag of what the rows' own `latency_ms` is of."""
        entry = self.about.get("latency") or {}
        if not entry and all(row.latency_ms is None for row in self.rows):
            return None
        backend = str(entry.get("backend", EAGER)).split()[-1]  # tables of the first version say "torch eager"
        return TimingSetup(backend, entry.get("threads", 1), entry.get("batch", 1)).tag

    def front(self, by: str = "macs") -> tuple[Row, ...]:
        """The rows that no other beats in accuracy and cost (macs, params, peak_bytes, latency_ms), the cheapest first.

        >>> rows = [Row(width=w, resolution=32, accuracy=a, macs=m, params=1) for w, a, m in ((1, .9, 9), (.5, .9, 5))]
        >>> [row.width for row in QueryTable(tuple(rows)).front()]
        [0.5]
        """
        return tabular.front(self.rows, by)

    def pick(
        self,
        *,
        max_macs: float | None = None,
        max_params: float | None = None,
        max_peak_bytes: float | None = None,
        max_latency_ms: float | None = None,
        min_accuracy: float | None = None,
        setup: str | None = None,
        any_machine: bool = False,
    ) -> Row:
        """The most accurate row within all given limits; of equally accurate ones that of fewest MACs.

        With `min_accuracy` alone, the cheapest row that reaches it. Never a row over a limit, and nothing between rows.
        `max_latency_ms` is of `setup`, one of `setups`, default the first.
        Raises `BudgetError` when no row is within the limits, saying what the cheapest would need; `LeanconvError` for
        a latency limit on a table without latencies, or with those of another machine unless `any_machine`.

        >>> rows = [Row(width=w, resolution=32, accuracy=w, macs=int(100 * w), params=10) for w in (0.25, 0.5, 1.0)]
        >>> QueryTable(tuple(rows)).pick(max_macs=60).width
        0.5
        """
        limits = dict(zip(tabular.COSTS, (max_macs, max_params, max_peak_bytes, max_latency_ms), strict=True))
        upper = {name: limit for name, limit in limits.items() if limit is not None}
        for name, limit in (*limits.items(), ("accuracy", min_accuracy)):
            if limit is not None and (not isinstance(limit, (int, float)) or limit != limit):
                raise LeanconvError(f"the limit of {name} must be a number, got {limit!r}")
        if not self.rows:
            raise BudgetError("the query table has no rows, so there is nothing to pick: measure one first")
        if "latency_ms" in upper:
            self.check_latency(setup, any_machine=any_machine)
        if "peak_bytes" in upper and all(row.peak_bytes is None for row in self.rows):
            raise LeanconvError(
                "this table was measured without memory, by an older leanconv, so max_peak_bytes cannot be judged: "
                "measure it again"
            )

        chosen = setup or next(iter(self.setups), "")
        other = chosen != self._first_setup

        def cost(row: Row, name: str) -> float:
            found: float | None = getattr(row, name)
            if name == "latency_ms" and other:
                found = row.times[chosen].median_ms if chosen in row.times else None
            return math.inf if found is None else found

        cheap = [row for row in self.rows if all(cost(row, name) <= limit for name, limit in upper.items())]
        fit = [row for row in cheap if min_accuracy is None or row.accuracy >= min_accuracy]
        if not fit:
            least = {name: min(self.rows, key=lambda row: cost(row, name)) for name in upper}
            needs = [f"{row.config} with {name} = {cost(row, name):.10g}" for name, row in least.items()]
            raise BudgetError(_why_none(upper, needs, cheap, min_accuracy))
        if not upper and min_accuracy is not None:
            return min(fit, key=lambda row: (row.macs, -row.accuracy))
        return min(fit, key=lambda row: (-row.accuracy, row.macs, row.params, cost(row, "latency_ms")))

    def check(self, net: ElasticNet) -> None:
        """Raise `LeanconvError` unless this table was measured on these weights (as far as the table says)."""
        mine = {"weights": fingerprint(net), "widths": list(net.widths), "resolutions": list(net.resolutions)}
        for what in ("widths", "resolutions", "weights"):
            if what in self.about and self.about[what] != mine[what]:
                raise LeanconvError(
                    f"this query table is of another model: its {what} are {self.about[what]}, the network's are "
                    f"{mine[what]}, so what it promises would not hold: measure the table of this network"
                )

    def check_latency(self, setup: str | None = None, *, any_machine: bool = False) -> None:
        """Raise `LeanconvError` unless the table has latencies (of `setup`), and of this machine."""
        if not self.setups:
            raise LeanconvError(
                "this table was measured without latencies, so max_latency_ms cannot be judged: measure it with "
                "latency=True on the machine that will run the network"
            )
        if setup is not None and setup not in self.setups:
            raise unknown("timing setup", setup, self.setups)
        there = elsewhere(self.about)
        if there is not None and not any_machine:
            raise LeanconvError(
                f"the latencies of this table were measured on another machine ({there}) and say nothing about this "
                "one: measure the table here, or allow it with any_machine=True (--any-machine)"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as .json or .csv (one comment line holds `about`); returns the path.

        Raises `UnknownName` for another suffix. The file is complete or not there.
        """
        if _suffix(Path(path)) == ".json":
            rows = [asdict(row) for row in self.rows]
            text = json.dumps({"format": "leanconv query table 1", "about": self.about, "rows": rows}, indent=2) + "\n"
        else:
            text = f"# {json.dumps(self.about)}\n" + csv_text([tabular.cells(row) for row in self.rows])
        return write_text(path, text, what="the query table")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. Raises `DataError` for a file that is missing or no query table."""
        path = Path(path)
        suffix = _suffix(path)
        try:
            text = path.read_text(encoding="utf-8")
            rows, about = (_of_json if suffix == ".json" else _of_csv)(text)
            _ABOUT.check(about, "about")
            return cls(rows, about)
        except OSError as error:
            raise DataError(f"{path}: no query table there ({error.strerror or error})") from error
        except (csv.Error, UnicodeDecodeError, LeanconvError) as error:
            raise DataError(f"{path} is not a query table, or is damaged: {error}; measure it again") from error


_SETUP = Record({}, {"backend": Text(100), "threads": Count(1, 10**6), "batch": Count(1, 10**6)}, others=Plain())
_ABOUT = Record(
    {},
    {
        "weights": Text(100),
        "widths": ListOf(Number(), longest=1000),
        "resolutions": ListOf(Count(), longest=1000),
        "latency": Maybe(_SETUP),
        "latencies": MapOf(_SETUP, longest=1000),
        "machine": Maybe(MapOf(Text(1000), longest=100)),
    },
    others=Plain(),
)
_TABLE = Record({"rows": ListOf(Plain()), "about": Plain()}, others=Plain())


def _of_json(text: str) -> tuple[tuple[Row, ...], Any]:
    data = read_json(text)
    _TABLE.check(data, "")
    return tuple(tabular.read_row(row, f"rows[{place}]") for place, row in enumerate(data["rows"])), data["about"]


def _of_csv(text: str) -> tuple[tuple[Row, ...], Any]:
    """The rows below a line of names, and what the comment before it says, if there is one."""
    first, _, rest = text.partition("\n")
    above = 1
    if not first.startswith("# "):
        first, rest, above = "# {}", text, 0
    lines = csv.reader(io.StringIO(rest))
    names = next(lines, [])
    if len(set(names)) < len(names):
        raise DataError(f"the line of names has {shown(max(names, key=names.count))} twice")
    rows = []
    for cells in lines:
        place = f"line {above + lines.line_num}"
        if cells and len(cells) != len(names):
            raise DataError(f"{place} has {len(cells)} cells, expected {len(names)}")
        if cells:
            rows.append(tabular.read_cells(dict(zip(names, cells, strict=True)), place))
    if not names:
        raise DataError("it is empty")
    return tuple(rows), read_json(first[2:])


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv"):
        raise UnknownName(f"{path}: a query table is a .json or a .csv file, got the suffix {path.suffix!r}")
    return suffix


def _why_none(
    upper: Mapping[str, float], needs: Sequence[str], cheap: Sequence[Row], min_accuracy: float | None
) -> str:
    """The message for limits that nothing meets."""
    limits = ", ".join(f"{name} <= {limit:g}" for name, limit in upper.items())
    if cheap:
        best = max(cheap, key=lambda row: (row.accuracy, -row.macs))
        reach = f" with {limits}" if limits else ""
        return (
            f"no configuration{reach} reaches an accuracy of {min_accuracy:g}: the best is {best.config} with "
            f"{best.accuracy:.4g}; lower min_accuracy" + (" or raise the other limits" if limits else "")
        )
    return (
        f"no configuration within {limits}: the cheapest is {'; '.join(needs)}; raise the limit to at "
        "least that, or make the network elastic down to smaller widths or resolutions"
    )
