"""Curves: real PNG files with every configuration in them, and nothing of matplotlib's global state touched."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from leanconv.errors import LeanconvError, MissingExtra
from leanconv.query import QueryTable, Row
from leanconv.report import plot_accuracy_latency, plot_accuracy_macs, plots, save_curves


def table(*, latency: bool = True, count: int = 4) -> QueryTable:
    rows = []
    for resolution in (224, 192, 160, 128):
        for index in range(1, count + 1):
            width = index / count
            macs = int(569e6 * width**2 * (resolution / 224) ** 2)
            ms = 2 + macs / 3e7
            rows.append(
                Row(
                    width=width,
                    resolution=resolution,
                    accuracy=0.5 + 0.2 * width**0.5 * (resolution / 224) ** 0.3,
                    macs=macs,
                    params=int(4e6 * width**2),
                    latency_ms=ms if latency else None,
                    latency_low_ms=ms * 0.95 if latency else None,
                    latency_high_ms=ms * 1.1 if latency else None,
                )
            )
    return QueryTable(tuple(rows))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    seen: list[Figure] = []
    real = Figure.savefig

    def spy(self: Figure, *args: Any, **kwargs: Any) -> None:
        seen.append(self)
        real(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


def test_both_curves_are_pictures(tmp_path: Path) -> None:
    paths = save_curves(table(), tmp_path / "curves")
    assert [path.name for path in paths] == ["accuracy_macs.png", "accuracy_latency.png"]
    assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == [
        "accuracy_latency.png",
        "accuracy_macs.png",
    ]
    for path in paths:
        pixels = imread(path)
        assert pixels.shape[0] > 800
        assert pixels.shape[1] > 1200
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_every_configuration_is_a_point_and_the_best_are_a_line(tmp_path: Path, figures: list[Figure]) -> None:
    rows = table().rows
    plot_accuracy_macs(table(), tmp_path / "a.png", title="A title")
    (axes,) = figures[0].axes
    points = {
        tuple(point) for marks in axes.collections for point in np.round(np.asarray(marks.get_offsets()), 6).tolist()
    }
    assert points == {(round(row.macs / 1e6, 6), round(100 * row.accuracy, 6)) for row in rows}
    line = np.round(axes.lines[0].get_xydata(), 6).tolist()
    assert sorted(map(tuple, line)) == sorted(
        (round(row.macs / 1e6, 6), round(100 * row.accuracy, 6)) for row in rows if row.pareto
    )
    assert axes.get_title(loc="left") == "A title"
    assert axes.get_xlabel() == "MACs per image [millions, conv and linear layers]"
    assert axes.get_ylabel() == "accuracy [%]"
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["Pareto front", "224 px", "192 px", "160 px", "128 px"]


def test_detectors_are_drawn_by_their_average_precision(tmp_path: Path, figures: list[Figure]) -> None:
    rows = [replace(row, scores={"box_ap": row.accuracy, "mask_ap": 0.1}) for row in table().rows]
    plot_accuracy_macs(replace(table(), rows=tuple(rows)), tmp_path / "a.png")
    (axes,) = figures[0].axes
    assert (axes.get_ylabel(), axes.get_title(loc="left")) == ("box AP [%]", "Box AP over MACs")


def test_latency_has_bars_from_low_to_high(tmp_path: Path, figures: list[Figure]) -> None:
    plot_accuracy_latency(table(), tmp_path / "a.png")
    (axes,) = figures[0].axes
    bars = {tuple(np.round(line.get_xdata(), 6).tolist()) for line in axes.lines[1:]}
    assert bars == {(round(row.latency_low_ms or 0, 6), round(row.latency_high_ms or 0, 6)) for row in table().rows}


@pytest.mark.parametrize("count", [1, 4, 16])
def test_names_cover_nothing(tmp_path: Path, figures: list[Figure], count: int) -> None:
    plot_accuracy_latency(table(count=count), tmp_path / "a.png")
    figure = figures[0]
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    names = [text for text in axes.texts if text.get_text().endswith("x")]
    assert names
    boxes = [name.get_window_extent(renderer) for name in names]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    points = np.concatenate([axes.transData.transform(marks.get_offsets()) for marks in axes.collections])
    assert not any(box.count_contains(points) for box in boxes)
    frame = axes.get_window_extent(renderer)
    legend = figure.legends[0].get_window_extent(renderer)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1 for box in boxes)
    assert not frame.overlaps(legend)


def test_pyplot_and_settings_are_not_touched(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib; before = dict(dict.items(matplotlib.rcParams))\n"
        "from leanconv.query import QueryTable, Row\n"
        "from leanconv.report import plot_accuracy_macs\n"
        "row = Row(width=1.0, resolution=32, accuracy=0.9, macs=10, params=1)\n"
        f"plot_accuracy_macs(QueryTable((row,)), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict(dict.items(matplotlib.rcParams)) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").exists()


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(LeanconvError, match="holds no latency: measure it with latency=True"):
        plot_accuracy_latency(table(latency=False), tmp_path / "a.png")
    with pytest.raises(LeanconvError, match="holds no rows"):
        plot_accuracy_macs(QueryTable(()), tmp_path / "a.png")
    assert [path.name for path in save_curves(table(latency=False), tmp_path)] == ["accuracy_macs.png"]


def test_a_failed_write_leaves_the_old_picture_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plot_accuracy_macs(table(), tmp_path / "a.png")
    before = path.read_bytes()

    def full(self: Figure, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(LeanconvError, match=r"a\.png: cannot be written: No space left on device"):
        plot_accuracy_macs(table(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"'matplotlib'.*pip install 'leanconv\[train\]'"):
        plot_accuracy_macs(table(), tmp_path / "a.png")
    assert mpl.__name__ == "matplotlib"
    assert plots.__name__ == "leanconv.report.plots"
