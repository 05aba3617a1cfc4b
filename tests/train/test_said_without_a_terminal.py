"""What training says where no terminal is: a line every half minute, one an epoch, and how to go on after Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leanconv.recipes import get_recipe, run_recipe

pytest.importorskip("lightning")

from leanconv.train.callbacks import Progress, _duration


def test_lines_within_an_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "every", 0.0)
    recipe = get_recipe("digits_resnet20", tiny=True, overrides=["epochs=2", "steps_per_epoch=3"])
    run_recipe(recipe, tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"epoch \d/2  \d/3  ", line)]
    assert len(lines) == 6
    assert re.fullmatch(r"epoch 1/2  1/3  loss \d+\.\d{4}  rate \S+  \d+ s left", lines[0])
    assert lines[-1].endswith("  0 s left")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (600, "10 min"), (7300, "2 h")])
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    # What runs in the background of a shell ignores SIGINT, and hands that on: here it is taken as on a terminal.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from leanconv.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "train", "digits_resnet20", "--set", "epochs=500", "--out", str(out)]
    settings = ["--set", "steps_per_epoch=1", "--set", "accelerator=cpu"]
    process = subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (out / "last.ckpt").exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    last = told.splitlines()[-1]
    assert re.match(r"leanconv: interrupted in epoch \d+, and everything is in \S+last\.ckpt; to go on: ", last), last
    assert last.endswith(f"; to go on: leanconv train --resume --out {out}")
