"""What was received never runs: the malicious files by name, each one line, exit code 2, and no mark on the disk."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from PIL import Image

from leanconv.build import create_model, load, save
from leanconv.cli import main
from leanconv.data.limits import MAX_MEGAPIXELS, open_image
from leanconv.data.sets.cifar import cifar10
from leanconv.deploy import input_of
from leanconv.errors import CheckpointError, DataError, ExportError, LeanconvError
from leanconv.offline import no_network
from leanconv.recipes import Recipe, get_recipe, read_recipe, run_recipe, to_yaml
from leanconv.trust import CodeNotTrusted, is_trusted, remember_trust

Refuse = Callable[..., str]

OWN = """
from pathlib import Path
from torch import nn

def build(num_classes=10, width=8):
    Path("mark").touch()
    layers = [nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with somebody's nets.py in it, and a user who has allowed nothing yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "marking_nets.py").write_text(OWN)
    monkeypatch.delitem(__import__("sys").modules, "marking_nets", raising=False)
    return tmp_path


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], home: Path) -> Refuse:
    """Run the command line, expect exit code 2 and one short line, no mark and no new file; gives the line."""

    def call(*arguments: object) -> str:
        before = sorted(home.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr().err
        assert (ended.value.code, told.count("\n")) == (2, 1), told
        assert len(told) < 510
        assert sorted(home.rglob("*")) == before
        return told

    return call


def run_folder(home: Path, **settings: Any) -> Path:
    recipe = {"name": "theirs", "model": "os:system", "model_args": {"command": "touch mark", "num_classes": None}}
    (home / "run").mkdir()
    (home / "run" / "config.yaml").write_text(yaml.safe_dump(recipe | settings))
    return home / "run"


def test_a_run_folder_that_names_a_function(home: Path, refuse: Refuse) -> None:
    run = run_folder(home)
    said = (
        "leanconv: model: os:system is no code of leanconv's, and building that network would run it: pass --trust-code"
    )
    assert refuse("train", "--resume", "--out", run).startswith(said)
    assert refuse("train", "--config", run / "config.yaml", "--out", home / "mine").startswith(said)
    settings = ("--set", "model=os:system", "--set", "model_args.command=touch mark")
    assert refuse("train", "digits_resnet20", *settings).startswith(said)


@pytest.mark.parametrize("role", ["model", "weights", "teacher"])
def test_a_saved_model_that_names_a_function_in_a_recipe(home: Path, refuse: Refuse, role: str) -> None:
    record = json.loads((save(create_model("resnet20"), home / "theirs") / "story.json").read_text())
    record["story"] |= {"model": "os:system", "options": {"command": "touch mark"}}
    (home / "theirs" / "story.json").write_text(json.dumps(record))
    told = refuse("train", "digits_resnet20", "--set", f"{role}={home / 'theirs'}")
    assert told.startswith(f"leanconv: {role}={home / 'theirs'}: os:system is no code of leanconv's")
    assert "pass trust_code=True (--trust-code)" in refuse("measure", home / "theirs")


def own_run(home: Path, **options: Any) -> Any:
    recipe = get_recipe("digits_resnet20", tiny=True, overrides=["model=marking_nets:build", "model_args={}"])
    return run_recipe(recipe, home / "run", progress=False, latency=False, **options)


def test_ones_own_run_is_resumed_and_what_was_changed_in_it_is_not(home: Path) -> None:
    with pytest.raises(CodeNotTrusted, match="model: marking_nets:build is no code of leanconv's"):
        own_run(home)
    assert not (home / "mark").exists()
    assert own_run(home, trust_code=True).fit.epochs == 1
    assert (home / "mark").exists()
    assert own_run(home, resume=True).fit.epochs == 1  # this user has allowed it
    recipe = read_recipe(home / "run" / "config.yaml")
    for changed in ({"model": "os:system"}, {"model_args": {"width": 9}}):
        other = Recipe(**{**vars(recipe), **changed})
        with pytest.raises(CodeNotTrusted):
            run_recipe(other, home / "run", resume=True, progress=False)
    (home / "run").rename(home / "moved")
    with pytest.raises(CodeNotTrusted):
        run_recipe(recipe, home / "moved", resume=True, progress=False)


def test_notes_of_trust_are_believed_only_from_a_folder_of_ones_own(home: Path) -> None:
    named = [{"where": "model", "code": "a:b", "options": {}}]
    assert not is_trusted(named, home / "run")
    assert remember_trust(named, home / "run")
    assert is_trusted(named, home / "run")
    assert not is_trusted(named, home / "other")
    assert not is_trusted([{**named[0], "options": {"x": 1}}], home / "run")
    notes = home / "state" / "leanconv" / "trusted"
    assert notes.stat().st_mode & 0o777 == 0o700
    notes.chmod(0o777)
    assert not is_trusted(named, home / "run")
    notes.chmod(0o700)
    (home / "state" / "leanconv").rename(home / "elsewhere")
    (home / "state" / "leanconv").symlink_to(home / "elsewhere")
    assert not is_trusted(named, home / "run")


def test_an_array_of_objects_is_no_data(home: Path) -> None:
    class Marks:
        def __reduce__(self) -> Any:
            return os.system, ("touch mark",)

    folder = home / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(b"")
    contents = {
        "object array": {b"data": np.array([Marks()], dtype=object), b"labels": [0]},
        "code": {b"data": Marks(), b"labels": [0]},
        "numpy's own state": {b"data": np.zeros((1, 3072), np.uint8).astype("V3072"), b"labels": [0]},
    }
    messages = []
    for content in contents.values():
        (folder / "data_batch_1").write_bytes(pickle.dumps(content))
        with pytest.raises(DataError) as refused:
            cifar10(str(home))
        messages.append(str(refused.value))
    assert "names posix.system, which no image file needs" in messages[0]
    assert "names posix.system, which no image file needs" in messages[1]
    assert "an array of type 'V3072', expected one of b1, u1," in messages[2]
    assert not (home / "mark").exists()


def test_a_checkpoint_that_is_a_pickle(home: Path, refuse: Refuse) -> None:
    class Marks:
        def __reduce__(self) -> Any:
            return os.system, ("touch mark",)

    run = home / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(get_recipe("digits_resnet20", tiny=True)))
    torch.save({"state_dict": Marks()}, run / "last.ckpt")
    told = run_and_tell(run)
    assert told.endswith("last.ckpt: not a readable checkpoint (truncated or foreign): it names posix.system")
    (run / "last.ckpt").write_bytes(pickle.dumps(Marks()))
    assert "last.ckpt: not a readable checkpoint (truncated or foreign): " in run_and_tell(run)
    assert not (home / "mark").exists()


def run_and_tell(run: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        run_recipe(read_recipe(run / "config.yaml"), run, resume=True, progress=False)
    return str(refused.value)


@pytest.mark.parametrize(
    ("model", "options", "address"),
    [
        (
            "torchvision/fasterrcnn_resnet50_fpn",
            {"weights": "DEFAULT"},
            "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        ),
        (
            "torchvision/fcn_resnet50",
            {"weights_backbone": "ResNet50_Weights.IMAGENET1K_V1"},
            "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        ),
    ],
)
def test_a_story_that_would_fetch(
    home: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, model: str, options: dict[str, Any], address: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    record = json.loads((save(create_model("resnet20"), home / "theirs") / "story.json").read_text())
    record["story"] |= {"model": model, "options": options}
    (home / "theirs" / "story.json").write_text(json.dumps(record))
    assert f"would fetch {address}, and a saved model is loaded without a network" in refuse("measure", home / "theirs")


def test_a_story_with_pretrained_is_built_without_it(home: Path) -> None:
    saved = save(create_model("timm/test_resnet", num_classes=3), home / "theirs")
    record = json.loads((saved / "story.json").read_text())
    record["story"]["options"] |= {"pretrained": True, "checkpoint_path": "/no/such/file"}
    (saved / "story.json").write_text(json.dumps(record))
    with no_network() as asked:
        assert load(saved).get_classifier().out_features == 3  # type: ignore[operator]
    assert asked == []
    record["story"]["model"] = "hf:owner/name"
    (saved / "story.json").write_text(json.dumps(record))
    with pytest.raises(
        CheckpointError, match="story cannot be replayed: hf:owner/name is a trained model and not a name"
    ):
        load(saved)


def test_a_story_of_a_network_that_no_weights_fill(home: Path) -> None:
    saved = save(create_model("resnet20"), home / "theirs")
    record = json.loads((saved / "story.json").read_text())
    for change in ({"options": {"num_classes": 10**9}}, {"model": "timm/vit_giant_patch14_224"}):
        (saved / "story.json").write_text(json.dumps(record | {"story": record["story"] | change}))
        with pytest.raises(
            CheckpointError, match="it builds a network of more than 286 MB, far beyond what the weights"
        ):
            load(saved)


def test_text_in_a_configuration_stays_text(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told")
    (home / "c.yaml").write_text(
        "name: a\nmodel: resnet20\nnote: ${oc.env:SECRET}\ndata: {spec: 'folder:${oc.env:SECRET}'}\n"
    )
    recipe = read_recipe(home / "c.yaml", ["teacher=${oc.env:SECRET}"])
    assert (recipe.note, recipe.data.spec, recipe.teacher) == (
        "${oc.env:SECRET}",
        "folder:${oc.env:SECRET}",
        "${oc.env:SECRET}",
    )
    (home / "c.yaml").write_text("name: a\nmodel: resnet20\nepochs: ${oc.env:SECRET}\n")
    with pytest.raises(LeanconvError, match="epochs: expected a whole number"):
        read_recipe(home / "c.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\nname: b\nmodel: c", "the key 'name' is given twice, the second time in line 2"),
        ("name: &a x\nmodel: *a", "an anchor or alias in line 1"),
        ("name: !!python/object/apply:os.system [touch mark]\nmodel: c", "a tag in line 1"),
        ("name: a\nmodel: c\noptim: {lr: .nan}", "nan is no finite number"),
        ("name: a\nmodel: c\nepochs: 99999999999999999999", "epochs: expected a whole number"),
        ("name: ../../a\nmodel: c", "name is that of a folder in runs/, of one part, got '../../a'"),
    ],
)
def test_configurations_that_say_too_much(home: Path, refuse: Refuse, text: str, told: str) -> None:
    (home / "c.yaml").write_text(text)
    assert told in refuse("train", "--config", home / "c.yaml")


def test_a_link_as_target_is_not_written_through(home: Path, refuse: Refuse) -> None:
    (home / "precious").write_text("mine")
    (home / "link").symlink_to(home / "precious")
    assert "is a file: a model is saved to a folder" in refuse(
        "rewrite", "resnet20", "--rewrite", "igc", "--out", "link"
    )
    assert "link: cannot be written: File exists" in refuse("train", "digits_resnet20", "--tiny", "--out", "link")
    assert (home / "precious").read_text() == "mine"


def test_weights_of_an_onnx_file_stay_in_its_folder(home: Path) -> None:
    (home / "secret.bin").write_bytes(bytes(48))
    (home / "models").mkdir()
    (home / "models" / "link.bin").symlink_to(home / "secret.bin")
    (home / "models" / "own.bin").write_bytes(bytes(48))
    for location, legal in (
        ("../secret.bin", False),
        (str(home / "secret.bin"), False),
        ("link.bin", False),
        ("own.bin", True),
    ):
        weight = TensorProto(name="w", dims=[3, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value=location)
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, side]) for name, side in (("x", 3), ("y", 4))
        ]
        graph = helper.make_graph([node], "g", values[:1], values[1:], [weight])
        (home / "models" / "net.onnx").write_bytes(helper.make_model(graph).SerializeToString())
        if legal:
            assert input_of(home / "models" / "net.onnx") is None
            continue
        with pytest.raises(
            ExportError, match=r"its tensor 'w' takes its values from '.*', which is no file in the folder"
        ):
            input_of(home / "models" / "net.onnx")
    assert onnx.load(str(home / "models" / "net.onnx"), load_external_data=False).graph.initializer[0].name == "w"


def test_pictures_have_a_limit_before_they_are_decoded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (3000, 2000)).save(home / "wide.png")
    with open_image(home / "wide.png") as image:
        assert image.size == (3000, 2000)
    monkeypatch.setenv(MAX_MEGAPIXELS, "5.9")
    with pytest.raises(ValueError, match=r"3000 x 2000 pixels, more than the 5.9 million that are decoded \(leanconv"):
        open_image(home / "wide.png")
    monkeypatch.setenv(MAX_MEGAPIXELS, "many")
    with pytest.raises(LeanconvError, match="LEANCONV_MAX_MEGAPIXELS='many': expected millions of pixels"):
        open_image(home / "wide.png")
