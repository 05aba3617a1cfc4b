"""The query table: what every (width, resolution) scores and costs, and the pick of the best one for a budget.

The paper's "simple way" to find the balance of width and resolution: measure them all once on held-out images, then
look up. Accuracy is top-1 on the loader's images, resized; MACs (multiply-adds of convolution and linear layers) and
parameters are counted on the extracted network; milliseconds are medians of interleaved runs of one image through it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from leanconv.cost import Latency, compare_latency, measure
from leanconv.elastic.calibrate import as_configs, evaluating, inputs_of
from leanconv.elastic.width import Config
from leanconv.errors import BudgetError, DataError, LeanconvError, NotCalibrated, UnknownName
from leanconv.story import story_of

if TYPE_CHECKING:
    from leanconv.elastic.net import ElasticNet

__all__ = ["QueryTable", "Row"]

TOGETHER = 2 << 30
"""Bytes of weights that are extracted at the same time for timing; more configurations are timed in several runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration: `accuracy` from 0 to 1, `macs` per image, milliseconds with their 10 and 90 % quantiles.

    `pareto` tells that no other row has at least its accuracy for at most its MACs.
    """

    width: float
    resolution: int
    accuracy: float
    macs: int
    params: int
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    pareto: bool = False

    @property
    def config(self) -> Config:
        """Width and resolution."""
        return Config(self.width, self.resolution)


@dataclass(frozen=True)
class QueryTable:
    """Rows in the order they were measured, and `about`: the model's story, the machine, the images, the date."""

    rows: tuple[Row, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _with_pareto(self.rows))

    @classmethod
    def measure(
        cls,
        net: ElasticNet,
        loader: Iterable[Any],
        *,
        configs: Iterable[Config | tuple[float, int]] | None = None,
        latency: bool = True,
        threads: int = 1,
        rounds: int = 20,
    ) -> Self:
        """Measure `configs` (default: all that are calibrated; without BatchNorm the paper's grid).

        Args:
            loader: yields (inputs, labels) of the native resolution, images that were not trained on.
            latency: whether to time one image through every extracted network.
            threads: of torch, while timing.
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
        accuracy, images = _accuracies(net, loader, wanted)
        costs = {}
        for config in wanted:
            cost = measure(net.extract(*config).eval(), _size(net, config))
            costs[config] = (cost.macs, cost.params)
        times = _latencies(net, wanted, threads=threads, rounds=rounds) if latency else {}
        rows = []
        for config in wanted:
            time = times.get(config)
            rows.append(
                Row(
                    width=config.width,
                    resolution=config.resolution,
                    accuracy=accuracy[config],
                    macs=costs[config][0],
                    params=costs[config][1],
                    latency_ms=None if time is None else time.median_ms,
                    latency_low_ms=None if time is None else time.low_ms,
                    latency_high_ms=None if time is None else time.high_ms,
                )
            )
        return cls(tuple(rows), _about(net, images, latency=latency, threads=threads, rounds=rounds))

    def pick(
        self,
        *,
        max_macs: float | None = None,
        max_params: float | None = None,
        max_latency_ms: float | None = None,
        min_accuracy: float | None = None,
    ) -> Row:
        """The most accurate row within all given limits; of equally accurate ones that of fewest MACs.

        With `min_accuracy` alone, the cheapest row that reaches it. Never a row over a limit, and nothing between rows.
        Raises `BudgetError` when no row is within the limits, saying what the cheapest would need; `LeanconvError` for
        a latency limit on a table without latencies.

        >>> rows = [Row(width=w, resolution=32, accuracy=w, macs=int(100 * w), params=10) for w in (0.25, 0.5, 1.0)]
        >>> QueryTable(tuple(rows)).pick(max_macs=60).width
        0.5
        """
        upper = {"macs": max_macs, "params": max_params, "latency_ms": max_latency_ms}
        upper = {name: limit for name, limit in upper.items() if limit is not None}
        for name, limit in (*upper.items(), *((("accuracy", min_accuracy),) if min_accuracy is not None else ())):
            if not isinstance(limit, (int, float)) or limit != limit:
                raise LeanconvError(f"the limit of {name} must be a number, got {limit!r}")
        if not self.rows:
            raise BudgetError("the query table has no rows, so there is nothing to pick: measure one first")
        if "latency_ms" in upper and all(row.latency_ms is None for row in self.rows):
            raise LeanconvError(
                "this table was measured without latencies, so max_latency_ms cannot be judged: measure it with "
                "latency=True on the machine that will run the network"
            )

        def within(row: Row, name: str) -> bool:
            value = getattr(row, name)
            return value is not None and value <= upper[name]

        cheap = [row for row in self.rows if all(within(row, name) for name in upper)]
        fit = [row for row in cheap if min_accuracy is None or row.accuracy >= min_accuracy]
        if not fit:
            raise BudgetError(self._why_none(upper, cheap, min_accuracy))
        if not upper and min_accuracy is not None:
            return min(fit, key=lambda row: (row.macs, -row.accuracy))
        return min(fit, key=lambda row: (-row.accuracy, row.macs, row.params, row.latency_ms or 0.0))

    def _why_none(self, upper: Mapping[str, Any], cheap: Sequence[Row], min_accuracy: float | None) -> str:
        """The message for limits that nothing meets."""
        limits = ", ".join(f"{name} <= {limit:g}" for name, limit in upper.items())
        if cheap:
            best = max(cheap, key=lambda row: (row.accuracy, -row.macs))
            reach = f" with {limits}" if limits else ""
            return (
                f"no configuration{reach} reaches an accuracy of {min_accuracy:g}: the best is {best.config} with "
                f"{best.accuracy:.4g}; lower min_accuracy" + (" or raise the other limits" if limits else "")
            )
        least = {}
        for name in upper:
            rows = [row for row in self.rows if getattr(row, name) is not None]
            row = min(rows, key=lambda row: getattr(row, name))
            least[name] = f"{row.config} with {name} = {getattr(row, name):.10g}"
        return (
            f"no configuration within {limits}: the cheapest is {'; '.join(least.values())}; raise the limit to at "
            "least that, or make the network elastic down to smaller widths or resolutions"
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
                return cls(tuple(_row(row) for row in data["rows"]), data["about"])
            first, _, rest = text.partition("\n")
            if not first.startswith("# "):
                first, rest = "# {}", text
            rows = tuple(_row(row) for row in csv.DictReader(io.StringIO(rest)))
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
        writer = csv.DictWriter(out, [one.name for one in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return out.getvalue()


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv"):
        raise UnknownName(f"{path}: a query table is a .json or a .csv file, got the suffix {path.suffix!r}")
    return suffix


def _row(data: Mapping[str, Any]) -> Row:
    """A row from JSON values or from the strings of a CSV."""

    def maybe(name: str) -> float | None:
        return None if data[name] in (None, "") else float(data[name])

    return Row(
        width=float(data["width"]),
        resolution=int(data["resolution"]),
        accuracy=float(data["accuracy"]),
        macs=int(data["macs"]),
        params=int(data["params"]),
        latency_ms=maybe("latency_ms"),
        latency_low_ms=maybe("latency_low_ms"),
        latency_high_ms=maybe("latency_high_ms"),
    )


def _with_pareto(rows: Sequence[Row]) -> tuple[Row, ...]:
    def beaten(row: Row) -> bool:
        return any(
            other.macs <= row.macs
            and other.accuracy >= row.accuracy
            and (other.macs < row.macs or other.accuracy > row.accuracy)
            for other in rows
        )

    return tuple(replace(row, pareto=not beaten(row)) for row in rows)


def _size(net: ElasticNet, config: Config) -> tuple[int, ...]:
    """The input of one image in that configuration: the last one or two axes are the resolution."""
    example: Sequence[int] = net.settings["example_size"]
    spatial = min(len(example) - 1, 2)
    return (*example[: len(example) - spatial], *(config.resolution,) * spatial)


def _accuracies(net: ElasticNet, loader: Iterable[Any], configs: Sequence[Config]) -> tuple[dict[Config, float], int]:
    """Top-1 accuracies over the loader, read once, and the number of images."""
    device = next(net.parameters()).device
    right = {config: torch.zeros((), dtype=torch.int64, device=device) for config in configs}
    images = 0
    with torch.no_grad(), evaluating(net):
        for batch in loader:
            if isinstance(batch, Tensor) or len(batch) < 2:
                raise DataError("a query table needs labels: its loader must yield (inputs, labels)")
            inputs, labels = inputs_of(batch).to(device), torch.as_tensor(batch[1]).to(device)
            images += len(labels)
            for config in configs:
                with net.at(*config):
                    right[config] += (net(inputs).argmax(1) == labels).sum()
    if not images:
        raise DataError("the loader yields no images, so there is no accuracy to measure: check the data set and split")
    return {config: int(count) / images for config, count in right.items()}, images


def _latencies(net: ElasticNet, configs: Sequence[Config], *, threads: int, rounds: int) -> dict[Config, Latency]:
    """Milliseconds of one image through every extracted network, interleaved."""
    like = next(net.parameters())
    found: dict[Config, Latency] = {}
    waiting: list[tuple[Config, nn.Module, Tensor]] = []

    def run() -> None:
        candidates = {str(config): _caller(module, x) for config, module, x in waiting}
        with torch.inference_mode():
            times = compare_latency(candidates, threads=threads, rounds=rounds)
        found.update((config, times[str(config)]) for config, _, _ in waiting)
        waiting.clear()

    size = 0
    for config in configs:
        static = net.extract(*config).eval()
        size += sum(p.numel() * p.element_size() for p in static.parameters())
        waiting.append((config, static, torch.zeros((1, *_size(net, config)), device=like.device, dtype=like.dtype)))
        if size > TOGETHER:
            run()
            size = 0
    if waiting:
        run()
    return found


def _caller(module: nn.Module, x: Tensor) -> Any:
    return lambda: module(x)


def _about(net: ElasticNet, images: int, *, latency: bool, threads: int, rounds: int) -> dict[str, Any]:
    story = story_of(net)
    about: dict[str, Any] = {
        "model": type(net.model).__name__,
        "story": None if story is None else story.to_json(),
        "widths": list(net.widths),
        "resolutions": list(net.resolutions),
        "images": images,
        "counts": "macs are multiply-adds of convolution and linear layers for one image",
        "machine": machine(next(net.parameters()).device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if latency:
        about["latency"] = {"threads": threads, "rounds": rounds, "batch": 1, "backend": "torch eager"}
    return about


def machine(device: torch.device) -> dict[str, str]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line)
        name = next(models, name)
    found = {"cpu": name, "system": platform.platform(), "torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
