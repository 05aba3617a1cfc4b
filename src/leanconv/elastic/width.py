"""A configuration of an elastic network in plain numbers, and the rounding law.

    c(w) = make_divisible(C * w / r, d) * r                         (MutualNet's rounding law; C at width 1, w width)

d  the rounding divisor, one for the whole network (8)
r  the ratio of a layer inside a block to the channels around it, so that both shrink in step: 6 for the middle of an
   inverted residual that expands six times, 1/4 for the middle of a bottleneck, 1 everywhere else

Deviation: where d * r is no multiple of the layer's quantum (channels per group of a grouped convolution), d grows to
the first multiple that is; no width below 1 keeps more than C, none above it fewer, and width 1 keeps exactly C.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

from leanconv.seeds import python_random

__all__ = ["Config", "Width", "channels_at", "make_divisible"]


class Width(float):
    """The share of its channels that a layer keeps: a number, for all layers, or drawn for each (`by_layer`).

    >>> Width(0.5) == 0.5, Width(0.5).of("conv1")
    (True, 0.5)
    """

    __slots__ = ("drawn",)
    drawn: tuple[float, float, int] | None
    """Smallest share, largest share and seed of drawn widths; the number itself then is the middle."""

    def __new__(cls, share: float, drawn: tuple[float, float, int] | None = None) -> Width:
        made = super().__new__(cls, share)
        made.drawn = drawn
        return made

    @classmethod
    def by_layer(cls, low: float, high: float, seed: int) -> Width:
        """A width for each group of coupled layers, drawn uniformly: what US-Net calls non-uniform, for training."""
        return cls((low + high) / 2, (float(low), float(high), seed))

    def of(self, group: str) -> float:
        """The share of the layers that are coupled to the layer called `group`; the same in every process."""
        return float(self) if self.drawn is None else _share(*self.drawn, group)

    def __eq__(self, other: object) -> bool:
        drawn = getattr(other, "drawn", None)
        return float.__eq__(self, other) if self.drawn is None and drawn is None else self.drawn == drawn

    def __ne__(self, other: object) -> bool:  # float has one of its own
        return not self == other

    def __hash__(self) -> int:
        return float.__hash__(self) if self.drawn is None else hash(self.drawn)

    def __getnewargs__(self) -> tuple[float, Any]:  # type: ignore[override]
        return float(self), self.drawn

    def __repr__(self) -> str:
        return float.__repr__(self) if self.drawn is None else "Width.by_layer({}, {}, seed={})".format(*self.drawn)

    def __format__(self, spec: str) -> str:
        return float.__format__(self, spec) if self.drawn is None else "({:g}..{:g} by layer)".format(*self.drawn)


@lru_cache(4096)
def _share(low: float, high: float, seed: int, group: str) -> float:
    return python_random(seed, group).uniform(low, high)


class Config(tuple[Any, ...]):
    """One configuration: a width, the side of the square input in pixels, and frames where those are elastic too.

    A tuple of two or three numbers, so that `net.at(*config)` and comparisons with plain tuples read as they look.

    >>> Config(0.5, 160) == (0.5, 160), Config(0.5, 160, 8).frames
    (True, 8)
    """

    __slots__ = ()

    def __new__(cls, width: float, resolution: int, frames: int | None = None) -> Config:
        width = width if isinstance(width, Width) else Width(width)
        return super().__new__(cls, (width, resolution) if frames is None else (width, resolution, frames))

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    @property
    def width(self) -> Width:
        """Share of the channels."""
        width: Width = self[0]
        return width

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
        """The name of the configuration in state dicts.

        >>> Config(0.25, 160).tag, Config(1.0, 112, 8).tag, Config(2 / 3, 160).tag
        ('w02500_r160', 'w10000_r112_f8', 'w0p6666666666666666_r160')
        """
        digits = f"{round(self.width * 10_000):05d}"
        share = digits if int(digits) / 10_000 == self.width else repr(self.width).replace(".", "p")
        return f"w{share}_r{self.resolution}" + ("" if self.frames is None else f"_f{self.frames}")

    @classmethod
    def from_tag(cls, tag: str) -> Config:
        """The inverse of `tag`."""
        width, *others = (part[1:] for part in tag.split("_"))
        share = int(width) / 10_000 if width.isdigit() else float(width.replace("p", "."))
        return cls(share, *map(int, others))

    def __str__(self) -> str:
        return "-".join(repr(part).removesuffix(".0") for part in self)

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
