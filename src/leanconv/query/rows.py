"""The rows of a query table: what one configuration scores and costs, in plain numbers, and how they are written down.

A time belongs to a setup: the back-end that ran the network, its threads and the batch. In a file a setup is a
name, `onnxruntime_t4_b8`: three columns of a CSV (`_median_ms`, `_low_ms`, `_high_ms`), or a list of three in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from leanconv.elastic.width import Config
from leanconv.errors import LeanconvError, UnknownName

__all__ = ["EAGER", "Row", "Time", "TimingSetup", "cells", "front", "read_row"]

T = TypeVar("T")

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
        found = re.fullmatch(r"(\w+)_t([1-9]\d*)_b([1-9]\d*)", tag)
        if found is None:
            raise UnknownName(f"{tag!r} is no timing setup: expected BACKEND_tTHREADS_bBATCH, as eager_t1_b1")
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
    plain = {one.name: getattr(row, one.name) for one in fields(Row) if one.name != "times"}
    if row.frames is None:
        del plain["frames"]
    return plain | {f"{tag}_{name}": value for tag, time in row.times.items() for name, value in time._asdict().items()}


def read_row(data: Mapping[str, Any]) -> Row:
    """A row from JSON values or from the strings of a CSV; columns that an older leanconv did not write may be missing.

    Raises `KeyError`, `TypeError` or `ValueError` for what is no row.
    """

    def maybe(name: str, kind: Callable[[float], T]) -> T | None:
        return None if data.get(name) in (None, "") else kind(float(data[name]))

    times = {tag: Time(*map(float, time)) for tag, time in (data.get("times") or {}).items()}
    for name in data:
        tag = name.removesuffix("_median_ms")
        if tag != name and data[name] not in (None, ""):
            times[tag] = Time(*(float(data[f"{tag}_{column}"]) for column in Time._fields))
    return Row(
        width=float(data["width"]),
        resolution=int(data["resolution"]),
        frames=maybe("frames", int),
        accuracy=float(data["accuracy"]),
        accuracy_low=maybe("accuracy_low", float),
        accuracy_high=maybe("accuracy_high", float),
        macs=int(data["macs"]),
        params=int(data["params"]),
        peak_bytes=maybe("peak_bytes", int),
        share_not_counted=maybe("share_not_counted", float),
        latency_ms=maybe("latency_ms", float),
        latency_low_ms=maybe("latency_low_ms", float),
        latency_high_ms=maybe("latency_high_ms", float),
        times={TimingSetup.from_tag(tag).tag: time for tag, time in times.items()},
    )
