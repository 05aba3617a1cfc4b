"""Every verb does its job, from a name to a file, and what one writes another reads."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leanconv.cli import main

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line, expect success, and give what it printed."""

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert caught.value.code == 0, told.err
        return told.out

    return call


@pytest.fixture(scope="module")
def elastic_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an elastic network, trained for two steps."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    with pytest.raises(SystemExit) as caught:
        main(["train", "demo", "--tiny", "--out", str(out)])
    assert caught.value.code == 0
    return out


def test_help_answers_at_once_and_without_torch() -> None:
    code = (
        "import sys, leanconv.cli; heavy = {'torch', 'timm', 'torchvision', 'lightning', 'rich'} & set(sys.modules); "
    )
    code += "print(heavy)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    # 0.25 s on an idle machine; the bound leaves room for a busy one.
    assert time.perf_counter() - started < 5


def test_list(run: Run) -> None:
    assert run("list", "o_resnet*").split()[:2] == ["o_resnet20", "o_resnet20_imagenet40"]
    assert "resnet50" in run("list", "timm/resnet50")
    assert "demo" in json.loads(run("list", "--recipes", "--json"))


def test_networks_made_ones_for_clips(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = json.loads(run("measure", "resnet20", "--rewrite", "inflate:frames=4", "--json"))
    assert after["macs"] == pytest.approx(4 * before["macs"], rel=1e-3)
    run("rewrite", "resnet20", "--rewrite", "inflate:frames=4", "--out", tmp_path / "clips")
    assert json.loads(run("measure", tmp_path / "clips", "--json"))[0]["macs"] == after["macs"]
    with pytest.raises(SystemExit) as caught:
        main(["bench", "resnet20", "--rewrite", "inflate:frames=4"])
    assert caught.value.code == 2
    assert "takes (3, 4, 32, 32) instead of (3, 32, 32): leanconv rewrite" in capsys.readouterr().err


def test_measure(run: Run) -> None:
    told = json.loads(run("measure", "resnet20", "--rewrite", "osep", "--json"))
    assert [row["model"] for row in told] == ["resnet20", "resnet20 + osep"]
    assert told[0]["params"] == 269722
    assert told[1]["macs"] < told[0]["macs"]
    table = run("measure", "resnet20", "o_resnet20", "--modules", "3")
    assert "269.72 k" in table
    assert "stem" in table or "conv" in table


def test_a_size_for_every_input(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        from torch import nn

        class Stereo(nn.Module):
            def __init__(self):
                super().__init__()
                self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)

            def forward(self, x, y):
                return self.left(x) + self.right(y)
    """
    (tmp_path / "stereo_network.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    both = ("stereo_network:Stereo", "--size", "3,8,8", "--size", "1,8,8")
    (told,) = json.loads(run("measure", *both, "--json"))
    assert (told["size"], told["macs"]) == ([[3, 8, 8], [1, 8, 8]], 64 * 8 * 9 * 4)
    assert "3x8x8 + 1x8x8" in run("measure", *both)
    done = json.loads(run("rewrite", *both, "--rewrite", "depth_separable", "--out", tmp_path / "saved", "--json"))
    assert [change["name"] for change in done["changes"]] == ["right"]  # the stem stays
    again = json.loads(run("measure", tmp_path / "saved", "--trust-code", "--json"))
    assert again == [{**done["after"], "model": str(tmp_path / "saved")}]


def test_what_is_not_counted_is_in_the_table_and_the_json(run: Run) -> None:
    table = " ".join(run("measure", "resnet20").split())
    assert "not counted: aten.native_batch_norm (19)" in table
    assert "parameters of operations that are not counted: 0.5 % (aten.native_batch_norm (1.38 k))" in table
    (told,) = json.loads(run("measure", "resnet20", "--json"))
    assert told["params_not_counted"] == {"aten.native_batch_norm": 1376}
    assert (told["share_not_counted"], told["params_not_run"]) == (1376 / 269722, 0)


def test_rewrite_saves_what_other_verbs_take(run: Run, tmp_path: Path) -> None:
    told = run("rewrite", "resnet20", "--rewrite", "igc:secondary_partitions=2", "--out", tmp_path / "model")
    assert "err 0." in told
    again = json.loads(run("measure", tmp_path / "model", "--json"))
    direct = json.loads(run("measure", "resnet20", "--rewrite", "igc:secondary_partitions=2", "--json"))
    assert again[0]["macs"] == direct[1]["macs"]
    report = json.loads(run("export", tmp_path / "model", tmp_path / "net.onnx", "--json"))
    assert report["max_abs_difference"] < 1e-4
    assert (tmp_path / "net.onnx").exists()


def test_train_eval_table_pick_export(run: Run, elastic_run: Path, tmp_path: Path) -> None:
    assert (elastic_run / "config.yaml").exists()
    result = json.loads(run("eval", elastic_run, "--width", "0.25", "--resolution", "20", "--json"))
    assert 0 <= result["top1"] <= result["top5"] <= 1
    picked: dict[str, Any] = json.loads(run("pick", elastic_run, "--max-macs", "1G", "--json"))
    rows = json.loads((elastic_run / "table.json").read_text())["rows"]
    assert picked["accuracy"] == max(row["accuracy"] for row in rows)
    report = json.loads(
        run("export", elastic_run / "model", tmp_path / "net.onnx", "--width", picked["width"],
            "--resolution", picked["resolution"], "--json")
    )  # fmt: skip
    assert report["max_abs_difference"] < 1e-4


def test_eval_agrees_with_the_table(run: Run, elastic_run: Path) -> None:
    rows = json.loads((elastic_run / "table.json").read_text())["rows"]
    row = rows[-1]
    told = json.loads(run("eval", elastic_run, "--width", row["width"], "--resolution", row["resolution"], "--json"))
    # The tiny recipe cuts the test set of the table short; a whole run evaluates both on the same images.
    assert told["top1"] == pytest.approx(row["accuracy"], abs=0.1)


def test_table_measures_a_grid(run: Run, elastic_run: Path, tmp_path: Path) -> None:
    told = run("table", elastic_run, "--step", "0.75", "--no-latency", "--out", tmp_path / "t.csv", "--plots", tmp_path)
    assert "accuracy" in told
    assert len((tmp_path / "t.csv").read_text().splitlines()) >= 5
    assert (tmp_path / "accuracy_macs.png").stat().st_size > 10_000


def test_a_run_is_not_overwritten(elastic_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "demo", "--tiny", "--out", str(elastic_run)])
    assert caught.value.code == 2
    assert "--resume" in capsys.readouterr().err.replace("resume=True", "--resume")


def test_config_of_a_run_is_a_recipe(run: Run, elastic_run: Path) -> None:
    assert run("train", "--config", elastic_run / "config.yaml", "--dry") == (elastic_run / "config.yaml").read_text()


def test_bench(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    run("bench", "resnet20", "--rewrite", "igc", "--backends", "eager,onnxruntime", "--rounds", "3", "--out", out)
    rows = json.loads(out.read_text())
    assert [(row["model"], row["backend"]) for row in rows] == [
        ("resnet20", "eager"),
        ("resnet20", "onnxruntime"),
        ("resnet20 + igc", "eager"),
        ("resnet20 + igc", "onnxruntime"),
    ]
    assert all(row["median_ms"] > 0 for row in rows)


def test_doctor_and_version(run: Run) -> None:
    facts = json.loads(run("doctor", "--json"))
    assert facts["packages"]["core"]["torch"]
    assert run("--version").startswith("leanconv ")


def test_demo_end_to_end(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole demo, with one epoch instead of the recipe's."""
    monkeypatch.chdir(tmp_path)
    told = run("demo", "--epochs", "1", "--out", "demo")
    for piece in ("+ osep:overlap=1", "width", "accuracy", "at most", "Next:"):
        assert piece in told
    assert len(list((tmp_path / "demo").glob("*.onnx"))) >= 2
    assert (tmp_path / "demo" / "accuracy_latency.png").exists()


@pytest.fixture(scope="module")
def video_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a network for clips, trained for two steps, on videos in a folder beside it."""
    pytest.importorskip("av")
    out = tmp_path_factory.mktemp("videos")
    spec = f"data.spec=moving-digits:{out / 'data'}"
    with pytest.raises(SystemExit) as caught:
        main(["train", "ip_csn_26_moving_digits", "--tiny", "--set", spec, "--out", str(out / "run")])
    assert caught.value.code == 0
    return out / "run"


def test_eval_of_videos(run: Run, video_run: Path, tmp_path: Path) -> None:
    trained = json.loads((video_run / "videos.json").read_text())
    files = ("--predictions", tmp_path / "said.csv", "--contact-sheet", tmp_path / "sheet.png")
    told = json.loads(run("eval", video_run, "--clips", 1, "--baseline", video_run, *files, "--json"))
    assert (told["videos"], told["clips"], told["crops"], told["unreadable"]) == (180, 1, 1, 0)
    assert trained["videos"] == 8  # tiny runs are cut short
    assert 0 <= told["video1"] <= told["video5"] <= 1
    assert told["model"] == str(video_run)
    assert told["baseline"] == {key: value for key, value in told.items() if key != "baseline"}
    assert len((tmp_path / "said.csv").read_text().splitlines()) == 181
    assert (tmp_path / "sheet.png").stat().st_size > 2000


def test_eval_of_videos_prints_chance_and_baseline(run: Run, video_run: Path, tmp_path: Path) -> None:
    data = video_run.parent / "data" / "moving-digits-1"
    lines = (data / "test.csv").read_text().splitlines()
    few = [lines[0], *lines[1::30]]
    (data / "few.csv").write_text("\n".join(few) + "\n")
    spec = f"video-csv:{data / 'train.csv'},{data / 'few.csv'}"
    told = run("eval", video_run, "--data", spec, "--clips", 2, "--crops", 3, "--baseline", video_run)
    table = [line.split() for line in told.splitlines()]
    assert [row[0] for row in table if row and row[0] in (str(video_run), "chance")] == [str(video_run)] * 2 + [
        "chance"
    ]
    assert table[[row[0] for row in table].index("chance")][1:] == ["16.67", "16.67", "-", "83.33", "-"]
    assert "6 videos, 2 clips of each, 3 crops of each." in told


def test_a_saved_network_for_clips_is_tested_on_videos(run: Run, video_run: Path) -> None:
    data = video_run.parent / "data"
    told = json.loads(run("eval", video_run / "model", "--data", f"moving-digits:{data}", "--clips", 1, "--json"))
    assert told["videos"] == 180
