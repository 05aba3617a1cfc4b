"""The rehearsal of `benchmarks/gpu.py`: the code that a GPU runs, on a CPU, with small sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu
from gpu_process import Runner
from gpu_ways import Setting, Way, ways

SCRIPT = Path(str(gpu.__file__))


def test_one_network_in_this_process() -> None:
    """Ways are prepared, checked, captured and timed; a wrong one is refused."""
    runner = Runner("regconv_w18", "igc_l4m8", Setting(True, float("inf")), threading.Lock())
    chosen = [Way("infer", "fused", 8, False), Way("train", "composed", 8, False)]
    for way in chosen:
        assert way in ways("igc_l4m8")
        found = runner.prepare(way)
        assert found["error"] <= found["allowed"]
    assert runner.capture() == {}
    assert list(runner.round()) == chosen
    exact, usual = runner.references["infer"]
    runner.references["infer"] = exact + exact.norm(), usual
    with pytest.raises(ValueError, match="values differ"):
        runner.prepare(chosen[0])


def test_the_table_compares_the_best_with_the_best() -> None:
    def row(network: str, way: str, ms: float) -> dict[str, object]:
        return {
            "network": network,
            "mode": "infer",
            "way": way,
            "median_ms": ms,
            "low_ms": ms,
            "high_ms": ms,
            "peak_mib": 0,
        }

    rows = [row("resnet20", "eager", 4.0), row("resnet20", "fused eager", 2.0), row("o_resnet20", "eager", 9.0)]
    lines = gpu.table([*rows, row("o_resnet20", "kernel x8 eager", 3.0)]).splitlines()
    cells = [cell.strip() for cell in lines[-1].split("|")]
    assert cells[1:9] == ["o_resnet20", "infer", "kernel x8 eager", "3.00", "0.0%", "1.50", "2.0", "9.0"]


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ["--rehearse", "--networks", "o_resnet20", "--ways", "eager", "composed x8 eager", "--rounds", "2"]
    subprocess.run([sys.executable, SCRIPT, "--out", out, *words], check=True, timeout=500)
    found = json.loads(out.read_text())
    assert {(row["network"], row["mode"], row["way"]) for row in found["rows"]} == {
        *((name, mode, "eager") for name in ("resnet20", "o_resnet20") for mode in ("infer", "train")),
        ("o_resnet20", "train", "composed x8 eager"),
    }
    assert not found["problems"]
