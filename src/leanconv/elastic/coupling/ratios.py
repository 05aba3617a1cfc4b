"""The ratio r of the rounding law, found from how the layers hang together, so that a block shrinks in step.

    R -> T, T a residual stream (or in step with one) of k times R's channels      r(R) = r(T) / k      bottlenecks
    A -> R, R depthwise, k >= 2 times A's channels, and read by a narrower layer   r(R) = k * r(A)      expansions

Everything else, residual streams above all, keeps r = 1. On ResNet-50 this gives stem and middle layers 1/4, on
MobileNetV2 the expanded layers 6, on MobileNetV1 and VGG 1 throughout: the settings of MutualNet's own networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from leanconv.elastic.coupling.rows import Axis, Row, Segment, resolve

ONE = Fraction(1)


def assign_ratios(edges: Sequence[tuple[Row, Row]]) -> None:
    """Give every elastic axis its ratio; those that have one keep it.

    `edges` are the channels that each dense convolution or linear layer reads and makes, in the order of execution.
    """
    pairs = [(resolve(source), resolve(target)) for source, target in edges]
    readers: dict[int, list[int]] = {}
    for source, target in pairs:
        for segment in source:
            readers.setdefault(id(segment.axis), []).append(sum(part.full for part in target))
    for source, target in pairs:
        wide, narrow = _single(target), _single(source)
        if wide is None or narrow is None or not wide.axis.depthwise or _settled(wide.axis):
            continue
        times, rest = divmod(wide.full, narrow.full)
        if rest == 0 and times >= 2 and min(readers.get(id(wide.axis), [wide.full])) < wide.full:
            wide.axis.ratio = times * (narrow.axis.ratio or ONE)
    for source, target in reversed(pairs):
        part, whole = _single(source), _single(target)
        if part is None or whole is None or _settled(part.axis) or whole.full % part.full:
            continue
        if _settled(whole.axis):
            part.axis.ratio = (whole.axis.ratio or ONE) * Fraction(part.full, whole.full)


def _settled(axis: Axis) -> bool:
    return axis.stream or axis.ratio is not None


def _single(row: Row) -> Segment | None:
    """The only segment of the row where it has one and that is elastic; concatenations have no ratio."""
    return row[0] if len(row) == 1 and row[0].axis.fixed is None else None
