"""Multiply-adds and channel interactions of the CSN paper's block families: the x-axes of its figures 6 and 7.

    python benchmarks/csn_families.py --out docs/methods/csn_families.png > benchmarks/csn_families.md

Every number is measured on fake tensors at 8 x 224 x 224, 400 classes; nothing is computed. The paper's own y-axis, the
accuracy on Kinetics, only training can tell; here interactions stand over the blocks and over multiply-adds, which
shows what grouping alone does. Markers are those of figure 7.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

SIZE = (3, 8, 224, 224)
GROUPS = (1, 2, 4, 8, 16, 32)
LAYERS = {8: (2, 2, 2, 2), 16: (3, 4, 6, 3)}
FAMILIES = {
    ("simple", 8): ("simple-X-8", "#3465c0", "s"),
    ("simple", 16): ("simple-X-16", "#c03434", "D"),
    ("bottleneck", 8): ("bottleneck-X-8", "#2e8b3d", "o"),
    ("bottleneck", 16): ("bottleneck-X-16", "#7b3fa0", "^"),
}


class Point(NamedTuple):
    """One network of a family."""

    family: str
    name: str
    macs: int
    params: int
    interactions: int


def points(block: str, blocks: int) -> list[Point]:
    """A family from its dense block to the most grouped one, as figure 6 reads from right to left."""
    import torch

    from leanconv.build import create_model
    from leanconv.cost import measure

    expansion = 4 if block == "bottleneck" and blocks == 16 else 1
    steps: list[tuple[str, int]] = [("none", 1), *(("G", groups) for groups in GROUPS[1:]), ("D", 1)]
    if block == "bottleneck":
        steps += [("DG", groups) for groups in GROUPS[1:]]
    found = []
    for grouping, groups in steps:
        options: dict[str, Any] = {"block": block, "grouping": grouping, "groups": groups, "layers": LAYERS[blocks]}
        with torch.device("meta"):
            cost = measure(create_model("resnet3d", expansion=expansion, **options), SIZE)
        name = "dense" if grouping == "none" else grouping + (f" {groups}" if groups > 1 else "")
        found.append(Point(FAMILIES[block, blocks][0], name, cost.macs, cost.conv_params, cost.interactions))
    return found


def draw(families: list[list[Point]], path: Path) -> None:
    """Interactions over steps, and interactions over multiply-adds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    longest = max(families, key=len)
    for family, (label, colour, marker) in zip(families, FAMILIES.values(), strict=True):
        interactions = [point.interactions / 1e9 for point in family]
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.2}
        left.plot(range(len(family)), interactions, label=label, **style)
        right.plot([point.macs / 1e9 for point in family], interactions, **style)
        depthwise = next(index for index, point in enumerate(family) if point.name == "D")
        for axes, x in ((left, depthwise), (right, family[depthwise].macs / 1e9)):
            axes.plot(x, interactions[depthwise], "*", color=colour, markersize=14, markeredgecolor="white")
    left.set_xticks(range(len(longest)), [point.name for point in longest], rotation=45, ha="right")
    left.set_xlabel("block: dense, 3x3x3 in groups (G), depthwise (D), 1x1x1 in groups too (DG)")
    left.set_ylabel("channel interactions [billions of pairs]")
    left.legend(loc="lower left", bbox_to_anchor=(0.13, 0.56), ncols=2, title="star: D", fontsize=9, frameon=False)
    right.set_xlabel("MACs [billions, conv and linear layers, 8 x 224 x 224]")
    right.set_xscale("log")
    _plain_ticks(right.xaxis, (3, 5, 10, 20, 40))
    for axes in (left, right):
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Channel interactions under grouping: simple blocks lose them at once, bottlenecks only with DG")
    draft = path.with_name(f".{path.name}.tmp")
    figure.savefig(draft, dpi=110, format="png")
    os.replace(draft, path)


def _plain_ticks(axis: Any, values: tuple[float, ...]) -> None:
    """Numbers as one writes them on a logarithmic axis."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(values, [f"{value:g}" for value in values])
    axis.set_minor_locator(NullLocator())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the picture goes")
    options = parser.parse_args()
    families = [points(block, blocks) for block, blocks in FAMILIES]
    draw(families, options.out)
    print("# Block families of the channel-separated-networks paper\n")
    print("`python benchmarks/csn_families.py --out docs/methods/csn_families.png`: measured on fake tensors at")
    print("8 x 224 x 224, 400 classes; params are convolution and classifier weights.\n")
    print("| family | block | 1e9 MACs | 1e6 params | 1e9 interactions | share of the dense block's interactions |")
    print("|---|---|---:|---:|---:|---:|")
    for family in families:
        for point in family:
            cells = [point.macs / 1e9, point.params / 1e6, point.interactions / 1e9]
            share = point.interactions / family[0].interactions
            numbers = " | ".join(f"{value:.3f}" for value in cells)
            print(f"| {point.family} | {point.name} | {numbers} | {share:.3f} |")


if __name__ == "__main__":
    main()
