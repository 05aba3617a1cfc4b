"""Real networks: forward, backward and extraction at three widths, and equality with the original at width 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from elastic_nets import masked
from leanconv.elastic import make_elastic
from leanconv.elastic.inputs import resized
from leanconv.elastic.layers.leaves import Elastic
from leanconv.nets import CifarResNet

timm = pytest.importorskip("timm")
slow = pytest.mark.slow

NETS = [
    "resnet18",
    "mobilenetv2_100",
    pytest.param("mobilenetv1_100", marks=slow),
    pytest.param("resnet50", marks=slow),
    pytest.param("resnext50_32x4d", marks=slow),
    pytest.param("seresnet50", marks=slow),
    pytest.param("densenet121", marks=slow),
    pytest.param("efficientnet_b0", marks=slow),
    pytest.param("tf_mobilenetv3_small_100", marks=slow),
    pytest.param("regnety_008", marks=slow),
    pytest.param("vgg16_bn", marks=slow),
    pytest.param("ecaresnet50t", marks=slow),
]


@pytest.mark.parametrize("name", NETS)
def test_timm(name):
    side = 64
    model = timm.create_model(name, num_classes=7, drop_rate=0.0).eval()
    net = make_elastic(model, (0.25, 1.0), (side, 48))
    assert list(net.model.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(model(x), net(x))
    model.train(), net.train()
    for width in (0.25, 0.5, 0.8):
        net.zero_grad()
        with net.at(width, 48):
            y = net(x)
        y.square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        static = net.extract(width, 48, calibrated=False)
        assert not any(isinstance(module, Elastic) for module in static.modules())
        with torch.no_grad():
            assert (static(resized(x, 48)) - y).abs().max() < 1e-5 * max(1.0, y.abs().max().item())
    # BatchNorm over two images amplifies rounding, so the oracle is asked in double precision.
    model, net, x = model.double(), net.double(), resized(x.double(), 48)
    with torch.no_grad(), net.at(0.55):
        torch.testing.assert_close(masked(model, net, 0.55, x), net(x), rtol=1e-6, atol=1e-6)
    count = [sum(p.numel() for p in m.parameters()) for m in (net.extract(0.5, calibrated=False), model)]
    assert math.isclose(count[0] / count[1], 0.3, abs_tol=0.1)


def test_cifar_resnet_with_zeros_for_missing_channels():
    model = CifarResNet(14).double().train()
    net = make_elastic(model, (0.25, 1.0), (32, 20))
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(model(x), net(x))
    for width in (0.25, 0.6, 0.7):
        with torch.no_grad(), net.at(width):
            torch.testing.assert_close(masked(model, net, width, x), net(x))
    counts = [net.extract(0.7, calibrated=False).get_submodule(f"layer{i}.0.conv2").out_channels for i in (1, 2, 3)]
    assert counts == [16, 24, 48]


def test_no_batch_norm_needs_no_calibration():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 5, 1)).eval()
    net = make_elastic(model, resolutions=(16,))
    assert net.can_evaluate(0.5)
    assert net.calibrated == ()
    with net.at(0.5):
        assert net(torch.randn(1, 3, 16, 16)).shape == (1, 5, 14, 14)
