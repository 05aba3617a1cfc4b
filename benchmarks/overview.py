"""The picture at the head of README, drawn from what was measured: `speed.json` and the table in `demo.md`.

python benchmarks/overview.py --out docs/overview.png
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
GROUP = "ResNet-50, octave paper"
BACKENDS = {
    "eager": "eager torch",
    "compile": "torch.compile",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "leanconv": "our kernels",
}
LINES = (("#8a8a8a", "o"), ("#c79a1f", "s"), ("#1b6ca8", "^"), ("#0b2545", "D"), ("#b3261e", "v"))
GREY, DARK = "#777777", "#222222"


class Point(NamedTuple):
    """One configuration of the elastic network."""

    width: float
    resolution: int
    accuracy: float
    macs: float


def octave_curves() -> dict[str, list[tuple[float, float]]]:
    """Back-end -> (share of the dense network's MACs, share of its time on that back-end), the dense one first."""
    rows = [row for row in json.loads((HERE / "speed.json").read_text()) if row["group"] == GROUP and row["batch"] == 1]
    curves = {}
    for backend in BACKENDS:
        timed = (row for row in rows if row["backend"] == backend and row["median_ms"] is not None)
        mine = sorted(timed, key=lambda row: -row["macs"])
        dense = mine[0]
        curves[backend] = [(row["macs"] / dense["macs"], row["median_ms"] / dense["median_ms"]) for row in mine]
    return curves


def elastic_points() -> list[Point]:
    """The query table of the demo: accuracy in percent, millions of MACs."""
    found = re.findall(r"^ *([\d.]+) +(\d+) +([\d.]+)  +([\d.]+) M ", (HERE / "demo.md").read_text(), re.MULTILINE)
    return [Point(float(width), int(side), float(accuracy), float(macs)) for width, side, accuracy, macs in found]


def draw_octave(axes: Axes) -> None:
    for (backend, points), (colour, marker) in zip(octave_curves().items(), LINES, strict=True):
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, linewidth=1.8, label=BACKENDS[backend])
    axes.plot((0.44, 1.02), (0.44, 1.02), ":", color=GREY, linewidth=1.2)
    axes.text(0.68, 0.588, "time = MACs", color=GREY, rotation=-25, fontsize=8.5, ha="center")
    axes.set_xlim(1.03, 0.43)
    axes.set_xlabel("MACs, relative to the dense ResNet-50")
    axes.set_ylabel("time, relative to it on the same back-end")
    axes.set_title("Rewrite: ResNet-50 with octave convolution", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, loc="lower left", fontsize=9)


def draw_elastic(axes: Axes) -> None:
    points = elastic_points()
    sides = sorted({point.resolution for point in points}, reverse=True)
    for side, (colour, marker) in zip(sides, reversed(LINES[:4]), strict=True):
        mine = [point for point in points if point.resolution == side]
        axes.plot(
            [p.macs for p in mine], [p.accuracy for p in mine], marker, color=colour, ls="", label=f"{side} pixels"
        )
    best = [p for p in points if not any(o.macs < p.macs and o.accuracy >= p.accuracy for o in points)]
    best.sort(key=lambda point: point.macs)
    axes.plot([p.macs for p in best], [p.accuracy for p in best], "-", color=DARK, linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_xticks((1, 2, 5, 10, 20, 40), ("1", "2", "5", "10", "20", "40"))
    axes.minorticks_off()
    axes.set_xlabel("MACs per image [millions]")
    axes.set_ylabel("accuracy [%] on 359 held-out digits")
    axes.set_title("Elastic: one set of weights, 16 configurations", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, loc="lower right", fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/overview.png"))
    options = parser.parse_args()

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from leanconv.report.plots import save_figure

    figure = Figure(figsize=(10.5, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    draw_octave(left)
    draw_elastic(right)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, options.out)


if __name__ == "__main__":
    main()
