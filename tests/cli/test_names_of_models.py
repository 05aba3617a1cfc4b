"""How models, recipes and operators are named and listed on the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import leanconv as lc
from leanconv.cli import app, doctor, main
from leanconv.cli.values import read_model
from leanconv.errors import LeanconvError
from leanconv.recipes import RECIPES
from leanconv.rewrites.steps import STEPS, options_of, parse_step


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert not ended.value.code, told.err
    return told.out


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("resnet20", "resnet20", {}),
        ("o_resnet20(multiplier=3.625)", "o_resnet20", {"multiplier": 3.625}),
        ("oct_resnet50( alpha=0.25, num_classes=10 )", "oct_resnet50", {"alpha": 0.25, "num_classes": 10}),
        ("elastic_resnet20(widths=[0.5, 1], resolutions=(32,24))", "elastic_resnet20",
         {"widths": [0.5, 1], "resolutions": [32, 24]}),
        ("resnet20()", "resnet20", {}),
    ],
)  # fmt: skip
def test_options_stand_behind_the_name(text: str, name: str, options: dict[str, Any]) -> None:
    assert read_model(text) == (name, options)


@pytest.mark.parametrize("text", ["resnet20(alpha", "resnet20(0.5)"])
def test_what_is_no_option(text: str) -> None:
    with pytest.raises(LeanconvError, match="OPTION=VALUE"):
        read_model(text)


def test_two_models_with_their_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    two = ("resnet20", "resnet20(num_classes=7)")
    rows = json.loads(said(capsys, "bench", *two, "--backends", "eager", "--rounds", "2", "--json"))
    assert [row["model"] for row in rows] == list(two)
    (cost,) = json.loads(said(capsys, "measure", "resnet20(num_classes=7)", "--json"))
    assert cost["params"] == sum(p.numel() for p in lc.create_model("resnet20", num_classes=7).parameters())


def test_a_run_is_taken_where_a_model_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = lc.save(lc.create_model("resnet20", num_classes=3), tmp_path / "run" / "model", size=(3, 32, 32))
    (tmp_path / "run" / "config.yaml").write_text("name: x\nmodel: resnet20\n")
    (run,), (model,) = (json.loads(said(capsys, "measure", path, "--json")) for path in (tmp_path / "run", folder))
    assert {**run, "model": ""} == {**model, "model": ""}
    shutil.rmtree(folder)
    with pytest.raises(SystemExit) as ended:
        main(["measure", str(tmp_path / "run")])
    assert ended.value.code == 2


def test_short_help_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "-h") == said(capsys, "--help")
    assert said(capsys, "measure", "-h") == said(capsys, "measure", "--help")


def test_recipes_are_listed_by_paper(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "list", "--recipes").splitlines()
    listed = [line.split()[0] for line in lines if line.startswith(" ")]
    assert sorted(listed) == sorted(RECIPES)
    assert [line for line in lines if not line.startswith(" ")][1:3] == [
        "Optimized separable convolution",
        "Interleaved group convolutions",
    ]
    lines = said(capsys, "list", "--recipes", "*digits*").splitlines()
    assert "digits_resnet20" in lines[1]


def test_operators_are_listed_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "list", "--operators")
    for stem in STEPS:
        assert f"{stem}: " in told
        options = options_of(stem)
        assert (
            parse_step(f"{stem}:" + ",".join(f"{name}={value}" for name, value in _typed(options).items()))
            == STEPS[stem]()
        )
    assert json.loads(said(capsys, "list", "--operators", "octave", "--json"))["octave"]["alpha"] == "0.5"


def _typed(options: dict[str, str]) -> dict[str, str]:
    """As one types them: what is empty or null by default is left out."""
    return {name: value for name, value in options.items() if value not in ("", "null", "[]")}


def test_doctor_names_the_verbs_of_every_extra() -> None:
    extras = set(metadata("leanconv").get_all("Provides-Extra") or ()) - {"dev", "docs"}
    assert set(doctor._NEEDED_BY) == extras
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = {word for text in doctor._NEEDED_BY.values() for word in text.replace(",", "").split()}
    assert {"train", "eval", "export", "bench"} <= named & verbs


@pytest.mark.parametrize("arguments", [["list"], ["list", "timm/*"], ["--help"], ["measure", "resnet20"]])
def test_a_reader_that_has_gone_is_no_fault(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    code = "from leanconv.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code, *arguments], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")
