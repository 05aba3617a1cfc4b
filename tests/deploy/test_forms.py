"""Every form computes the same network, in training with the same parameters and the same gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from forms_net import net
from torch import Tensor, nn
from torch.nn import functional

from leanconv.build import create_model
from leanconv.deploy.forms import fastest, in_form
from leanconv.deploy.forms.chains import ChainUnit
from leanconv.deploy.forms.layers import ChannelwiseConv2d, ChannelwiseUnit, PaddedBatchNorm2d, PaddedConv2d
from leanconv.deploy.forms.octaves import OctaveUnit
from leanconv.errors import LeanconvError, NothingToRewrite
from leanconv.kernels.library import missing
from leanconv.ops.igc import InterleavedGroup
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import DepthSeparable, Depthwise

SIZE = (3, 12, 12)


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and buffers of one step of training."""
    model.train()
    loss = functional.cross_entropy(model(x), torch.arange(len(x)) % 10)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, {name: b.clone() for name, b in model.state_dict().items()}


@pytest.mark.parametrize(
    ("operator", "form", "multiple"),
    [
        (OptimizedSeparable(), "composed", 1),
        (OptimizedSeparable(), "composed", 8),
        (OptimizedSeparable(), "merged", 1),
        (None, "stages", 8),
        (DepthSeparable(between="bn"), "kernel", 1),
        (DepthSeparable(between="bn"), "kernel", 8),
    ],
)
def test_training(operator: object, form: str, multiple: int) -> None:
    """Same names, same loss, same gradients, same running statistics; odd widths filled up or not."""
    plain = net(operator)
    other = in_form(plain, form, SIZE, training=True, multiple=multiple)  # type: ignore[arg-type]
    assert {name: tuple(p.shape) for name, p in other.state_dict().items()} == {
        name: tuple(p.shape) for name, p in plain.state_dict().items()
    }
    x = torch.randn(6, *SIZE)
    loss, gradients, state = step(other, x)
    wanted, exact, after = step(plain, x)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == exact.keys()
    for name, gradient in exact.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n} {text}"
        )
    for name, value in after.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)


def test_what_became_of_the_layers() -> None:
    padded = in_form(net(None), "stages", SIZE, training=True, multiple=8)
    assert type(padded.conv1) is PaddedConv2d
    assert type(padded.bn1) is PaddedBatchNorm2d
    channelwise = in_form(net(DepthSeparable()), "kernel", SIZE, training=True)
    assert sum(type(module) is ChannelwiseConv2d for module in channelwise.modules()) == 6
    shared = net(OptimizedSeparable())
    twin = in_form(shared, "composed", SIZE, training=True, share=True)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in shared.parameters()]


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("form", ["stages", "composed", "merged", "kernel", "fused"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_inference(form: str, multiple: int, shortcut: str) -> None:
    """Compared with the network by `in_form` itself, and here again at another size."""
    if form in ("stages", "merged") and multiple > 1:
        pytest.skip("channels that are shuffled cannot be filled up, see test_refusals")
    plain = net(OptimizedSeparable(), shortcut=shortcut).eval()
    fast = in_form(plain, form, SIZE, multiple=multiple)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 10, 14)
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("form", ["kernel", "fused"])
def test_inference_of_depth_separable_ones(form: str, multiple: int) -> None:
    """A folded norm leaves a bias before the pointwise stage, which composes, and runs in one pass, too."""
    plain = net(DepthSeparable(between="bn"), shortcut="A").eval()
    fast = in_form(plain, form, SIZE, multiple=multiple)  # type: ignore[arg-type]
    assert sum(isinstance(module, ChainUnit) for module in fast.modules()) == (6 if form == "kernel" else 0)
    x = torch.randn(2, *SIZE)
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-3, atol=1e-4)


def test_inference_of_channelwise_ones() -> None:
    plain = net(Depthwise(), shortcut="A").eval()
    fast = in_form(plain, "kernel", SIZE)
    assert sum(isinstance(module, ChannelwiseUnit) for module in fast.modules()) == 4
    x = torch.randn(2, *SIZE)
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [pytest.param((3, 64, 64), marks=pytest.mark.slow), (3, 44, 52)])
def test_inference_of_octave_networks(size: tuple[int, ...]) -> None:
    """Odd sizes too: 11 x 13 in the second stage."""
    plain = create_model("oct_resnet26", alpha=0.5, num_classes=10).eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.bias, -0.1, 0.1)
    fast = in_form(plain, "kernel", size)
    assert sum(isinstance(module, OctaveUnit) for module in fast.modules()) > 15
    assert not any(isinstance(module, nn.ReLU) for name, module in fast.named_modules())


def test_interleaved_groups_and_gradients_through_units() -> None:
    plain = net(InterleavedGroup(primary_partitions=4), multiplier=0.75).eval()
    fast = in_form(plain, "kernel", SIZE)
    x = torch.randn(2, *SIZE, requires_grad=True)
    mine = torch.autograd.grad(fast(x).sum(), x)[0]
    theirs = torch.autograd.grad(plain(x).sum(), x)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_refusals() -> None:
    with pytest.raises(LeanconvError, match="fast"):
        in_form(net(None), "fast", SIZE)  # type: ignore[arg-type]
    with pytest.raises(NothingToRewrite, match="no layer of CifarResNet runs in the form 'composed'"):
        in_form(net(None), "composed", SIZE, training=True)
    with pytest.raises(LeanconvError, match="leave multiple=1"):
        in_form(net(OptimizedSeparable()), "stages", SIZE, training=True, multiple=8)
    with pytest.raises(LeanconvError, match="'fused' is for inference"):
        in_form(net(None), "fused", SIZE, training=True)


def test_the_network_given_stays_as_it_was() -> None:
    plain = net(OptimizedSeparable())
    before = copy.deepcopy(plain.state_dict())
    in_form(plain, "kernel", SIZE, multiple=8)
    assert plain.training
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_where_a_chain_in_one_pass_pays() -> None:
    """Wide chains of small groups; for narrow ones the composed convolution has hardly more products."""
    fast = in_form(create_model("igc_l24m2"), "kernel", (3, 8, 8))
    assert sum(isinstance(module, ChainUnit) for module in fast.modules()) == 6
    unit = ChainUnit(create_model("igc_l4m8").stages[1][1][0], relu=False, multiple=8)  # type: ignore[index]
    assert unit.first.shape == (1, 9, 64, 64)


@pytest.mark.parametrize("training", [False, True])
def test_the_fastest(training: bool, tmp_path: Path) -> None:
    """All that can run is timed, the first is returned untouched, and the file spares the timing."""
    plain, cache = net(OptimizedSeparable()), tmp_path / "forms.json"
    settings = {"training": training, "rounds": 3, "cache": cache, "multiples": (1,), "batch": 2}
    found = fastest(plain, SIZE, **settings)  # type: ignore[arg-type]
    tried = {choice.form for choice in found.choices}
    only = ([] if training else ["kernel", "fused"]) + (["library"] if missing() is None else [])
    assert tried == {"stages", "composed", "merged", *only}
    assert [c.median_ms for c in found.choices] == sorted(c.median_ms for c in found.choices)
    assert next(c for c in found.choices if c.form == "stages").ratio == 1.0
    assert len(found.left) == 6 - len(tried)
    x = torch.randn(2, *SIZE)
    plain.eval()
    torch.testing.assert_close(found.model.eval()(x), plain(x), rtol=1e-3, atol=1e-4)
    if training:
        assert all(p.grad is None for p in found.model.parameters())
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in found.model.state_dict().items())
    again = fastest(plain.train(training), SIZE, **settings)  # type: ignore[arg-type]
    assert [choice.form for choice in again.choices] == [found.choices[0].form]
    cache.write_text("[]")
    with pytest.raises(LeanconvError, match="a JSON object was expected"):
        fastest(plain, SIZE, **settings)  # type: ignore[arg-type]
