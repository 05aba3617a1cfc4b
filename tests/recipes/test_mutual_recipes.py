"""MutualNet's recipes: the published settings, and finetuning from a network that is elastic and calibrated."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanconv.build import load
from leanconv.elastic import ElasticNet
from leanconv.errors import LeanconvError
from leanconv.recipes import build_model, get_recipe, run_recipe
from leanconv.recipes.mutual import MUTUAL
from leanconv.report import plot_accuracy_macs, query_table

PUBLISHED = {
    # widths, largest and smallest side, epochs, batch, rate, weight decay, schedule
    "elastic_mobilenet_v1_imagenet": ((0.25, 1.0), 224, 128, 250, 1024, 0.5, 1e-4, "cosine"),
    "elastic_mobilenet_v2_imagenet": ((0.7, 1.0), 224, 128, 250, 1024, 0.5, 1e-4, "cosine"),
    "elastic_mobilenet_v1_wide_imagenet": ((1.0, 2.0), 320, 224, 250, 1024, 0.5, 1e-4, "cosine"),
    "elastic_resnet50_imagenet": ((0.9, 1.0), 224, 128, 120, 512, 0.2, 1e-4, "cosine"),
    "elastic_vgg16_imagenet": ((0.25, 1.0), 224, 128, 100, 512, 0.01, 1e-4, "cosine"),
    "usnet_mobilenet_v1_imagenet": ((0.25, 1.0), 224, 128, 250, 1024, 0.5, 1e-4, "linear"),
    "elastic_wideresnet28_10_cifar10": ((0.9, 1.0), 32, 20, 200, 128, 0.1, 5e-4, "cosine"),
    "elastic_wideresnet28_10_cifar100": ((0.9, 1.0), 32, 20, 200, 128, 0.1, 5e-4, "cosine"),
    "elastic_mobilenet_v1_cifar100": ((0.25, 1.0), 224, 128, 100, 256, 0.1, 1e-4, "cosine"),
    "elastic_mobilenet_v1_food101": ((0.25, 1.0), 224, 128, 100, 256, 0.1, 1e-4, "cosine"),
    "elastic_mobilenet_v1_indoor67": ((0.25, 1.0), 224, 128, 100, 256, 0.1, 1e-4, "cosine"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    recipe = get_recipe(name)
    elastic = recipe.elastic
    assert elastic is not None
    assert (
        elastic.widths,
        elastic.resolutions[0],
        elastic.resolutions[-1],
        recipe.epochs,
        recipe.data.batch_size,
        recipe.optim.lr,
        recipe.optim.weight_decay,
        recipe.schedule.name,
    ) == PUBLISHED[name]
    assert recipe.data.resolution == elastic.resolutions[0]
    assert (recipe.optim.momentum, recipe.optim.nesterov, elastic.num_random, elastic.temperature) == (0.9, True, 2, 1)
    assert recipe.optim.decay == ("all" if "wideresnet" in name else "dense")
    assert recipe.schedule.warmup_epochs == 0
    assert (elastic.train_resolutions == (224,)) == name.startswith("usnet")


def test_names_are_those_of_the_recipes() -> None:
    assert all(name == make().name for name, make in MUTUAL.items())


def test_the_recipe_decides_widths_and_resolutions() -> None:
    overrides = ["elastic.widths=[0.5,1.0]", "elastic.table_widths=[0.5]", "elastic.resolutions=[224,96]"]
    net = build_model(get_recipe("elastic_mobilenet_v2_imagenet", overrides=overrides), 5)
    assert isinstance(net, ElasticNet)
    assert (net.widths, net.resolutions) == ((0.5, 1.0), (224, 96))
    assert net.kept["features.18.0"] == "it was asked to keep its width"


def test_finetuning_from_an_elastic_run(tmp_path: Path) -> None:
    """The calibrated statistics stay behind; the classifier stays where the classes are the same."""
    first = run_recipe(get_recipe("elastic_resnet20_cifar10", tiny=True), tmp_path / "first", progress=False)
    assert load(first.model_folder).calibrated
    overrides = [f"weights={tmp_path / 'first'}", "steps_per_epoch=1", "optim.lr=1e-9"]
    recipe = get_recipe("elastic_resnet20_cifar10", tiny=True, overrides=overrides)
    second = run_recipe(recipe, tmp_path / "second", progress=False, latency=False)
    for (name, one), other in zip(first.net.named_parameters(), second.net.parameters(), strict=True):
        assert (one - other).abs().max() < 1e-5, name


def test_frames_are_an_axis_of_recipes_for_clips(tmp_path: Path) -> None:
    recipe = get_recipe("elastic_ip_csn_26_moving_digits", tiny=True, overrides=["model=resnet3d_18"])
    done = run_recipe(recipe, tmp_path / "run", progress=False, latency=False)
    assert done.table is not None
    assert {row.frames for row in done.table.rows} == {8, 4}
    assert len(done.table.rows) == 2 * 2 * 2
    macs = {row.config: row.macs for row in done.table.rows}
    assert macs[1.0, 32, 4] < 0.6 * macs[1.0, 32, 8]
    net = load(done.model_folder)
    assert isinstance(net, ElasticNet)
    assert (net.frames, len(net.calibrated)) == ((8, 4), 8)
    shown = query_table(done.table.rows)
    assert [column.header for column in shown.columns][:3] == ["width", "resolution", "frames"]
    assert {cells[2] for cells in shown.rows} == {"8", "4"}
    assert plot_accuracy_macs(done.table, tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("elastic_ip_csn_26_moving_digits", ["elastic.frames=[4,8]"], r"elastic.frames must descend, got \[4, 8\]"),
        ("elastic_ip_csn_26_moving_digits", ["elastic.frames=[16,8]"], "elastic.frames start at 16, but data.video.fr"),
        ("elastic_resnet20_cifar10", ["elastic.frames=[8,4]"], "elastic.frames start at 8, but the data are images"),
    ],
)
def test_frames_that_do_not_fit_the_data(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(LeanconvError, match=message):
        get_recipe(name, overrides=overrides)
