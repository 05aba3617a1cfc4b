"""Chains back into dense convolutions: exact for every operator, honest about what stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanconv.build import create_model
from leanconv.deploy import densify, fold
from leanconv.ops.chain import ConvChain
from leanconv.ops.csn import ChannelSeparated
from leanconv.ops.osep import OptimizedSeparable, OptimizedSeparableConv2d
from leanconv.spec import ConvSpec
from operators import CHAINS, Row


@pytest.mark.parametrize("row", CHAINS, ids=lambda row: row.name)
def test_every_operator_equals_its_dense_convolution(row: Row) -> None:
    chain = row.rewrite.build(row.spec, dtype=torch.float64)
    done = densify(nn.Sequential(chain))
    assert done.densified == ("0",)
    dense = done.model[0]  # type: ignore[index]
    assert type(dense) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    assert dense.weight.numel() == row.spec.params
    x = torch.randn(2, row.spec.in_channels, *(9,) * row.spec.ndim, dtype=torch.float64)
    torch.testing.assert_close(dense(x), chain(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["o_resnet20", "igc_l4m8", "so_resnet20"])
def test_whole_networks(name: str) -> None:
    net = create_model(name)
    done = densify(net, (3, 32, 32))
    assert len(done.densified) == 18
    assert not done.kept
    assert done.max_abs_difference is not None
    assert done.max_abs_difference < 1e-4
    assert not any(isinstance(module, ConvChain) for module in done.model.modules())
    assert sum(isinstance(module, ConvChain) for module in net.modules()) == 18


def test_after_folding_the_batch_norms() -> None:
    """The last stage has a bias then, and the dense convolution takes it over."""
    net = create_model("o_resnet20").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.bias)
    folded = fold(net, (3, 32, 32))
    done = densify(folded.model, (3, 32, 32))
    assert len(done.densified) == 18
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(done.model(x), net(x), rtol=1e-3, atol=1e-4)
    assert all(
        conv.bias is not None
        for conv in done.model.modules()
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)
    )


def test_keeps_device_mode_and_requires_grad() -> None:
    chain = OptimizedSeparableConv2d(16, 16, 3, dtype=torch.float64).eval().requires_grad_(False)
    dense = densify(nn.Sequential(chain)).model[0]  # type: ignore[index]
    assert not dense.training
    assert not dense.weight.requires_grad
    assert dense.weight.dtype == torch.float64
    single = densify(OptimizedSeparableConv2d(16, 16, 3))
    assert isinstance(single.model, nn.Conv2d)


def test_what_is_not_one_convolution_stays() -> None:
    spec = ConvSpec(in_channels=8, out_channels=8, kernel_size=(3, 3), padding=(1, 1))
    norm = ChannelSeparated().build(spec)
    hooked = OptimizedSeparable().build(spec)
    hooked.convs[0].register_forward_hook(lambda *_: None)
    done = densify(nn.Sequential(norm, hooked))
    assert done.densified == ()
    assert [(kept.name, kept.reason.split(":")[0]) for kept in done.kept] == [
        ("0", "between its stages stands bn"),
        ("1", "it carries forward hooks"),
    ]
