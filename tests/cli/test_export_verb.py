"""`leanconv export`: how the input is made comes from the model or from options; every row of a table is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

import leanconv as lc
from leanconv.cli import main
from leanconv.data import InputContract, attach
from leanconv.deploy import input_of
from leanconv.query import QueryTable, Row

CONTRACT = InputContract(size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, class_names=("a", "b"))


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    return int(end.value.code or 0)


def test_options_say_how_the_input_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.pt2"
    assert run("export", "resnet20", file) == 0
    assert "does not say how its input is made" in " ".join(capsys.readouterr().out.split())
    assert run("export", "resnet20", file, "--mean", ".1,.2,.3") == 2
    assert "say at least both --mean R,G,B and --std R,G,B" in capsys.readouterr().err
    given = ("--mean", ".1,.2,.3", "--std", ".4,.5,.6", "--crop", 0.875, "--interpolation", "bicubic", "--no-exif")
    assert run("export", "resnet20", file, *given, "--input", "uint8") == 0
    found = input_of(file)
    assert found is not None
    assert found.dtype == "uint8"
    assert found.contract == InputContract(
        size=(3, 32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resize="shorter_side", interpolation="bicubic",
        crop=0.875, exif=False,
    )  # fmt: skip
    assert run("export", "resnet20", file, "--data", "folder:x") == 2
    assert "nothing says how the inputs of this model are made" in capsys.readouterr().err


def test_every_configuration_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = build()
    attach(net, CONTRACT)
    elastic = lc.make_elastic(
        net, widths=(0.5, 1.0), resolutions=(16, 12), size=(3, 16, 16), divisor=8, source=f"{__name__}:build"
    )
    lc.save(elastic, tmp_path / "net")
    rows = [Row(width=width, resolution=side, accuracy=0.5, macs=1, params=1) for width, side in ((1.0, 16), (0.5, 12))]
    table = QueryTable(tuple(rows)).save(tmp_path / "table.json")
    where = tmp_path / "files"
    given = ("export", tmp_path / "net", where, "--table", table, "--format", "pt2", "--trust-code")
    assert run(*given, "--json") == 0
    reports = json.loads(capsys.readouterr().out)
    assert [Path(report["path"]).name for report in reports] == ["width1_at16.pt2", "width0.5_at12.pt2"]
    found = input_of(where / "width0.5_at12.pt2")
    assert found is not None
    assert found.contract == CONTRACT.at((3, 12, 12))
    assert run(*given, "--width", 0.5) == 2
    assert run("export", "resnet20", where, "--table", table) == 2
    assert "has a single configuration" in capsys.readouterr().err
