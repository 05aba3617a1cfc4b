"""Networks that train on the C library: same names, same losses, less kept; what it does not take stays torch's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from kernels_library import library
from leanconv.build import create_model
from leanconv.deploy.forms import fastest, in_form, measured
from leanconv.deploy.forms.measured import measure_training
from leanconv.deploy.forms.trained import KernelChain, KernelConv2d, train_by_kernels_, trained_by_kernels
from leanconv.deploy.kept import kept_bytes
from leanconv.errors import LeanconvError, NothingToRewrite
from leanconv.nets import CifarResNet
from leanconv.ops import conv_maker, spec_of
from leanconv.ops.chain import ConvChain
from leanconv.ops.igc import InterleavedGroup
from leanconv.ops.osep import OptimizedSeparable, OptimizedSeparableConv2d
from leanconv.ops.separable import DepthSeparable

SIZE = (3, 12, 12)


@pytest.fixture(autouse=True)
def _there() -> None:
    library()


def net(operator: object, multiplier: float = 0.75) -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8, multiplier=multiplier, conv=conv_maker(operator))  # type: ignore[arg-type]


def losses(model: nn.Module, steps: int = 5) -> list[float]:
    torch.manual_seed(1)
    x, labels = torch.randn(8, *SIZE), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(
    "operator",
    [OptimizedSeparable(), InterleavedGroup(), DepthSeparable(between="bn"), DepthSeparable(between="bn_relu")],
    ids=["osep", "igc", "norm between", "norm and ReLU between"],
)
def test_five_steps_have_the_same_losses(operator: object) -> None:
    plain = net(operator)
    other = in_form(plain, "library", SIZE, training=True)
    assert any(isinstance(module, KernelChain) for module in other.modules())
    assert list(other.state_dict()) == list(plain.state_dict())
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4)
    for (name, one), two in zip(plain.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3, msg=lambda text, n=name: f"{n} {text}")


def test_a_scope_ends_as_it_began() -> None:
    plain = net(OptimizedSeparable())
    kinds = [type(module) for module in plain.modules()]
    attributes = [set(vars(module)) for module in plain.modules()]
    with trained_by_kernels(plain) as names:
        assert len(names) > 6
        assert any(isinstance(module, KernelChain) for module in plain.modules())
    assert [type(module) for module in plain.modules()] == kinds
    assert [set(vars(module)) for module in plain.modules()] == attributes


def test_convolutions_alone() -> None:
    """Grouped ones are taken; dense ones, other padding and hooked ones are not."""
    layers = nn.ModuleDict({
        "grouped": nn.Conv2d(8, 12, 3, padding=1, groups=4),
        "strided": nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2),
        "dilated": nn.Conv2d(8, 8, 3, padding=2, groups=2, dilation=2),
        "dense": nn.Conv2d(8, 8, 3, padding=1),
        "valid": nn.Conv2d(8, 8, 3, groups=2),
        "reflected": nn.Conv2d(8, 8, 3, padding=1, groups=2, padding_mode="reflect"),
        "named": nn.Conv2d(8, 8, 3, padding="same", groups=2),
        "hooked": nn.Conv2d(8, 8, 3, padding=1, groups=2),
        "normed": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1, groups=2)),
    })  # fmt: skip
    layers["hooked"].register_forward_hook(lambda *given: None)
    x = torch.randn(2, 8, 9, 7)
    before = {name: layer(x) for name, layer in layers.items()}
    assert train_by_kernels_(layers) == ("grouped", "strided", "dilated")
    for name, layer in layers.items():
        torch.testing.assert_close(layer(x), before[name], rtol=1e-5, atol=1e-5)


def test_layers_over_one_axis() -> None:
    """Chains and convolutions, outputs and gradients; without a batch axis a layer itself runs."""
    torch.manual_seed(0)
    chain = OptimizedSeparable().build(spec_of(nn.Conv1d(16, 24, 5, padding=2)))
    plain = nn.Sequential(chain, nn.ReLU(), nn.Conv1d(24, 24, 3, stride=2, padding=2, dilation=2, groups=8))
    other = copy.deepcopy(plain)
    assert len(train_by_kernels_(other)) >= 3
    x = torch.randn(3, 16, 41)
    wanted, got = plain(x), other(x)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(wanted)
    pairs = (torch.autograd.grad(y, list(net.parameters()), gradient) for y, net in ((wanted, plain), (got, other)))
    for one, two in zip(*pairs, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4)
    alone = torch.randn(24, 17)
    assert torch.equal(other[2](alone), plain[2](alone))
    flat, picture = nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(8, 5, 7)
    wanted = flat(picture)
    train_by_kernels_(nn.Sequential(flat))
    assert torch.equal(flat(picture), wanted)  # three axes, and no line


class Spy:
    """Counts the calls of a function."""

    def __init__(self, run: object) -> None:
        self.run, self.calls = run, 0

    def __call__(self, *given: object) -> object:
        self.calls += 1
        return self.run(*given)  # type: ignore[operator]


def test_the_rule_of_what_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from leanconv.deploy.forms import trained

    spy = Spy(trained.run_piece)
    monkeypatch.setattr(trained, "run_piece", spy)
    layer = OptimizedSeparableConv2d(16, 16, 3, padding=1)
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=4)
    both = nn.Sequential(layer, conv)
    train_by_kernels_(both)
    x = torch.randn(2, 16, 8, 8)
    both(x)
    assert spy.calls == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert both(x).dtype is torch.bfloat16
    both.double()(x.double())
    both.float().to("meta")(x.to("meta"))
    assert spy.calls == 2


def test_pickled_and_copied() -> None:
    layer = nn.Sequential(OptimizedSeparableConv2d(16, 16, 3, padding=1))
    x = torch.randn(2, 16, 8, 8)
    wanted = layer(x)
    train_by_kernels_(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(other[0], KernelChain)
        torch.testing.assert_close(other(x), wanted, rtol=1e-5, atol=1e-5)
    layer[0].run_as("composed")  # type: ignore[operator]
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


def test_bytes_kept_for_the_backward_pass() -> None:
    """A chain by hand: (B, 16, 8, 8) goes in, of which torch keeps the input and what stands between the stages."""
    layer, x = OptimizedSeparableConv2d(16, 16, 3, padding=1, bias=False), torch.randn(2, 16, 8, 8, requires_grad=True)
    one = x.numel() * 4
    assert kept_bytes(layer, lambda: layer(x).sum()) == 2 * one
    holder = nn.Sequential(layer)
    train_by_kernels_(holder)
    assert kept_bytes(holder, lambda: holder(x).sum()) == one


def test_measured() -> None:
    plain = net(OptimizedSeparable())
    state, random = {name: one.clone() for name, one in plain.state_dict().items()}, torch.get_rng_state()
    found = measure_training(plain, SIZE, batch=4, rounds=1)
    assert found is not None
    assert found.difference < 1e-3
    assert found.saved_mb < found.plain_mb
    assert 0 < found.convs < found.of
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(one, state[name]) for name, one in plain.state_dict().items())
    assert not any(isinstance(module, (KernelChain, KernelConv2d)) for module in plain.modules())


def test_a_gradient_that_is_only_rounding_is_no_difference() -> None:
    """A bias in front of a BatchNorm moves nothing: its gradient is noise, on either side another one."""
    torch.manual_seed(0)
    chain = DepthSeparable(between="bn").build(spec_of(nn.Conv2d(16, 16, 3, padding=1)))
    found = measure_training(nn.Sequential(chain, nn.BatchNorm2d(16), nn.ReLU()), (16, 9, 9), rounds=1)
    assert found.convs
    assert found.difference < 1e-3


def test_a_wrong_gradient_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module) -> tuple[str, ...]:
        names = train_by_kernels_(model)
        model.get_submodule(names[0]).weight.register_hook(lambda gradient: gradient * 1.1)
        return names

    monkeypatch.setattr(measured, "train_by_kernels_", wrong)
    assert measure_training(net(OptimizedSeparable()), SIZE, rounds=1).difference == pytest.approx(0.1, rel=1e-2)


def test_among_the_forms() -> None:
    plain = net(InterleavedGroup())
    found = fastest(plain, SIZE, training=True, batch=2, forms=("library",), multiples=(1,), rounds=1)
    assert {choice.form for choice in found.choices} == {"stages", "library"}
    with pytest.raises(LeanconvError, match="'library' fills no channels up"):
        in_form(plain, "library", SIZE, training=True, multiple=8)
    with pytest.raises(NothingToRewrite, match="no layer of CifarResNet runs in the form 'library'"):
        in_form(create_model("resnet20"), "library", (3, 32, 32), training=True)
    assert all(type(m).forward is ConvChain.forward for m in plain.modules() if isinstance(m, ConvChain))
