"""Octave through whole networks: which layers, what flows where, what is kept, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.build import create_model, load, save
from leanconv.cost import measure
from leanconv.deploy.densify import densify
from leanconv.errors import LeanconvError, NothingToRewrite, RewriteError
from leanconv.ops import octave_map
from leanconv.ops.octave import OctConv, OctConv2d
from leanconv.ops.octave_map import OctaveMap, merge
from leanconv.ops.octave_parts import halve
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import DepthSeparable
from leanconv.rewrites import Octave, Rewritten, from_json, parse_step, rewrite, to_json

SIZE = (3, 32, 32)


def unit(inputs: int, outputs: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Net(nn.Module):
    """A stem, a body, and a last stage at a quarter of the resolution, which keeps the body's octave apart."""

    def __init__(self, body: nn.Module, channels: int = 16, out: int | None = None) -> None:
        super().__init__()
        self.stem = unit(3, channels, 2)
        self.lift = unit(channels, channels)
        self.body = body
        self.last = unit(out or channels, 16, 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.body(self.lift(self.stem(x))))
        return self.fc(self.pool(x).flatten(1))


class Body(nn.Module):
    """One function of (layers, x) around some convolutions."""

    def __init__(self, function: Any, channels: int = 16, out: int | None = None, **layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.end = nn.Conv2d(out or channels, 16, 3, padding=1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.function(self, x))


def octave(net: nn.Module, size: tuple[int, ...] = SIZE, **options: Any) -> Rewritten:
    return rewrite(net, Octave(**{"alpha": 0.5, **options}), size=size)


def merges(done: Rewritten) -> dict[str, str]:
    return {flow.name: flow.reason for flow in done.flows if flow.kind == "merge"}


# What each body does between two convolutions, and why pairs merge in it; None: they flow through.
BODIES: dict[str, tuple[Any, dict[str, nn.Module], str | None]] = {
    "activation module": (lambda m, x: m.act(m.conv(x)), {"act": nn.SiLU()}, None),
    "activation function": (lambda m, x: functional.gelu(m.conv(x)), {}, None),
    "activation method in place": (lambda m, x: m.conv(x).relu_(), {}, None),
    "prelu": (lambda m, x: m.act(m.conv(x)), {"act": nn.PReLU(16)}, None),
    "prelu of one": (lambda m, x: m.act(m.conv(x)), {"act": nn.PReLU()}, None),
    "residual": (lambda m, x: m.conv(x) + x, {}, None),
    "residual in place": (lambda m, x: m.conv(x).add_(x), {}, None),
    "product": (lambda m, x: m.conv(x) * x, {}, None),
    "scalars": (lambda m, x: 2 * m.conv(x) - 1 / 3, {}, None),
    "concatenation": (lambda m, x: torch.cat([m.conv(x), x[:, :0], x], 1)[:, :16], {}, None),
    "parts": (lambda m, x: torch.cat(m.conv(x).chunk(4, 1)[::-1], 1), {}, None),
    "one channel": (lambda m, x: m.conv(x) * x[:, 3, None], {}, "index"),
    "max pool": (lambda m, x: m.pool(m.conv(x)), {"pool": nn.MaxPool2d(3, 2, 1)}, None),
    "average pool": (lambda m, x: m.pool(m.conv(x)), {"pool": nn.AvgPool2d(2)}, None),
    "pool function": (lambda m, x: functional.max_pool2d(m.conv(x), 2), {}, None),
    "pool without twin": (lambda m, x: m.pool(m.conv(x)), {"pool": nn.MaxPool2d(3, 1)}, "no counterpart"),
    "dropout": (lambda m, x: m.drop(m.conv(x)), {"drop": nn.Dropout2d(0.2)}, None),
    "functional dropout": (lambda m, x: functional.dropout(m.conv(x), 0.2, m.training), {}, None),
    "up-sampling": (lambda m, x: m.up(m.conv(x)), {"up": nn.Upsample(scale_factor=2)}, None),
    "smooth up-sampling": (
        lambda m, x: m.up(m.conv(x)),
        {"up": nn.Upsample(scale_factor=2, mode="bilinear")},
        "only nearest",
    ),
    "gate": (
        lambda m, x: x * m.conv(x).mean((2, 3), keepdim=True).sigmoid(),
        {},
        "pooled parts are concatenated",
    ),
    "expanded gate": (
        lambda m, x: x * functional.adaptive_avg_pool2d(m.conv(x), 1).sigmoid().expand_as(x),
        {},
        "pooled parts are concatenated",
    ),
    "shape": (lambda m, x: m.conv(x) * x.mean((2, 3)).view(x.shape[0], x.size(1), 1, 1), {}, "pooled parts"),
    "group norm": (lambda m, x: m.norm(m.conv(x)), {"norm": nn.GroupNorm(4, 16)}, "no rule for GroupNorm"),
    "softmax": (lambda m, x: torch.softmax(m.conv(x), 1), {}, "no rule for softmax"),
    "padding": (lambda m, x: functional.pad(m.conv(x), (1, 1)), {}, "no rule for pad"),
    "transposed": (lambda m, x: m.up(m.conv(x)), {"up": nn.ConvTranspose2d(16, 16, 2, 2)}, "for ConvTranspose2d"),
    "valid convolution": (lambda m, x: m.valid(m.conv(x)), {"valid": nn.Conv2d(16, 16, 3)}, "padding 0 is not half"),
    "depthwise": (lambda m, x: m.dw(m.conv(x)), {"dw": nn.Conv2d(16, 16, 3, 2, 1, groups=16)}, None),
    "grouped": (lambda m, x: m.g(m.conv(x)), {"g": nn.Conv2d(16, 16, 3, padding=1, groups=4)}, None),
    "identity": (lambda m, x: m.id(m.conv(x)), {"id": nn.Identity()}, None),
    "shared": (lambda m, x: m.norm(m.norm(m.conv(x))), {"norm": nn.BatchNorm2d(16)}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_every_operation_flows_or_merges_with_a_reason(name: str) -> None:
    function, layers, reason = BODIES[name]
    net = Net(Body(function, **layers))
    done = octave(net)
    told = merges(done)
    inside = {place: why for place, why in told.items() if "convolution emits" not in why}
    if reason is None:
        assert not inside
    else:
        assert any(reason in why for why in inside.values()), inside
    assert isinstance(done.model.get_submodule("body.conv"), OctConv2d)
    for size in (32, 33, 38):
        x = torch.randn(2, 3, size, size)
        assert done.model(x).shape == net(x).shape == (2, 5)
    done.model(x).sum().backward()
    assert all(p.grad is not None for p in done.model.parameters())


@pytest.mark.parametrize("name", [name for name in BODIES if "drop" not in name])
def test_is_the_same_network_where_resolution_means_nothing(name: str) -> None:
    """On constant maps without padding effects, high and low are the same, so cut weights give the dense output.

    Padding is made to repeat the border, so that a constant image stays constant through every convolution.
    """
    function, layers, _ = BODIES[name]
    if name in ("padding", "smooth up-sampling"):
        pytest.skip("it makes maps that are not constant, or blurs them")
    torch.manual_seed(0)
    net = Net(Body(function, **copy.deepcopy(layers))).double()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "replicate"
            module._reversed_padding_repeated_twice = [pad for pad in module.padding for _ in (0, 1)]
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.PReLU):
            nn.init.normal_(module.weight)
        if isinstance(module, nn.ConvTranspose2d):
            module.weight.data[:] = module.weight.data[:, :, :1, :1]
    done = octave(net.eval(), alpha=0.25)
    x = torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, 32, 32)
    torch.testing.assert_close(done.model(x), net(x), rtol=0, atol=1e-9)


def test_concatenation_mixes_channels_and_consumers_know_it() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
            self.norm = nn.BatchNorm2d(40)
            self.end = nn.Conv2d(40, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            maps = torch.cat([self.one(x), x, self.two(x), x[:, 4:12].contiguous()], 1)
            return self.end(self.norm(maps))

    torch.manual_seed(0)
    net = Net(Dense()).double().eval()
    for conv in (net.lift[0],):
        conv.padding_mode, conv._reversed_padding_repeated_twice = "replicate", [1, 1, 1, 1]
    net.stem[0].padding_mode, net.stem[0]._reversed_padding_repeated_twice = "replicate", [1, 1, 1, 1]
    net.last[0].padding_mode, net.last[0]._reversed_padding_repeated_twice = "replicate", [1, 1, 1, 1]
    nn.init.normal_(net.body.norm.weight)
    nn.init.normal_(net.body.norm.running_mean)
    done = octave(net)
    x = torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, 32, 32)
    torch.testing.assert_close(done.model(x), net(x), rtol=0, atol=1e-9)
    end = done.model.get_submodule("body.end")
    assert isinstance(end, OctConv)
    assert end.low_in == 4 + 8 + 4 + 4
    assert [flow.kind for flow in done.flows if flow.name == "body.getitem"] == ["flow"]


def test_a_map_merges_once_however_many_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(Body(lambda m, x: torch.softmax(y := m.conv(x), 1) + torch.softmax(y, 2) + torch.softmax(y, 3)))
    done = octave(net)
    merged: list[OctaveMap] = []

    def count(x: OctaveMap) -> Tensor:
        merged.append(x)
        return merge(x)

    monkeypatch.setattr(octave_map, "merge", count)
    done.model(torch.randn(2, *SIZE))
    assert len(merged) == 1


def test_the_residual_that_leaves_is_exact() -> None:
    """A full map added to a pair: the pair merges, the full map is not touched."""
    net = Net(Body(lambda m, x: m.conv(x) + m.full(x), full=nn.Conv2d(16, 16, 3, padding=1)))
    done = octave(net, where="!body.full")
    assert "full resolution" in merges(done)["body.add"]


class Drop(nn.Module):
    """Stochastic depth as everybody writes it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(len(x), 1, 1, 1) > 0.5)


def test_what_depends_on_the_mode_depends_on_it() -> None:
    done = octave(Net(Body(lambda m, x: m.drop(m.conv(x)), drop=Drop())))
    assert "body.drop" not in merges(done)
    x = torch.randn(8, *SIZE)
    done.model.train()
    assert not torch.equal(done.model(x), done.model(x))
    done.model.eval()
    assert torch.equal(done.model(x), done.model(x))


@pytest.mark.parametrize("of", ["timm", "torchvision"])
def test_drop_path_draws_once_for_both_parts(of: str) -> None:
    if of == "timm":
        drop = pytest.importorskip("timm.layers").DropPath(0.5)
    else:
        drop = pytest.importorskip("torchvision.ops").StochasticDepth(0.5, "row")
    done = octave(Net(Body(lambda m, x: m.drop(m.conv(x)), drop=drop)))
    assert not any("drop" in name for name in merges(done))
    drop = done.model.get_submodule("body.drop").train()
    x = OctaveMap(torch.ones(64, 3, 4, 4), torch.ones(64, 3, 2, 2))
    y = drop(x)
    assert torch.equal(y.high[:, 0, 0, 0], y.low[:, 0, 0, 0])
    assert 0 < int((y.high[:, 0, 0, 0] == 0).sum()) < 64
    drop.eval()
    assert torch.equal(drop(x).high, x.high)


def test_stem_and_last_stage_stay_by_default() -> None:
    net = create_model("oct_resnet26", alpha=0.5, num_classes=10)
    dense = create_model("oct_resnet26", alpha=0, num_classes=10)
    plain = {name for name, module in net.named_modules() if type(module) is nn.Conv2d and "conv_" not in name}
    assert {name for name in plain if not name.startswith(("stem", "layer4"))} == set()
    first = net.get_submodule("layer4.0.conv1.conv")
    assert isinstance(first, OctConv)
    assert (first.low_in, first.low_out) == (512, 0), "the transition is alpha -> 0, as in the authors' networks"
    second = net.get_submodule("layer4.0.conv2.conv")
    assert isinstance(second, OctConv)
    assert (second.low_in, second.low_out, second.conv_hh.stride) == (0, 0, (1, 1)), "the authors' stride: pool first"
    own = create_model("oct_resnet26", alpha=0.5, num_classes=10, full_stride="strided")
    assert type(own.get_submodule("layer4.0.conv2.conv")) is nn.Conv2d
    assert type(net.get_submodule("layer4.1.conv2.conv")) is nn.Conv2d
    assert "stem.0.conv" in plain
    everything = octave(dense, (3, 64, 64), first=True, last=True)
    assert isinstance(everything.model.get_submodule("stem.0.conv"), OctConv)
    assert isinstance(everything.model.get_submodule("layer4.1.conv3.conv"), OctConv)


def test_alpha_per_layer() -> None:
    done = octave(Net(Body(lambda m, x: m.conv(x))), alphas={"lift*": 0.25, "body.conv": 0})
    lift, conv = done.model.get_submodule("lift.0"), done.model.get_submodule("body.conv")
    assert (lift.low_out, conv.low_in, conv.low_out) == (4, 4, 0)


def test_strides_padding_modes_and_names_are_kept() -> None:
    net = Net(Body(lambda m, x: m.conv(x))).eval()
    net.body.conv.requires_grad_(False)
    net.lift[1].train()
    net.register_buffer("unused", torch.zeros(3))
    done = octave(net)
    assert not any(p.requires_grad for p in done.model.get_submodule("body.conv").parameters())
    assert not done.model.training
    assert done.model.get_submodule("lift.1.high").training
    kept = {name for name in net.state_dict() if not name.startswith(("lift.0", "lift.1", "body"))}
    assert kept <= set(done.model.state_dict())
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in done.model.parameters())
    assert type(net.body.conv) is nn.Conv2d, "the input is not touched"


def test_is_idempotent_and_says_so() -> None:
    done = octave(Net(Body(lambda m, x: m.conv(x))))
    again = octave(done.model)
    assert again.changes == ()
    assert {skip.reason for skip in again.skipped} == {"already an octave convolution"}


def test_step_as_text_and_json() -> None:
    step = Octave(alpha=0.25, where="!stem.*", alphas=(("layer1.*", 0.5),), last=True)
    assert from_json(to_json(step)) == step
    assert parse_step("octave:alpha=0.25,last=true,stride_mode=strided").last


def test_saves_and_loads(tmp_path: Any) -> None:
    net = create_model("resnet20", num_classes=4)
    done = rewrite(net, Octave(alpha=0.25), size=(3, 32, 32))
    save(done, tmp_path / "net")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(tmp_path / "net").eval()(x), done.model.eval()(x))


def test_four_paths_can_be_separable(tmp_path: Any) -> None:
    net = create_model("resnet20", num_classes=4)
    both = rewrite(net, Octave(alpha=0.5), OptimizedSeparable(init="fresh"), size=(3, 32, 32))
    octave_only = rewrite(net, Octave(alpha=0.5), size=(3, 32, 32))
    assert {change.name for change in both.changes} >= {"layer1.0.conv1", "layer1.0.conv1.conv_hh"}
    assert measure(both.model, (3, 32, 32)).macs < measure(octave_only.model, (3, 32, 32)).macs
    both.model(torch.randn(2, 3, 33, 33)).sum().backward()
    save(both, tmp_path / "net")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(tmp_path / "net").eval()(x), both.model.eval()(x))


def test_separable_first_gives_the_same_network_as_separable_last(tmp_path: Any) -> None:
    net = create_model("resnet20", num_classes=4)
    first = rewrite(net, OptimizedSeparable(), Octave(alpha=0.5), size=SIZE)
    last = rewrite(net, Octave(alpha=0.5), OptimizedSeparable(), size=SIZE)
    shapes = [{name: value.shape for name, value in done.model.state_dict().items()} for done in (first, last)]
    emitting = {change.name for change in first.changes if change.after.startswith("octave")}
    assert "layer1.0.conv1" in emitting
    for name in emitting:
        assert {k: v for k, v in shapes[0].items() if k.startswith(name)} == {
            k: v for k, v in shapes[1].items() if k.startswith(name)
        }
    change = next(change for change in first.changes if change.name == "layer1.0.conv1" and "path" in change.after)
    assert change.weights == "projected"
    assert 0 < change.error < 1
    assert measure(first.model, SIZE).params == measure(last.model, SIZE).params
    first.model(torch.randn(2, 3, 33, 33)).sum().backward()
    save(first, tmp_path / "net")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load(tmp_path / "net").eval()(x), first.model.eval()(x))


def test_a_chain_whose_four_paths_are_exact_keeps_its_function() -> None:
    """A depth-separable kernel cut in four is depth-separable in every part."""
    net = rewrite(Net(Body(lambda m, x: m.conv(x))), DepthSeparable(where="body.conv"), size=SIZE).model
    dense = octave(densify(net).model)
    done = octave(net)
    change = next(change for change in done.changes if change.name == "body.conv")
    assert change.error < 1e-5
    x = torch.randn(2, *SIZE)
    torch.testing.assert_close(done.model.eval()(x), dense.model.eval()(x), atol=1e-4, rtol=1e-4)


def test_a_chain_that_is_no_convolution_is_left_alone() -> None:
    step = OptimizedSeparable(where="body.conv", init="fresh", between="bn")
    done = octave(rewrite(Net(Body(lambda m, x: m.conv(x))), step).model)
    assert "body.conv" not in {change.name for change in done.changes}
    assert "no rule for ConvChain" in merges(done)["body.conv"]


class Standardized(nn.Conv2d):
    """A convolution that is more than it seems."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight - self.weight.mean(), self.bias, 1, 1, 1, self.groups)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_subclass_with_its_own_forward_stays(groups: int) -> None:
    net = Net(Body(lambda m, x: m.own(m.conv(x)), own=Standardized(16, 16, 3, padding=1, groups=groups)))
    done = octave(net)
    assert type(done.model.get_submodule("body.own")) is Standardized
    assert "defines its own forward" in merges(done)["body.own"]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.mean() > 0:  # the culprit
            return x
        return -x


def test_a_branch_on_values_names_construct_and_line() -> None:
    with pytest.raises(RewriteError, match=r"`if x\.mean\(\) > 0:.*` at .*test_octave_rewrite\.py:\d+ "):
        octave(Branches())


class OnSizes(nn.Module):
    """A branch on a size, which has an answer without values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.shape[-1] % 7 == 3:
            return x
        return -x


def test_a_branch_on_a_size_is_asked_at_every_size() -> None:
    net = Net(nn.Sequential(Body(lambda m, x: m.conv(x)), OnSizes())).eval()
    done = octave(net)
    assert isinstance(done.model.get_submodule("body.1"), OnSizes)
    assert isinstance(done.model.get_submodule("body.1.conv"), OctConv)
    assert done.skipped == ()
    inner = nn.Sequential(net.body, nn.Flatten()), nn.Sequential(done.model.get_submodule("body"), nn.Flatten())
    for size in (16, 17):  # of the map in the body
        x = torch.randn(2, 16, 1, 1).expand(2, 16, size, size)
        signs = [part(x)[:, size * size // 2].sign() for part in inner]
        assert torch.equal(*signs), size


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net(Body(lambda m, x: m.conv(x)))

    def forward(self, x: Tensor) -> Any:
        out = self.net(x)
        return (out, out) if self.training else out


def test_a_network_that_returns_more_in_training_does_so() -> None:
    model = octave(Auxiliary()).model
    assert len(model.train()(torch.randn(2, *SIZE))) == 2
    assert model.eval()(torch.randn(2, *SIZE)).shape == (2, 5)


def test_bad_input() -> None:
    net = Net(Body(lambda m, x: m.conv(x)))
    with pytest.raises(RewriteError, match="pass size"):
        rewrite(net, Octave())
    with pytest.raises(LeanconvError, match="alpha must be at least 0 and below 1, got 1"):
        Octave(alpha=1)
    with pytest.raises(RewriteError, match=r"alpha=0\.01 leaves lift\.0 without low channels .* at least 0\.0625"):
        octave(net, alpha=0.01)
    with pytest.raises(NothingToRewrite, match=r"alpha=0"):
        octave(net, alpha=0)
    with pytest.raises(NothingToRewrite, match="5 outside where"):
        octave(net, where="nothing.like.this")
    with pytest.raises(RewriteError, match="only Conv1d"):
        rewrite(nn.Sequential(nn.Conv1d(3, 8, 3)), Octave(), size=(3, 32))
    with pytest.raises(RewriteError, match=r"at least one.*at least 0\.25"):
        octave(Net(Body(lambda m, x: m.g(m.conv(x)), g=nn.Conv2d(16, 16, 1, groups=4))), alpha=0.125)
    with pytest.raises(NothingToRewrite, match="on 1x1 maps"):
        octave(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)), (3, 2, 2))


def test_low_maps_really_are_low() -> None:
    """The cost says it: half of the channels at a quarter of the pixels."""
    done = octave(Net(Body(lambda m, x: m.conv(x))))
    seen: dict[str, Any] = {}
    conv = done.model.get_submodule("body.conv")
    conv.register_forward_hook(lambda module, args, out: seen.update(out=out, x=args[0]))
    done.model(torch.randn(1, 3, 30, 34))
    assert seen["x"].high.shape == (1, 8, 15, 17)
    assert seen["out"].low.shape == halve(seen["out"].high).shape == (1, 8, 8, 9)
