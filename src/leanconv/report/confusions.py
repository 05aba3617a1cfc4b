"""Who is taken for whom, as a picture: a matrix of classes, each row's shares from white to dark."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from leanconv.errors import LeanconvError, need
from leanconv.report.plots import save_figure

__all__ = ["plot_confusions"]

_COUNTED = 20
"""Up to so many classes the cells have room for their counts."""
_NAMED = 60
"""Up to so many classes the axes have room for their names."""


def plot_confusions(
    counts: Sequence[Sequence[int]], class_names: Sequence[str], path: str | os.PathLike[str], *, title: str = ""
) -> Path:
    """Draw how many items of class i (down) were taken for class j (across) into the PNG file `path`.

    Colours are shares of a row, so that rare classes show as common ones do; `class_names` may be fewer than rows.
    Raises `LeanconvError` for a matrix without items or a file that cannot be written, `MissingExtra` without
    matplotlib.
    """
    path = Path(path)
    sums = [sum(row) for row in counts]
    if not any(sums):
        raise LeanconvError(f"{path}: no item has a label, there is nothing to draw")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise need("matplotlib", "train", "drawing confusions") from error
    total = len(counts)
    side = min(max(4.0, 1.8 + 0.42 * total), 12.0)
    figure = Figure(figsize=(side + 1.2, side), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = [[100 * count / max(whole, 1) for count in row] for row, whole in zip(counts, sums, strict=True)]
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the class [%]")
    axes.set_title(title or "Confusions", fontsize=11, loc="left")
    axes.set_xlabel("prediction", fontsize=10)
    axes.set_ylabel("label", fontsize=10)
    if total <= _NAMED:
        names = [class_names[index] if index < len(class_names) else str(index) for index in range(total)]
        small = 9 if total <= _COUNTED else 6
        axes.set_xticks(range(total), names, fontsize=small, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(total), names, fontsize=small)
    if total <= _COUNTED:
        for down, row in enumerate(counts):
            for across, count in enumerate(row):
                if count:
                    ink = "white" if shares[down][across] > 55 else "#222222"
                    axes.text(across, down, str(count), ha="center", va="center", fontsize=8, color=ink)
    return save_figure(figure, path)
