"""MutualNet: the multiply-adds of its published query tables and of its ResNet-50, counted on extracted networks.

Its profiler counts an adaptive average pool as one operation per input value; so does `published` here.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from leanconv.build import create_model
from leanconv.cost import measure
from leanconv.elastic import ElasticNet, make_elastic
from leanconv.nets import MobileNetV1, MobileNetV2

V1 = """1.0-224: 569  0.95-224: 518  0.9-224: 466  1.0-192: 418  0.95-192: 380  0.9-192: 342  0.85-192: 309
0.8-192: 269  0.75-192: 239  0.85-160: 215  0.8-160: 187  0.75-160: 166  0.7-160: 146  0.65-160: 127  0.6-160: 111
0.5-160: 76  0.45-160: 63  0.35-160: 41  0.25-192: 30  0.25-160: 21  0.25-128: 13"""
V2 = """1.0-224: 300  0.95-224: 284  0.9-224: 269  0.85-224: 254  1.0-192: 221  0.95-192: 209  0.9-192: 198
0.85-192: 187  0.8-192: 164  0.75-192: 154  0.7-192: 128  0.75-160: 107  0.7-160: 89  0.85-128: 84  0.7-128: 57"""


def rows(text: str) -> list[tuple[float, int, int]]:
    return [(float(w), int(r), int(m)) for w, r, m in re.findall(r"([\d.]+)-(\d+): (\d+)", text)]


def published(net: ElasticNet, width: float, resolution: int) -> int:
    static = net.extract(width, resolution, calibrated=False).eval()
    pooled = []
    for module in static.modules():
        if isinstance(module, nn.AdaptiveAvgPool2d):
            module.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0][0].numel()))
    with torch.no_grad():
        static.to("meta")(torch.zeros(1, 3, resolution, resolution, device="meta"))
    pools = sum(pooled)
    return measure(static, (3, resolution, resolution)).macs + pools


def macs(net: ElasticNet, width: float, side: int) -> int:
    static = net.extract(width, calibrated=False).eval()
    return measure(static, (3, side, side)).macs


@pytest.fixture(scope="module")
def v1() -> ElasticNet:
    return make_elastic(MobileNetV1(), (0.25, 1.0))


@pytest.fixture(scope="module")
def v2() -> ElasticNet:
    # Its last convolution, 320 to 1280, is sliced in its inputs only.
    return make_elastic(MobileNetV2(), (0.7, 1.0), keep=["features.18.*"])


@pytest.mark.parametrize(("width", "resolution", "mega"), rows(V1))
def test_mobilenet_v1(v1, width, resolution, mega):
    assert abs(published(v1, width, resolution) / 1e6 - mega) < 1


@pytest.mark.parametrize(("width", "resolution", "mega"), rows(V2))
def test_mobilenet_v2(v2, width, resolution, mega):
    assert abs(published(v2, width, resolution) / 1e6 - mega) < 1


def test_resnet50():
    timm = pytest.importorskip("timm")
    net = make_elastic(timm.create_model("resnet50"), (0.9, 1.0))
    assert published(net, 1.0, 224) == 4_089_284_608
    assert published(net, 0.9, 224) == 3_338_064_192
    full = net.extract(1.0, calibrated=False)
    weights = [p for m in full.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) for p in m.parameters()]
    assert sum(p.numel() for p in weights) == 25_503_912
    ratios = {
        name: str(m.outputs.spans[0].law[2])
        for name, m in net.model.named_modules()
        if hasattr(m, "elastic_config") and m.outputs.spans[0].law
    }
    assert {ratio for name, ratio in ratios.items() if name.endswith(("conv3", "downsample.0"))} == {"1"}
    assert {ratio for name, ratio in ratios.items() if name.endswith(("conv1", "conv2"))} == {"1/4"}


def test_the_zoos_resnet50_is_that_network() -> None:
    net = create_model("elastic_resnet50")
    assert published(net, 1.0, 224) == 4_089_284_608
    assert published(net, 0.9, 224) == 3_338_064_192


def test_the_wide_mobilenet() -> None:
    """Table 1: executable from 0.57 to 4.5 billion, and 2.3 billion at width 1.6 and 1.3 times the resolution."""
    net = create_model("elastic_mobilenet_v1_wide")
    assert net.resolutions == (320, 288, 256, 224)
    assert round(macs(net, 1.0, 224) / 1e9, 2) == 0.57
    assert round(macs(net, 2.0, 320) / 1e9, 1) == 4.5
    assert 2.3 <= macs(net, 1.6, 288) / 1e9 < 2.4
    narrow, wide = make_elastic(MobileNetV1(), (0.25, 1.0)), make_elastic(MobileNetV1(multiplier=2), (0.25, 1.0))
    assert macs(net, 1.0, 224) == macs(narrow, 1.0, 224)
    assert macs(net, 2.0, 224) == macs(wide, 1.0, 224)


def test_wideresnet28_10() -> None:
    net = create_model("elastic_wideresnet28_10")
    assert sum(p.numel() for p in net.parameters()) == 36_479_194  # its authors: 36.5 M
    assert macs(net, 1.0, 32) == 5_243_328_768
    assert macs(net, 0.9, 32) / macs(net, 1.0, 32) == pytest.approx(0.81, abs=0.005)
    channels = {m.out_channels for m in net.extract(0.9, calibrated=False).modules() if isinstance(m, nn.Conv2d)}
    assert channels == {16, 144, 288, 576}


@pytest.mark.slow
def test_vgg16() -> None:
    net = create_model("elastic_vgg16")
    assert macs(net, 1.0, 224) == 15_470_264_320
    assert sum(p.numel() for p in net.parameters()) == 138_357_544
    static = net.extract(0.25, calibrated=False)
    assert [m.out_channels for m in static.features if isinstance(m, nn.Conv2d)] == [
        *(16, 16, 32, 32, 64, 64, 64),
        *(128, 128, 128) * 2,
    ]
    assert [m.in_features for m in static.classifier if isinstance(m, nn.Linear)] == [128 * 49, 1024, 1024]
