"""Which input positions each index of one axis sees, exactly, on an endless grid.

A strided, dilated or up-sampled axis repeats itself: after P indices the view has moved by a whole number of input
positions. So P intervals and the shift describe it, and every operator is a rule about indices. Borders are ignored:
the receptive field of a network is that of a pixel far from them, and may be larger than the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil, floor, gcd, lcm

__all__ = ["Lattice", "Lost", "adaptive", "identity", "resize", "transposed", "union", "window"]

Span = tuple[int, int] | None  # first and last input position; None sees nothing, as between the taps of a stride

_LONGEST_PERIOD = 8192  # more means that sizes with no common factor met; no real network comes near


class Lost(Exception):
    """The positions an operator reads are not known to this bookkeeping; `args[0]` says why."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Index i sees `spans[i mod P]` moved by `(i div P) * shift` input positions, P = len(spans).

    >>> pooled = window(identity(), kernel=2, stride=2)
    >>> pooled.span(3), window(pooled, kernel=3, padding=1).extent
    ((6, 7), 6)
    """

    spans: tuple[Span, ...]
    shift: int

    def span(self, index: int) -> Span:
        """What `index` sees."""
        cycles, phase = divmod(index, len(self.spans))
        seen = self.spans[phase]
        return None if seen is None else (seen[0] + cycles * self.shift, seen[1] + cycles * self.shift)

    @property
    def extent(self) -> int:
        """The most input positions that one index spans."""
        return max((last - first + 1 for first, last in filter(None, self.spans)), default=0)


def identity() -> Lattice:
    """The input itself: index i sees position i."""
    return Lattice(((0, 0),), 1)


def _remap(lattice: Lattice, period: int, shift: int, sources: Callable[[int], Iterable[int]]) -> Lattice:
    """The axis whose index i sees what all of `sources(i)` see."""
    if period > _LONGEST_PERIOD:
        raise Lost(f"sizes without a common factor met (period {period})")
    spans = []
    for index in range(period):
        seen = [span for span in map(lattice.span, sources(index)) if span is not None]
        spans.append((min(s[0] for s in seen), max(s[1] for s in seen)) if seen else None)
    return Lattice(tuple(spans), shift)


@cache
def window(lattice: Lattice, *, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Lattice:
    """A convolution or pooling: output o sees inputs o * stride - padding + k * dilation."""
    old = len(lattice.spans)
    period = old // gcd(old, stride)
    shift = lattice.shift * (stride * period // old)
    return _remap(lattice, period, shift, lambda o: (o * stride - padding + k * dilation for k in range(kernel)))


@cache
def transposed(lattice: Lattice, *, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Lattice:
    """A transposed convolution: input i reaches outputs i * stride - padding + k * dilation."""

    def sources(o: int) -> Iterable[int]:
        reached = (o + padding - k * dilation for k in range(kernel))
        return [r // stride for r in reached if r % stride == 0]

    return _remap(lattice, len(lattice.spans) * stride, lattice.shift, sources)


def _rescaled(lattice: Lattice, old: int, new: int, sources: Callable[[int], Iterable[int]]) -> Lattice:
    """`sources(o + new) == sources(o) + old`."""
    common = gcd(old, new)
    old, new = old // common, new // common
    cycles = len(lattice.spans) // gcd(len(lattice.spans), old)
    return _remap(lattice, cycles * new, lattice.shift * (cycles * old // len(lattice.spans)), sources)


@cache
def adaptive(lattice: Lattice, *, old: int, new: int) -> Lattice:
    """Adaptive pooling from `old` to `new` positions: output o averages floor(o old/new) to ceil((o+1) old/new)."""
    return _rescaled(lattice, old, new, lambda o: range(o * old // new, -(-(o + 1) * old // new)))


@cache
def resize(lattice: Lattice, *, old: int, new: int, mode: str, align_corners: bool = False) -> Lattice:
    """Up- or down-sampling from `old` to `new` positions by "nearest", "nearest_exact", "linear" or "cubic"."""
    if mode == "nearest":
        return _rescaled(lattice, old, new, lambda o: (o * old // new,))
    if mode == "nearest_exact":
        return _rescaled(lattice, old, new, lambda o: ((2 * o + 1) * old // (2 * new),))
    before, after = {"linear": (0, 1), "cubic": (1, 2)}[mode]

    def around(numerator: int, denominator: int) -> Iterable[int]:
        low, high = floor(numerator / denominator), ceil(numerator / denominator)
        return (low,) if low == high else range(low - before, low + after + 1)

    if align_corners:
        if new == 1:
            return _remap(lattice, 1, lattice.shift, lambda o: (0,))
        if old == 1:
            return resize(lattice, old=1, new=new, mode="nearest")
        return _rescaled(lattice, old - 1, new - 1, lambda o: around(o * (old - 1), new - 1))
    # Pixel centres: (o + 1/2) old / new - 1/2.
    return _rescaled(lattice, old, new, lambda o: around((2 * o + 1) * old - new, 2 * new))


@cache
def union(a: Lattice, b: Lattice, size: int) -> Lattice:
    """Index i sees what it sees in `a` and in `b`, as in a residual add of two maps of `size` positions.

    Two branches may reach the same size with slightly different steps (7 from 14, and 7 cut from 8): then the `size`
    real positions are joined one by one.
    """
    if a == b:
        return a
    period = lcm(len(a.spans), len(b.spans))
    shift = a.shift * (period // len(a.spans))
    if shift != b.shift * (period // len(b.spans)) or period > _LONGEST_PERIOD:
        period = size
        shift = max(round(one.shift * size / len(one.spans)) for one in (a, b))
    spans = []
    for index in range(period):
        seen = [span for span in (a.span(index), b.span(index)) if span is not None]
        spans.append((min(s[0] for s in seen), max(s[1] for s in seen)) if seen else None)
    return Lattice(tuple(spans), shift)
