"""What plain data out of somebody's file must look like, said before any of it is used.

    ROW = Record({"width": Number(above=0, high=100), "macs": Count(high=1e18)}, optional={"times": MapOf(Number())})
    ROW.check(data, "rows[3]")

A fault is one `Fault`: the place in the data, what was expected there, and what was found, shortened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from leanconv.errors import LeanconvError, shown

__all__ = [
    "Count",
    "Either",
    "Fault",
    "Flag",
    "Items",
    "ListOf",
    "MapOf",
    "Maybe",
    "Number",
    "Plain",
    "Record",
    "Shape",
    "Text",
]


class Fault(LeanconvError):
    """Data that are not as they must be: "rows[3].macs must be a whole number from 0, got 'many'"."""


class Shape(Protocol):
    """What a value must be."""

    def check(self, value: Any, place: str) -> None:
        """Raise `Fault` unless `value`, found at `place`, is of this shape."""


@dataclass(frozen=True)
class Count:
    """A whole number from `low` to `high`; `True` is none."""

    low: int = 0
    high: int = 2**63 - 1

    def check(self, value: Any, place: str) -> None:
        if type(value) is not int or not self.low <= value <= self.high:
            raise _fault(place, f"a whole number from {self.low} to {self.high:.6g}", value)


@dataclass(frozen=True)
class Number:
    """A finite number from `low` to `high`, and larger than `above`."""

    low: float = -1e300
    high: float = 1e300
    above: float | None = None

    def check(self, value: Any, place: str) -> None:
        legal = type(value) in (int, float) and self.low <= value <= self.high  # NaN is in no range
        if not legal or (self.above is not None and not value > self.above):
            low = f"above {self.above:g}" if self.above is not None else f"from {self.low:g}"
            raise _fault(place, f"a number {low} to {self.high:g}" if self.high < 1e300 else f"a number {low}", value)


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def check(self, value: Any, place: str) -> None:
        if type(value) is not bool:
            raise _fault(place, "true or false", value)


@dataclass(frozen=True)
class Text:
    """Text of at most `longest` characters."""

    longest: int = 4096

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, str) or len(value) > self.longest:
            raise _fault(place, f"text of at most {self.longest} characters", value)


@dataclass(frozen=True)
class Maybe:
    """Null, or of the shape `inner`."""

    inner: Shape

    def check(self, value: Any, place: str) -> None:
        if value is not None:
            self.inner.check(value, place)


@dataclass(frozen=True)
class ListOf:
    """A list of `shortest` to `longest` values of the shape `inner`."""

    inner: Shape
    longest: int = 100_000
    shortest: int = 0

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, list | tuple) or not self.shortest <= len(value) <= self.longest:
            raise _fault(place, f"a list of {self.shortest} to {self.longest} values", value)
        for index, item in enumerate(value):
            self.inner.check(item, f"{place}[{index}]")


@dataclass(frozen=True)
class Items:
    """A list of exactly these shapes, one after the other."""

    inner: tuple[Shape, ...]

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(self.inner):
            raise _fault(place, f"a list of {len(self.inner)} values", value)
        for index, (shape, item) in enumerate(zip(self.inner, value, strict=True)):
            shape.check(item, f"{place}[{index}]")


@dataclass(frozen=True)
class Either:
    """Of the shape `one`, or else of the shape `other`, which is what a fault speaks of."""

    one: Shape
    other: Shape

    def check(self, value: Any, place: str) -> None:
        try:
            self.one.check(value, place)
        except Fault:
            self.other.check(value, place)


@dataclass(frozen=True)
class MapOf:
    """An object of at most `longest` entries, whose keys are text and whose values have the shape `inner`."""

    inner: Shape
    longest: int = 100_000

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, Mapping) or len(value) > self.longest:
            raise _fault(place, f"a JSON object of at most {self.longest} entries", value)
        for key, item in value.items():
            _KEY.check(key, f"a key in {place}")
            self.inner.check(item, f"{place}.{shown(key, 40)[1:-1]}")


@dataclass(frozen=True)
class Record:
    """An object with the keys of `needed`, perhaps those of `optional`, and whatever else as `others` says, if any."""

    needed: Mapping[str, Shape]
    optional: Mapping[str, Shape] = field(default_factory=dict)
    others: Shape | None = None

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise _fault(place, "a JSON object", value)
        before = f"{place}." if place else ""
        for key, shape in self.needed.items():
            if key not in value:
                raise Fault(f"{before}{key} is missing")
            shape.check(value[key], before + key)
        for key, item in value.items():
            if key in self.needed:
                continue
            known = self.optional.get(key, self.others)
            if known is None:
                raise Fault(f"{before}{shown(key, 40)[1:-1]} is nothing that belongs there")
            known.check(item, f"{before}{shown(key, 40)[1:-1]}")


@dataclass(frozen=True)
class Plain:
    """Anything that JSON can hold, at most `deep` levels of it."""

    deep: int = 24

    def check(self, value: Any, place: str) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise _fault(place, "a finite number", value)
        if value is None or isinstance(value, bool | int | float):
            return
        if isinstance(value, str):
            _LONG.check(value, place)
            return
        if self.deep == 0:
            raise Fault(f"{shown(place, 80)[1:-1]} is nested too deeply")
        inner = Plain(self.deep - 1)
        if isinstance(value, Mapping):
            MapOf(inner).check(value, place)
        elif isinstance(value, list | tuple):
            ListOf(inner, longest=1_000_000).check(value, place)
        else:
            raise _fault(place, "plain data", value)


_KEY = Text(1000)
_LONG = Text(1_000_000)


def _fault(place: str, expected: str, value: Any) -> Fault:
    return Fault(f"{_end(place)} must be {expected}, got {shown(value)}")


def _end(place: str) -> str:
    """The place, of which the end says most."""
    return place if len(place) <= 120 else f"...{place[-117:]}"
