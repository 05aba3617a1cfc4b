"""Peak activation memory against chains worked out by hand: what is alive after each operator, in bytes."""

from __future__ import annotations

import gc

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import measure

IMAGE, WIDE, THIN = 4 * 3 * 256, 4 * 8 * 256, 4 * 4 * 256  # float32 maps of 3, 8 and 4 channels, 16 x 16


def wide_conv() -> nn.Conv2d:
    return nn.Conv2d(3, 8, 3, padding=1)


def thin_conv() -> nn.Conv2d:
    return nn.Conv2d(8, 4, 3, padding=1)


def peak(net: nn.Module) -> int:
    return measure(net, (3, 16, 16)).peak_activation_bytes


def test_chain_keeps_one_map_and_makes_the_next() -> None:
    assert peak(wide_conv()) == IMAGE + WIDE
    assert peak(nn.Sequential(wide_conv(), thin_conv())) == IMAGE + WIDE + THIN
    # The activation needs its input and its output at once, unless it works in place.
    assert peak(nn.Sequential(wide_conv(), nn.ReLU(), thin_conv())) == IMAGE + WIDE + WIDE
    assert peak(nn.Sequential(wide_conv(), nn.ReLU(inplace=True), thin_conv())) == IMAGE + WIDE + THIN


class Residual(nn.Module):
    """The shortcut stays alive over the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = wide_conv(), thin_conv(), nn.Conv2d(4, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.b(self.a(x))
        return x + y


def test_residual_keeps_the_shortcut() -> None:
    # At the add: image, shortcut, branch, sum. While b runs: image, shortcut, THIN, branch is less.
    assert peak(Residual()) == IMAGE + 3 * WIDE


class Views(nn.Module):
    """A view keeps the whole memory alive, whoever forgot the rest."""

    def forward(self, x: Tensor) -> Tensor:
        first = (x + 1)[:, :1]
        second = (x + 2)[:, 1:2]
        return first.clone() + second


def test_views_cost_what_they_hold() -> None:
    single = IMAGE // 3
    assert peak(Views()) == IMAGE + 2 * IMAGE + 2 * single


class Branches(nn.Module):
    """All branches live until the concatenation."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(wide_conv() for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], 1)


def test_concatenation() -> None:
    assert peak(Branches(3)) == IMAGE + 3 * WIDE + 3 * WIDE


def test_pooling_makes_its_indices_too() -> None:
    pooled = IMAGE // 4
    assert peak(nn.MaxPool2d(2)) == IMAGE + pooled + 2 * pooled  # int64
    assert measure(nn.MaxPool2d(2), (3, 16, 16)).activation_bytes == pooled


def test_nesting_and_collector_do_not_matter() -> None:
    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = wide_conv(), thin_conv()

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.relu(F.conv2d(x, self.a.weight, padding=1)), self.b.weight, padding=1)

    flat = nn.Sequential(wide_conv(), nn.ReLU(), thin_conv())
    gc.disable()
    try:
        assert peak(flat) == peak(nn.Sequential(nn.Sequential(*flat[:2]), *flat[2:])) == peak(Function())
    finally:
        gc.enable()
