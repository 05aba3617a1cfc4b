"""Names to models, models to folders and back, and everything that can be wrong with either."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import leanconv.build.folder
from leanconv.build import create_model, default_size, load, resolve, save
from leanconv.elastic import ElasticNet, calibrate, make_elastic
from leanconv.errors import CheckpointError, LeanconvError, UnknownName
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import DepthSeparable
from leanconv.rewrites import rewrite
from leanconv.story import Story, remember, story_of

OWN = """
import torch
from torch import nn

def build(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))

def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[1].weight = net[0].weight
    net.register_buffer("view", net[2].weight.detach()[:1])
    return net

def needs(width): return build(width)
def not_a_model(): return 3
def broken(): raise RuntimeError("mine")
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's own in the working folder."""
    (tmp_path / "users_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_nets", raising=False)
    return "users_nets"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(create_model("o_resnet20", num_classes=5), tmp_path / "model")


def same_outputs(one: nn.Module, two: nn.Module, size: tuple[int, ...] = (3, 32, 32)) -> bool:
    x = torch.randn(2, *size)
    return torch.equal(one.eval()(x), two.eval()(x))


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("o_resnet20", {"overlap": 4, "num_classes": 7}),
        ("timm/resnet18", {"num_classes": 7}),
        ("torchvision/squeezenet1_1", {"num_classes": 7}),
    ],
)
def test_create_model_remembers_its_story(name: str, options: dict[str, Any]) -> None:
    model = create_model(name, **options)
    assert story_of(model) == Story(model=name, options=options)
    assert model.training
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_video_and_detection_models_of_torchvision() -> None:
    with torch.device("meta"):
        assert create_model("torchvision/r3d_18", num_classes=3)(torch.empty(1, 3, 4, 32, 32)).shape == (1, 3)
        create_model("torchvision/ssdlite320_mobilenet_v3_large")  # downloads its backbone unless told not to


def test_own_functions_are_found_in_the_working_folder(own: str) -> None:
    path = list(sys.path)
    assert create_model(f"{own}:build", width=6)[0].out_channels == 6
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("oresnet20", {}, r"unknown model 'oresnet20': did you mean 'o_resnet20'"),
        ("resnet50", {}, r"unknown model 'resnet50': it is not in the zoo, but 'timm/resnet50' exists"),
        ("r3d_18", {}, r"'torchvision/r3d_18' exists"),
        ("timm/resnet5", {}, r"unknown model 'timm/resnet5': did you mean 'timm/resnet50'"),
        ("timm/hf-hub:a/b", {}, r"unknown model 'timm/hf-hub:a/b'"),
        ("torchvision/resnet5", {}, r"did you mean 'torchvision/resnet50'"),
        ("no_such_pkg.nets:build", {}, r"no module 'no_such_pkg' on the Python path"),
        ("json:build", {}, r"unknown function in json 'build'"),
        ("resnet20", {"alpha": 0.5}, r"resnet20 has no option 'alpha': its options are multiplier, num_classes$"),
        ("o_resnet20", {"overlp": 1}, r"o_resnet20 has no option 'overlp' \(did you mean 'overlap'\?\)"),
        (
            "timm/resnet18",
            {"alpha": 1},
            r"timm/resnet18 has no option 'alpha'.*: its options are .*drop_rate.*num_classes",
        ),
        (
            "torchvision/resnet18",
            {"num_clases": 1},
            r"did you mean 'num_classes'\?\): its options are .*width_per_group",
        ),
    ],
)
def test_unknown_names_and_options(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UnknownName, match=match):
        create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("resnet20", {"num_classes": "ten"}, "num_classes must be an integer of at least 1, got 'ten'"),
        ("o_resnet20", {"overlap": 0}, "overlap must be above 0, got 0"),
        ("dw_resnet20", {"multiplier": 2.72}, r"out_channels \(=87\) must be a multiple of in_channels \(=44\)"),
        ("timm/resnet18", {"num_classes": "ten"}, "timm/resnet18 cannot be built with num_classes='ten': TypeError"),
        ("timm/resnet18.no_such_tag", {}, "no_such_tag"),
        ("torchvision/resnet18", {"weights": "NOPE"}, "torchvision/resnet18 cannot be built with weights='NOPE'"),
        ("elastic_resnet20", {"widths": 3}, r"widths must be \(smallest, largest\).*got 3"),
        ("users_nets:needs", {}, "users_nets:needs needs a value for width"),
        ("users_nets:not_a_model", {}, "returned a int, not an nn.Module"),
        ("users_nets:number", {}, "is a int, not a function"),
        ("users_nets:build", {"width": "a"}, "users_nets:build cannot be built with width='a'"),
    ],
)
def test_values_that_a_constructor_refuses(own: str, name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(LeanconvError, match=match):
        create_model(name, **options)


def test_a_fault_in_own_code_keeps_its_traceback(own: str) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        create_model(f"{own}:broken")


def test_own_module_that_cannot_be_imported(own: str, tmp_path: Path) -> None:
    (tmp_path / "users_bad.py").write_text("import no_such_dependency")
    with pytest.raises(LeanconvError, match="users_bad could not be imported: No module named 'no_such_dependency'"):
        create_model("users_bad:build")


def test_default_sizes(tmp_path: Path, saved: Path) -> None:
    assert default_size("mobilenet_v1") == (3, 224, 224)
    assert default_size("timm/inception_v3") == (3, 299, 299)
    assert default_size("torchvision/resnet18") == (3, 224, 224)
    assert default_size("torchvision/r3d_18") == (3, 16, 112, 112)
    assert default_size(str(saved)) == (3, 32, 32)
    sized = save(create_model("resnet20"), tmp_path / "sized", size=(3, 20, 20))
    assert default_size(str(sized)) == (3, 20, 20)
    assert default_size("torchvision/fasterrcnn_resnet50_fpn") == (3, 800, 1333)
    for name in ("users_nets:build", "torchvision/retinanet_resnet50_fpn"):
        with pytest.raises(LeanconvError, match="its input size is not known: give it"):
            default_size(name)
    with pytest.raises(UnknownName, match="did you mean"):
        default_size("resnet21")


# ------------------------------------------------------------------------------------------------------ save and load


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("d_resnet20", ()),
        ("resnet20", (OptimizedSeparable(overlap=2.0, init="fresh"),)),
        ("resnet20", (DepthSeparable(where="layer1.*", init="fresh"), OptimizedSeparable(where="kernel>1 layer2.*"))),
        ("timm/seresnet18", (OptimizedSeparable(init="fresh"),)),
    ],
)
def test_round_trip_is_exact(tmp_path: Path, name: str, steps: tuple[Any, ...]) -> None:
    model = create_model(name, num_classes=4)
    changed = rewrite(model, *steps) if steps else model
    net = model if not steps else changed.model
    net(torch.randn(4, 3, 32, 32))  # statistics of BatchNorm that no fresh network has
    new = load(save(changed, tmp_path / "model"))
    assert new.training
    assert story_of(new) == story_of(net)
    assert list(new.state_dict()) == list(net.state_dict())
    assert same_outputs(net, new)


@pytest.mark.parametrize("in_story", [False, True])
def test_elastic_networks_keep_their_calibrations_and_their_extracts(tmp_path: Path, in_story: bool) -> None:
    if in_story:
        base = rewrite(create_model("resnet20"), DepthSeparable(init="fresh", where="layer1.*.conv1")).model
        net = make_elastic(base, widths=(0.5, 1.0), resolutions=(24, 20))
    else:
        net = cast(ElasticNet, create_model("elastic_resnet20", widths=(0.5, 1.0), resolutions=(24, 20)))
    images = [(torch.randn(16, 3, 24, 24), torch.zeros(16))]
    calibrate(net, images, [(0.5, 20), (1.0, 24)])
    net.eval()
    folder = save(net, tmp_path / "net")
    assert default_size(str(folder)) == (3, 24, 24)
    new = cast(ElasticNet, load(folder))
    assert new.calibrated == net.calibrated
    x = torch.randn(2, 3, 24, 24)
    for width, resolution in ((0.5, 20), (1.0, 24)):
        with net.at(width, resolution), new.at(width, resolution):
            assert torch.equal(net(x), new(x))
    static = net.extract(0.5, 20)
    folder = save(static, tmp_path / "static")
    assert default_size(str(folder)) == (3, 20, 20)
    assert same_outputs(static, load(folder), (3, 20, 20))


def test_load_leaves_the_random_state_and_keeps_mode_and_dtype(tmp_path: Path) -> None:
    net = create_model("resnet20").half().eval()
    folder = save(net, tmp_path / "deep" / "er")
    before = torch.random.get_rng_state()
    new = load(folder)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not new.training
    assert {p.dtype for p in new.parameters()} == {torch.float16}


def test_shared_overlapping_and_strided_tensors(tmp_path: Path, own: str) -> None:
    net = create_model(f"{own}:tied")
    net[0].weight.data = torch.randn(4, 4).t()
    net[1].weight = net[0].weight
    net.view = net[2].weight.detach()[:1]
    folder = save(net, tmp_path / "model")
    assert json.loads((folder / "story.json").read_text())["aliases"] == {"1.weight": "0.weight"}
    new = load(folder, trust_code=True)
    assert new[1].weight is new[0].weight
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, new.state_dict()[name])


def test_own_code_runs_only_when_trusted(tmp_path: Path, own: str) -> None:
    folder = save(create_model(f"{own}:build", width=5), tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"built by users_nets:build, and loading .* run that code: pass trust"):
        load(folder)
    assert load(folder, trust_code=True)[0].out_channels == 5


def test_a_model_built_elsewhere_needs_a_story(tmp_path: Path, own: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9))
    with pytest.raises(
        LeanconvError, match=r"nothing says how this Sequential is built.*pass source='package.module:function'"
    ):
        save(net, tmp_path / "model")
    folder = save(net, tmp_path / "model", story=Story(model=f"{own}:build", options={"width": 9}))
    assert same_outputs(net, load(folder, trust_code=True))


def test_a_wrapped_model_says_what_to_save(tmp_path: Path) -> None:
    with pytest.raises(LeanconvError, match=r"nothing says how this DataParallel is built.*save its \.module"):
        save(nn.DataParallel(create_model("resnet20")), tmp_path / "model")


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, own: str) -> None:
    net = create_model("resnet20")
    net.fc = nn.Linear(64, 3)
    with pytest.raises(
        CheckpointError, match=r"not saved: .*other shape: fc\.weight \(the model \(3, 64\), story \(10"
    ):
        save(net, tmp_path / "model")
    net = create_model("resnet20")
    remember(net, Story(model=f"{own}:build", options={"width": {4}}))
    with pytest.raises(LeanconvError):
        save(net, tmp_path / "model")
    with torch.device("meta"):
        net = create_model("resnet20")
    with pytest.raises(CheckpointError, match=r"conv1\.weight cannot be saved: it is on the meta device"):
        save(net, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_options_that_json_cannot_hold(tmp_path: Path) -> None:
    net = create_model("timm/resnet18", act_layer=nn.SiLU, num_classes=2)
    with pytest.raises(LeanconvError, match=r"cannot be written down .*type is not JSON serializable"):
        save(net, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_only_the_two_files(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    net = create_model("resnet20")
    save(net, saved)
    assert sorted(path.name for path in saved.iterdir()) == ["notes.txt", "story.json", "weights.safetensors"]
    assert same_outputs(net, load(saved))


def test_saving_onto_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file: a model is saved to a folder"):
        save(create_model("resnet20"), tmp_path / "model")


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("existing", [False, True])
def test_full_disk(existing: bool, tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved if existing else tmp_path / "new"
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    monkeypatch.setattr(leanconv.build.folder, "save_file", full_disk)
    with pytest.raises(CheckpointError, match=r"saved: No space left on device; 1\.1 MB are needed, [\d.]+ MB free"):
        save(create_model("resnet20"), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_file_that_really_cannot_grow(tmp_path: Path, saved: Path) -> None:
    """The operating system stops the write half-way, as a quota or a full disk does."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        with pytest.raises(CheckpointError, match="could not be saved: "):
            save(create_model("resnet20"), saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        record = json.loads((folder / "story.json").read_text())
        change(record)
        (folder / "story.json").write_text(json.dumps(record))

    return apply


def truncate(folder: Path) -> None:
    data = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(data[: len(data) // 2])


def flip(folder: Path) -> None:
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)


def rename_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "weights.safetensors")
    tensors["fc.wait"] = tensors.pop("fc.weight")
    save_file(tensors, folder / "weights.safetensors")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (truncate, r"weights\.safetensors cannot be read: it has \d+ bytes of \d+, it was truncated"),
        (lambda f: (f / "weights.safetensors").write_bytes(b""), r"it has 0 bytes of \d+, it was truncated"),
        (lambda f: (f / "weights.safetensors").unlink(), r"is not a saved model: it has no weights\.safetensors"),
        (lambda f: (f / "story.json").unlink(), r"is not a saved model: it has no story\.json"),
        (lambda f: (f / "story.json").write_text("{"), r"story\.json cannot be read: "),
        (lambda f: (f / "story.json").write_bytes(b"\xff\xfe"), r"story\.json cannot be read: "),
        (lambda f: (f / "story.json").write_text("[]"), "was not written by leanconv"),
        (shutil.rmtree, "there is no such folder"),
        (flip, r"is not the file that story\.json was written for"),
        (
            rename_a_tensor,
            r"1 missing in weights\.safetensors: fc\.weight; 1 only in .*: fc\.wait",
        ),
        (
            edit(lambda r: r["story"]["options"].update(num_classes=9)),
            r"fc\.weight \(weights\.s.* \(5, 64\), story \(9",
        ),
        (
            edit(lambda r: r["story"].update(model="resnet20")),
            r"fit the story: \d+ missing in weights\.safetensors: ",
        ),
        (
            edit(lambda r: r["story"].update(model="resnet21")),
            r"story cannot be replayed: unknown model 'resnet21'",
        ),
        (edit(lambda r: r["story"].update(steps=[["nope", {}]])), r"cannot be replayed: unknown rewrite 'nope'"),
        (
            edit(lambda r: r["story"].update(steps=[["elastic", {"extract": {}}]])),
            r"cannot be replayed: .*is not elastic",
        ),
        (edit(lambda r: r["story"].update(steps=[["elastic", {"nope": 1}]])), r"story cannot be replayed: .*nope"),
        (edit(lambda r: r["story"].update(steps=[["elastic", {"widths": "x", "ratios": 3}]])), r"cannot be replayed: "),
        (
            edit(lambda r: r["story"].update(steps=[3])),
            r"is damaged: story\.steps\[0\] must be a list of 2 values, got 3",
        ),
        (edit(lambda r: r["story"].pop("model")), r"is damaged: story\.model is missing"),
        (edit(lambda r: r.pop("weights")), r"is damaged: weights is missing"),
        (edit(lambda r: r["aliases"].update(a="b")), r"b, also called a, is missing in weights"),
        (edit(lambda r: r.update(format_version=99)), r"has format version 99, this leanconv \([\d.]+\) reads 1"),
    ],
)
def test_damaged_folders(saved: Path, damage: Callable[[Path], object], match: str) -> None:
    damage(saved)
    with pytest.raises(CheckpointError, match=match) as caught:
        load(saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


def test_resolve_takes_names_and_folders(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert story_of(resolve("resnet20", {"num_classes": 3})) == Story(model="resnet20", options={"num_classes": 3})
    monkeypatch.chdir(saved.parent)
    for name in (str(saved), "./model", "model"):
        assert story_of(resolve(name)) == Story(model="o_resnet20", options={"num_classes": 5})
    with pytest.raises(LeanconvError, match="its options are fixed by its story: overlap cannot be set"):
        resolve("model", {"overlap": 2})
    with pytest.raises(CheckpointError, match="there is no such folder"):
        resolve("./no_such_model")
    Path("resnet20").mkdir()
    assert story_of(resolve("resnet20")) == Story(model="resnet20")  # a name wins over a folder of that name
