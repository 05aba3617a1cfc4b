"""Weights on a CUDA device: the same numbers, no memory of the device used, and timing that waits for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanconv.cost import compare_latency, measure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def test_counts_do_not_depend_on_the_device() -> None:
    net = network()
    on_cpu = measure(net, (3, 64, 64))
    net.cuda()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    on_gpu = measure(net, (3, 64, 64))
    assert torch.cuda.max_memory_allocated() < before + 64 * 1024  # no map, only buffers of a few numbers
    for name in ("params", "conv_params", "macs", "interactions", "activation_bytes", "receptive_field"):
        assert getattr(on_gpu, name) == getattr(on_cpu, name), name


def test_peak_is_what_the_allocator_sees() -> None:
    """Elementwise layers have no workspace: the allocator's peak, in blocks of 512 bytes, is the number itself."""

    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.sigmoid(x)
            z = torch.cat([y, x + y], 1)
            return torch.relu(z)[:, ::2].contiguous()

    x = torch.randn(1, 8, 64, 64, device="cuda")
    before = torch.cuda.memory_allocated() - x.untyped_storage().nbytes()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        Chain()(x)
    seen = torch.cuda.max_memory_allocated() - before
    assert measure(Chain(), (8, 64, 64)).peak_activation_bytes == seen


def test_timing_waits_for_the_device() -> None:
    big, small = torch.randn(8192, 8192, device="cuda"), torch.randn(64, 64, device="cuda")
    result = compare_latency({"small": lambda: small @ small, "big": lambda: big @ big}, rounds=5)
    flops = 2 * 8192**3
    assert flops / (result["big"].median_ms / 1000) < 2e15  # no device is that fast; an unawaited launch would be
    assert result["big"].ratio > 10
