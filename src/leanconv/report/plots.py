"""The curves of a query table: accuracy over MACs and over latency, every configuration a point, the best ones a line.

Figures are made without pyplot, so that no global state of matplotlib is touched and any thread may draw. Resolutions
(and frames) differ in colour and in marker; the colours are of cividis, which reads alike with and without
colour blindness.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from leanconv.errors import LeanconvError, need
from leanconv.files import unwritable, whole_file

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
    from numpy.typing import NDArray

    from leanconv.query.table import QueryTable, Row

__all__ = ["plot_accuracy_latency", "plot_accuracy_macs", "save_curves", "save_figure"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_LINE = "#333333"
_GREY = "#888888"
_FAINT = "#555555"
_LOG_FROM = 12
"""From this ratio of the largest to the smallest value on, the axis is logarithmic."""

_PLACES: tuple[
    tuple[tuple[float, float], Literal["left", "center", "right"], Literal["top", "center", "bottom"]], ...
] = (
    ((-5, 4), "right", "bottom"),
    ((0, 6), "center", "bottom"),
    ((-7, 0), "right", "center"),
)
"""Where a name may stand beside its point: offset in printer's points, and which corner of the name is there."""


def save_curves(table: QueryTable, folder: str | os.PathLike[str], *, title: str = "") -> tuple[Path, ...]:
    """Write `accuracy_macs.png` and, where latency was measured, `accuracy_latency.png` into `folder`."""
    folder = Path(folder)
    paths = [plot_accuracy_macs(table, folder / "accuracy_macs.png", title=title)]
    if any(row.latency_ms is not None for row in table.rows):
        paths.append(plot_accuracy_latency(table, folder / "accuracy_latency.png", title=title))
    return tuple(paths)


def plot_accuracy_macs(table: QueryTable, path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Draw accuracy [%] over MACs (multiply-adds of conv and linear layers) into the PNG file `path`.

    Raises `LeanconvError` for a table without rows or a file that cannot be written, `MissingExtra` without matplotlib.
    """
    points = [_Point(row, row.macs) for row in table.rows]
    unit, name = _unit(points)
    label = f"MACs per image [{name}, conv and linear layers]"
    return _draw([point.scaled(unit) for point in points], Path(path), title or f"{_title(table)} over MACs", label)


def plot_accuracy_latency(table: QueryTable, path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Draw accuracy [%] over measured latency [ms], with bars from the 10 % to the 90 % quantile, into the PNG `path`.

    Raises `LeanconvError` also where the table was measured without latency.
    """
    points = [
        _Point(row, row.latency_ms, row.latency_low_ms, row.latency_high_ms)
        for row in table.rows
        if row.latency_ms is not None
    ]
    if table.rows and not points:
        raise LeanconvError("the query table holds no latency: measure it with latency=True to draw this curve")
    label = "latency on this machine [ms, median, bars 10-90 %]"
    return _draw(points, Path(path), title or f"{_title(table)} over latency", label)


def _scored(row: Row) -> str:
    """What a row is scored by: of a detector its average precision of boxes."""
    return "box AP" if "box_ap" in row.scores else "accuracy"


def _title(table: QueryTable) -> str:
    name = _scored(table.rows[0]) if table.rows else "accuracy"
    return name[0].upper() + name[1:]


@dataclass(frozen=True)
class _Point:
    """One configuration at `x`, which spreads from `low` to `high`."""

    row: Row
    x: float
    low: float | None = None
    high: float | None = None

    @property
    def y(self) -> float:
        return 100.0 * float(self.row.accuracy)

    @property
    def input(self) -> tuple[int, int]:
        """Resolution and, for clips of several lengths, frames."""
        return self.row.resolution, self.row.frames or 0

    def scaled(self, unit: float) -> _Point:
        return replace(self, x=self.x / unit)


def _unit(points: list[_Point]) -> tuple[float, str]:
    """The power of 1000 in which the axis is written, chosen by the largest value."""
    largest = max((point.x for point in points), default=1.0)
    for unit, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= unit:
            return unit, name
    return 1.0, "units"


def _front(points: list[_Point]) -> list[_Point]:
    """The points that no other beats: less x and at least the same accuracy, from left to right."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def _draw(points: list[_Point], path: Path, title: str, label: str) -> Path:
    if not points:
        raise LeanconvError(f"{path}: the query table holds no rows, there is nothing to draw")
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    except ImportError as error:
        raise need("matplotlib", "train", "drawing curves") from error

    figure = Figure(figsize=(7.2, 4.4), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sure = any(point.row.accuracy_low is not None for point in points)
    axes.set_title(title, fontsize=12, loc="left", pad=24)
    axes.text(
        0,
        1.025,
        "numbers: width of the network" + "; upright bars: 95 % intervals" * sure,
        transform=axes.transAxes,
        fontsize=9,
        color=_FAINT,
    )
    axes.set_xlabel(label, fontsize=10)
    axes.set_ylabel(f"{_scored(points[0].row)} [%]", fontsize=10)
    axes.tick_params(labelsize=9, color=_GREY)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GREY)

    front = _front(points)
    axes.plot([p.x for p in front], [p.y for p in front], color=_LINE, linewidth=1.4, zorder=2, label="Pareto front")
    inputs = sorted({point.input for point in points}, reverse=True)
    palette = mpl.colormaps["cividis"]
    for index, (resolution, frames) in enumerate(inputs):
        chosen = [point for point in points if point.input == (resolution, frames)]
        colour = palette(0.95 * index / max(1, len(inputs) - 1))
        for point in chosen:
            if point.row.accuracy_low is not None and point.row.accuracy_high is not None:
                ends = 100 * point.row.accuracy_low, 100 * point.row.accuracy_high
                axes.plot([point.x, point.x], ends, color=colour, linewidth=0.9, alpha=0.45, zorder=1)
            if point.low is not None and point.high is not None:
                axes.plot([point.low, point.high], [point.y, point.y], color=colour, linewidth=1.2, alpha=0.7, zorder=1)
        axes.scatter(
            [point.x for point in chosen],
            [point.y for point in chosen],
            s=38,
            marker=_MARKERS[index % len(_MARKERS)],
            color=[colour],
            edgecolors="#222222",
            linewidths=0.7,
            zorder=3,
            label=f"{resolution} px" + (f", {frames} frames" if frames else ""),
        )
    low, high = min(point.x for point in points), max(point.x for point in points)
    if low > 0 and high / low >= _LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.12)
    # Beside the axes, never on a point.
    figure.legend(loc="outside right upper", fontsize=9, frameon=False, title="input", title_fontsize=9)
    _name_front(figure, axes, front, points)
    return save_figure(figure, path)


def _name_front(figure: Figure, axes: Axes, front: list[_Point], points: list[_Point]) -> None:
    """Write the width at the points of the front, where there is room: no name covers a point or another name."""
    import numpy as np

    figure.draw_without_rendering()  # positions exist only now
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    figure.set_layout_engine("none")  # the names must not move what they were fitted to
    lines = [[(p.x if x is None else x, p.y) for x in (p.low, p.x, p.high)] for p in points]
    lines.append([(p.x, p.y) for p in front])
    marks = np.concatenate([_dense(axes.transData.transform(line)) for line in lines])
    taken: list[Bbox] = []
    frame = axes.get_window_extent(renderer)
    # The ends first: they matter most. Above and to the left of the front there is, by definition, nothing.
    order = sorted(range(len(front)), key=lambda index: (min(index, len(front) - 1 - index), index))
    for index in order:
        point = front[index]
        for offset, across, up in _PLACES:
            text = axes.annotate(
                f"{point.row.width:.3g}x",
                (point.x, point.y),
                xytext=offset,
                textcoords="offset points",
                ha=across,
                va=up,
                fontsize=8,
                color=_LINE,
                zorder=4,
            )
            box = text.get_window_extent(renderer).padded(4)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken) and not box.count_contains(marks):
                taken.append(box)
                break
            text.remove()


def _dense(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points along a polyline of pixels (n, 2), none further than two pixels from the next."""
    import numpy as np

    pieces = [line]
    for start, end in itertools.pairwise(line):
        steps = int(np.hypot(*(end - start)) / 2) + 2
        pieces.append(np.linspace(start, end, steps))
    return np.concatenate(pieces)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the PNG, complete or not at all."""
    with whole_file(path, lambda reason: unwritable(path, reason)) as draft:
        figure.savefig(draft, format="png", facecolor="white")
    return path
