"""A study: what is refused, that means, intervals and differences are right, that it goes on, and what it shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image

from leanconv.build import create_model, save
from leanconv.cli import main
from leanconv.data import InputContract, attach
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.recipes import DataSettings, Recipe, StudyPlan, get_recipe, study
from leanconv.recipes.study.plan import run_folder, write_plan
from leanconv.recipes.study.printed import changed_settings, printed_for
from leanconv.report import plot_study, study_table

MEAN, STD = (0.5,) * 3, (0.25,) * 3
SMALL = {"a": 0.25, "b": 0.5}


def recipe(name: str = "a", **changes: Any) -> Recipe:
    return replace(
        Recipe(name=name, model="mobilenet_v1", model_args={"multiplier": SMALL.get(name, 0.25)}),
        data=DataSettings(spec="digits", resolution=32),
        **changes,
    )


def finish(out: Path, name: str, seed: int, right: int, images: int = 100) -> None:
    """What a finished run leaves, with an accuracy of our choice."""
    folder = run_folder(out, name, seed)
    torch.manual_seed(seed)
    model = create_model("mobilenet_v1", num_classes=10, multiplier=SMALL[name])
    attach(model, InputContract(size=(3, 32, 32), mean=MEAN, std=STD))
    save(model, folder / "model", size=(3, 32, 32))
    (folder / "evaluation.json").write_text(json.dumps({"images": images, "top1": right / images, "loss": 1.0}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks under three seeds: b is better by 3, 2 and 4 points; its last seed is not there yet in `half`."""
    out = tmp_path_factory.mktemp("study")
    write_plan(StudyPlan(recipes=(recipe("a"), recipe("b")), seeds=(0, 1, 2)), out)
    for seed, (a, b) in enumerate([(80, 83), (84, 86), (82, 86)]):
        finish(out, "a", seed, a)
        finish(out, "b", seed, b)
    return out


def report(out: Path, **options: Any) -> dict[str, Any]:
    return study([], [], out, begin=False, progress=False, **{"latency": False, **options})


def test_means_deviations_and_differences_by_seed(finished: Path) -> None:
    a, b = report(finished)["rows"]
    assert a["values"] == {"0": 0.80, "1": 0.84, "2": 0.82}
    assert a["mean"] == pytest.approx(0.82)
    assert a["std"] == pytest.approx(0.02)
    assert a["interval"] == pytest.approx([0.82 - 4.3027 * 0.02 / 3**0.5, 0.82 + 4.3027 * 0.02 / 3**0.5], abs=1e-5)
    assert a["difference"] is None
    assert a["macs"] < b["macs"]
    assert a["params"] < b["params"]
    difference = b["difference"]
    assert difference["from"] == "a"
    assert difference["mean"] == pytest.approx(0.03)
    assert difference["std"] == pytest.approx(0.01)
    reach = 4.3027 * 0.01 / 3**0.5
    assert difference["interval"] == pytest.approx([0.03 - reach, 0.03 + reach], abs=1e-5)
    assert difference["clear"]  # by pairs; the two intervals alone overlap
    assert a["interval"][1] > b["interval"][0]


def test_a_seed_that_is_missing_is_said(finished: Path, tmp_path: Path) -> None:
    write_plan(StudyPlan(recipes=(recipe("a"), recipe("b")), seeds=(0, 1, 2)), tmp_path)
    with pytest.raises(LeanconvError, match="none of its 6 runs is finished"):
        report(tmp_path)
    for seed in (0, 1):
        finish(tmp_path, "a", seed, 80 + seed)
    finish(tmp_path, "b", 1, 90)
    found = report(tmp_path)
    assert found["unfinished"] == {"a": [2], "b": [0, 2]}
    b = found["rows"][1]
    assert (b["std"], b["interval"]) == (None, None)
    assert (b["difference"]["seeds"], b["difference"]["interval"], b["difference"]["clear"]) == ([1], None, False)
    assert any("2 of 3 seeds not finished (0, 2); one seed alone" in note for note in study_table(found).notes)
    finish(tmp_path, "b", 0, 90, images=50 * 9)
    with pytest.raises(LeanconvError, match=r"a, seed 0 was tested on 100 items and b, seed 0 on 450"):
        report(tmp_path)
    (run_folder(tmp_path, "b", 0) / "evaluation.json").write_text('{"images": 100, "top1": "much"}')
    with pytest.raises(CheckpointError, match=r"b/seed0/evaluation.json: .*top1 must be a number"):
        report(tmp_path)


def test_the_table_and_the_figure(finished: Path, tmp_path: Path) -> None:
    found = report(finished, latency=True)
    assert all(0 < row["ms_low"] <= row["ms"] <= row["ms_high"] for row in found["rows"])
    found["rows"][0]["printed"] = [{"accuracy": 92.5, "spread": 0.3}]
    table = study_table(found)
    headers = [column.header for column in table.columns]
    told = [dict(zip(headers, row, strict=True)) for row in table.rows]
    assert told[0]["accuracy [%]"] == "82.00"
    assert told[0]["printed [%]"] == "92.5±0.3"
    assert told[1]["difference"] == "+3.00"
    assert table.strong == {1}
    drawn = image.imread(plot_study(found, tmp_path / "figure.png"))
    assert drawn.shape[1] > 2.5 * drawn.shape[0]  # three panels
    two = image.imread(plot_study(report(finished), tmp_path / "two.png"))
    assert two.shape[1] < drawn.shape[1]
    with pytest.raises(LeanconvError, match="nothing to draw"):
        plot_study({**found, "rows": []}, tmp_path / "none.png")


def test_from_an_elastic_network_the_same_size_is_taken() -> None:
    from leanconv.recipes.study.results import _difference, _Subject

    full, half = (
        _Subject(recipe="e", configuration=f"{w}x at 32", width=w, size=(3, 32, 32), macs=m, values={0: v, 1: v})
        for w, m, v in ((1.0, 40, 0.9), (0.5, 10, 0.8))
    )
    us = _Subject(recipe="u", configuration="0.5x at 32", width=0.5, size=(3, 32, 32), macs=10, values={0: 0.7, 1: 0.7})
    own = _Subject(recipe="i", size=(3, 32, 32), macs=10, values={0: 0.75, 1: 0.85})
    other = _Subject(recipe="o", size=(3, 28, 28), macs=10, values={0: 0.75, 1: 0.85})
    rows = [full, half, us, own, other]
    assert [_difference(row, rows) and _difference(row, rows)["from"] for row in rows] == [
        None,
        None,
        "e 0.5x at 32",
        "e 0.5x at 32",
        None,
    ]
    assert _difference(own, rows)["mean"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("recipes", "seeds", "told"),
    [
        ((), (0, 1), "needs at least one recipe"),
        ((recipe(), recipe()), (0, 1), "a is named twice: .*--set name=other"),
        ((recipe(),), (1, 1), "seed 1 is named twice"),
        ((recipe(),), (0,), "an interval needs at least 2 seeds, got 1"),
        ((recipe(), recipe("b", steps_per_epoch=2)), (0, 1), "a and b are tested on other data: the length of a test"),
    ],
)
def test_plans_that_are_refused(recipes: tuple[Recipe, ...], seeds: tuple[int, ...], told: str) -> None:
    with pytest.raises(LeanconvError, match=told):
        StudyPlan(recipes=recipes, seeds=seeds)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["resnet20_cifar10", "resnet20_cifar100"],
            "are tested on other data: data.spec is 'cifar10:data' for one and",
        ),
        (["resnet20_cifar10", "--seeds", "1"], "an interval needs at least 2 seeds, got 1"),
        (["resnet20_cifar11"], "unknown recipe 'resnet20_cifar11': did you mean 'resnet20_cifar1"),
        ([], "study needs recipes"),
        (["--resume"], "holds no study"),
        (["none.yaml"], "none.yaml: no such recipe file"),
        (["--resume", "--set", "epochs=3"], "none is named"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["study", *words, "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.err.count("\n") == 1
    assert told in said.err
    assert not (tmp_path / "out" / "study.json").exists()


def test_a_changed_recipe_and_a_folder_that_is_in_use(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LeanconvError, match=r"a is another recipe than the one .*: epochs was 10 and is 3: its runs"):
        study([recipe("a", epochs=3)], range(3), finished, resume=True)
    with pytest.raises(LeanconvError, match="already holds a study"):
        study([recipe("a")], range(3), finished)
    with pytest.raises(SystemExit) as caught:
        main(["study", "--no-run", "--no-latency", "--out", str(finished), "--json"])
    assert caught.value.code == 0
    assert [row["recipe"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["a", "b"]


def test_names_in_a_plan_stay_inside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"recipes": ["../a"], "seeds": [0, 1]}')
    with pytest.raises(CheckpointError, match=r"'\.\./a' is no name of a recipe"):
        report(tmp_path)


def test_what_the_papers_print() -> None:
    assert [row["accuracy"] for row in printed_for("resnet20_cifar10")] == [91.25]  # osep, table 2
    assert [(row["accuracy"], row["spread"]) for row in printed_for("igc_l24m2_d20_cifar10")] == [
        (92.84, 0.26)
    ]  # igc, table 4
    assert printed_for("nobody") == []
    original = get_recipe("resnet20_cifar10")
    assert changed_settings(replace(original, seed=3, epochs=10), original) == ["epochs was 200 and is 10"]


@pytest.mark.slow
def test_it_runs_stops_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps of two recipes under two seeds; one is broken and tried again, one seed and one recipe come in."""
    out = tmp_path / "study"
    two = [get_recipe(name, tiny=True) for name in ("digits_resnet20", "demo")]
    broken = replace(two[0], name="broken", model="resnet20", model_args={"depth": 3})
    with pytest.raises(LeanconvError, match=r"2 of 4 runs failed, the first is broken, seed 0: leanconv: .*depth"):
        study([two[0], broken], (0, 1), out, at_once=2, latency=False)
    assert capsys.readouterr().out.count("digits_resnet20, seed") == 2
    (out / "study.json").write_text('{"recipes": ["digits_resnet20"], "seeds": [0, 1]}')
    found = study(two[1:], (0, 1), out, resume=True, at_once=2, latency=False)
    assert capsys.readouterr().out.startswith("2 of 4 runs are finished\n")
    assert [row["recipe"] for row in found["rows"]] == ["digits_resnet20", *["demo"] * 4]
    assert all(len(row["values"]) == 2 for row in found["rows"])
    assert json.loads((out / "results.json").read_text()) == found
