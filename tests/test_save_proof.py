"""`save` has loaded what it wrote: what comes back is what went in, or nothing is written and the message says why."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leanconv as lc
from leanconv.build.values import NotPlain, Pairs, difference, from_json, to_json
from leanconv.errors import CheckpointError

NETS = """
import random
import torch
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.pad, self.conv, self.bn = nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 4)
        self.register_buffer("drawn", torch.randn(8), persistent=False)
        self.noise, self.number, self.order = torch.randn(8), random.random(), torch.randperm(8).tolist()
        self.act, self.temperature, self.calls, self.cache = F.relu, 1.0, 0, {}

    def forward(self, x):
        self.calls += 1
        self.cache[x.shape] = torch.zeros(1)
        x = F.dropout(self.act(self.bn(self.conv(self.pad(x)))), 0.5, True)  # always on
        x = (x * (self.drawn + self.noise)[:, None, None] * self.number)[:, self.order]
        if x.mean() > 0:
            x = x * 2
        return self.head(self.drop(x).mean((2, 3))) / self.temperature

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.b(self.a(x))

class Listed(Pair):
    def __init__(self):
        super().__init__()
        self.rest = [nn.Conv2d(3, 3, 1)]

class Two(Pair):
    def forward(self, x, y):
        return self.a(x) + self.b(y)

class Fixed(Pair):
    def forward(self, x):
        assert x.shape[-1] == 96
        return super().forward(x)

class Detector(Pair):
    def forward(self, images):
        return [{"boxes": self.a(image), "count": 3} for image in images]

def normed():
    net = Pair()
    torch.nn.utils.weight_norm(net.a)
    return net
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "proof_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "proof_nets", raising=False)
    import proof_nets

    return proof_nets


def saved(net: nn.Module, source: str = "Net", size: Any = (3, 20, 20)) -> Any:
    return lc.load(lc.save(net, "model", source=f"proof_nets:{source}", size=size), trust_code=True)


def outputs(net: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return net.eval()(*inputs)


def value(path: str) -> Callable[[Any], Any]:
    def read(net: Any) -> Any:
        for part in path.split("."):
            net = getattr(net, part)
        return net

    return read


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("conv.stride", (2, 2)),
        ("conv.padding", (3, 3)),
        ("conv.dilation", (2, 2)),
        ("conv.padding_mode", "circular"),
        ("bn.eps", 0.5),
        ("bn.momentum", None),
        ("drop.p", 0.1),
        ("drop.inplace", True),
        ("temperature", 3.0),
        ("temperature", float("inf")),
        ("classes", {0: "cat", 1: "dog"}),
        ("calls", 4),
    ],
)
def test_changed_settings_come_back(nets: Any, path: str, wanted: Any) -> None:
    net, x = nets.Net(), torch.randn(1, 3, 24, 20)
    *parents, name = path.split(".")
    setattr(value(".".join(parents))(net) if parents else net, name, wanted)
    loaded = saved(net)
    assert value(path)(loaded) == wanted
    assert torch.equal(outputs(net, x), outputs(loaded, x))


def test_what_a_constructor_draws_and_what_a_forward_notes(nets: Any) -> None:
    net = nets.Net()
    for side in (20, 30):
        net(torch.randn(2, 3, side, side))
    before = torch.random.get_rng_state()
    loaded = saved(net)
    assert torch.equal(before, torch.random.get_rng_state())
    assert net.calls == loaded.calls == 2
    assert len(net.cache) == 2
    assert torch.equal(net.drawn, loaded.drawn)
    assert (net.order, net.number) == (loaded.order, loaded.number)
    again = saved(loaded)
    x = torch.randn(1, 3, 20, 20)
    assert torch.equal(outputs(net, x), outputs(again, x))


def test_modes_frozen_and_tied_parameters_come_back(nets: Any) -> None:
    net = nets.Net()
    net.bn.eval()
    net.conv.requires_grad_(False)
    loaded = saved(net)
    assert [m.training for m in loaded.modules()] == [m.training for m in net.modules()]
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in net.parameters()]
    pair = nets.Pair()
    pair.b.weight = pair.a.weight
    loaded = saved(pair, "Pair")
    assert loaded.b.weight is loaded.a.weight
    assert loaded.b.bias is not loaded.a.bias


def test_frozen_norms_stay_frozen_through_rewrite_and_save(tmp_path: Path) -> None:
    model = lc.create_model("resnet20")
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval().requires_grad_(False)
    new = lc.rewrite(model, lc.DepthSeparable(where="layer1.0.conv1", init="fresh"))
    norms = [m for m in lc.load(lc.save(new, tmp_path / "m")).modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in norms)
    assert not any(p.requires_grad for m in norms for p in m.parameters())


def test_surgery_after_create_model(tmp_path: Path) -> None:
    model, x = lc.create_model("torchvision/squeezenet1_1", num_classes=3), torch.randn(1, 3, 64, 64)
    model.features[0].stride = (1, 1)
    assert torch.equal(outputs(model, x), outputs(lc.load(lc.save(model, tmp_path / "m")), x))
    model.features[2] = nn.Identity()
    with pytest.raises(CheckpointError, match=r"features\.2 is a Identity, and comes back as a MaxPool2d; .*source="):
        lc.save(model, tmp_path / "n")
    with pytest.raises(CheckpointError, match=r"features\.2 is a Identity"):
        lc.save(lc.rewrite(model, lc.DepthSeparable(where="features.3.expand3x3", init="fresh")), tmp_path / "n")
    assert [folder.name for folder in tmp_path.iterdir()] == ["m"]


def attach(path: str, made: Any) -> Callable[[Any], None]:
    def change(net: Any) -> None:
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, made(net) if callable(made) else made)

    return change


def double(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (attach("act", lambda _: F.silu), r"act is <function silu.*, and comes back as <function relu"),
        (attach("act", lambda _: lambda x: x), r"act is <function .*lambda"),
        (attach("pad", lambda _: nn.Identity()), r"pad is a Identity, and comes back as a ReflectionPad2d"),
        (attach("loss", lambda _: nn.MSELoss()), r"loss \(MSELoss\) is not in the network that its story builds"),
        (attach("forward", lambda net: types.MethodType(lambda _, x: x, net)), r"forward is <bound method"),
        (lambda net: delattr(net, "drop"), r"drop \(Dropout\) was taken out of the network"),
        (lambda net: delattr(net, "temperature"), r"temperature was taken off, and comes back"),
        (lambda net: net.conv.register_forward_hook(double), r"conv has a forward hook \(double\); no file can"),
        (lambda net: net.conv.register_forward_pre_hook(lambda *_: None), r"conv has a forward pre-hook"),
        (lambda net: net.conv.weight.register_hook(lambda grad: grad), r"conv\.weight has a gradient hook"),
        (attach("kept", lambda net: [net.conv]), r"kept is \[Conv2d"),
        (attach("features", lambda net: [net.conv.weight * 2]), r"features is \[tensor"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(nets: Any, change: Callable[[Any], Any], match: str) -> None:
    net = nets.Net()
    change(net)
    with pytest.raises(CheckpointError, match=match) as caught:
        saved(net)
    assert "\n" not in str(caught.value)
    assert not Path("model").exists()


def test_modules_that_are_shared_or_hidden(nets: Any) -> None:
    pair = nets.Pair()
    pair.b = pair.a
    with pytest.raises(CheckpointError, match="b is the same module as a, and comes back as b"):
        saved(pair, "Pair")
    with pytest.raises(CheckpointError, match=r"rest\[0\]\.weight comes back with other values .*nn\.ModuleList"):
        saved(nets.Listed(), "Listed")


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_networks_that_are_hard_to_run(nets: Any) -> None:
    assert isinstance(saved(nets.Two(), "Two", [(3, 20, 20), (3, 20, 20)]), nets.Two)
    assert isinstance(saved(nets.Fixed(), "Fixed", (3, 96, 96)), nets.Fixed)  # not at the small size
    assert isinstance(saved(nets.Detector(), "Detector"), nets.Detector)
    assert isinstance(saved(nets.Fixed(), "Fixed", (3, 20, 20)), nets.Fixed)  # at none: compared, not run
    assert isinstance(saved(nets.Pair(), "Pair", None), nets.Pair)
    norm = nets.normed()
    norm.a.weight_g.data *= 3
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(outputs(norm, x), outputs(saved(norm, "normed"), x))


def test_outputs_decide_where_nothing_else_differs(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that was changed under its old name."""
    net = nets.Pair()

    class Pair(nets.Pair):
        __module__, __qualname__ = "proof_nets", "Pair"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    net.__class__ = Pair
    with pytest.raises(CheckpointError, match=r"its outputs on a probe of \(3, 20, 20\) come back changed by"):
        saved(net, "Pair")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_on_a_gpu(nets: Any) -> None:
    net = nets.Pair().cuda()
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(outputs(net.cpu(), x), outputs(saved(net.cuda(), "Pair"), x))


def test_an_elastic_network_is_saved_whatever_configuration_is_in_force(tmp_path: Path) -> None:
    net = lc.create_model("elastic_resnet20", widths=(0.5, 1.0), resolutions=(24, 20))
    with net.at(0.5, 20):
        lc.save(net, tmp_path / "net")
    loaded, x = lc.load(tmp_path / "net"), torch.randn(1, 3, 24, 24)
    assert torch.equal(outputs(net, x), outputs(loaded, x))


@pytest.mark.parametrize(
    ("key", "entry", "match"),
    [
        ("settings", {"conv": {"forward": 3}}, "is damaged: .*'forward' of Conv2d is no setting"),
        ("settings", {"conv": {"_forward_hooks": []}}, "is damaged: .*is no setting"),
        ("settings", {"conv": {"weight": 3}}, "is damaged: .*is no setting"),
        ("settings", {"nope": {"stride": 3}}, "is damaged"),
        ("settings", {"conv": {"stride": {"dtype": "load"}}}, "is damaged: .*no value that save has written"),
        ("settings", [], "settings must be a JSON object"),
        ("loose", ["drawn", "noise", "conv.nothing"], "is damaged"),
        ("loose", [["drawn"]], r"loose\[0\] must be text of at most 1000 characters, got \['drawn'\]"),
        ("tied", {"bn.weight": "conv.weight"}, "is damaged: .*their shapes differ"),
    ],
)
def test_a_record_that_somebody_else_wrote(nets: Any, key: str, entry: Any, match: str) -> None:
    folder = lc.save(nets.Net(), "model", source="proof_nets:Net", size=(3, 20, 20))
    record = json.loads((folder / "story.json").read_text())
    (folder / "story.json").write_text(json.dumps({**record, key: entry}))
    with pytest.raises(CheckpointError, match=match):
        lc.load(folder, trust_code=True)


def scale(factor: int) -> Callable[[int], int]:
    return lambda x: x * factor


def test_values() -> None:
    for one in ((1, [2.5, None]), {3: {"a"}}, float("-inf"), torch.float16, torch.Size((2, 3)), "x", True):
        back = from_json(json.loads(json.dumps(to_json(one))))
        assert back == one
    with pytest.raises(NotPlain):
        to_json([object()])
    net = nn.Linear(2, 2)
    scaled = [scale(factor) for factor in (2, 2, 3)]
    pairs = Pairs(net, net)
    assert difference(scaled[0], scaled[1], pairs) is None
    assert difference(scaled[0], scaled[2], pairs) is not None
    assert difference({"a": [1, (2, 3)]}, {"a": [1, (2, 4)]}, pairs).where == "['a'][1][1]"  # type: ignore[union-attr]
    assert difference(1, True, pairs) is not None
    assert difference(torch.tensor(float("nan")), torch.tensor(float("nan")), pairs) is None
