"""The rows of a query table: what one configuration scores and costs, in plain numbers, and how they are written down.

A time belongs to a setup: the back-end that ran the network, its threads and the batch. In a file a setup is a
name, `onnxruntime_t4_b8`: three columns of a CSV (`_median_ms`, `_low_ms`, `_high_ms`), or a list of three in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from leanconv.elastic.width import Config
from leanconv.errors import LeanconvError, UnknownName, shown
from leanconv.schema import Count, Flag, Items, MapOf, Maybe, Number, Plain, Record

__all__ = ["EAGER", "Row", "Time", "TimingSetup", "cells", "front", "read_cells", "read_row"]

COSTS = ("macs", "params", "peak_bytes", "latency_ms")
"""What a configuration costs, least is best."""

EAGER = "eager"
"""The back-end that is torch as it is."""


class TimingSetup(NamedTuple):
    """How latency was measured: the back-end, its threads, and the images per call.

    >>> TimingSetup("openvino", 4, 1).tag, TimingSetup.from_tag("eager_t1_b8")
    ('openvino_t4_b1', TimingSetup(backend='eager', threads=1, batch=8))
    """

    backend: str
    threads: int = 1
    batch: int = 1

    @property
    def tag(self) -> str:
        """The name of the setup in files and messages."""
        return f"{self.backend}_t{self.threads}_b{self.batch}"

    @classmethod
    def from_tag(cls, tag: str) -> TimingSetup:
        """The inverse of `tag`; `UnknownName` for what is none."""
        found = re.fullmatch(r"(\w{1,100})_t([1-9]\d{0,5})_b([1-9]\d{0,5})", tag)
        if found is None:
            raise UnknownName(f"{shown(tag)} is no timing setup: expected BACKEND_tTHREADS_bBATCH, as eager_t1_b1")
        return cls(found[1], int(found[2]), int(found[3]))


class Time(NamedTuple):
    """Milliseconds of one call: the median over the rounds, and their 10 and 90 % quantiles."""

    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration: `accuracy` from 0 to 1 with its 95 % interval, None where an older leanconv measured, `macs`
    per image, milliseconds with their 10 and 90 % quantiles.

    `share_not_counted` is the part of the parameters that belongs to operations outside `macs`, None where an older
    leanconv measured. `peak_bytes` is the memory of an inference of one image: weights, statistics, and the largest sum
    of activations alive at once. `latency_ms` is of the table's first setup, `times` has those of all others by their
    tags.
    Of a detector `accuracy` is the average precision of boxes, `scores` are all its precisions by name (box_ap,
    mask_ap, ...) and `parts` the `macs` of body, neck, proposals, boxes and masks.
    `pareto` says that no other row has at least its accuracy for at most its MACs.
    """

    width: float
    resolution: int
    frames: int | None = None
    accuracy: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    macs: int
    params: int
    peak_bytes: int | None = None
    share_not_counted: float | None = None
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    pareto: bool = False
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)
    parts: Mapping[str, int] = field(default_factory=dict, hash=False)
    times: Mapping[str, Time] = field(default_factory=dict, hash=False)

    @property
    def config(self) -> Config:
        """Width and resolution, and frames where they are elastic."""
        return Config(self.width, self.resolution, self.frames)


def front(rows: Sequence[Row], by: str = "macs") -> tuple[Row, ...]:
    """The rows that no other beats, that is, has at least their accuracy for at most their cost; the cheapest first.

    Rows without the cost `by`, one of `COSTS`, have no place. Raises `LeanconvError` for any other.
    """
    if by not in COSTS:
        raise LeanconvError(f"a front is by one of {', '.join(COSTS)}, got {by!r}")
    known = [row for row in rows if getattr(row, by) is not None]
    best: list[Row] = []
    for row in sorted(known, key=lambda row: (getattr(row, by), -row.accuracy)):
        equal = best and (getattr(row, by), row.accuracy) == (getattr(best[-1], by), best[-1].accuracy)
        if not best or equal or row.accuracy > best[-1].accuracy:
            best.append(row)
    return tuple(best)


def cells(row: Row) -> dict[str, Any]:
    """The row as the cells of a CSV."""
    plain = {one.name: getattr(row, one.name) for one in fields(Row) if one.name not in _MAPPINGS}
    if row.frames is None:
        del plain["frames"]
    plain |= {f"score_{name}": value for name, value in row.scores.items()}
    plain |= {f"macs_{name}": value for name, value in row.parts.items()}
    return plain | {f"{tag}_{name}": value for tag, time in row.times.items() for name, value in time._asdict().items()}


_MAPPINGS = ("times", "scores", "parts")
_MS = Number(0, 1e9)
_SHARE = Maybe(Number(0, 1))
_ROW = Record(
    {
        "width": Number(above=0, high=1000),
        "resolution": Count(1, 2**20),
        "accuracy": Number(0, 1),
        "macs": Count(0, 10**18),
        "params": Count(0, 10**18),
    },
    {
        "frames": Maybe(Count(1, 2**20)),
        "accuracy_low": _SHARE,
        "accuracy_high": _SHARE,
        "peak_bytes": Maybe(Count(0, 10**18)),
        "share_not_counted": _SHARE,
        "latency_ms": Maybe(_MS),
        "latency_low_ms": Maybe(_MS),
        "latency_high_ms": Maybe(_MS),
        "pareto": Flag(),
        "scores": MapOf(Number(0, 1), longest=100),
        "parts": MapOf(Count(0, 10**18), longest=100),
        "times": MapOf(Items((_MS, _MS, _MS)), longest=1000),
    },
    others=Plain(),
)
_COUNTS = frozenset(("resolution", "macs", "params", "frames", "peak_bytes"))


def read_row(data: Mapping[str, Any], place: str) -> Row:
    """A row from JSON values, found at `place`; columns that an older leanconv did not write may be missing.

    Raises `LeanconvError` for what is no row.
    """
    if isinstance(data, Mapping):  # a spreadsheet writes 4.06e+07
        whole = {name: int(data[name]) for name in _COUNTS & data.keys() if _is_whole(data[name])}
        data = {**data, **whole}
    _ROW.check(data, place)
    known = {one.name for one in fields(Row)} - {"times", "pareto"}
    data = {**data, "scores": {name: float(value) for name, value in data.get("scores", {}).items()}}
    floats = {name: float(value) for name, value in data.items() if type(value) is int and name not in _COUNTS}
    times = {TimingSetup.from_tag(tag).tag: Time(*map(float, time)) for tag, time in data.get("times", {}).items()}
    return Row(**{name: value for name, value in {**data, **floats}.items() if name in known}, times=times)


def read_cells(cells: Mapping[str, str], place: str) -> Row:
    """A row from the cells of a CSV, of which empty ones are left out. Raises `LeanconvError` for what is no row."""
    data: dict[str, Any] = {name: _plain(cell) for name, cell in cells.items() if cell.strip()}
    times: dict[str, list[Any]] = {}
    for name in cells:
        tag = name.removesuffix("_median_ms")
        if tag != name and name in data:
            times[tag] = [data.get(f"{tag}_{column}") for column in Time._fields]
    for mapping, before in (("scores", "score_"), ("parts", "macs_")):
        found = {
            name.removeprefix(before): data.pop(name) for name in cells if name.startswith(before) and name in data
        }
        if found:
            data[mapping] = {name: int(v) if mapping == "parts" and _is_whole(v) else v for name, v in found.items()}
    return read_row({**data, "times": times}, place)


def _is_whole(value: Any) -> bool:
    return type(value) is float and abs(value) < 2**53 and value.is_integer()


def _plain(cell: str) -> Any:
    """The number or truth value of a cell, else its text."""
    text = cell.strip()
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"[-+]?\d{1,30}", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text
