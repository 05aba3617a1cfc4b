"""A trained network and the data to test it on: of a run folder, and of a saved model."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from leanconv.build import create_model, save
from leanconv.errors import LeanconvError
from leanconv.recipes import get_recipe, load_run, to_yaml
from leanconv.train.runfolder import saved_model

HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(create_model("resnet20"), tmp_path_factory.mktemp("saved") / "net")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as a run leaves it, as far as it is read here."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    save(create_model("resnet20"), folder / "model")
    (folder / "config.yaml").write_text(to_yaml(get_recipe("digits_resnet20", tiny=True)))
    return folder


def test_the_data_of_a_run_are_those_of_its_recipe(run: Path) -> None:
    loaded = load_run(run)
    assert isinstance(loaded.network, nn.Module)
    assert loaded.recipe is not None
    assert (loaded.recipe.name, loaded.data.input_size, loaded.data.batch_size) == ("digits_resnet20", (3, 32, 32), 16)
    assert load_run(run, size=(3, 20, 20)).data.input_size == (3, 20, 20)
    assert load_run(run, data="digits").data.batch_size == 16


def test_the_data_of_a_saved_model_are_named_and_have_its_size(model: Path) -> None:
    loaded = load_run(model, data="digits", given=HALVES)
    assert (loaded.recipe, loaded.data.input_size) == (None, (3, 32, 32))
    assert load_run(model, data="digits", given=HALVES, size=[3, 16, 16]).data.input_size == (3, 16, 16)
    with pytest.raises(LeanconvError, match="is a saved model, not a run folder: say which images or videos"):
        load_run(model)


@pytest.mark.parametrize("size", [(1, 32, 32), (3, 32, 24), (32,), (3, 8, 32, 32)])
def test_sizes_that_the_data_cannot_have(run: Path, model: Path, size: tuple[int, ...]) -> None:
    for folder, data in ((run, None), (model, "digits")):
        with pytest.raises(LeanconvError, match=r"size .*: expected 3,SIDE,SIDE, the data are square pictures"):
            load_run(folder, data=data, size=size)


def test_a_run_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(LeanconvError, match="this run is not finished: leanconv train --resume --out"):
        load_run(tmp_path)


def test_where_the_saved_model_is(run: Path, model: Path, tmp_path: Path) -> None:
    assert saved_model(run) == run / "model"
    assert saved_model(model) == model
    assert saved_model(tmp_path / "nowhere") == tmp_path / "nowhere"
