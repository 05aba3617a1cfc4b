"""What a governor did: its calls as a table, and drawn against the target, with the configuration in force below."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from leanconv.errors import LeanconvError, need
from leanconv.report.plots import save_figure
from leanconv.report.text_table import Column, TextTable
from leanconv.report.units import percent

if TYPE_CHECKING:
    from leanconv.serve.loop import ServeLog

__all__ = ["plot_serve_log", "serve_table"]

_LINE = "#333333"
_GREY = "#888888"
_TARGET = "#b5483a"
_CALLS = "#3b6ea5"


def plot_serve_log(log: ServeLog, path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Draw latency [ms] and the accuracy [%] of the configuration in force over time [s] into the PNG file `path`.

    A darker ground is more competing processes. Raises `LeanconvError` for a log without calls or a file that cannot
    be written, `MissingExtra` without matplotlib.
    """
    path = Path(path)
    if not log.calls:
        raise LeanconvError(f"{path}: the log holds no calls, there is nothing to draw")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise need("matplotlib", "train", "drawing a log") from error
    figure = Figure(figsize=(8.4, 5.0), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    calls = log.calls
    seconds = [call.second for call in calls]
    end = calls[-1].second + calls[-1].latency_ms / 1000

    above.set_title(title or "Latency under a governor", fontsize=12, loc="left", pad=22)
    above.scatter(seconds, [call.latency_ms for call in calls], s=5, color=_CALLS, linewidths=0, label="one call")
    above.axhline(log.target_ms, color=_TARGET, linewidth=1.4, linestyle="--", label=f"target {log.target_ms:g} ms")
    highest = sorted(call.latency_ms for call in calls)[-(-995 * len(calls) // 1000) - 1]  # a straggler must not rule
    above.set_ylim(0, 1.15 * max(highest, log.target_ms))
    above.set_ylabel("latency [ms]", fontsize=10)
    figure.legend(loc="outside upper right", fontsize=9, frameon=False, ncols=2)

    below.step(seconds, [100 * call.accuracy for call in calls], where="post", color=_LINE, linewidth=1.2)
    below.set_ylabel("accuracy of the\nconfiguration [%]", fontsize=10)
    below.set_xlabel("time [s]", fontsize=10)
    below.margins(y=0.25)
    _name_configurations(log, below, end)

    most = max(call.load for call in calls)
    starts = [next(group) for _, group in itertools.groupby(calls, key=lambda call: call.load)]
    for call, until in zip(starts, [*(call.second for call in starts[1:]), end], strict=True):
        for axes in (above, below):
            axes.axvspan(call.second, until, color=_GREY, alpha=0.28 * call.load / max(most, 1), linewidth=0, zorder=0)
        if most:
            words = "no load" if call.load == 0 else f"{call.load} competing"
            place = ((call.second + until) / 2, 1.02)
            above.annotate(words, place, xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    for axes in (above, below):
        axes.set_xlim(0, end)
        axes.tick_params(labelsize=9, color=_GREY)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_GREY)
    return save_figure(figure, path)


def _name_configurations(log: ServeLog, axes: object, end: float) -> None:
    """Write width and resolution where a configuration stayed long enough for its name."""
    stays = [list(group) for _, group in itertools.groupby(log.calls, key=lambda call: (call.width, call.resolution))]
    for stay, after in itertools.zip_longest(stays, stays[1:]):
        until = end if after is None else after[0].second
        if until - stay[0].second >= end / 14:
            place = ((stay[0].second + until) / 2, 100 * stay[0].accuracy)
            axes.annotate(  # type: ignore[attr-defined]
                f"{stay[0].width:.3g}-{stay[0].resolution}",
                place,
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
            )


def serve_table(log: ServeLog, *, title: str = "") -> TextTable:
    """What a log of calls comes to: latencies against the target, accuracy and changes of configuration."""
    phases = log.phases()
    settling = phases[0].settling
    return TextTable(
        title=f"{title}, target {log.target_ms:g} ms",
        columns=(
            Column("from [s]"),
            Column("calls"),
            Column("median [ms]"),
            Column("95 % [ms]"),
            Column("over target [%]"),
            Column("accuracy [%]"),
            Column("changes"),
        ),
        rows=tuple(
            (
                f"{phase.second:.1f}",
                str(phase.calls),
                f"{phase.median_ms:.2f}",
                f"{phase.p95_ms:.2f}",
                percent(phase.over, 1),
                percent(phase.accuracy),
                str(phase.switches),
            )
            for phase in phases
        ),
        notes=(
            f"median, 95 % and over target: without the first {settling} calls.",
            "accuracy: mean over the calls, from the query table, of the configuration that ran.",
        ),
    )
