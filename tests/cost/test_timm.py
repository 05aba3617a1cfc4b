"""Multiply-adds of real networks of many families agree with torch's own counter, which counts two per multiply-add."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leanconv.cost import measure

timm = pytest.importorskip("timm")

FAST = """
resnet18 densenet121 mobilenetv2_100 efficientnet_b0 regnety_008 vgg11_bn convnext_atto inception_v3 xception41
"""
SLOW = """
resnext50_32x4d seresnet50 mobilenetv3_large_100 regnetx_002 convnextv2_atto inception_resnet_v2 inception_v4 dla34
dpn68 hrnet_w18_small res2net50d resnest14d skresnet18 ghostnet_100 repvgg_a0 mixnet_s nasnetalarge pnasnet5large
cspdarknet53 ese_vovnet19b_dw gernet_s tresnet_m nfnet_f0 mobileone_s0 fasternet_t0 convmixer_768_32 rexnet_100
selecsls42 lcnet_050 inception_next_atto mambaout_femto starnet_s1 hgnet_tiny tf_efficientnet_cc_b0_4e
resnetv2_50x1_bit
"""


@pytest.mark.parametrize(
    "name", [*FAST.split(), *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW.split())]
)
def test_macs_agree_with_torch(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name).eval()
    size = (3, 96, 96)
    cost = measure(net, size)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(torch.empty(1, *size, device="meta"))
    assert 2 * cost.macs == counter.get_total_flops() > 0
    assert cost.params == sum(p.numel() for p in net.parameters())
    assert cost.conv_params <= cost.params
    assert cost.by_module()[""].macs == sum(module.own_macs for module in cost.by_module().values())


def test_three_dimensional_network_agrees_too() -> None:
    video = pytest.importorskip("torchvision.models.video")
    with torch.device("meta"):
        net = video.r3d_18().eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(torch.empty(1, 3, 8, 64, 64, device="meta"))
    assert 2 * measure(net, (3, 8, 64, 64)).macs == counter.get_total_flops() > 0


def test_is_fast() -> None:
    net = timm.create_model("resnet50")
    measure(net, (3, 64, 64))  # imports
    start = time.process_time()
    measure(net, (3, 224, 224))
    assert time.process_time() - start < 2
