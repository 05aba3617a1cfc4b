"""Runs side by side: a table of what they score on the same items and by how much they differ, and their curves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanconv.errors import LeanconvError, need
from leanconv.report.accuracy import INTERVAL_NOTE
from leanconv.report.count_notes import MACS_NOTE
from leanconv.report.plots import save_figure
from leanconv.report.text_table import Column, TextTable
from leanconv.report.units import NONE, percent, percent_interval, si

__all__ = ["plot_runs", "runs_table"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


def runs_table(rows: Sequence[Mapping[str, Any]], *, unit: str = "image") -> TextTable:
    """A row for each network as `compare` gives them: accuracy on the same `unit`s, and its difference from the first.

    A difference whose interval leaves out 0 stands out.
    """
    first = rows[0]
    return TextTable(
        title=f"{first['items']} {unit}s",
        columns=(
            Column("model", "left", cut=1),
            Column("top-1 [%]"),
            Column("95 %"),
            Column("difference"),
            Column("95 %"),
            Column("alone right"),
            Column("params"),
            Column("MACs"),
        ),
        rows=tuple(
            (
                row["model"],
                percent(row["top1"]),
                percent_interval(*row["top1_interval"]),
                *_difference(row["difference"]),
                si(row["params"]),
                si(row["macs"]),
            )
            for row in rows
        ),
        notes=(
            f"difference: from {first['model']}, in points, on the same {unit}s, with its interval for pairs;"
            f" alone right: {unit}s that this one got right and the first wrong, and the other way round.",
            *(_verdict(row, str(first["model"])) for row in rows[1:]),
            INTERVAL_NOTE,
            MACS_NOTE,
        ),
        strong=frozenset(
            index for index, row in enumerate(rows) if row["difference"] is not None and row["difference"]["clear"]
        ),
    )


def _difference(found: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if found is None:
        return (NONE,) * 3
    low, high = (100 * end for end in found["interval"])
    return (
        f"{100 * found['value']:+.2f}",
        f"{low:+.1f} to {high:+.1f}",
        f"{found['only_this']} : {found['only_first']}",
    )


def _verdict(row: Mapping[str, Any], first: str) -> str:
    found = row["difference"]
    if not found["clear"]:
        return f"{row['model']}: these items do not tell it from {first}."
    return f"{row['model']} is {'better' if found['value'] > 0 else 'worse'} than {first}."


def plot_runs(
    curves: Mapping[str, Sequence[Mapping[str, float]]], path: str | os.PathLike[str], *, title: str = ""
) -> Path:
    """Draw the accuracy after each epoch of several runs into the PNG file `path`, with bands of 95 %.

    `curves` are the rows of each run's `metrics.csv`, by its name. Raises `LeanconvError` without any row or for a file
    that cannot be written, `MissingExtra` without matplotlib.
    """
    path = Path(path)
    if not any(curves.values()):
        raise LeanconvError(f"{path}: none of these is a run folder with a metrics.csv, so there are no curves to draw")
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise need("matplotlib", "train", "drawing curves") from error
    figure = Figure(figsize=(7.2, 4.4), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title or "Accuracy after each epoch", fontsize=12, loc="left")
    axes.set_xlabel("epoch", fontsize=10)
    axes.set_ylabel("accuracy [%], bands: 95 % intervals", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    palette = mpl.colormaps["cividis"]
    drawn = [(name, rows) for name, rows in curves.items() if rows]
    for index, (name, rows) in enumerate(drawn):
        colour = palette(0.9 * index / max(1, len(drawn) - 1))
        epochs = [row["epoch"] for row in rows]
        marker = _MARKERS[index % len(_MARKERS)]
        heights = [100 * row["val_accuracy"] for row in rows]
        axes.plot(epochs, heights, color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)
        if all("val_low" in row for row in rows):  # runs of an older leanconv have none
            low, high = ([100 * row[f"val_{end}"] for row in rows] for end in ("low", "high"))
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    figure.legend(loc="outside lower center", fontsize=9, frameon=False, ncols=min(len(drawn), 3))
    return save_figure(figure, path)
