"""`leanconv plan`: layers and models as chains, their costs, and what a user can get wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from leanconv.cli import main


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *arguments])
    told = capsys.readouterr()
    assert caught.value.code == code, told.err
    return told.err if code else told.out


def data(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(call(capsys, *arguments, "--json"))


def test_one_layer(capsys: pytest.CaptureFixture[str]) -> None:
    facts = data(capsys, "osep:overlap=1", "--conv", "64,128,3", "--size", "64,32,32")
    assert facts["groups"] == [16, 4]
    assert facts["params"] == 64 * 4 * 9 + 128 * 16 == sum(stage["params"] for stage in facts["stages"])
    assert facts["params_dense"] == 64 * 128 * 9
    assert facts["macs"] == facts["params"] * 32 * 32
    assert facts["coverage"] == 1
    assert facts["receptive_field"] == [3, 3]
    text = call(capsys, "osep:overlap=1", "--conv", "64,128,3")
    assert "every output channel sees every input channel" in text
    assert "4,352" in text


def test_shortfall_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, "osep:overlap=0.25", "--conv", "64,128,3")
    assert "an output channel sees 25.0 % of the input channels on average, 16 of 64 at least" in text
    assert "layers do not see all input channels" in call(capsys, "osep:overlap=0.25", "--model", "resnet20")


def test_three_axes_and_a_stride(capsys: pytest.CaptureFixture[str]) -> None:
    facts = data(capsys, "csn:mode=ir", "--conv", "8,8,1x3x3,2", "--size", "8,4,16,16")
    assert facts["conv"] == [8, 8, [1, 3, 3], [2, 2, 2]]
    assert facts["macs"] == 8 * 9 * 2 * 8 * 8


def test_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    facts = data(capsys, "osep", "--model", "resnet20", "--set", "multiplier=3.625")
    assert len(facts["layers"]) == 18
    assert all(layer["coverage"] == 1 and layer["new"] and layer["macs"] > 0 for layer in facts["layers"])
    ours = data(capsys, "osep", "--model", "o_resnet20", "--set", "multiplier=3.625")
    assert [layer["plan"] for layer in ours["layers"]] == [layer["plan"] for layer in facts["layers"]]
    assert not any(layer["new"] for layer in ours["layers"])
    assert "18 layers" in call(capsys, "igc", "--model", "resnet20")


def test_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    facts = data(capsys, "osep", "--conv", "64,64,3", "--sweep")
    assert facts["best_stage_count"] == pytest.approx(6.36, abs=0.01)
    rows = {row["name"]: row for row in facts["rows"]}
    assert rows["gamma=1"]["coverage"] == 1 > rows["gamma=0.25"]["coverage"]
    assert (rows["gamma=4"]["overlap"], rows["gamma=64"]["overlap"]) == (3.0, None)  # 64 is left dense
    assert rows["gamma=4"]["params_relaxed"] == 6144 > rows["gamma=4"]["params"]
    assert rows["N=1"]["params"] == rows["conventional (gamma -> inf)"]["params"] == 64 * 64 * 9
    assert "relaxed, the best number of stages is 6.36" in call(capsys, "osep", "--conv", "64,64,3", "--sweep")
    widths = data(capsys, "igc:primary_partitions=28", "--conv", "84,84,3", "--sweep")
    assert widths["budget"] == 4620
    assert widths["widest"] == {"primary": 28, "secondary": 3, "params": 4620, "width": 84}
    assert widths["widest"] in widths["rows"]
    assert "the widest within it has L = 28, M = 3, width 84" in call(
        capsys, "igc:primary_partitions=28", "--conv", "84,84,3", "--sweep"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["osep"], "one of --conv"),
        (["osep", "--conv", "64,64,3", "--model", "resnet20"], "one of --conv"),
        (["osep", "--conv", "64,64"], "expected IN,OUT,KERNEL"),
        (["osep", "--conv", "64,-64,3"], "above 0"),
        (["osep", "--conv", "64,64,3x3x3x3"], "one to three axes"),
        (["osep", "--conv", "64,64,3", "--size", "64,32"], "2 lengths"),
        (["osep", "--conv", "64,64,3", "--set", "a=1"], "belong to --model"),
        (["osep:overlap=0", "--conv", "64,64,3"], "overlap must be above 0"),
        (["osep:overlap=-1", "--model", "resnet20"], "overlap must be above 0"),
        (["osep:num_separated=40", "--conv", "64,64,3"], "larger than useful"),
        (["igc:primary_partitions=5", "--conv", "64,64,3"], "must divide"),
        (
            ["octave", "--conv", "64,64,3"],
            "octave is not planned layer by layer: expected one of osep",
        ),
        (["osepp", "--conv", "64,64,3"], "did you mean"),
        (["osep", "--model", "resnet20", "--sweep"], "--sweep is about one layer"),
        (["group", "--conv", "64,64,3", "--sweep"], "nothing to vary"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    line = call(capsys, *arguments, code=2)
    assert told in line
    assert line.count("\n") == 1
