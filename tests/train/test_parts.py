"""The best epoch is chosen on the validation part; what is reported is another one; short tests see every class."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from leanconv.data import ImageData, open_images
from leanconv.data.sets.splits import spread_sample
from leanconv.errors import DataError
from leanconv.recipes import DataSettings, Recipe, open_data, read_recipe, run_recipe, to_yaml
from leanconv.train import Classify, FitSettings, evaluate, fit


def pictures(root: Path, parts: dict[str, dict[str, int]]) -> Path:
    """Images of noise, so many of each class of each part."""
    draw = np.random.default_rng(0)
    for part, classes in parts.items():
        for name, count in classes.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    return root


class Turns(Classify):
    """Says class 0 for everything in the first epoch, class 1 in the second."""

    def predict(self, inputs: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(inputs),), self.epoch), 2).float()

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        self.epoch = step
        return super().forward(inputs, targets, step)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


QUICK = FitSettings(epochs=2, steps_per_epoch=1, accelerator="cpu")


def test_the_best_epoch_is_that_of_the_validation_part(tmp_path: Path) -> None:
    """Were it chosen on the test part, whose images are nearly all of class 1, it would be the second."""
    root = pictures(tmp_path / "all", {"train": {"a": 4, "b": 4}, "val": {"a": 5, "b": 1}, "test": {"a": 1, "b": 9}})
    data = open_images(f"folder:{root}", resolution=8)
    assert (data.train_size, data.val_size, data.test_size) == (8, 6, 10)
    assert data.has_validation
    assert data.has_test
    result = fit(Turns(net()), data, QUICK, tmp_path / "run", progress=False)
    assert (result.part, result.best_epoch) == ("validation", 1)
    assert result.best_accuracy == pytest.approx(5 / 6)
    assert torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["epoch"] == 0
    assert result.accuracy == pytest.approx(1 / 6), "that of the last epoch"


def test_without_a_validation_part_nothing_is_chosen(tmp_path: Path) -> None:
    root = pictures(tmp_path / "all", {"train": {"a": 4, "b": 4}, "test": {"a": 1, "b": 9}})
    data = open_images(f"folder:{root}", resolution=8)
    result = fit(Turns(net()), data, QUICK, tmp_path / "run", progress=False)
    assert (result.part, result.best_epoch, result.best_accuracy) == ("test", None, None)
    assert not (tmp_path / "run" / "best.ckpt").exists()
    assert result.accuracy == pytest.approx(0.9)


def test_a_part_of_training_is_held_out(tmp_path: Path) -> None:
    def parts(root: Path, seed: int = 0, share: float = 0.25) -> tuple[ImageData, list[str], list[str]]:
        data = open_images(f"folder:{root}", resolution=8, validation=share, seed=seed)
        names = [[str(Path(name).relative_to(root)) for name in loader.names()]
                 for loader in (data.train_loader(), data.val_loader())]  # fmt: skip
        return data, *names

    root = pictures(tmp_path / "all", {"train": {"a": 20, "b": 8, "c": 1}, "test": {"a": 2}})
    data, train, held = parts(root)
    assert (len(train), len(held), data.test_size) == (22, 7, 2)
    assert not set(train) & set(held)
    assert Counter(Path(name).parent.name for name in held) == {"a": 5, "b": 2}, "a class of one stays in training"
    assert (
        data.remarks[-1]
        == "7 of the 29 training images are held out to choose by (data.validation=0 trains on all of them)"
    )
    assert parts(root.rename(tmp_path / "moved"))[2] == held, "wherever the folder lies"
    assert parts(tmp_path / "moved", seed=1)[2] != held
    with pytest.raises(DataError, match="from 0 to below 1, got 1"):
        parts(tmp_path / "moved", share=1)


def test_a_recipe_holds_out_of_ones_own_pictures_alone(tmp_path: Path) -> None:
    assert [DataSettings(spec=spec).held_out for spec in ("folder:x", "video-csv:x", "digits", "cifar10:x")] == [
        0.1, 0.1, 0, 0,
    ]  # fmt: skip
    assert DataSettings(spec="folder:x", validation=0.0).held_out == 0
    root = pictures(tmp_path / "all", {"train": {"a": 10, "b": 10}, "test": {"a": 2, "b": 2}})
    recipe = Recipe(name="x", model="resnet20", data=DataSettings(spec=f"folder:{root}", resolution=8))
    assert (open_data(recipe).train_size, open_data(recipe).val_size) == (18, 2)
    text = "".join(line for line in to_yaml(recipe).splitlines(keepends=True) if not line.startswith("  validation"))
    (tmp_path / "old.yaml").write_text(text)
    assert read_recipe(tmp_path / "old.yaml").data.held_out == 0, "a run begun without goes on without"


def test_a_run_reports_on_the_test_part(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = pictures(tmp_path / "all", {"train": {"a": 6, "b": 6}, "val": {"a": 2, "b": 2}, "test": {"a": 3, "b": 4}})
    data = DataSettings(spec=f"folder:{root}", resolution=8)
    recipe = Recipe(name="x", model="resnet20", epochs=1, data=data, accelerator="cpu")
    done = run_recipe(recipe, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (told["part"], told["images"], len(told["top1_interval"])) == ("test", 7, 2)
    assert done.images is not None
    assert done.images.top1 == told["top1"] == evaluate(done.net, open_data(recipe).eval_loader()).top1
    assert len((tmp_path / "run" / "predictions.csv").read_text().splitlines()) == 8
    assert "  val " in capfd.readouterr().out
    for folder in (root / "test").iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (root / "test").rmdir()
    run_recipe(recipe, tmp_path / "without")
    assert json.loads((tmp_path / "without" / "evaluation.json").read_text())["part"] == "validation"
    assert "no test part: the accuracy is that of the validation images" in capfd.readouterr().out


def test_a_short_test_draws_over_all_classes(tmp_path: Path) -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    assert Counter(labels[spread_sample(labels, 10, 0)].tolist()) == {0: 6, 1: 3, 2: 1}
    assert Counter(labels[spread_sample(labels, 3, 0)].tolist()) == {0: 1, 1: 1, 2: 1}
    assert spread_sample(labels, 10, 0) == spread_sample(labels, 10, 0) != spread_sample(labels, 10, 1)
    data = open_images("digits", resolution=8, batch_size=5)
    short = data.eval_loader(limit=20)
    assert Counter(torch.cat([found for _, found in short]).tolist()) == dict.fromkeys(range(10), 2)
    halves = [data.eval_loader(rank=rank, world=2, limit=20).names() for rank in (0, 1)]
    assert sorted(halves[0] + halves[1]) == sorted(short.names())
