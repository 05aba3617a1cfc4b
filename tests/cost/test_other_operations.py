"""Norms, pools, sums and the rest, by kind, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import measure
from leanconv.errors import LeanconvError


class Of(nn.Module):
    """A forward written in one line."""

    def __init__(self, forward: object, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.scale, self.line = nn.Parameter(torch.ones(8)), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self, x)  # type: ignore[operator]


X = 8 * 6 * 6
"""Elements of the input of each."""

BY_HAND: list[tuple[nn.Module, dict[str, int]]] = [
    (nn.BatchNorm2d(8), {"norms": X}),
    (nn.GroupNorm(2, 8), {"norms": 3 * X}),
    (nn.ReLU(inplace=True), {"activations": X}),
    (nn.Softmax(1), {"activations": X}),
    (nn.MaxPool2d(3, 2, 1), {"pools": 8 * 3 * 3 * 9}),  # borders count as whole windows
    (nn.AvgPool2d(2, ceil_mode=True), {"pools": 8 * 3 * 3 * 4}),
    (nn.AvgPool2d((2, 3)), {"pools": 8 * 3 * 2 * 6}),
    (nn.AdaptiveAvgPool2d(1), {"pools": X}),
    (nn.AdaptiveAvgPool2d(3), {"pools": X}),  # windows of 2 x 2 side by side
    (nn.AdaptiveMaxPool2d((4, 1)), {"pools": 8 * 8 * 6}),  # 6 rows in 4 windows of 2: two rows twice
    (Of(lambda _, x: x.mean((2, 3))), {"pools": X}),
    (Of(lambda _, x: x + x), {"sums": X}),
    (Of(lambda _, x: x.sum(1)), {"sums": X}),
    (Of(lambda _, x: x * 3), {"products": X}),
    (Of(lambda net, x: x * net.scale[:, None, None]), {"products": X}),
    (Of(lambda net, x: x + net.scale[:, None, None]), {"biases": X}),
    (Of(lambda net, x: x + (net.scale * net.scale).sum()), {"biases": X}),  # work on weights alone is none
    (nn.Conv2d(8, 4, 3, padding=1), {"biases": 4 * 36}),
    (nn.Conv2d(8, 4, 3, padding=1, bias=False), {}),
    (nn.Sequential(nn.Flatten(), nn.Linear(X, 5)), {"biases": 5}),
    (nn.Upsample(scale_factor=2), {}),
    (nn.Upsample(scale_factor=2, mode="bilinear"), {"resampling": 4 * 4 * X}),
    (Of(lambda _, x: torch.cat([x, x.transpose(2, 3)], 1)[:, ::2].contiguous()), {}),
    (Of(lambda _, x: torch.floor(x)), {"others": X}),
]


@pytest.mark.parametrize(("layer", "kinds"), BY_HAND)
@pytest.mark.parametrize("batch", [1, 3])
def test_layers_by_hand(layer: nn.Module, kinds: dict[str, int], batch: int) -> None:
    cost = measure(layer, (8, 6, 6), batch=batch, all_operations=True)
    assert cost.other_operations == kinds
    assert cost.all_operations == cost.macs + sum(kinds.values())
    assert cost.not_counted == {}


def block() -> nn.Module:
    """A squeezed residual block: BatchNorm, ReLU, a gate and the sum."""
    conv, norm, gate = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 8)
    return Of(
        lambda net, x: F.relu(x + (y := net.norm(net.conv(x))) * net.gate(y.mean((2, 3))).sigmoid()[..., None, None]),
        conv=conv, norm=norm, gate=gate,
    )  # fmt: skip


def test_a_block_by_kind_and_macs_stay() -> None:
    plain, counted = measure(block(), (8, 6, 6)), measure(block(), (8, 6, 6), all_operations=True)
    assert plain.macs == counted.macs == 36 * 8 * 8 * 9 + 64
    assert (plain.other_operations, plain.all_operations) == ({}, plain.macs)
    assert "all_operations" not in plain.to_json()
    wanted = {"norms": X, "pools": X, "products": X, "sums": X, "activations": X + 8, "biases": 8}
    assert counted.other_operations == wanted
    assert json.loads(json.dumps(counted.to_json()))["all_operations"] == counted.macs + 5 * X + 16


def test_what_no_rule_knows_is_listed_and_not_guessed() -> None:
    cost = measure(Of(lambda _, x: x.sort(1).values), (8, 6, 6), all_operations=True)
    assert (cost.other_operations, cost.not_counted) == ({}, {"aten.sort": 1})


def test_an_input_that_does_not_fit_is_one_error() -> None:
    with pytest.raises(LeanconvError, match="conv"):
        measure(block(), (4, 6, 6), all_operations=True)
