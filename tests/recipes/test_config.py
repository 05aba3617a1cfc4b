"""Recipes as data: settings by dotted names, YAML there and back, and errors that say what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanconv.errors import LeanconvError, UnknownName
from leanconv.recipes import RECIPES, ElasticSettings, Recipe, change, get_recipe, list_recipes, read_recipe, to_yaml
from leanconv.train import OptimSettings


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_yaml(name: str, tmp_path: Path) -> None:
    for recipe in (get_recipe(name), get_recipe(name, tiny=True)):
        path = tmp_path / "config.yaml"
        path.write_text(to_yaml(recipe))
        assert read_recipe(path) == recipe
        assert recipe.name == name


def test_every_recipe_has_a_note() -> None:
    notes = list_recipes()
    assert list(notes) == list(RECIPES)
    assert all(len(note) > 20 and "\n" not in note for note in notes.values())
    assert len(set(notes.values())) == len(notes)


def test_overrides() -> None:
    recipe = get_recipe(
        "demo",
        overrides=[
            "epochs=3",
            "optim.lr=0.2",
            "ema=0.99",
            "model_args.multiplier=2",
            "rewrites=[osep:overlap=1, group:groups=4]",
            "elastic.resolutions=[28,20]",
            "data.resolution=28",
            "precision=bf16-mixed",
            "data.spec=parquet:a.parquet,b.parquet",
        ],
    )
    assert (recipe.epochs, recipe.optim.lr, recipe.ema) == (3, 0.2, 0.99)
    assert recipe.model_args == {"multiplier": 2}
    assert recipe.rewrites == ("osep:overlap=1", "group:groups=4")
    assert recipe.elastic is not None
    assert recipe.elastic.resolutions == (28, 20)
    assert recipe.data.spec == "parquet:a.parquet,b.parquet"
    assert get_recipe("demo").epochs != 3  # the table is untouched


def test_optional_parts_come_and_go() -> None:
    assert get_recipe("demo", overrides=["elastic=null"]).elastic is None
    made = get_recipe("digits_resnet20", overrides=["elastic.num_random=1"]).elastic
    assert made == ElasticSettings(num_random=1)


def test_a_file_with_a_few_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodel: resnet32\noptim:\n  lr: 1\n")
    assert read_recipe(path, ["epochs=7"]) == Recipe(
        name="mine", model="resnet32", epochs=7, optim=OptimSettings(lr=1.0)
    )


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("epochs=abc", LeanconvError, r"epochs=abc: expected a whole number$"),
        ("epochs=2.5", LeanconvError, r"expected a whole number$"),
        ("epochs=null", LeanconvError, r"expected a whole number$"),
        ("epochs=[1", LeanconvError, r"epochs=\[1: expected a whole number in YAML \(while parsing a flow sequence"),
        ("epoch=3", UnknownName, r"unknown setting 'epoch': did you mean 'epochs'"),
        ("optim.lrr=3", UnknownName, r"unknown setting 'optim.lrr': did you mean 'optim.lr'"),
        ("optim.lr.x=3", LeanconvError, r"'x' is below a setting that has no parts"),
        ("optim=3", LeanconvError, r"expected settings of its own \(write them as optim.SETTING=VALUE\)"),
        ("elastic.widths=[0.5]", LeanconvError, r"expected a list of 2 values, each a number"),
        ("elastic.widths=[a,b]", LeanconvError, r"expected a list of 2 values, each a number"),
        ("elastic.resolutions=[20,32]", LeanconvError, r"elastic.resolutions must descend"),
        ("elastic.table_widths=[0.1]", LeanconvError, r"0.1 is outside the trained range \[0.25, 1.0\]"),
        ("data.resolution=28", LeanconvError, r"elastic.resolutions start at 32, but data.resolution is 28"),
        ("label_smoothing=0.1", LeanconvError, r"label_smoothing is not part of mutual learning"),
        ("ema=none", LeanconvError, r"ema=none: expected a number or null$"),
        ("rewrites=osep", LeanconvError, r"expected a list of any number of values, each text"),
        ("epochs", LeanconvError, r"'epochs': expected SETTING=VALUE"),
        ("optim.decay=dens", UnknownName, r"did you mean 'dense'"),
    ],
)
def test_bad_overrides(override: str, kind: type[LeanconvError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        change(get_recipe("demo"), [override])
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"

    def refused(text: str, message: str) -> None:
        path.write_text(text)
        with pytest.raises(LeanconvError, match=message) as caught:
            read_recipe(path)
        assert "\n" not in str(caught.value)

    with pytest.raises(LeanconvError, match="no such recipe file"):
        read_recipe(path)
    refused("epochs: 3", "expected a mapping with at least `name` and `model`")
    refused("- 1", "expected a mapping with at least `name` and `model`")
    refused("name: [", "not a recipe in YAML")
    refused("name: a\nmodel: b\nepocs: 3", r"config.yaml: unknown setting 'epocs': did you mean 'epochs'")
    refused("name: a\nmodel: b\noptim: {lr: fast}", r"optim.lr: expected a number")


def test_unknown_recipe() -> None:
    with pytest.raises(UnknownName, match="unknown recipe 'dmo': did you mean 'demo'"):
        get_recipe("dmo")
