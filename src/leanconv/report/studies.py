"""A study for people: a table of means and differences, and the papers' figure with the printed values beside ours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.errors import LeanconvError, need
from leanconv.report.count_notes import MACS_NOTE
from leanconv.report.plots import save_figure
from leanconv.report.text_table import Column, TextTable
from leanconv.report.units import NONE, decimals, fixed, percent, si

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_study", "study_table"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
_LOG_FROM = 12
"""From this ratio of the largest to the smallest value on, an axis is logarithmic."""


def study_table(results: Mapping[str, Any]) -> TextTable:
    """A row for each network that `leanconv.recipes.study.study` has results of, an elastic one's for each size.

    A difference whose interval leaves out 0 stands out.
    """
    rows = results["rows"]
    unit = {"top1": "image", "video1": "video"}[results["measure"]]
    digits = decimals([row["ms"] for row in rows])
    first = rows[0]["recipe"]
    notes = [
        f"intervals: {results['rule']}.",
        f"difference: from {first}, in points; printed: in the paper, in its own settings.",
        *(
            f"{name}: {len(seeds)} of {len(results['seeds'])} seeds not finished ({', '.join(map(str, seeds))})"
            + ("; one seed alone has no interval." if len(results["seeds"]) - len(seeds) == 1 else ".")
            for name, seeds in results["unfinished"].items()
        ),
        *(
            f"{name} is not as leanconv has it: {'; '.join(changed[:4])}"
            + (f" and {len(changed) - 4} more." if len(changed) > 4 else ".")
            for name, changed in results["changed"].items()
            if changed
        ),
        MACS_NOTE,
    ]
    if any(row["ms"] is not None for row in rows):
        notes.append("ms: median of one input on this machine's CPU, one thread, all measured in one run.")
    return TextTable(
        title=f"{len(results['seeds'])} seeds, {results['items']} {unit}s of {results['data']}",
        columns=(
            Column("recipe", "left", cut=1),
            Column("size", "left"),
            Column("seeds"),
            Column("accuracy [%]"),
            Column("std"),
            Column("95 %"),
            Column("difference"),
            Column("95 %"),
            Column("printed [%]"),
            Column("params"),
            Column("MACs"),
            Column("ms"),
        ),
        rows=tuple(
            (
                row["recipe"],
                row["configuration"] or NONE,
                str(len(row["values"])),
                percent(row["mean"]),
                percent(row["std"]),
                _interval(row["interval"]),
                *_difference(row["difference"]),
                _printed(row["printed"]),
                si(row["params"]),
                si(row["macs"]),
                fixed(row["ms"], digits),
            )
            for row in rows
        ),
        notes=tuple(notes),
        strong=frozenset(
            index for index, row in enumerate(rows) if row["difference"] is not None and row["difference"]["clear"]
        ),
    )


def _interval(ends: Sequence[float] | None, sign: str = "") -> str:
    return NONE if ends is None else " to ".join(f"{100 * end:{sign}.2f}" for end in ends)


def _difference(found: Mapping[str, Any] | None) -> tuple[str, str]:
    return (NONE, NONE) if found is None else (f"{100 * found['mean']:+.2f}", _interval(found["interval"], "+"))


def _printed(rows: Sequence[Mapping[str, Any]]) -> str:
    return (
        ", ".join(f"{row['accuracy']:g}" + (f"±{row['spread']:g}" if "spread" in row else "") for row in rows) or NONE
    )


def plot_study(results: Mapping[str, Any], path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Draw accuracy over parameters, MACs and, where they were measured, milliseconds into the PNG file `path`.

    Filled points are means over seeds with their 95 % intervals, hollow ones what the papers print for these recipes.
    Raises `LeanconvError` for results without rows or a file that cannot be written, `MissingExtra` without matplotlib.
    """
    path, rows = Path(path), results["rows"]
    if not rows:
        raise LeanconvError(f"{path}: the study has no results, there is nothing to draw")
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    except ImportError as error:
        raise need("matplotlib", "train", "drawing a study") from error
    axis_names = [("params", "parameters [millions]", 1e6), ("macs", "MACs [millions, conv and linear layers]", 1e6)]
    if all(row["ms"] is not None for row in rows):
        axis_names.append(("ms", "ms on this machine's CPU, one thread", 1.0))
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    figure = Figure(figsize=(4.6 * len(axis_names), 4.6), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(axis_names), sharey=True, squeeze=False)[0]
    palette = mpl.colormaps["cividis"]
    colours = {name: palette(0.9 * index / max(1, len(names) - 1)) for index, name in enumerate(names)}
    for axes, (key, label, unit) in zip(panels, axis_names, strict=True):
        for index, name in enumerate(names):
            own = [row for row in rows if row["recipe"] == name]
            _draw(axes, own, key, unit, colours[name], _MARKERS[index % len(_MARKERS)], name)
        values = [row[key] / unit for row in rows]
        if min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label, fontsize=10)
        axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(x=0.12, y=0.1)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
    panels[0].set_ylabel("accuracy [%]", fontsize=10)
    hollow = "; hollow: as the paper prints it, in its own settings" if any(row["printed"] for row in rows) else ""
    figure.suptitle(title or "Accuracy over cost", fontsize=12, x=0.01, ha="left")
    panels[0].set_title(
        f"means of {len(results['seeds'])} seeds, bars: 95 % intervals{hollow}", fontsize=9, color="#555555", loc="left"
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=9, frameon=False, ncols=min(len(names), 3))
    return save_figure(figure, path)


def _draw(
    axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, unit: float, colour: Any, marker: str, name: str
) -> None:
    """One recipe: a point, or the sizes of an elastic network."""
    for row in rows:
        x = row[key] / unit
        if row["interval"] is not None:
            ends = [100 * end for end in row["interval"]]
            axes.plot([x, x], ends, color=colour, linewidth=1.2, alpha=0.7, zorder=1)
        for printed in row["printed"]:
            axes.scatter(
                [x], [printed["accuracy"]], s=44, marker=marker, facecolors="none", edgecolors=[colour], zorder=2
            )
    places = sorted((row[key] / unit, 100 * row["mean"]) for row in rows)
    axes.scatter(
        [x for x, _ in places],
        [y for _, y in places],
        s=36,
        marker=marker,
        color=[colour],
        edgecolors="#222222",
        linewidths=0.6,
        zorder=3,
        label=name,
    )
