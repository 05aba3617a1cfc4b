"""Every recipe runs, tiny; what a run leaves can be loaded; a run continues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from leanconv.build import load
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.recipes import RECIPES, build_model, change, get_recipe, run_recipe
from leanconv.recipes.csn import CSN
from leanconv.recipes.igc import IGC
from leanconv.recipes.mutual import MUTUAL
from leanconv.recipes.octave import OCTAVE
from leanconv.recipes.osep import OSEP
from leanconv.rewrites import parse_step

QUICK = {"resnet20_cifar10", "o_resnet20_cifar100", "so_resnet20_cifar10", "o_resnet20_gamma64_cifar10"}
QUICK |= {"o_resnet20_imagenet40", "o_darts_cifar10", "darts_imagenet", "regconv_w18_d20_cifar10"}
QUICK |= {"igc_l24m2_identity_d50_cifar100", "igc_l4m8_d20_cifar10", "sumfusion_d8_cifar100"}
QUICK |= {"ir_csn_26_kinetics_8x2", "csn_figure6_simple_g4_8", "ip_csn_50_kinetics_finetune", "c2d_resnet50_kinetics"}
QUICK |= {"ip_csn_26_moving_digits_single_frame", "ip_csn_26_ut_interaction"}
QUICK |= {"oct_resnet20_cifar10", "oct_resnet50_imagenet", "oct_resnet50_imagenet_finetune"}
QUICK |= {"elastic_resnet20_cifar10", "elastic_mobilenet_v1_imagenet", "elastic_mobilenet_v1_food101"}
"""Of the papers' many rows these run always; each kind of row is among them."""

SLOW = {*OSEP, *IGC, *CSN, *OCTAVE, *MUTUAL} - QUICK


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RECIPES]
)
def test_every_recipe_runs_tiny_and_its_model_loads(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    recipe = get_recipe(name, tiny=True)
    if recipe.data.video is not None:
        recipe = change(recipe, [f"data.spec={request.getfixturevalue('moving_digits')}"])
    result = run_recipe(recipe, tmp_path / "run", progress=False, latency=False)
    assert result.fit.history[-1]["step"] == 2
    images = torch.randn(2, *recipe.data.input_size)
    net, again = result.net.eval(), load(result.model_folder).eval()
    assert (result.videos is None) == (recipe.data.video is None)
    if recipe.elastic is None:
        assert result.table is None
        assert same(net(images), again(images))
        shutil.rmtree(tmp_path / "run")  # gigabytes for the largest, which pytest would keep
        return
    assert [row.config for row in result.table.rows] == [*recipe.elastic.configs]
    assert {entry.name for entry in (tmp_path / "run").iterdir()} >= {"table.json", "table.csv"}
    for config in recipe.elastic.configs:
        with net.at(*config), again.at(*config):
            assert same(net(images), again(images))


def same(one: Any, other: Any) -> bool:
    """Whether all tensors of two answers are equal, logits or found objects."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_rewrites_are_applied_and_remembered(tmp_path: Path) -> None:
    recipe = get_recipe("digits_resnet20", tiny=True, overrides=["rewrites=[osep]"])
    result = run_recipe(recipe, tmp_path / "run", progress=False)
    story = json.loads((result.model_folder / "story.json").read_text())["story"]
    assert story["steps"][0][0] == parse_step("osep").stem
    plain = build_model(get_recipe("digits_resnet20"), 10)
    count = [sum(parameter.numel() for parameter in net.parameters()) for net in (result.net, plain)]
    assert count[0] < count[1]


def test_the_seed_decides_the_first_weights() -> None:
    def first(seed: int) -> torch.Tensor:
        torch.rand(3)
        return next(build_model(get_recipe("digits_resnet20", overrides=[f"seed={seed}"]), 10).parameters())

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_the_head_has_the_classes_of_the_data() -> None:
    recipe = get_recipe("digits_resnet20")
    heads = [module for module in build_model(recipe, 7).modules() if isinstance(module, nn.Linear)]
    assert heads[-1].out_features == 7
    with pytest.raises(LeanconvError, match=r"model_args.num_classes is 3, but the data has 10 classes"):
        build_model(get_recipe("digits_resnet20", overrides=["model_args.num_classes=3"]), 10)


def test_a_run_starts_from_a_saved_network(tmp_path: Path) -> None:
    trained = run_recipe(get_recipe("digits_resnet20", tiny=True), tmp_path / "dense", progress=False)
    settings = [f"model={trained.model_folder}", "rewrites=[octave:alpha=0.25]"]
    net = build_model(get_recipe("digits_resnet20", overrides=settings), 10)
    dense = dict(trained.net.named_parameters())
    assert torch.equal(dict(net.named_parameters())["fc.weight"], dense["fc.weight"])
    cut = dict(net.named_parameters())["layer1.0.conv1.conv_hh.weight"]
    assert torch.equal(cut, dense["layer1.0.conv1.weight"][:12])
    with pytest.raises(LeanconvError, match=r"has 10 outputs, but the data has 11 classes"):
        build_model(get_recipe("digits_resnet20", overrides=settings), 11)
    with pytest.raises(LeanconvError, match=r"fixed by its story: multiplier"):
        build_model(get_recipe("digits_resnet20", overrides=[*settings, "model_args.multiplier=2"]), 10)


def test_mixup_is_for_the_plain_objective() -> None:
    assert get_recipe("oct_resnet152_deep_imagenet").mixup == 0.2
    with pytest.raises(LeanconvError, match="mixup is only for the plain objective"):
        get_recipe("demo", overrides=["mixup=0.2"])


def test_an_elastic_zoo_model_is_made_for_the_recipe() -> None:
    settings = ["model=elastic_resnet20", "elastic.resolutions=[32,20]"]
    net = build_model(get_recipe("demo", overrides=settings), 10)
    assert tuple(net.resolutions) == (32, 20)
    with pytest.raises(LeanconvError, match=r"elastic over resolutions \[32, 24\], the recipe says \[32, 20\]"):
        build_model(get_recipe("demo", overrides=[*settings, "model_args.resolutions=[32,24]"]), 10)


def test_an_elastic_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("demo", tiny=True, overrides=["epochs=2", "ema=0.5"])
    whole = run_recipe(recipe, tmp_path / "whole", progress=False, latency=False)

    from leanconv.elastic import MutualObjective

    forward = MutualObjective.forward

    def broken(self, inputs, targets, step):
        if step == 3:
            raise RuntimeError("power cut")
        return forward(self, inputs, targets, step)

    with monkeypatch.context() as patch:
        patch.setattr(MutualObjective, "forward", broken)
        with pytest.raises(RuntimeError, match="power cut"):
            run_recipe(recipe, tmp_path / "run", progress=False, latency=False)
    again = run_recipe(recipe, tmp_path / "run", resume=True, progress=False, latency=False)
    one, other = whole.net.state_dict(), again.net.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(CheckpointError, match=r"optim.lr was 0.1 and is 0.3"):
        run_recipe(
            get_recipe("demo", tiny=True, overrides=["epochs=2", "ema=0.5", "optim.lr=0.3"]),
            tmp_path / "run",
            resume=True,
        )


def test_a_run_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    """Settings that a later version has added are missing in the folder, and mean their defaults."""
    recipe = get_recipe("digits_resnet20", tiny=True, overrides=["epochs=2"])
    run_recipe(recipe, tmp_path / "run", progress=False)
    config = tmp_path / "run" / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    added = ("clip:", "accumulate:", "weights:", "frozen_norms:", "  video:")
    config.write_text("".join(line for line in lines if not line.startswith(added)))
    result = run_recipe(recipe, tmp_path / "run", resume=True, progress=False)
    assert result.fit.epochs == 2
    assert config.read_text() == "".join(lines)
