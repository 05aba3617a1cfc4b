"""The MobileNets: printed counts, other resolutions, widths, injected units."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import mobilenet_v2

from leanconv.errors import LeanconvError
from leanconv.nets import MobileNetV1, MobileNetV2
from leanconv.nets.mobilenet import conv_unit


def counts(net: nn.Module, resolution: int = 224) -> tuple[int, float]:
    with FlopCounterMode(display=False) as counter:
        net.to("meta").eval()(torch.empty(1, 3, resolution, resolution, device="meta"))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() / 2


def test_depth_repeats_the_units_of_every_width_but_the_first() -> None:
    """EfficientNet's 1.4: 2, 2, 6, 2 units become 3, 3, 9, 3; the strides stay where they are."""
    net = MobileNetV1(depth=1.4)
    depthwise = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.in_channels for m in depthwise] == [32, 64, *[128] * 3, *[256] * 3, *[512] * 9, *[1024] * 2]
    strided = [index for index, m in enumerate(depthwise) if m.stride == (2, 2)]
    assert strided == [1, 4, 7, 16]


def test_a_stem_without_channels_is_refused() -> None:
    with pytest.raises(LeanconvError, match=r"multiplier=0\.01 leaves round\(0\.32\) = 0 channels in the stem"):
        MobileNetV1(multiplier=0.01)


def test_counts_at_224() -> None:
    with torch.device("meta"):
        assert counts(MobileNetV1()) == (4_231_976, 568_740_352)
        assert counts(MobileNetV2()) == (3_504_872, 300_774_272)


@pytest.mark.parametrize("multiplier", [0.35, 0.75, 1.4])
def test_v2_rounds_its_widths_as_torchvision_does(multiplier: float) -> None:
    with torch.device("meta"):
        assert counts(MobileNetV2(multiplier=multiplier)) == counts(mobilenet_v2(width_mult=multiplier))


@pytest.mark.parametrize("make", [MobileNetV1, MobileNetV2])
def test_any_resolution_and_gradients(make: type[nn.Module]) -> None:
    net = make(num_classes=5, multiplier=0.25)
    for resolution in (64, 45):
        scores = net(torch.randn(2, 3, resolution, resolution))
        assert scores.shape == (2, 5)
    scores.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_v1_units_are_injected() -> None:
    net = MobileNetV1(multiplier=0.25, last_width=100, block=partial(conv_unit, kernel_size=1))
    kinds = [(m.kernel_size, m.groups) for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert kinds == [((3, 3), 1), *[((1, 1), 1)] * 13]
    assert net.classifier.in_features == 100


@pytest.mark.parametrize("make", [MobileNetV1, MobileNetV2])
@pytest.mark.parametrize("options", [{"multiplier": 0}, {"num_classes": 2.5}])
def test_bad_options_are_refused(make: type[nn.Module], options: dict[str, float]) -> None:
    with pytest.raises(LeanconvError, match=f"{next(iter(options))} must be"):
        make(**options)
