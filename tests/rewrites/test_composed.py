"""Chains in their dense form: the same outputs, the same gradients, the same weights, and back again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanconv.build import create_model
from leanconv.ops.chain import ConvChain
from leanconv.ops.csn import ChannelSeparatedConv2d
from leanconv.ops.igc import InterleavedGroupConv2d
from leanconv.ops.osep import OptimizedSeparableConv2d
from leanconv.rewrites.composed import composed_chains


def gradients(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    net.zero_grad()
    out = net(x)
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out)).sum().backward()
    return [out.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


CHAINS = {
    "osep": lambda: OptimizedSeparableConv2d(24, 36, 3, stride=2, padding=1),
    "osep, groups that do not divide": lambda: OptimizedSeparableConv2d(10, 14, 5, padding=2, bias=False),
    "osep, four stages": lambda: OptimizedSeparableConv2d(16, 16, 3, padding=1, num_separated=4),
    "igc": lambda: InterleavedGroupConv2d(48, 48, 3, padding=1, primary_partitions=24, secondary_partitions=2),
    "reflected": lambda: OptimizedSeparableConv2d(16, 16, 3, padding=1, padding_mode="reflect"),
    "dilated": lambda: OptimizedSeparableConv2d(16, 24, 3, padding=2, dilation=2),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_same_function_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    chain = CHAINS[name]().double()
    buffers = dict(chain.named_buffers()).keys()
    x = torch.randn(2, chain.in_channels, 9, 11, dtype=torch.float64)
    plain = gradients(chain, x)
    with composed_chains(nn.Sequential(chain)) as names:
        assert names == ("0",)
        dense = gradients(chain, x)
    assert len(plain) == len(dense) > 1
    for a, b in zip(plain, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert chain.form == "chain"
    assert dict(chain.named_buffers()).keys() == buffers


def test_a_whole_network_trains_the_same_weights() -> None:
    """Five steps of SGD in either form; state dicts have the same names."""
    nets = []
    for form in (False, True):
        torch.manual_seed(0)
        net = create_model("igc_l24m2", num_classes=10, depth=8).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        x, labels = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
        with composed_chains(net if form else nn.Identity()) as names:
            assert bool(names) == form
            for _ in range(5):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), labels).backward()
                optimizer.step()
        nets.append(net.state_dict())
    assert nets[0].keys() == nets[1].keys()
    for name, value in nets[0].items():
        torch.testing.assert_close(value, nets[1][name], rtol=1e-6, atol=1e-8)


def test_what_is_no_single_convolution_runs_as_it_is() -> None:
    between = ChannelSeparatedConv2d(8, 8, 3, padding=1)
    with composed_chains(nn.Sequential(between, nn.Conv2d(8, 4, 1))) as names:
        assert names == ()
    net = create_model("elastic_mobilenet_v1", widths=[0.5, 1.0], resolutions=[32])
    chains = [module for module in net.modules() if isinstance(module, ConvChain)]
    with composed_chains(net) as names:
        assert all(chain.form == "chain" for chain in chains)
