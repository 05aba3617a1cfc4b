"""The query table: what every (width, resolution) scores and costs, and the pick of the best one for a budget.

The paper's "simple way" to find the balance of width and resolution: measure them all once on held-out images, then
look up. Accuracy is top-1 on the loader's images, resized; MACs (multiply-adds of convolution and linear layers),
parameters and memory are counted on the extracted network; milliseconds are medians of interleaved runs through it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from leanconv.elastic.calibrate import as_configs
from leanconv.elastic.width import Config
from leanconv.errors import BudgetError, DataError, LeanconvError, NotCalibrated, UnknownName, unknown
from leanconv.query import rows as tabular
from leanconv.query.measure import accuracies, costs, describe, elsewhere, fingerprint, latencies
from leanconv.query.rows import Row, Setting, Time
from leanconv.ranks import from_first, rank_and_world

if TYPE_CHECKING:
    from leanconv.elastic.net import ElasticNet

__all__ = ["QueryTable", "Row"]

EAGER = "eager"
"""The back-end of the first setting: torch as it is."""


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

        In a distributed run every process must call it, with its share of the images: all end with the same table of
        all images, whose latencies are the first process's.

        Args:
            loader: yields (inputs, labels) of the native resolution, images that were not trained on.
            latency: whether to time every extracted network.
            threads: of torch, while timing.
            batch: images per timed call.
            rounds: of the interleaved timing.

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
        for config in wanted:
            if not net.can_evaluate(*config):
                raise NotCalibrated(
                    f"configuration {config} (width-resolution) has no BatchNorm statistics, so its accuracy cannot be "
                    f"measured: call calibrate(net, loader, [({config.width:g}, {config.resolution})]) first"
                )
        accuracy, images = accuracies(net, loader, wanted)
        rows = [
            Row(
                width=config.width,
                resolution=config.resolution,
                frames=config.frames,
                accuracy=accuracy[config],
                **costs(net, config)._asdict(),
            )
            for config in wanted
        ]
        table = cls(tuple(rows), describe(net, images))
        if not latency:
            return table
        setting, first = Setting(EAGER, threads, batch), rank_and_world()[0] == 0
        times = latencies(net, wanted, setting, rounds=rounds) if first else {}
        return table.with_times(setting, from_first(times), rounds=rounds)

    def with_times(self, setting: Setting, times: Mapping[Config, Time], *, rounds: int) -> Self:
        """The table with latencies measured in `setting`; the first ones are what `pick` goes by unless told.

        Configurations without a time keep none. Raises `LeanconvError` for a setting that the table has.
        """
        if setting.tag in self.settings:
            raise LeanconvError(f"the query table has latencies of {setting.tag} already: measure another setting")
        first = not self.settings
        rows = []
        for row in self.rows:
            time = times.get(row.config)
            if time is None:
                rows.append(row)
            elif first:
                median, low, high = time
                rows.append(replace(row, latency_ms=median, latency_low_ms=low, latency_high_ms=high))
            else:
                rows.append(replace(row, times={**row.times, setting.tag: time}))
        told = {**setting._asdict(), "rounds": rounds}
        more = {"latency": told} if first else {"latencies": {**self.about.get("latencies", {}), setting.tag: told}}
        return replace(self, rows=tuple(rows), about={**self.about, **more})

    @property
    def settings(self) -> tuple[str, ...]:
        """The tags of the settings in which latency was measured, the first one first."""
        first = self._first_setting
        others = tuple(dict.fromkeys(tag for row in self.rows for tag in row.times))
        return others if first is None else (first, *others)

    @property
    def _first_setting(self) -> str | None:
        """The tag of what the rows' own `latency_ms` is of."""
        told = self.about.get("latency") or {}
        if not told and all(row.latency_ms is None for row in self.rows):
            return None
        backend = str(told.get("backend", EAGER)).split()[-1]  # tables of the first version say "torch eager"
        return Setting(backend, told.get("threads", 1), told.get("batch", 1)).tag

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
        setting: str | None = None,
        any_machine: bool = False,
    ) -> Row:
        """The most accurate row within all given limits; of equally accurate ones that of fewest MACs.

        With `min_accuracy` alone, the cheapest row that reaches it. Never a row over a limit, and nothing between rows.
        `max_latency_ms` is of `setting`, one of `settings`, default the first.
        Raises `BudgetError` when no row is within the limits, saying what the cheapest would need; `LeanconvError` for
        a latency limit on a table without latencies, or with those of another machine unless `any_machine`.

        >>> rows = [Row(width=w, resolution=32, accuracy=w, macs=int(100 * w), params=10) for w in (0.25, 0.5, 1.0)]
        >>> QueryTable(tuple(rows)).pick(max_macs=60).width
        0.5
        """
        limits = {"macs": max_macs, "params": max_params, "peak_bytes": max_peak_bytes, "latency_ms": max_latency_ms}
        upper = {name: limit for name, limit in limits.items() if limit is not None}
        for name, limit in (*upper.items(), *((("accuracy", min_accuracy),) if min_accuracy is not None else ())):
            if not isinstance(limit, (int, float)) or limit != limit:
                raise LeanconvError(f"the limit of {name} must be a number, got {limit!r}")
        if not self.rows:
            raise BudgetError("the query table has no rows, so there is nothing to pick: measure one first")
        if "latency_ms" in upper:
            self.check_latency(setting, any_machine=any_machine)
        if "peak_bytes" in upper and all(row.peak_bytes is None for row in self.rows):
            raise LeanconvError(
                "this table was measured without memory, by an older leanconv, so max_peak_bytes cannot be judged: "
                "measure it again"
            )

        own, chosen = self._first_setting, setting or next(iter(self.settings), "")

        def value(row: Row, name: str) -> Any:
            if name == "latency_ms" and chosen != own:
                return row.times[chosen].median_ms if chosen in row.times else None
            return getattr(row, name)

        def within(row: Row, name: str) -> bool:
            found = value(row, name)
            return found is not None and found <= upper[name]

        cheap = [row for row in self.rows if all(within(row, name) for name in upper)]
        fit = [row for row in cheap if min_accuracy is None or row.accuracy >= min_accuracy]
        if not fit:
            least = {}
            for name in upper:
                known = [row for row in self.rows if value(row, name) is not None]
                row = min(known, key=lambda row: value(row, name))
                least[name] = f"{row.config} with {name} = {value(row, name):.10g}"
            raise BudgetError(_why_none(upper, least, cheap, min_accuracy))
        if not upper and min_accuracy is not None:
            return min(fit, key=lambda row: (row.macs, -row.accuracy))
        return min(fit, key=lambda row: (-row.accuracy, row.macs, row.params, value(row, "latency_ms") or 0.0))

    def check(self, net: ElasticNet) -> None:
        """Raise `LeanconvError` unless this table was measured on these weights (as far as the table tells)."""
        mine = {"weights": fingerprint(net), "widths": list(net.widths), "resolutions": list(net.resolutions)}
        for what in ("widths", "resolutions", "weights"):
            if what in self.about and self.about[what] != mine[what]:
                raise LeanconvError(
                    f"this query table is of another model: its {what} are {self.about[what]}, the network's are "
                    f"{mine[what]}, so what it promises would not hold: measure the table of this network"
                )

    def check_latency(self, setting: str | None = None, *, any_machine: bool = False) -> None:
        """Raise `LeanconvError` unless the table has latencies (of `setting`), and of this machine."""
        if not self.settings:
            raise LeanconvError(
                "this table was measured without latencies, so max_latency_ms cannot be judged: measure it with "
                "latency=True on the machine that will run the network"
            )
        if setting is not None and setting not in self.settings:
            raise unknown("setting of a latency", setting, self.settings)
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
        path = Path(path)
        text = {".json": self._json, ".csv": self._csv}[_suffix(path)]()
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8", newline="")
            os.replace(temporary, path)
        except OSError as error:
            raise LeanconvError(f"{path}: the query table cannot be written ({error.strerror or error})") from error
        finally:
            with suppress(OSError):  # also where a folder on the way is a file
                temporary.unlink()
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. Raises `DataError` for a file that is missing or no query table."""
        path = Path(path)
        suffix = _suffix(path)
        try:
            text = path.read_text(encoding="utf-8")
            if suffix == ".json":
                data = json.loads(text)
                return cls(tuple(tabular.read_row(row) for row in data["rows"]), data["about"])
            first, _, rest = text.partition("\n")
            if not first.startswith("# "):
                first, rest = "# {}", text
            rows = tuple(tabular.read_row(row) for row in csv.DictReader(io.StringIO(rest)))
            return cls(rows, json.loads(first[2:]))
        except OSError as error:
            raise DataError(f"{path}: no query table there ({error.strerror or error})") from error
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is not a query table, or is damaged ({type(error).__name__}: {error}): measure it again"
            ) from error

    def _json(self) -> str:
        data = {"format": "leanconv query table 1", "about": self.about, "rows": [asdict(row) for row in self.rows]}
        return json.dumps(data, indent=2) + "\n"

    def _csv(self) -> str:
        out = io.StringIO()
        out.write(f"# {json.dumps(self.about)}\n")
        writer = csv.DictWriter(out, tabular.columns(self.rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(tabular.cells(row) for row in self.rows)
        return out.getvalue()


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv"):
        raise UnknownName(f"{path}: a query table is a .json or a .csv file, got the suffix {path.suffix!r}")
    return suffix


def _why_none(
    upper: Mapping[str, float], least: Mapping[str, str], cheap: Sequence[Row], min_accuracy: float | None
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
        f"no configuration within {limits}: the cheapest is {'; '.join(least.values())}; raise the limit to at "
        "least that, or make the network elastic down to smaller widths or resolutions"
    )
