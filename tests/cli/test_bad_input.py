"""Whatever a user gets wrong is one line on stderr and exit code 2: no traceback, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leanconv.build import create_model, save
from leanconv.cli import main

Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run the command line, expect it to refuse, and give its one line."""

    def call(*arguments: object, code: int = 2) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert caught.value.code == code, told.err
        assert told.err.startswith("leanconv: ")
        assert told.err.count("\n") == 1, told.err
        assert "Traceback" not in told.err
        return told.err

    return call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(create_model("resnet20"), tmp_path_factory.mktemp("models") / "resnet20")


def images(folder: Path, *classes: str, count: int = 6) -> Path:
    for split in ("train", "test"):
        for index, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (12, 12), (80 * index, 9 * number, 90)).save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["measure", "resnte20"], "did you mean 'resnet20'"),
        (["measure", "timm/resnet5"], "did you mean"),
        (["measure", "no_such_package.nets:build"], "no_such_package"),
        (["measure", "resnet20", "--set", "multiplir=2"], "did you mean 'multiplier'"),
        (["measure", "resnet20", "--set", "multiplier"], "expected OPTION=VALUE"),
        (["measure", "resnet20", "--size", "3,-1"], "expected channels and lengths"),
        (["measure", "timm/dla34", "--size", "3,48,48"], "in aten.cat of module 'level5.root': RuntimeError: Sizes"),
        (["measure", "timm/levit_128s", "--size", "3,64,64"], "of module 'stages.0.blocks.0.attn': RuntimeError"),
        (
            ["measure", "resnet20", "--size", "3,32,32", "--size", "1,32,32"],
            "inputs of shapes (3, 32, 32), (1, 32, 32)",
        ),
        (["measure", "resnet20", "--rewrite", "osepp"], "did you mean 'osep'"),
        (["measure", "resnet20", "--rewrite", "osep:overlapp=1"], "did you mean 'overlap'"),
        (["measure", "resnet20", "--rewrite", "osep:overlap=-1"], "overlap must be above 0"),
        (["measure", "resnet20", "--rewrite", "osep:overlap=much"], "overlap"),
        (["measure", "resnet20", "--rewrite", "igc:primary_partitions=5"], "must divide in_channels"),
        (["measure", "resnet20", "--rewrite", "group:groups=7"], "groups (=7) must divide"),
        (["measure", "resnet20", "--rewrite", "osep:where=layer9.*"], "nothing matches"),
        (["measure", "resnet20", "--rewrite", "octave:alpha=1.5"], "alpha must be at least 0 and below 1"),
        (["rewrite", "resnet20"], "at least one --rewrite"),
        (["list", "nothing*"], "unknown model"),
        (["train", "digits_resnet2"], "did you mean 'digits_resnet20'"),
        (["train"], "needs a recipe's name"),
        (["train", "digits_resnet20", "--set", "epoch=3"], "epochs"),
        (["train", "digits_resnet20", "--set", "epochs=some"], "epochs"),
        (["train", "digits_resnet20", "--set", "data.spec=folder:/no/such/folder"], "/no/such/folder"),
        (["train", "digits_resnet20", "--set", "data.spec=parquet:/no/a.parquet,/no/b.parquet"], "/no/a.parquet"),
        (["train", "--config", "/no/such/config.yaml"], "/no/such/config.yaml"),
        (["train", "--resume", "--out", "/no/such/run"], "/no/such/run"),
        (["eval", "/no/such/folder", "--data", "digits"], "/no/such/folder"),
        (["eval", "/no/such/folder", "--clips", "0"], "--clips"),
        (["train", "ip_csn_26_ut_interaction", "--set", "data.spec=video-csv:/no/a.csv,/no/b.csv"], "/no/a.csv"),
        (["train", "ip_csn_26_ut_interaction", "--set", "data.video.frame=8"], "data.video.frames"),
        (["train", "digits_resnet20", "--set", "weights=/no/such/run"], "/no/such/run"),
        (["train", "digits_resnet20", "--set", "data.spec=kinetics:/no/such/folder"], "data.video.frames=8"),
        (["export", "resnet20", "net.txt"], "must end in .onnx, .xml (OpenVINO) or .pt2"),
        (["export", "resnet20", "net.onnx", "--width", "0.5"], "for elastic networks"),
        (["bench", "resnet20", "--backends", "tensorrt"], "unknown backend"),
        (["pick", "/no/such/table.json", "--max-macs", "1M"], "/no/such/table.json"),
        (["pick", "table.json"], "needs a limit"),
        (["pick", "table.json", "--max-macs", "lots"], "expected a number"),
        (["nonsense"], "No such command"),
        (["measure"], "Missing argument"),
        (["bench", "resnet20", "--threads", "some"], "valid integer"),
        (["bench", "resnet20", "--device", "cuda"], "--device is for --train"),
        (["bench", "resnet20", "--train", "--device", "tpu"], "device must be cpu, cuda or cuda:NUMBER, got 'tpu'"),
        (["bench", "resnet20", "--train", "--backends", "openvino"], "unknown backend of training"),
        (["bench", "resnet20", "--train", "--batch", "0"], "batch=0"),
    ],
)
def test_one_line_and_code_2(
    refuse: Refuse, arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_table(tmp_path / "table.json")
    (tmp_path / "config.yaml").touch()
    before = sorted(tmp_path.rglob("*"))
    assert told in refuse(*arguments)
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"


def save_table(path: Path) -> None:
    """Write a query table of two rows."""
    from leanconv.query.table import QueryTable, Row

    rows = tuple(
        Row(
            width=width,
            resolution=32,
            accuracy=accuracy,
            macs=macs,
            params=1000,
            latency_ms=1.0,
            latency_low_ms=0.9,
            latency_high_ms=1.1,
            pareto=True,
        )
        for width, accuracy, macs in ((1.0, 0.9, 4_000_000), (0.5, 0.8, 1_000_000))
    )
    QueryTable(rows=rows).save(path)


def test_options_for_videos_on_images(refuse: Refuse, saved: Path) -> None:
    known = ("--mean", ".5,.5,.5", "--std", ".5,.5,.5")
    assert "are for videos" in refuse("eval", saved, "--data", "digits", *known, "--clips", "2")


def test_budget_below_the_smallest_row(refuse: Refuse, tmp_path: Path) -> None:
    save_table(tmp_path / "table.json")
    told = refuse("pick", tmp_path / "table.json", "--max-macs", "0.5M")
    assert "1000000" in told.replace(",", "")


def test_empty_class(refuse: Refuse, tmp_path: Path) -> None:
    folder = images(tmp_path / "data", "cat", "dog")
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    told = refuse(
        "train", "digits_resnet20", "--tiny", "--set", f"data.spec=folder:{folder}", "--out", tmp_path / "run"
    )
    assert "dog" in told
    assert not (tmp_path / "run").exists()


def test_corrupt_image_is_named_and_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images(tmp_path / "data", "cat", "dog", count=12)
    broken = folder / "train" / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    settings = [f"data.spec=folder:{folder}", "data.batch_size=8", "data.resolution=16"]
    with pytest.raises(SystemExit) as caught:
        main(["train", "digits_resnet20", "--tiny", *(word for s in settings for word in ("--set", s)),
              "--out", str(tmp_path / "run")])  # fmt: skip
    told = capsys.readouterr()
    assert caught.value.code == 0, told.err
    assert "1 image could not be read" in told.out
    problems = [path for path in (tmp_path / "run").iterdir() if "problem" in path.name]
    assert "3.png" in problems[0].read_text()
    assert (tmp_path / "run" / "model" / "weights.safetensors").exists()


def damaged(saved: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_weights_that_do_not_fit_their_story(refuse: Refuse, saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path / "model")
    story = json.loads((folder / "story.json").read_text())
    story["story"]["options"]["multiplier"] = 2
    (folder / "story.json").write_text(json.dumps(story))
    assert "do not fit" in refuse("measure", folder)


def test_truncated_weights(refuse: Refuse, saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path / "model")
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "weights.safetensors" in refuse("measure", folder)


def test_full_disk_while_saving(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("leanconv.build.folder.save_file", full)
    told = refuse("rewrite", "resnet20", "--rewrite", "igc:init=fresh", "--out", tmp_path / "model")
    assert "No space left" in told
    assert list(tmp_path.iterdir()) == []
