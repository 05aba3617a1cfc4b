"""Tables: the numbers in them, and that they survive a narrow terminal and a pipe."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console
from torch import nn

from leanconv.cost import Latency, measure
from leanconv.deploy import BenchRow
from leanconv.errors import LeanconvError
from leanconv.query import Row
from leanconv.report import (
    Column,
    TextTable,
    bench_table,
    binary,
    changes_table,
    comparison_table,
    cost_table,
    modules_table,
    percent,
    print_table,
    query_table,
    ratio,
    si,
    skipped_table,
)
from leanconv.rewrites import Change, Skipped


def printed(sheet: TextTable, width: int | None = None) -> list[str]:
    """The lines in a terminal of `width` columns, or in a pipe."""
    file = io.StringIO()
    if width is None:
        print_table(sheet, file=file)
    else:
        print_table(sheet, console=Console(file=file, width=width, force_terminal=True, color_system=None))
    return file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (0.5, "0.50"),
        (1000, "1.00 k"),
        (25_557_032, "25.56 M"),
        (4_089_184_256, "4.09 G"),
        (999_994, "999.99 k"),
        (999_996, "1.00 M"),
        (-1500, "-1.50 k"),
        (None, "-"),
        (float("nan"), "-"),
        (3e21, "3000.00 E"),
    ],
)
def test_si(value: float | None, text: str) -> None:
    assert si(value) == text


def test_other_numbers() -> None:
    assert [binary(n) for n in (0, 1023, 1024, 1048575, 44_763_139)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 MiB",
        "42.7 MiB",
    ]
    assert [percent(x) for x in (0.9617, 1.0, None)] == ["96.17", "100.00", "-"]
    assert [ratio(1, 3), ratio(2.0), ratio(1, 0), ratio(None)] == ["0.33", "2.00", "-", "-"]


SHEET = TextTable(
    title="a title",
    columns=(Column("model", "left", cut=1), Column("MACs"), Column("ms")),
    rows=(("net", "1.00 M", "3.2"), ("backbone.layer1.0.conv2[x]", "25.56 M", "12.0")),
    notes=("a note",),
)


def test_numbers_stand_to_the_right_and_nothing_trails() -> None:
    assert printed(SHEET) == [
        "a title",
        "model                          MACs    ms",
        "─────────────────────────────────────────",
        "net                          1.00 M   3.2",
        "backbone.layer1.0.conv2[x]  25.56 M  12.0",
        "a note",
    ]


def test_a_narrow_terminal_cuts_names_in_the_middle_and_no_numbers() -> None:
    lines = printed(SHEET, width=30)
    assert max(map(len, lines)) <= 30
    assert "backbon…onv2[x]  25.56 M  12.0" in [line.rstrip() for line in lines]


def test_a_table_that_is_still_too_wide_continues_below_with_its_first_column() -> None:
    many = TextTable(
        title="wide",
        columns=(Column("model", "left"), *(Column(f"number {index}") for index in range(9))),
        rows=(("net", *(str(index) * 8 for index in range(9))),),
    )
    for width in (40, 80):
        lines = printed(many, width=width)
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("net") for line in lines) > 1
        text = "\n".join(lines)
        assert all(text.count(str(index) * 8) == 1 for index in range(9))
    assert sum(line.startswith("net") for line in printed(many)) == 1


def test_a_pipe_is_as_wide_as_the_table() -> None:
    long = replace(SHEET, rows=(("x" * 300, "1", "2"),), notes=("y" * 300,))
    lines = printed(long)
    assert "x" * 300 in lines[3]
    assert lines[4] == "y" * 300


def test_printed_to_a_pipe_there_are_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(SHEET)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.splitlines() == printed(SHEET)


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(LeanconvError, match="3 columns, but a row has 1 cells"):
        replace(SHEET, rows=(("a",),))


def net(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 8, 1))


def test_cost() -> None:
    cost = measure(net(16), (3, 10, 10))
    sheet = cost_table("net", cost)
    cells = {row[0]: row[1:] for row in sheet.rows}
    assert cells["parameters"] == (si(cost.params), f"{cost.params:,}")
    assert cells["MACs"] == ("56.00 k", "56,000")
    assert cells["receptive field [pixels]"][0] == "3x3"
    assert any("multiply-adds of convolutions and linear layers" in note for note in sheet.notes)
    assert any(note.startswith("not counted: aten.relu (1)") for note in sheet.notes)


def test_modules() -> None:
    sheet = modules_table("net", measure(net(16), (3, 10, 10)))
    assert [row[:3] for row in sheet.rows] == [("0", "43.20 k", "77.1"), ("2", "12.80 k", "22.9")]
    limited = modules_table("net", measure(net(16), (3, 10, 10)), limit=1)
    assert len(limited.rows) == 1
    assert "1 cheaper modules are not shown." in limited.notes
    alone = modules_table("conv", measure(nn.Conv2d(3, 4, 1), (3, 10, 10)))
    assert alone.rows[0][2] == "100.0"


def latency(ms: float, times: float) -> Latency:
    return Latency(ms, ms * 0.9, ms * 1.1, 10, times, times, times, 1, 1)


def test_comparison_puts_ratios_and_milliseconds_beside_the_macs() -> None:
    costs = {"net": measure(net(16), (3, 10, 10)), "half": measure(net(8), (3, 10, 10))}
    sheet = comparison_table(costs, latencies={"net": latency(2.0, 1.0), "half": latency(1.5, 0.75)})
    assert [row[3:5] for row in sheet.rows] == [("56.00 k", "1.00"), ("28.00 k", "0.50")]
    assert [row[-2:] for row in sheet.rows] == [("2.00", "1.00"), ("1.50", "0.75")]
    assert [column.header for column in sheet.columns][-2:] == ["ms", "x"]
    assert max(map(len, printed(sheet, width=80))) <= 80
    assert len(comparison_table(costs).columns) == len(sheet.columns) - 2
    partly = comparison_table(costs, latencies={"net": latency(2.0, 1.0)})
    assert partly.rows[1][-2:] == ("-", "-")
    with pytest.raises(LeanconvError, match="at least one network"):
        comparison_table({})


def test_changes() -> None:
    changes = [
        Change("layer1.conv", "3x3 64->64", "osep: ...", "projected", 0.4321, 36864, 3200),
        Change("layer2.conv", "3x3 64->64", "osep: ...", "fresh", None, 36864, 3200),
    ]
    skipped = [Skipped("stem", "the stem"), Skipped("stem2", "the stem")]
    sheet = changes_table(changes, skipped)
    assert [row[3] for row in sheet.rows] == ["err 0.43", "fresh", ""]
    assert sheet.rows[-1][-3:] == ("73.73 k", "6.40 k", "0.09")
    assert "left alone: 2 x the stem" in sheet.notes
    assert skipped_table(skipped).rows == (("stem", "the stem"), ("stem2", "the stem"))


def row(width: float, resolution: int, accuracy: float, macs: int, ms: float | None, *, pareto: bool) -> Row:
    return Row(
        width=width,
        resolution=resolution,
        accuracy=accuracy,
        macs=macs,
        params=270_000,
        latency_ms=ms,
        latency_low_ms=ms and ms * 0.9,
        latency_high_ms=ms and ms * 1.2,
        pareto=pareto,
    )


def test_query_table() -> None:
    rows = [row(1.0, 32, 0.9811, 41_000_000, 3.2, pareto=True), row(0.5, 28, 0.96, 8_000_000, 1.05, pareto=False)]
    sheet = query_table(rows)
    assert sheet.rows[0] == ("1", "32", "98.11", "41.00 M", "270.00 k", "3.20", "2.88-3.84", "*")
    assert sheet.rows[1][-3:] == ("1.05", "0.95-1.26", "")
    assert sheet.strong == {0}
    assert max(map(len, printed(sheet, width=80))) <= 80
    untimed = query_table([row(1.0, 32, 0.98, 41_000_000, None, pareto=True)])
    assert "ms" not in [column.header for column in untimed.columns]


def test_bench_shows_what_failed() -> None:
    good = BenchRow(
        model="net",
        backend="eager",
        size=(3, 32, 32),
        batch=1,
        threads=1,
        macs=41_000_000,
        params=270_000,
        median_ms=3.21,
        low_ms=3.0,
        high_ms=4.0,
        ratio=1.0,
        rounds=50,
        max_abs_difference=0.0,
    )
    bad = replace(good, backend="openvino", median_ms=None, low_ms=None, high_ms=None, ratio=None, problem="not here")
    sheet = bench_table([good, bad])
    assert sheet.title == "input 1 x 3x32x32, CPU, 1 thread"
    assert sheet.rows[0][4:] == ("3.21", "3.00-4.00", "1.00", "0")
    assert sheet.rows[1][4:7] == ("failed", "-", "-")
    assert "net on openvino: not here" in sheet.notes
    assert max(map(len, printed(sheet, width=80))) <= 80
