"""The CIFAR ResNet: shapes, shortcuts, injection, initialization. Its counts are in tests/papers/test_osep.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanconv.errors import LeanconvError
from leanconv.nets import CifarResNet
from leanconv.nets.resnet_cifar import BasicBlock, Subsample


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("size", [32, 28, 21])
def test_scores_and_gradients(shortcut: str, size: int) -> None:
    net = CifarResNet(8, num_classes=7, multiplier=0.5, shortcut=shortcut)
    scores = net(torch.randn(2, 3, size, size))
    assert scores.shape == (2, 7)
    scores.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_depth_counts_the_weighted_layers() -> None:
    for depth in (8, 20, 56):
        layers = [m for m in CifarResNet(depth).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth


@pytest.mark.parametrize(("multiplier", "widths"), [(1, (16, 32, 64)), (2.72, (44, 87, 174)), (3.875, (62, 124, 248))])
def test_widths_are_rounded_per_stage(multiplier: float, widths: tuple[int, ...]) -> None:
    net = CifarResNet(8, multiplier=multiplier)
    assert tuple(stage[0].conv2.out_channels for stage in (net.layer1, net.layer2, net.layer3)) == widths


def test_shortcut_a_takes_every_second_pixel_and_appends_zeros() -> None:
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    y = Subsample(2)(x, 5)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert y.shape == (1, 5, 2, 2)
    assert not y[:, 2:].any()


def test_shortcut_b_is_one_bare_convolution() -> None:
    block = BasicBlock(8, 16, 2, shortcut="B")
    assert isinstance(block.shortcut, nn.Conv2d)
    assert (block.shortcut.kernel_size, block.shortcut.stride, block.shortcut.bias) == ((1, 1), (2, 2), None)


def test_conv_is_injected_in_the_blocks_and_nowhere_else() -> None:
    calls: list[tuple[int, int, int]] = []

    def conv(cin: int, cout: int, kernel: int, **kw: object) -> nn.Module:
        calls.append((cin, cout, kernel))
        return nn.Conv2d(cin, cout, kernel, **kw)  # type: ignore[arg-type]

    CifarResNet(14, shortcut="B", conv=conv)
    assert calls == [
        *[(16, 16, 3)] * 4,
        (16, 32, 3), *[(32, 32, 3)] * 3,
        (32, 64, 3), *[(64, 64, 3)] * 3,
    ]  # fmt: skip


def test_initialization_is_he_and_leaves_operators_that_draw_themselves() -> None:
    class Own(nn.Sequential):
        def reset_parameters(self) -> None:
            nn.init.constant_(self[0].weight, 0.125)

    def conv(cin: int, cout: int, kernel: int, **kw: object) -> nn.Module:
        own = Own(nn.Conv2d(cin, cout, kernel, **kw))  # type: ignore[arg-type]
        own.reset_parameters()
        return own

    net = CifarResNet(8, multiplier=8, conv=conv)
    assert (net.layer1[0].conv1[0].weight == 0.125).all()
    he = CifarResNet(8, multiplier=8).layer2[0].conv2.weight
    assert he.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"depth": 21}, r"depth must be 6n \+ 2 .*got 21"),
        ({"depth": 2}, r"depth must be 6n \+ 2"),
        ({"depth": 20, "shortcut": "C"}, "shortcut must be 'A'"),
        ({"depth": 20, "num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"depth": 20, "multiplier": float("nan")}, "multiplier must be a number above 0"),
        ({"depth": 20, "multiplier": "2"}, "multiplier must be a number above 0, got '2'"),
        ({"depth": 20, "stem_stride": True}, "stem_stride must be an integer"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(LeanconvError, match=match):
        CifarResNet(**options)  # type: ignore[arg-type]
