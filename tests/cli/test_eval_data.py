"""`eval` feeds a network as it was trained, whatever data is named: pixels, classes, all of the images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv.build import create_model, load, save
from leanconv.cli import main
from leanconv.data import InputContract, attach, contract_of
from leanconv.recipes import change, get_recipe, load_run, open_data, read_recipe, run_recipe, to_yaml

COLOURS = {"a": (200, 80, 80), "b": (80, 200, 80), "c": (80, 80, 200)}
CONTRACT = InputContract(size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, class_names=("a", "b", "c"))
FIXED = ("--mean", ".5,.5,.5", "--std", ".25,.25,.25")


def images(root: Path, split: str, classes: str, count: int, gain: float = 1.0) -> Path:
    draw = np.random.default_rng(0)
    for name in classes:
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = (draw.normal(0, 25, (16, 16, 3)) + np.array(COLOURS.get(name, (9, 9, 9)))) * gain
            Image.fromarray(np.clip(pixels, 0, 255).astype("uint8")).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    for name, gain in (("one", 1.0), ("two", 0.15)):  # the same test images beside brighter and darker ones
        images(root / name, "train", "abc", 6, gain)
        images(root / name, "val", "abc", 6)
    images(root / "part", "val", "bc", 6)
    images(root, "flat", "abc", 7)
    images(root, "foreign", "abz", 2)
    return root


def model(contract: InputContract | None, folder: Path) -> Path:
    torch.manual_seed(0)
    net = create_model("resnet20", num_classes=3)
    if contract is not None:
        attach(net, contract)
    return save(net, folder, size=(3, 16, 16))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(CONTRACT, tmp_path_factory.mktemp("models") / "with")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(None, tmp_path_factory.mktemp("models") / "without")


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What a verb prints with --json, or for a code other than 0 its line of refusal."""

    def call(*arguments: object, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as caught:
            main([*(str(argument) for argument in arguments), *([] if code else ["--json"])])
        told = capsys.readouterr()
        assert int(caught.value.code or 0) == code, told.err
        if code:
            assert told.err.count("\n") == 1
            return told.err
        return json.loads(told.out)

    return call


def test_other_training_images_beside_them_change_nothing(tell, trained: Path, sets: Path) -> None:
    one, two = (tell("eval", trained, "--data", f"folder:{sets / name}") for name in ("one", "two"))
    assert one == two
    assert one["images"] == 18


def test_some_of_the_classes_are_the_same_classes(tell, trained: Path, sets: Path) -> None:
    loaded = load_run(trained, data=f"folder:{sets / 'one'}")
    kept = [
        (image, int(label))
        for images, labels in loaded.data.eval_loader()
        for image, label in zip(images, labels, strict=True)
    ]
    part = load_run(trained, data=f"folder:{sets / 'part'}")
    again = [
        (image, int(label))
        for images, labels in part.data.eval_loader()
        for image, label in zip(images, labels, strict=True)
    ]
    assert [label for _, label in again] == [1] * 6 + [2] * 6
    assert [label for _, label in kept if label] == [label for _, label in again]
    figures = tell("eval", trained, "--data", f"folder:{sets / 'part'}")
    assert figures["images"] == 12
    assert figures["remarks"] == [f"folder:{sets / 'part'} has none of the class 'a', which the network knows"]


def test_a_class_that_the_network_does_not_know_is_named(tell, trained: Path, sets: Path) -> None:
    line = tell("eval", trained, "--data", f"folder:{sets / 'foreign'}", code=2)
    assert "the class 'z' (1 of 3) is none of the 3 that the network knows (a, b, c)" in line


def test_named_data_is_used_whole(tell, trained: Path, sets: Path) -> None:
    assert tell("eval", trained, "--data", f"folder:{sets / 'flat'}")["images"] == 21


def test_without_a_contract_it_is_asked_for(tell, bare: Path, trained: Path, sets: Path) -> None:
    spec = f"folder:{sets / 'one'}"
    for verb in ("eval", "table"):
        line = tell(verb, bare, "--data", spec, code=2)
        assert "nothing says how the inputs of this model were made" in line
        assert "--mean R,G,B --std R,G,B" in line
    given = tell("eval", bare, "--data", spec, *FIXED)
    assert {**given, "model": str(trained)} == tell("eval", trained, "--data", spec)
    assert given["loss"] != tell("eval", bare, "--data", spec, *FIXED[:2], "--std", ".5,.5,.5")["loss"]
    assert given["loss"] != tell("eval", bare, "--data", spec, *FIXED, "--crop", ".5")["loss"]
    assert (
        given["loss"]
        != tell("eval", bare, "--data", spec, *FIXED, "--crop", ".5", "--interpolation", "nearest")["loss"]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--mean", "123,117,104", "--std", "58,57,57"),
            "expected values from 0 to 1; divide those of 0 to 255 by 255",
        ),
        (("--mean", "a,b,c", "--std", ".5,.5,.5"), "--mean 'a,b,c': expected a number per channel"),
        (("--mean", ".5", "--std", ".5"), "needs 3 values of mean and of std, got 1 and 1"),
        ((*FIXED, "--interpolation", "cubic"), "did you mean 'bicubic'"),
        ((*FIXED, "--crop", "2"), "crop is the share"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(tell, bare: Path, sets: Path, given: tuple[str, ...], message: str) -> None:
    assert message in tell("eval", bare, "--data", f"folder:{sets / 'one'}", *given, code=2)


def test_networks_that_cannot_be_fed_images_are_refused_in_a_line(tell, sets: Path, tmp_path: Path) -> None:
    grey = save(create_model("timm/resnet18", in_chans=1, num_classes=3), tmp_path / "grey", size=(3, 32, 32))
    line = tell("eval", grey, "--data", f"folder:{sets / 'one'}", *FIXED, code=2)
    assert "takes 1 channel, and the data have 3" in line
    many = save(create_model("resnet20", num_classes=7), tmp_path / "many")
    line = tell("eval", many, "--data", f"folder:{sets / 'one'}", *FIXED, code=2)
    assert "has 7 outputs, and the data has 3 classes: nothing says which output is which class" in line


def test_training_a_network_for_one_channel_is_refused_in_a_line(tell, sets: Path, tmp_path: Path) -> None:
    settings = (
        "data.resolution=32",
        f"data.spec=folder:{sets / 'one'}",
        "model=timm/resnet18",
        "model_args.in_chans=1",
    )
    changes = [word for setting in settings for word in ("--set", setting)]
    line = tell("train", "digits_resnet20", "--tiny", *changes, "--out", tmp_path / "run", code=2)
    assert "takes 1 channel, and the data have 3" in line
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_what_its_images_were(sets: Path, tmp_path: Path) -> None:
    recipe = change(
        get_recipe("digits_resnet20", tiny=True), [f"data.spec=folder:{sets / 'one'}", "data.resolution=16"]
    )
    run_recipe(recipe, tmp_path / "run", progress=False)
    kept = contract_of(load(tmp_path / "run" / "model"))
    assert kept == open_data(recipe).contract
    assert kept is not None
    assert kept.class_names == ("a", "b", "c")
    loaded = load_run(tmp_path / "run", data=f"folder:{sets / 'two'}")
    assert (loaded.data.mean, loaded.data.std) == (kept.mean, kept.std)
    further = change(
        get_recipe("digits_resnet20", tiny=True),
        [f"data.spec=folder:{sets / 'two'}", "data.resolution=16", f"weights={tmp_path / 'run'}"],
    )
    run_recipe(further, tmp_path / "further", progress=False)
    after = contract_of(load(tmp_path / "further" / "model"))
    assert after is not None
    assert (after.mean, after.std) == (kept.mean, kept.std), "weights are finetuned on the pixels that they know"


def test_a_recipe_written_before_exif_was_looked_at_does_not_look_at_it(tmp_path: Path) -> None:
    recipe = get_recipe("digits_resnet20")
    assert recipe.data.exif
    old = [line for line in to_yaml(recipe).splitlines() if line.split(":")[0] not in ("  exif", "  mean", "  std")]
    text = "\n".join(old).replace("  resolution: 32", "  size: 28")  # as it was called then
    (tmp_path / "config.yaml").write_text(text)
    assert read_recipe(tmp_path / "config.yaml").data.resolution == 28
    assert change(recipe, ["data.size=24"]).data.resolution == 24
    assert not read_recipe(tmp_path / "config.yaml").data.exif
    (tmp_path / "short.yaml").write_text("name: x\nmodel: resnet20\ndata: {spec: digits}\n")
    assert read_recipe(tmp_path / "short.yaml").data.exif
