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


class Heads(nn.Module):
    """Attention whose heads are 20 wide: some kernels are given them padded to 24."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(80, 240)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 20)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v)


class First(nn.Module):
    """The first output of a layer; a recurrent one reads (batch, steps, inputs)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x))[0]


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "heads": (Heads(), (9, 80)),
    "multihead": (First(nn.MultiheadAttention(80, 4, batch_first=True)), (9, 80)),
    "transformer": (nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 96, batch_first=True), 2), (9, 64)),
    "lstm": (First(nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)), (9, 8)),
    "lstm projected": (First(nn.LSTM(8, 16, batch_first=True, proj_size=4)), (9, 8)),
    "gru": (First(nn.GRU(8, 16, 2, batch_first=True)), (9, 8)),
    "rnn": (First(nn.RNN(8, 16, batch_first=True)), (9, 8)),
    "cell": (First(nn.LSTMCell(8, 16)), (8,)),
    "spectral norm": (nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 8, 3)), (4, 9, 9)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_one_count_on_every_device(kind: str, half: bool) -> None:
    """Fused kernels of the device (flash and efficient attention, cuDNN's recurrent layers) count as the others do."""
    net, size = LAYERS[kind]
    on_cpu = measure(net.cpu().float(), size)
    net.cuda()
    for training in (False, True):
        there = measure((net.half() if half else net.float()).train(training), size, batch=2)
        for name in ("macs", "attention_macs", "conv_params", "params_not_counted", "params_not_run"):
            assert getattr(there, name) == getattr(on_cpu, name), name
    fused = [name for name in there.not_counted if "attention" in name]
    if kind == "heads":
        assert fused or "aten.bmm" in there.not_counted


def test_deformable_convolution_on_the_device() -> None:
    ops = pytest.importorskip("torchvision.ops")

    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.conv = nn.Conv2d(4, 18, 3, padding=1), ops.DeformConv2d(4, 6, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x, self.offset(x))  # type: ignore[no-any-return]

    assert measure(Deformable().cuda(), (4, 8, 8)).macs == 64 * (18 + 6) * 4 * 9
