"""`table`, `pick` and `run` on a saved elastic network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv.build import create_model, load, save
from leanconv.cli import main
from leanconv.data import InputContract, attach
from leanconv.elastic import calibrate
from leanconv.query import QueryTable

Run = Callable[..., tuple[int, str, str]]
CONFIGS = [(1.0, 32), (0.5, 20)]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line: the exit code, and what it printed to stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return int(caught.value.code or 0), told.out, told.err

    return call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an elastic network, calibrated in two configurations, and its table."""
    torch.manual_seed(0)
    net = create_model("elastic_resnet20", widths=(0.5, 1.0), resolutions=(32, 20))
    names = ("cat", "dog", *(str(number) for number in range(8)))
    attach(net, InputContract(size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, class_names=names))
    loader = [(torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))]
    calibrate(net, loader, CONFIGS)
    folder = save(net, tmp_path_factory.mktemp("saved") / "net")
    table = QueryTable.measure(net, loader, rounds=2)
    # The larger is the more accurate, as if it were trained.
    rows = tuple(replace(row, accuracy=row.width) for row in table.rows)
    replace(table, rows=rows).save(folder / "table.json")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixteen images to train on and sixteen to test on, as a data set's name."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (root / place).mkdir(parents=True)
        for index in range(8):
            pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{index}.png")
    return f"folder:{root}"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "net"))


def test_run_keeps_a_target_and_tells(run: Run, folder: Path, images: str, tmp_path: Path) -> None:
    code, out, err = run(
        "run", folder, "--target-ms", 1000, "--seconds", 0.6, "--log", tmp_path / "t.csv",
        "--plot", tmp_path / "t.png",
    )  # fmt: skip
    assert code == 0, err
    assert "2 configurations" in out
    assert "0 changes" in out
    assert (tmp_path / "t.png").stat().st_size > 10_000
    assert len((tmp_path / "t.csv").read_text().splitlines()) > 3
    code, out, err = run("run", folder, "--target-ms", 0.001, "--seconds", 0.3, "--data", images, "--json")
    assert code == 0, err
    (phase,) = json.loads(out)
    assert phase["over"] == 1.0  # nothing is that fast; the fastest is what it falls back on
    assert phase["accuracy"] < 0.75


def retrained(folder: Path) -> torch.nn.Module:
    """The network in the folder after a change of its weights."""
    net = load(folder)
    with torch.no_grad():
        next(net.parameters()).mul_(1.01)
    return net


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda f: None, ["--target-ms", "0"], "target must be a number of milliseconds above 0"),
        (lambda f: None, ["--target-ms", "5", "--seconds", "0"], "--seconds 0: expected a number above 0"),
        (lambda f: (f / "table.json").unlink(), ["--target-ms", "5"], "no query table there"),
        (lambda f: save(create_model("resnet20"), f), ["--target-ms", "5"], "has a single configuration"),
        (
            lambda f: (f / "table.json").write_text((f / "table.json").read_text().replace('"cpu": "', '"cpu": "not ')),
            ["--target-ms", "5"],
            r"measured on another machine \(not .*\(--any-machine\)",
        ),
        (
            lambda f: save(retrained(f), f),
            ["--target-ms", "5"],
            "this query table is of another model: its weights are",
        ),
    ],
)
def test_run_refuses(run: Run, folder: Path, change: Callable[[Path], object], arguments: list[str], message: str):
    change(folder)
    code, _, err = run("run", folder, *arguments)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err)


def test_what_table_calibrates_stays_in_the_folder(run: Run, folder: Path, images: str, tmp_path: Path) -> None:
    shorter = ["--step", 0.25, "--resolution", 20, "--data", images, "--no-latency"]
    code, _, err = run("table", folder, *shorter, "--no-store", "--out", tmp_path / "t.json")
    assert code == 0, err
    assert [tuple(config) for config in load(folder).calibrated] == CONFIGS
    assert run("export", folder, tmp_path / "net.onnx", "--width", 0.75, "--resolution", 20)[0] == 2
    code, _, err = run("table", folder, *shorter, "--out", tmp_path / "t.json")
    assert code == 0, err
    assert {tuple(config) for config in load(folder).calibrated} == {*CONFIGS, (1.0, 20), (0.75, 20)}
    QueryTable.load(tmp_path / "t.json").check(load(folder))
    load(folder).extract(0.75, 20)  # no longer refused


def test_table_and_pick_by_setup_and_memory(run: Run, folder: Path, images: str, tmp_path: Path) -> None:
    arguments = ["--step", 0.5, "--resolution", 20, "--data", images, "--out", tmp_path / "t.csv"]
    code, out, err = run("table", folder, *arguments, "--batch", 1, "--batch", 2)
    assert code == 0, err
    assert "eager_t1_b2 [ms]" in out
    table = QueryTable.load(tmp_path / "t.csv")
    assert table.setups == ("eager_t1_b1", "eager_t1_b2")
    least = min(row.peak_bytes for row in table.rows)
    picked = json.loads(run("pick", tmp_path / "t.csv", "--max-memory", least, "--json")[1])
    assert picked["peak_bytes"] == least
    code, _, err = run("pick", tmp_path / "t.csv", "--max-memory", least - 1)
    assert code == 2
    assert f"the cheapest is 0.5-20 with peak_bytes = {least}" in err
    limit = ["--max-latency-ms", 1e6, "--setup"]
    assert run("pick", tmp_path / "t.csv", *limit, "eager_t1_b2")[0] == 0
    assert "timing setup 'eager_t9_b1'" in run("pick", tmp_path / "t.csv", *limit, "eager_t9_b1")[2]
    code, _, err = run("table", folder, *arguments, "--threads", 0)
    assert "--threads 0: expected a whole number from 1" in err
