"""Mutual learning: width, resolution and frames in plain integers: how many channels a layer keeps; the dial.

    c(w) = make_divisible(C * w / r, d) * r                         (MutualNet's rounding law; C at width 1, w width)

d  the rounding divisor, one for the whole network (8)
r  the ratio of a layer inside a block to the channels around it, so that both shrink in step: 6 for the middle of an
   inverted residual that expands six times, 1/4 for the middle of a bottleneck, 1 everywhere else

Deviation: where d * r is no multiple of the layer's quantum (channels per group of a grouped convolution), d grows to
the first multiple that is; no width below 1 keeps more than C, no width above it fewer, and width 1 keeps exactly C,
so that it is always the network as it was.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

__all__ = ["Config", "Dial", "LayerWidths", "Statistics", "channels_at", "make_divisible"]


class LayerWidths(float):
    """A width for each group of coupled layers, drawn uniformly between `low` and `high`; as a number, the middle.

    What US-Net calls non-uniform widths. Stands wherever a width does while a network is trained; equal arguments are
    equal widths, in every process.

    >>> LayerWidths(0.25, 1.0, seed=3).of("conv1") == LayerWidths(0.25, 1.0, seed=3).of("conv1")
    True
    """

    low: float
    high: float
    seed: int

    def __new__(cls, low: float, high: float, seed: int) -> LayerWidths:
        made = super().__new__(cls, (low + high) / 2)
        made.low, made.high, made.seed = float(low), float(high), seed
        made._drawn = {}
        return made

    _drawn: dict[str, float]

    def of(self, kin: str) -> float:
        """The width of the layers that are coupled to the layer called `kin`."""
        width = self._drawn.get(kin)
        if width is None:
            width = self._drawn[kin] = random.Random(f"{self.seed}/{kin}").uniform(self.low, self.high)
        return width

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LayerWidths) and self._key == other._key

    def __ne__(self, other: object) -> bool:  # float has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash(self._key)

    def __getnewargs__(self) -> tuple[float, float, int]:  # type: ignore[override]
        return self._key

    def __repr__(self) -> str:
        return f"LayerWidths({self.low!r}, {self.high!r}, seed={self.seed})"

    def __format__(self, _: str) -> str:
        return f"({self.low:g}..{self.high:g} by layer)"

    @property
    def _key(self) -> tuple[float, float, int]:
        return self.low, self.high, self.seed


class Config(tuple[Any, ...]):
    """One configuration of an elastic network: a width, the side of its square input in pixels, for clips the frames.

    A tuple of two numbers for images, of three where frames are elastic too, so that `net.at(*config)` and comparisons
    with plain tuples read as they look.

    >>> Config(0.5, 160) == (0.5, 160), Config(0.5, 160, 8).frames
    (True, 8)
    """

    __slots__ = ()

    def __new__(cls, width: float, resolution: int, frames: int | None = None) -> Config:
        return super().__new__(cls, (width, resolution) if frames is None else (width, resolution, frames))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    @property
    def width(self) -> float:
        """Share of the channels; `LayerWidths` where each layer has its own."""
        width: float = self[0]
        return width if isinstance(width, LayerWidths) else float(width)

    @property
    def resolution(self) -> int:
        """Pixels."""
        return int(self[1])

    @property
    def frames(self) -> int | None:
        """Frames of the clip; None for images and where they are not elastic."""
        return int(self[2]) if len(self) > 2 else None

    @property
    def tag(self) -> str:
        """The name of the configuration in state dicts; widths are told apart to four decimals.

        >>> Config(0.25, 160).tag, Config(1.0, 112, 8).tag
        ('w02500_r160', 'w10000_r112_f8')
        """
        width = self.width
        own = f"layers{width.seed}" if isinstance(width, LayerWidths) else f"w{round(width * 10_000):05d}"
        return f"{own}_r{self.resolution}" + ("" if self.frames is None else f"_f{self.frames}")

    @classmethod
    def from_tag(cls, tag: str) -> Config:
        """The inverse of `tag`."""
        width, resolution, *frames = (int(part[1:]) for part in tag.split("_"))
        return cls(width / 10_000, resolution, *frames)

    def __str__(self) -> str:
        return "-".join(f"{part:g}" for part in self)

    def __repr__(self) -> str:
        frames = "" if self.frames is None else f", frames={self.frames}"
        return f"Config(width={self.width!r}, resolution={self.resolution!r}{frames})"


def make_divisible(value: float, divisor: int = 8) -> int:
    """`value` rounded to a multiple of `divisor`, one step up where that would lose more than a tenth of it.

    >>> make_divisible(22.4), make_divisible(11.0), make_divisible(0.5)
    (24, 16, 8)
    """
    value = round(value, 6)  # 240 * 0.85 is a hair below 204, and 204 is where the rounding turns
    near = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * value else near


def channels_at(full: int, width: float, *, divisor: int = 8, ratio: Fraction = Fraction(1), quantum: int = 1) -> int:
    """Channels that a layer of `full` channels has at `width`, a multiple of `quantum`; just those at width 1.

    >>> channels_at(64, 0.9), channels_at(64, 0.9, ratio=Fraction(1, 4)), channels_at(96, 0.9, ratio=Fraction(6))
    (56, 58, 96)
    >>> channels_at(32, 1.6), channels_at(32, 2.0)
    (48, 64)
    """
    if width == 1:
        return full
    # The least multiple of the divisor whose image under the ratio is whole and a multiple of the quantum.
    divisor *= (divisor * ratio / quantum).denominator
    kept = make_divisible(full * width / float(ratio), divisor) * ratio
    return min(full, int(kept)) if width < 1 else max(full, int(kept))


class Statistics(Protocol):
    """What a calibration puts on the dial: BatchNorms update the tensors that `of` gives them by `momentum`."""

    momentum: float

    def of(self, norm: Any) -> tuple[Any, Any]:
        """The accumulated mean and variance of `norm` in the configuration in force."""


@dataclass
class Dial:
    """The one object that tells every elastic layer of a network which configuration is in force.

    `widest` is the width that the weights are allocated for, at which nothing is sliced; `native` the largest
    resolution, `native_frames` the most frames where those are elastic.
    """

    native: int
    widest: float = 1.0
    native_frames: int | None = None
    width: float = 1.0
    resolution: int | None = None
    frames: int | None = None
    statistics: Statistics | None = field(default=None, repr=False)
    blank: bool = False
    """Whether the largest network has never run: its weights were allocated, its statistics are not those of images."""
    probing: bool = False
    """Only shapes matter: BatchNorms check them and pass on what they get."""
    counted: set[tuple[str, Any]] = field(default_factory=set, repr=False)
    """While probing: the calls, by module and place, that were given another channel count than the width wants."""

    @property
    def config(self) -> Config:
        """The configuration in force; an input left as it is counts as native."""
        return Config(self.width, self.resolution or self.native, self.frames or self.native_frames)

    @property
    def whole(self) -> bool:
        """Whether nothing is sliced."""
        return self.width == self.widest

    @property
    def original(self) -> bool:
        """Whether this is the network as it was, nothing sliced and nothing added."""
        return self.width == self.widest == 1

    @property
    def largest(self) -> Config:
        """All channels, the native resolution, all frames."""
        return Config(self.widest, self.native, self.native_frames)

    @property
    def full(self) -> bool:
        """Whether the largest configuration is in force."""
        return self.config == self.largest
