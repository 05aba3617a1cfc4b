"""Mutual learning's two knobs, width and resolution, in plain integers: how many channels a layer keeps, and the dial.

    c(w) = make_divisible(C * w / r, d) * r                         (MutualNet's rounding law; C full, w width)

d  the rounding divisor, one for the whole network (8)
r  the ratio of a layer inside a block to the channels around it, so that both shrink in step: 6 for the middle of an
   inverted residual that expands six times, 1/4 for the middle of a bottleneck, 1 everywhere else

Deviation: where d * r is no multiple of the layer's quantum (channels per group of a grouped convolution), d grows to
the first multiple that is; and no count exceeds the full one, so that a layer of C < d channels keeps them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

__all__ = ["Config", "Dial", "Statistics", "channels_at", "make_divisible"]


class Config(NamedTuple):
    """One configuration of an elastic network: a width in (0, 1] and the side of its square input in pixels."""

    width: float
    resolution: int

    @property
    def tag(self) -> str:
        """The name of the configuration in state dicts; widths are told apart to four decimals.

        >>> Config(0.25, 160).tag
        'w02500_r160'
        """
        return f"w{round(self.width * 10_000):05d}_r{self.resolution}"

    @classmethod
    def from_tag(cls, tag: str) -> Config:
        """The inverse of `tag`."""
        width, resolution = tag.split("_")
        return cls(int(width[1:]) / 10_000, int(resolution[1:]))

    def __str__(self) -> str:
        return f"{self.width:g}-{self.resolution}"


def make_divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded to a multiple of `divisor`, one step up where that would lose more than a tenth of it.

    >>> make_divisible(22.4), make_divisible(11.0), make_divisible(0.5)
    (24, 16, 8)
    """
    value = round(value, 6)  # 240 * 0.85 is a hair below 204, and 204 is where the rounding turns
    near = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * value else near


def channels_at(full: int, width: float, *, divisor: int = 8, ratio: Fraction = Fraction(1), quantum: int = 1) -> int:
    """Channels that a layer of `full` channels keeps at `width`, a multiple of `quantum`; all of them at width 1.

    >>> channels_at(64, 0.9), channels_at(64, 0.9, ratio=Fraction(1, 4)), channels_at(96, 0.9, ratio=Fraction(6))
    (56, 58, 96)
    """
    if width >= 1:
        return full
    # The least multiple of the divisor whose image under the ratio is whole and a multiple of the quantum.
    divisor *= (divisor * ratio / quantum).denominator
    kept = make_divisible(full * width / float(ratio), divisor) * ratio
    return min(full, int(kept))


class Statistics(Protocol):
    """What a calibration puts on the dial: BatchNorms update the tensors that `of` gives them by `momentum`."""

    momentum: float

    def of(self, norm: Any) -> tuple[Any, Any]:
        """The accumulated mean and variance of `norm` in the configuration in force."""


@dataclass
class Dial:
    """The one object that tells every elastic layer of a network which configuration is in force."""

    native: int
    width: float = 1.0
    resolution: int | None = None
    statistics: Statistics | None = field(default=None, repr=False)
    probing: bool = False
    """Only shapes matter: BatchNorms check them and pass on what they get."""

    @property
    def config(self) -> Config:
        """The configuration in force; an input left as it is counts as the native resolution."""
        return Config(self.width, self.resolution or self.native)

    @property
    def full(self) -> bool:
        """Whether this is the network as it was before it became elastic: all channels, the native resolution."""
        return self.width == 1.0 and self.config.resolution == self.native
