"""Finetuning takes over what fits, says what stays fresh, and refuses another network's weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import leanconv as lc
from leanconv.build import create_model, save
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.recipes import change, get_recipe, run_recipe
from leanconv.recipes.finetuning import finetune, take_weights
from leanconv.rewrites.inflate import inflated_kernel
from leanconv.train import Classify


def test_other_classes_leave_the_classifier_fresh(tmp_path: Path) -> None:
    before = create_model("resnet20", num_classes=7)
    net = create_model("resnet20", num_classes=10)
    drawn = {name: value.clone() for name, value in net.state_dict().items()}
    taken = take_weights(net, save(before, tmp_path / "model"), num_classes=10)
    assert taken.inflated == ()
    assert sorted(name.rpartition(".")[2] for name in taken.fresh) == ["bias", "weight"]
    assert {*taken.copied, *taken.fresh} == set(drawn)
    given = before.state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(value, drawn[name] if name in taken.fresh else given[name])
    assert str(taken).startswith(f"{len(taken.copied)} tensors taken over, 2 fresh (")


def test_the_same_classes_are_taken_over_whole(tmp_path: Path) -> None:
    before, net = create_model("resnet20", num_classes=7), create_model("resnet20", num_classes=7)
    taken = take_weights(net, save(before, tmp_path / "model"), num_classes=7)
    assert taken.fresh == ()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.eval()(images), before.eval()(images))


@pytest.mark.parametrize("alpha", [0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_an_image_network_is_inflated(alpha: float, tmp_path: Path) -> None:
    before = create_model("oct_resnet50", num_classes=5, alpha=alpha)
    net = create_model("oct_i3d_resnet50", num_classes=6, alpha=alpha)
    taken = take_weights(net, save(before, tmp_path / "model"), num_classes=6)
    assert taken.fresh == ("fc.weight", "fc.bias")
    given = before.state_dict()
    for name, value in net.state_dict().items():
        if name in taken.inflated:
            assert torch.equal(value, inflated_kernel(given[name], value.shape[2], "mean"))
        elif name in taken.copied:
            assert torch.equal(value, given[name])
    assert {value.shape[2] for name, value in net.state_dict().items() if name in taken.inflated} == {1, 3, 5}


def test_parts_that_were_not_there_stay_fresh(tmp_path: Path) -> None:
    before = create_model("c2d_resnet50", num_classes=5)
    net = create_model("c2d_resnet50", num_classes=5, nonlocal_blocks=True)
    taken = take_weights(net, save(before, tmp_path / "model"), num_classes=5)
    assert taken.fresh
    assert all("after" in name for name in taken.fresh)


@pytest.mark.parametrize(
    ("name", "options"), [("resnet32", {}), ("resnet20", {"multiplier": 2}), ("o_resnet20", {}), ("mobilenet_v1", {})]
)
def test_the_weights_of_another_network_are_refused(name: str, options: dict[str, float], tmp_path: Path) -> None:
    folder = save(create_model(name, num_classes=10, **options), tmp_path / "model")
    net = create_model("resnet20", num_classes=10)
    with pytest.raises(CheckpointError, match=r"its weights are not for this network: \d+ of \d+ tensors"):
        take_weights(net, folder, num_classes=10)


def test_a_rewritten_network_learns_everywhere_and_a_trained_one_with_care(tmp_path: Path) -> None:
    net = create_model("resnet20", num_classes=10)
    dense = save(net, tmp_path / "dense", size=(3, 32, 32))
    lean = save(lc.rewrite(net, lc.Octave(alpha=0.5), size=(3, 32, 32)).model, tmp_path / "lean", size=(3, 32, 32))
    run = tmp_path / "run"  # of the rewritten one: trained since
    shutil.copytree(lean, run / "model")
    (run / "config.yaml").touch()
    rates = {
        folder: (recipe.optim.lr, recipe.optim.body, recipe.epochs)
        for folder in (dense, lean, run, run / "model")
        for recipe in [finetune(str(folder), "digits")]
    }
    assert rates == {
        dense: (0.01, 0.1, 10),
        lean: (0.05, 1.0, 16),
        run: (0.01, 0.1, 10),
        run / "model": (0.01, 0.1, 10),
    }
    assert finetune("resnet20", "digits").optim.lr == 0.05


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        take_weights(create_model("resnet20"), tmp_path / "nowhere", num_classes=10)


def test_a_run_starts_from_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_recipe(get_recipe("digits_resnet20", tiny=True), tmp_path / "first", progress=False)
    settings = [f"weights={tmp_path / 'first'}", "frozen_norms=true", "optim.lr=1e-9", "optim.weight_decay=0"]
    second = run_recipe(change(get_recipe("digits_resnet20", tiny=True), settings), tmp_path / "second")
    assert "tensors taken over" in capsys.readouterr().out
    before = first.net.state_dict()
    for name, value in second.net.state_dict().items():
        assert torch.allclose(value.double(), before[name].double(), atol=1e-6), name


def test_frozen_norms_stay_as_they_are() -> None:
    net = create_model("resnet20")
    objective = Classify(net, frozen_norms=True).train()
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert net.training
    assert not any(norm.training for norm in norms)
    statistics = [norm.running_mean.clone() for norm in norms]
    objective(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]), step=0)["loss"].backward()
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, statistics, strict=True))
    assert all(norm.weight.grad is None for norm in norms)
    assert {name for name, value in net.named_parameters() if value.grad is not None} == {
        name for name, value in net.named_parameters() if value.ndim > 1 or "fc" in name
    }


def test_frozen_norms_are_not_for_mutual_learning() -> None:
    with pytest.raises(LeanconvError, match="frozen_norms is only for the plain objective"):
        change(get_recipe("demo"), ["frozen_norms=true"])
