"""What `rewrite` returns is a network for every function that takes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import leanconv as lc
from leanconv.deploy import bench, densify, fold
from leanconv.errors import LeanconvError
from leanconv.recipes.finetuning import take_weights
from leanconv.train import Classify, ClassifyWithTower, evaluate

SIZE = (3, 32, 32)


@pytest.fixture
def new() -> lc.Rewritten:
    return lc.rewrite(lc.create_model("resnet20"), lc.OptimizedSeparable(where="layer3.*.conv2"))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(4, *SIZE), torch.randint(10, (4,)))]


def step_of(objective: Any) -> float:
    """One step of training, as `fit` takes it."""
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.01)
    loss = objective(*batches()[0], step=0)["loss"]
    loss.backward()
    optimizer.step()
    return float(loss.detach())


TAKERS: dict[str, Callable[[Any, Path], Any]] = {
    "rewrite": lambda new, _: lc.rewrite(new, lc.DepthSeparable(where="layer1.*")).model,
    "measure": lambda new, _: lc.measure(new, SIZE).params,
    "make_elastic": lambda new, _: lc.make_elastic(new, resolutions=(32, 24)).extract(0.5, calibrated=False),
    "export": lambda new, here: lc.export(new, here / "net.onnx", size=SIZE, samples=1).bytes,
    "save": lambda new, here: (
        lc.load(lc.save(new, here / "saved")).state_dict().keys() == new.model.state_dict().keys()
    ),
    "bench": lambda new, _: bench({"new": new}, SIZE, backends=["eager"], rounds=1)[0].median_ms,
    "fold": lambda new, _: fold(new, SIZE).folded,
    "densify": lambda new, _: densify(new, SIZE).densified,
    "train": lambda new, _: step_of(Classify(new, frozen_norms=True)),
    "evaluate": lambda new, _: evaluate(new, batches()).images,
    "teach": lambda new, _: step_of(lc.MutualObjective(lc.make_elastic(new, resolutions=(32,)), teacher=new)),
}


@pytest.mark.parametrize("name", TAKERS)
def test_it_is_taken_as_it_is(new: lc.Rewritten, name: str, tmp_path: Path) -> None:
    assert TAKERS[name](new, tmp_path)


@pytest.mark.parametrize("name", TAKERS)
def test_anything_else_is_one_clear_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(LeanconvError, match=r"expected an nn\.Module, got str: build or load the model first"):
        TAKERS[name]("resnet20", tmp_path)


def test_towers_are_looked_for_in_the_network(new: lc.Rewritten) -> None:
    with pytest.raises(LeanconvError, match="no paths to drop and no auxiliary classifier"):
        ClassifyWithTower(new)


def test_what_was_rewritten_is_trained_by_fit(new: lc.Rewritten, tmp_path: Path) -> None:
    from leanconv.data import open_images
    from leanconv.train import FitSettings, fit

    data = open_images("digits", resolution=32, batch_size=64)
    settings = FitSettings(epochs=1, steps_per_epoch=2)
    before = {name: value.clone() for name, value in new.model.named_parameters()}
    fit(Classify(new), data, settings, tmp_path / "run", progress=False)
    assert any(not torch.equal(value, before[name]) for name, value in new.model.named_parameters())


def test_weights_of_a_rewritten_network_can_be_taken_over(new: lc.Rewritten, tmp_path: Path) -> None:
    lc.save(new, tmp_path / "saved")
    other = lc.rewrite(lc.create_model("resnet20"), lc.OptimizedSeparable(where="layer3.*.conv2", init="fresh"))
    taken = take_weights(other.model, tmp_path / "saved", num_classes=10)
    assert not taken.fresh
