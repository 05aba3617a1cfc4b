"""The options of mutual learning, from the command line's `--set` to the objective that is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from leanconv.build import create_model, save
from leanconv.elastic import MutualObjective
from leanconv.errors import LeanconvError
from leanconv.recipes import get_recipe, run_recipe


def test_every_option_reaches_the_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = save(create_model("resnet20", num_classes=10), tmp_path / "teacher")
    made: list[dict[str, Any]] = []
    original = MutualObjective.__init__

    def noted(self: MutualObjective, *args: Any, **options: Any) -> None:
        made.append(options)
        original(self, *args, **options)

    monkeypatch.setattr(MutualObjective, "__init__", noted)
    changes = [
        "elastic.low_memory=true",
        "elastic.layer_widths=true",
        "elastic.draw_full=true",
        "elastic.hard_labels=0.25",
        "elastic.train_resolutions=[32]",
        "elastic.num_random=1",
        "elastic.temperature=2",
        f"elastic.teacher={teacher}",
    ]
    recipe = get_recipe("demo", tiny=True, overrides=changes)
    result = run_recipe(recipe, tmp_path / "run", progress=False, latency=False)
    (options,) = made
    assert type(options.pop("teacher")).__name__ == "CifarResNet"
    assert options == {
        "num_random": 1,
        "seed": 0,
        "temperature": 2.0,
        "hard_labels": 0.25,
        "resolutions": (32,),
        "low_memory": True,
        "layer_widths": True,
        "draw_full": True,
    }
    row = result.fit.history[0]
    assert row["train_loss"] == pytest.approx(row["train_ce"] + row["train_kl"] + row["train_student_ce"])
    assert row["train_student_ce"] > 0
    assert result.table is not None
    assert {config.resolution for config in (row.config for row in result.table.rows)} == {32, 20}  # US-Net+


def test_bad_options_are_refused_before_training(tmp_path: Path) -> None:
    for change, message in (
        ("elastic.hard_labels=2", "hard_labels is a share from 0 to 1"),
        ("elastic.train_resolutions=[20]", "must include 32"),
        ("elastic.teacher=nowhere", "nowhere"),
    ):
        recipe = get_recipe("demo", tiny=True, overrides=[change])
        with pytest.raises(LeanconvError, match=message):
            run_recipe(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
