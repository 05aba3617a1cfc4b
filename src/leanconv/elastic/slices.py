"""The finished channels of a layer: which of them are kept at a width, in plain integers.

A `Span` is a segment whose axis will change no more, with the rounding law it obeys; `Channels` is a row of them and
what every elastic layer reads. The weights are allocated for the largest width, which may be above 1; the network as it
was, width 1, then is a part of them like any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from leanconv.elastic.coupling.rows import Axis, Row, resolve
from leanconv.elastic.width import LayerWidths, channels_at

__all__ = ["Channels", "Runs", "Span", "finished"]

Runs = tuple[tuple[int, int], ...]
"""Channels as (start, length), in order."""


@dataclass(frozen=True, slots=True)
class Span:
    """A finished segment: `units` of `unit` channels at width 1, room for `room` of them; `law` None: never sliced.

    `law` is (size, divisor, ratio): channels per unit in the layer that made the axis, and the rounding law's d and r.
    `kin` names the layers that it is in step with where every layer has a width of its own.
    """

    units: int
    unit: int
    law: tuple[int, int, Fraction] | None = None
    room: int = 0
    kin: str = ""

    @property
    def full(self) -> int:
        """Channels that there are weights for."""
        return max(self.units, self.room) * self.unit

    def kept(self, width: float) -> int:
        """Channels at `width`, the first ones."""
        if self.law is None:
            return self.full
        size, divisor, ratio = self.law
        width = width.of(self.kin) if isinstance(width, LayerWidths) else width
        channels = channels_at(self.units * size, width, divisor=divisor, ratio=ratio, quantum=size)
        return channels // size * self.unit


class Channels:
    """The channel axis of a layer's input or output, for any width.

    >>> concat = Channels((Span(64, 1, (1, 8, Fraction(1))), Span(32, 1, (1, 8, Fraction(1)))))
    >>> concat.full, concat.count(0.5), concat.runs(0.5)
    (96, 48, ((0, 32), (64, 16)))
    """

    REMEMBERED = 128
    """Widths whose runs are remembered: training draws new ones for ever."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = tuple(spans)
        self.full = sum(span.full for span in self.spans)
        self._known: dict[float, tuple[Runs, int]] = {}

    @property
    def moves(self) -> bool:
        """Whether any width has other channels than another."""
        return any(span.law is not None for span in self.spans)

    def runs(self, width: float) -> Runs:
        """The kept channels, neighbours joined."""
        return self._at(width)[0]

    def count(self, width: float) -> int:
        """How many channels are kept."""
        return self._at(width)[1]

    def _at(self, width: float) -> tuple[Runs, int]:
        found = self._known.get(width)
        if found is None:
            if len(self._known) >= self.REMEMBERED:
                self._known.clear()
            runs = self._find(width)
            found = self._known[width] = (runs, sum(length for _, length in runs))
        return found

    def _find(self, width: float) -> Runs:
        joined: list[tuple[int, int]] = []
        start = 0
        for span in self.spans:
            kept = span.kept(width)
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + kept)
            else:
                joined.append((start, kept))
            start += span.full
        return tuple(joined)

    def __repr__(self) -> str:
        return f"Channels({self.full}, {len(self.spans)} spans)"


def finished(row: Row, divisor: int, widest: float) -> Channels:
    """The channels of a row that will change no more, with room for the width `widest`."""

    def span(axis: Axis, unit: int) -> Span:
        if axis.fixed or axis.passive:
            return Span(axis.units, unit)
        ratio = (axis.ratio or Fraction(1)) * axis.share
        room = channels_at(axis.units * axis.size, widest, divisor=divisor, ratio=ratio, quantum=axis.size) // axis.size
        law = axis.size, divisor, ratio
        return Span(axis.units, unit, law, room if widest > 1 else 0, axis.kin.root.name)

    return Channels(span(*segment) for segment in resolve(row))
