"""`benchmarks/speed.py` without its times: a run that is stopped goes on, and nothing is mixed into it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import leanconv.deploy
from leanconv.deploy import BenchRow

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import speed


class Bench:
    """Stands in for `bench`: the rows that it would give, and a stop instead of table number `stops`."""

    def __init__(self, stops: int | None = None) -> None:
        self.stops, self.made = stops, 0

    def __call__(self, nets: dict[str, Any], size: Any, *, backends: Sequence[str], batch: int, **_: Any) -> list[Any]:
        if self.made == self.stops:
            raise KeyboardInterrupt
        self.made += 1
        settings = {"size": size, "batch": batch, "threads": 1, "macs": 10, "params": 2, "median_ms": float(self.made)}
        times = {"low_ms": 1.0, "high_ms": 9.0, "ratio": 1.0}
        rows = [BenchRow(model=net, backend=name, **settings, **times) for net in nets for name in backends]
        return [*rows, BenchRow(model="broken", backend="eager", size=size, batch=batch, threads=1, macs=1, params=1)]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Runs the script on the groups of the 20-layer networks, two tables each; gives the path of its rows."""

    def run(bench: Bench, *arguments: str) -> Path:
        out = tmp_path / "speed.json"
        given = ["--only", "20 layers", "--backends", "eager", "leanconv", *arguments, "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["speed.py", *given])
        monkeypatch.setattr(leanconv.deploy, "bench", bench)
        monkeypatch.setattr(speed, "candidates", lambda group, *_: dict.fromkeys(name for name, _ in group))
        speed.main()
        return out

    return run


def test_a_run_that_was_stopped_goes_on(
    measured: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its page and rows are those of one that was not; those of an earlier run are there until it is done."""
    out, part = tmp_path / "speed.json", tmp_path / "speed.json.part"
    measured(Bench())
    whole, page = json.loads(out.read_text()), capsys.readouterr().out
    assert [row["median_ms"] for row in whole if row["model"] == "resnet20"] == [1, 1, 2, 2]
    assert not part.exists()
    out.write_text("earlier")
    for stops, kept in ((0, 0), (1, 1), (2, 3)):  # in the first, the second and the fourth table
        with pytest.raises(KeyboardInterrupt):
            measured(Bench(stops))
        assert len(json.loads(part.read_text())["tables"]) == kept
        assert out.read_text() == "earlier"
    last = Bench()
    measured(last)
    assert last.made == 1
    assert not part.exists()
    rows = json.loads(out.read_text())
    times = [row.pop("median_ms") for row in rows]
    assert [time for time in times if time] == [time for time in (1.0, 1.0, 2.0, 1.0) for _ in range(6)]
    for row in whole:
        row.pop("median_ms")
    assert rows == whole
    tables = capsys.readouterr().out
    assert [line for line in tables.splitlines() if line.startswith("#")] == [
        line for line in page.splitlines() if line.startswith("#")
    ]


def test_what_was_made_under_other_conditions_is_refused_and_stays(
    measured: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "speed.json.part"
    with pytest.raises(KeyboardInterrupt):
        measured(Bench(1))
    before = part.read_text()
    with pytest.raises(SystemExit, match=r"part is of a run under other conditions, rounds was 50 and is 7: delete"):
        measured(Bench(), "--rounds", "7")
    for name, value in (
        ("leanconv.machine.this_machine", lambda: "another machine"),
        ("leanconv.machine.versions", lambda names: dict.fromkeys(names, "0")),
        ("speed.sources", lambda: "others"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            with pytest.raises(SystemExit, match="of a run under other conditions"):
                measured(Bench())
    assert part.read_text() == before
    part.write_text("[]")
    with pytest.raises(SystemExit, match="is no file of tables that were measured"):
        measured(Bench())
