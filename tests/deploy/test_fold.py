"""Folding is exact where it is done, is done wherever it is exact, and says why where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.deploy import compare, fold
from leanconv.ops import OPERATORS, conv_maker


def lively(model: Any, seed: int = 0) -> Any:
    """The model with BatchNorms that scale, shift and have seen data: a fresh one hides every mistake."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            with torch.no_grad():
                if norm.track_running_stats:
                    norm.running_mean.normal_(0, 0.2, generator=generator)
                    norm.running_var.uniform_(0.5, 2, generator=generator)
                if norm.affine:
                    norm.weight.uniform_(0.5, 1.5, generator=generator)
                    norm.bias.normal_(0, 0.2, generator=generator)
    return model


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_pair_becomes_one_convolution(ndim: int, bias: bool, affine: bool, groups: int) -> None:
    torch.manual_seed(0)
    conv = CONVS[ndim](4, 8, 3, padding=1, stride=2, bias=bias, groups=groups, padding_mode="circular")
    net = lively(nn.Sequential(conv, NORMS[ndim](8, affine=affine), nn.ReLU()))
    result = fold(net, (4, *[7] * ndim))
    assert result.folded == ("1",)
    assert result.kept == ()
    assert isinstance(result.model[1], nn.Identity)
    assert compare(net.eval(), result.model, (4, *[7] * ndim), seed=5).max_abs < 2e-6


def test_the_callers_model_is_not_touched() -> None:
    net = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    result = fold(net, (3, 8, 8))
    assert net.training
    assert net[1].training
    assert not result.model.training
    assert isinstance(net[1], nn.BatchNorm2d)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_dtype_and_requires_grad_are_kept() -> None:
    net = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).double()
    net[0].weight.requires_grad_(False)
    conv = fold(net, (3, 8, 8)).model[0]
    assert conv.weight.dtype == torch.float64
    assert not conv.weight.requires_grad
    assert not conv.bias.requires_grad


def test_a_norm_without_a_shift() -> None:
    net = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    net[1].register_parameter("bias", None)
    result = fold(net, (3, 8, 8))
    assert result.folded == ("1",)
    assert compare(net.eval(), result.model, (3, 8, 8), seed=5).max_abs < 2e-6


@pytest.mark.parametrize("stem", ["osep", "igc", "csn", "depth_separable", "spatial_separable"])
@pytest.mark.parametrize("channels", [(24, 24), (20, 28)])
def test_shuffles_between_are_followed_through(stem: str, channels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    kind = OPERATORS[stem]
    conv = conv_maker(kind())(*channels, 3, padding=1, bias=False)
    net = lively(nn.Sequential(conv, nn.BatchNorm2d(channels[1]), nn.ReLU()))
    result = fold(net, (channels[0], 9, 9))
    assert "1" in result.folded
    assert compare(net.eval(), result.model, (channels[0], 9, 9), seed=5).max_abs < 1e-5


def test_batchnorm_between_the_stages_is_folded_too() -> None:
    conv = conv_maker(OPERATORS["depth_separable"](between="bn_relu"))(8, 16, 3, padding=1)
    result = fold(lively(nn.Sequential(conv)), (8, 9, 9))
    assert result.folded == ("0.bn1",)


class Branch(nn.Module):
    """The output of the convolution is used beside the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class Shared(nn.Module):
    """One convolution before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.conv(self.a(self.conv(x))))


class Tied(nn.Module):
    """Two convolutions, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.second = nn.Conv2d(4, 4, 3)
        self.second.weight = self.first[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Reads(nn.Module):
    """A forward that reads the weight of its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.conv.weight.mean()


class Standardized(nn.Conv2d):
    """A convolution that normalizes its weight: scaling the weight does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    net[0].register_forward_hook(lambda module, args, output: output * 2)
    return net


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "branch": (lambda: nn.Sequential(nn.Conv2d(4, 3, 1), Branch()), "the output of 1.conv is also used elsewhere"),
    "shared": (Shared, "its convolution is used more than once"),
    "tied": (Tied, "the weights of its convolution are used elsewhere"),
    "reads": (Reads, "the weights of its convolution are used elsewhere"),
    "standardized": (lambda: nn.Sequential(Standardized(4, 4, 3), nn.BatchNorm2d(4)), "0 (Standardized) computes"),
    "hooks": (hooked, "carries forward hooks"),
    "parametrization": (normed, "computes its weights by a parametrization"),
    "pre-activation": (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)), "follows 0 (ReLU)"),
    "first": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)), "it follows input"),
    "no statistics": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        "keeps no running statistics",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_exact_is_kept_with_the_reason(name: str) -> None:
    torch.manual_seed(0)
    make, reason = REFUSED[name]
    net = lively(make())
    result = fold(net, (4, 9, 9))
    assert result.folded == ()
    assert result.kept
    assert all(reason in kept.reason for kept in result.kept), result.kept
    assert compare(net.eval(), result.model, (4, 9, 9)).max_abs == 0.0


class Untraceable(nn.Module):
    def __init__(self, direct: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.norm = nn.BatchNorm2d(4)
        self.direct = direct

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1e9:
            return x
        return self.norm(self.block[0](x) if self.direct else self.block(x))


def test_inside_an_untraceable_model_the_traceable_parts_are_folded() -> None:
    result = fold(lively(Untraceable(direct=False)), (4, 9, 9))
    assert result.folded == ("block.1",)
    assert [kept.name for kept in result.kept] == ["norm"]
    assert "Untraceable cannot be traced by torch.fx" in result.kept[0].reason


def test_a_fold_that_would_change_the_outputs_is_taken_back() -> None:
    net = lively(Untraceable(direct=True))
    result = fold(net, (4, 9, 9))
    assert result.folded == ()
    assert "folding would change the outputs" in result.kept[0].reason
    assert compare(net.eval(), result.model, (4, 9, 9)).max_abs == 0.0


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=10), (3, 64, 64), 20, 0),
    "mobilenetv2_100": (lambda: timm.create_model("mobilenetv2_100", num_classes=10), (3, 64, 64), 52, 0),
    "densenet121": (lambda: timm.create_model("densenet121", num_classes=10), (3, 64, 64), 59, 62),
    "tf_efficientnet_b0": (lambda: timm.create_model("tf_efficientnet_b0", num_classes=10), (3, 64, 64), 49, 0),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5), (3, 64, 64), 56, 0),
    "r3d_18": (lambda: torchvision.models.video.r3d_18(num_classes=5), (3, 4, 32, 32), 20, 0),
}


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "resnet18")]
)
def test_known_networks(name: str) -> None:
    make, size, folded, kept = MODELS[name]
    torch.manual_seed(0)
    net = lively(make())
    result = fold(net, size)
    assert (len(result.folded), len(result.kept)) == (folded, kept)
    found = compare(net.eval(), result.model, size, seed=7)
    assert found.max_abs <= 2e-5 * max(1.0, found.max_output)
    assert sum(isinstance(module, _BatchNorm) for module in result.model.modules()) == kept
