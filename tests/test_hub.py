"""Models of the Hugging Face hub, against a server here that speaks its protocol: nothing else is reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

import hub_server
import leanconv as lc
from leanconv.build import hub as on_hub
from leanconv.build import located
from leanconv.cli import main
from leanconv.data.contract import InputContract, attach, contract_of
from leanconv.errors import CheckpointError, LeanconvError, MissingExtra
from leanconv.recipes import Recipe, finetune
from leanconv.report import model_card

# huggingface_hub 2.4 uploads files in a way that its own HTTP library would rather not see.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

CONTRACT = InputContract(
    size=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.25, 0.25, 0.2), class_names=("boat", "cat", "dog")
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """A hub of this test alone, with a cache of its own and nobody logged in."""
    home = tmp_path / "hub_home"
    with hub_server.serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HOME", str(home))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files go by the older way, which is public
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield served


@pytest.fixture
def owner(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> hub_server.Hub:
    """The same, logged in."""
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    return hub


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with an octave rewrite and an input contract, saved."""
    torch.manual_seed(0)
    net = lc.create_model("resnet20", num_classes=3)
    attach(net, CONTRACT)
    return lc.save(lc.rewrite(net, lc.Octave(alpha=0.5), size=(3, 32, 32)), tmp_path_factory.mktemp("lean") / "model")


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("story.json", "weights.safetensors")}


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert (ended.value.code or 0) == code, told.err
    if code:
        assert told.err.count("\n") == 1
        assert "Traceback" not in told.err
    return told.err if code else told.out


def test_a_pushed_model_is_the_one_that_is_loaded(owner: hub_server.Hub, lean: Path, capsys: Any) -> None:
    told = said(capsys, "push", lean, "her/lean")
    assert told == f"pushed: {owner.url}/her/lean; next: leanconv predict hf:her/lean FILES\n"
    (_, first), (commit, tree) = owner.repositories["her/lean"].commits
    assert set(first) == {".gitattributes"}
    assert {name: tree[name] for name in ("story.json", "weights.safetensors")} == files(lean)
    assert set(tree) == {".gitattributes", "README.md", "story.json", "weights.safetensors"}
    again, here = lc.load("hf:her/lean"), lc.load(lean)
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(inputs), here.eval()(inputs))
    assert contract_of(again) == CONTRACT
    # Every later commit keeps what is not changed; a revision is what it was.
    said(capsys, "push", lean, "her/lean")
    assert located(f"hf:her/lean@{commit}").endswith(commit)


def test_a_card_that_somebody_wrote_stays(owner: hub_server.Hub, lean: Path, capsys: Any) -> None:
    owner.add("her/lean", {"README.md": b"mine\n"})
    assert "its README.md was there already and stays as it is" in said(capsys, "push", lean, "her/lean")
    assert owner.repositories["her/lean"].commits[-1][1]["README.md"] == b"mine\n"
    told = json.loads(said(capsys, "push", lean, "her/lean", "--replace-card", "--json"))
    assert told == {"address": f"{owner.url}/her/lean", "model": "hf:her/lean", "card": True}
    assert b"# lean\n" in owner.repositories["her/lean"].commits[-1][1]["README.md"]


def test_a_private_repository_is_private(owner: hub_server.Hub, lean: Path, capsys: Any, monkeypatch: Any) -> None:
    said(capsys, "push", lean, "her/lean", "--private")
    assert owner.repositories["her/lean"].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match=r"hf:her/lean: http\S+ has no such model, or it is private: .* log in"):
        lc.load("hf:her/lean")
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    assert contract_of(lc.load("hf:her/lean")) == CONTRACT


def test_the_card_says_what_a_stranger_needs(lean: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: x\nmodel: resnet20\n")
    (run / "model").mkdir()
    for name, content in files(lean).items():
        (run / "model" / name).write_bytes(content)
    figures = {"part": "test", "images": 372, "top1": 0.75, "top1_interval": [0.7035, 0.7914]}
    (run / "evaluation.json").write_text(json.dumps(figures))
    card = said(capsys, "push", run, "her/lean", "--show-card")
    assert card.startswith("---\nlibrary_name: leanconv\npipeline_tag: image-classification\n---\n# lean\n")
    for line in (
        "| network | `resnet20(num_classes=3)` |",
        "| parameters | 269.27 k |",
        "| test accuracy | top-1 75.00 % (95 % interval 70.3-79.1) on 372 images |",
        "| input | 3 x 32 x 32, RGB from 0 to 1, then (value - mean) / std |",
        "| mean | 0.5, 0.4, 0.3 |",
        "| resize | the central square, 1 of the shorter side, brought to 32 pixels, bilinear |",
        "| 3 classes | boat, cat, dog |",
        "leanconv predict hf:her/lean photographs/",
        'model = lc.load("hf:her/lean")',
    ):
        assert line in card.splitlines(), card
    assert "| changed by | `octave(alpha=0.5" in card


def test_a_card_has_no_line_for_what_is_not_known() -> None:
    card = model_card("her/lean", {"model": "resnet20", "options": {}, "steps": []})
    assert "| input | not said: ask its owner |" in card
    assert "accuracy" not in card
    assert "classes" not in card


@pytest.mark.slow
def test_every_verb_takes_it(owner: hub_server.Hub, lean: Path, tmp_path: Path, capsys: Any) -> None:
    owner.add("her/lean", files(lean))
    for part in ("train", "test"):
        for number, name in enumerate(CONTRACT.class_names or ()):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for shade in range(2):
                Image.new("RGB", (40, 40), (40 * number, 90 * shade, 20)).save(folder / f"{shade}.png")
    data, here = f"folder:{tmp_path / 'data'}", tmp_path / "here"
    (cost,), (local,) = (json.loads(said(capsys, "measure", name, "--json")) for name in ("hf:her/lean", lean))
    assert {**cost, "model": ""} == {**local, "model": ""}
    told = json.loads(said(capsys, "eval", "hf:her/lean", "--data", data, "--json"))
    expected = json.loads(said(capsys, "eval", lean, "--data", data, "--json"))
    assert told == {**expected, "model": "hf:her/lean"}
    told = json.loads(said(capsys, "predict", "hf:her/lean", tmp_path / "data" / "test", "--json"))
    assert (
        told["predictions"]
        == json.loads(said(capsys, "predict", lean, tmp_path / "data" / "test", "--json"))["predictions"]
    )
    rows = json.loads(said(capsys, "compare", lean, "hf:her/lean", "--data", data, "--json"))
    assert rows[1]["difference"]["value"] == 0
    said(capsys, "export", "hf:her/lean", tmp_path / "net.onnx")
    said(capsys, "rewrite", "hf:her/lean", "--rewrite", "osep", "--out", here)
    assert contract_of(lc.load(here)) == CONTRACT
    out = tmp_path / "runs"
    train = ("--set", "epochs=1", "--set", "accelerator=cpu", "--set", "data.batch_size=6")
    told = said(
        capsys, "train", "--model", "hf:her/lean", "--data", data, "--teacher", "hf:her/lean", "--out", out, *train
    )
    assert f"saved: {out / 'model'}" in told
    # The recipe names folders, so that a run goes on, and a config that is sent around never reaches the network.
    assert "hf:" not in (out / "config.yaml").read_text().replace("hf:her/lean on", "")


def test_one_that_timm_has_published(owner: hub_server.Hub, tmp_path: Path, capsys: Any) -> None:
    net = timm.create_model("resnet18", num_classes=4).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    cfg = {"input_size": [3, 160, 160], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "crop_pct": 0.9,
           "interpolation": "bicubic", "crop_mode": "center", "classifier": "fc"}  # fmt: skip
    config = {"architecture": "resnet18", "num_classes": 4, "label_names": ["a", "b", "c", "d"], "pretrained_cfg": cfg}
    owner.add(
        "timm/resnet18.hers",
        {
            "config.json": json.dumps(config).encode(),
            "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
        },
    )
    found = lc.load("hf:timm/resnet18.hers")
    inputs = torch.randn(2, 3, 160, 160)
    assert torch.equal(found(inputs), net(inputs))
    assert contract_of(found) == InputContract(
        size=(3, 160, 160), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3), crop=0.9, interpolation="bicubic",
        resize="shorter_side", exif=False, class_names=("a", "b", "c", "d"),
    )  # fmt: skip
    asked = len(owner.asked)
    lc.load("hf:timm/resnet18.hers")
    assert not [line for line in owner.asked[asked:] if line.startswith("GET")]  # kept, only asked whether it is newer
    lc.save(found, tmp_path / "mine")
    story = json.loads((tmp_path / "mine" / "story.json").read_text())["story"]
    assert (story["model"], story["options"]) == ("timm/resnet18", {"num_classes": 4})


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"architecture": "resnet18", "num_classes": 4, "model_args": {"checkpoint_path": "/etc/passwd"}},
         "asks for checkpoint_path, which loads something else"),
        ({"architecture": "no_such_net", "num_classes": 4}, "unknown model 'timm/no_such_net'"),
        ({"architecture": "hf-hub:other/model", "num_classes": 4}, "unknown model 'timm/hf-hub:other/model'"),
        ({"num_classes": 4}, "its config.json is not one of timm's"),
        ([1, 2], "its config.json is not one of timm's"),
    ],
)  # fmt: skip
def test_a_foreign_config_runs_nothing(owner: hub_server.Hub, config: Any, complaint: str) -> None:
    if isinstance(config, dict):
        config["pretrained_cfg"] = {"input_size": [3, 8, 8], "mean": [0, 0, 0], "std": [1, 1, 1]}
    owner.add("a/b", {"config.json": json.dumps(config).encode(), "model.safetensors": b"x"})
    with pytest.raises(LeanconvError, match=complaint):
        lc.load("hf:a/b")


def test_what_is_refused_in_one_line(hub: hub_server.Hub, lean: Path, tmp_path: Path, capsys: Any) -> None:
    hub.add("her/lean", files(lean))
    hub.add("her/half", {"story.json": files(lean)["story.json"]})
    hub.add("her/pickle", {"pytorch_model.bin": b"\x80"})
    hub.add("her/gated", files(lean), gated=True)
    hub.add("her/cut", {**files(lean), "weights.safetensors": files(lean)["weights.safetensors"][:-9]})
    for name, complaint in (
        ("hf:lean", "expected hf:OWNER/NAME, or hf:OWNER/NAME@REVISION"),
        ("hf:her/none", f"{hub.url} has no such model, or it is private"),
        ("hf:her/lean@v2", "has no such revision"),
        ("hf:her/half", "has a story.json without weights.safetensors"),
        ("hf:her/pickle", "holds neither a model of leanconv"),
        ("hf:her/gated", "is open only to those whom its owner admits"),
        ("hf:her/cut", "it was truncated"),
    ):
        assert complaint in said(capsys, "measure", name, code=2), name
    assert "already" in said(capsys, "push", "hf:her/lean", "her/other", code=2)
    assert "answered 401" in said(capsys, "push", lean, "her/new", code=2)
    assert "there is no such folder" in said(capsys, "push", tmp_path / "none", "her/new", code=2)
    assert hub.repositories.keys() == {"her/lean", "her/half", "her/pickle", "her/gated", "her/cut"}


@pytest.mark.slow
def test_without_a_network_what_was_fetched_is_taken(hub: hub_server.Hub, lean: Path, monkeypatch: Any) -> None:
    hub.add("her/lean", files(lean))
    lc.load("hf:her/lean")
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/resolve/{revision}/{filename}")
    assert contract_of(lc.load("hf:her/lean")) == CONTRACT
    with pytest.raises(CheckpointError, match="cannot be reached, and the model is not in the cache"):
        lc.load("hf:her/other")


def test_only_what_is_asked_for_reaches_the_network(hub: hub_server.Hub, lean: Path, tmp_path: Path) -> None:
    lc.load(lean)
    lc.measure(lc.create_model("timm/resnet18"), (3, 32, 32))
    for text in ("her/lean", Path("hf:her/lean")):  # a folder that is not there
        with pytest.raises(CheckpointError, match="there is no such folder"):
            lc.load(text)
    with pytest.raises(LeanconvError, match="a trained model and not a name to build one by"):
        lc.create_model("hf:her/lean")
    for field in ("model", "weights", "teacher"):
        with pytest.raises(LeanconvError, match="a recipe names models and folders that are here"):
            Recipe(**{"name": "sent", "model": "resnet20", field: "hf:her/lean"})
    story = json.loads(files(lean)["story.json"])
    story["story"]["model"] = "hf:her/lean"
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "story.json").write_text(json.dumps(story))
    (tmp_path / "sent" / "weights.safetensors").write_bytes(files(lean)["weights.safetensors"])
    with pytest.raises(CheckpointError, match="the story cannot be replayed"):
        lc.load(tmp_path / "sent")
    assert hub.asked == []


def test_a_recipe_for_it_has_its_name(hub: hub_server.Hub, lean: Path) -> None:
    hub.add("her/lean", files(lean))
    recipe = finetune("hf:her/lean", "folder:photos")
    assert (recipe.name, recipe.model) == ("finetune_lean", located("hf:her/lean"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"needs the package 'huggingface_hub', .* pip install 'leanconv\[hub\]'"):
        on_hub.fetch("hf:her/lean")


def test_the_command_line_asks_the_endpoint_of_the_environment(lean: Path, tmp_path: Path) -> None:
    """In a process of its own, as somebody types it: huggingface_hub reads its settings when it is imported."""
    assert huggingface_hub.__version__
    with hub_server.serving() as served:
        settings = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path), "HF_TOKEN": hub_server.TOKEN}
        code = "from leanconv.cli import main; main()"
        for arguments in (["push", str(lean), "her/lean"], ["measure", "hf:her/lean", "--json"]):
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments],
                env={**os.environ, **settings, "HF_HUB_DISABLE_XET": "1"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0]["params"] == sum(p.numel() for p in lc.load(lean).parameters())
