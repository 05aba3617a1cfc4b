"""Networks that convolve over one axis in the C library: lines are maps of one row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanconv as lc
from kernels_library import library
from leanconv.deploy import accelerate, bench, compare, fold
from leanconv.ops.channels import ChannelShuffle


@pytest.fixture(autouse=True)
def _library() -> None:
    library()


class Line(nn.Module):
    """Shuffle, gather, pad, concatenation, strides, dilation, a sum, a mean, and a channel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 8, 7, stride=2, padding=3)
        self.grouped = nn.Conv1d(8, 12, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm1d(12)
        self.shuffle = ChannelShuffle(4)
        self.wide = nn.Conv1d(12, 8, 5, padding=4, dilation=2, groups=2)
        self.down = nn.Conv1d(18, 14, 3, stride=2, padding=1, groups=2)
        self.register_buffer("order", torch.randperm(14))
        self.attention = nn.Conv1d(13, 13, 1)
        self.head = nn.Linear(13, 5)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
        self.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu6(self.stem(x))
        y = F.silu(self.wide(self.shuffle(F.relu(self.norm(self.grouped(x))))) + x)
        y = F.hardswish(self.down(torch.cat([y, F.pad(x, (0, 0, 1, 1))], 1)))
        y = y.index_select(1, self.order)[:, 1:]  # type: ignore[arg-type]
        y = y + F.pad(x[:, :, ::2], (0, 0, 0, 5))
        y = y + self.attention(F.adaptive_avg_pool1d(y, 1)).expand_as(y)
        return self.head(y.mean(2)), y


@pytest.mark.parametrize("length", [1, 37, 200])
def test_lines_in_programs(length: int) -> None:
    net = Line()
    fast = accelerate(net, (1, length))
    assert fast.left == ()
    assert compare(fold(net, (1, length)).model, fast.model, (1, length), seed=7).beyond(1e-5) is None
    assert lc.measure(fast.model, (1, length)).macs == lc.measure(net, (1, length)).macs


def test_lines_run_in_onnxruntime_and_in_torch() -> None:
    """Three axes go into a program as four, and come out of it as three."""
    lines = nn.Sequential(
        nn.Conv1d(2, 6, 3, padding=1),
        nn.Conv1d(6, 6, 3, padding=1, groups=6, stride=2),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Tanh(),
        nn.Conv1d(6, 6, 3, padding=1, groups=3),
    ).eval()
    rows = bench({"lines": lines}, (2, 51), backends=["leanconv", "onnxruntime_kernels"], batch=2, rounds=2)
    assert [row.problem for row in rows] == [None, None]
    assert all(row.max_abs_difference < 1e-5 for row in rows if row.max_abs_difference is not None)
