"""Elastic width on somebody else's networks: one smallest model of every convolutional family of timm.

The walk (slow) prints how many families there are, how many of their layers follow the width and which are refused,
with reasons; the list is in the card.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from elastic_nets import elastic_leaves, masked
from leanconv.cost import measure
from leanconv.elastic import ElasticNet, make_elastic
from leanconv.elastic.layers.leaves import Elastic
from leanconv.errors import LeanconvError
from rewrites.timm_families import FAMILIES

timm = pytest.importorskip("timm")

REFUSED = {"efficientvit_msra": "its forward took another path"}
"""Family -> why it is refused: its attention keeps a table of biases from the first evaluation on."""

MIXED = {
    *("convnext", "cpubone", "efficientformer", "efficientvim", "efficientvit_mit", "focalnet", "inception_next"),
    *("iformer", "lowformer", "metaformer", "mobilenetv5", "mobilevit", "nextvit", "rdnet", "shvit", "visformer"),
    *("nfnet", "hgnet"),
}
"""Families where a channel of zeros is not a missing one: a norm over all channels, a softmax that is scaled by the
length of its head, standardized weights, a learned bias behind every norm."""

FAST = ("starnet", "fasternet", "convnext", "res2net", "nfnet")
"""Prefixes alone; a constant split; layer norms and scales; slices; standardized weights with a gain."""

WIDTHS = (0.25, 0.5, 0.8)


def smallest_side(model: nn.Module) -> int:
    """The smallest input that the network takes; some have windows or position tables of a fixed size."""
    native: int = model.pretrained_cfg["input_size"][-1]
    for side in (64, 96, 128):
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(2, 3, side, side, dtype=torch.float64))
        except Exception:
            continue
        return side
    return native


def answer(net: nn.Module, x: Tensor) -> Tensor:
    """In training mode, with the same dropouts every time."""
    torch.manual_seed(1)
    return net.train()(x)


def check(family: str) -> tuple[ElasticNet, float]:
    """The elastic network, held against the original and against what is extracted; its share of MACs at half width.

    Equal to the original at width 1, and below to the original with dropped channels zeroed; every parameter learns.
    """
    torch.manual_seed(0)
    model = timm.create_model(FAMILIES[family], num_classes=7, drop_rate=0.0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == max(parameter.shape, default=1):  # gammas and biases, many of them zero
                parameter.add_(torch.randn_like(parameter) * 0.2)
    side = smallest_side(model)
    size = (3, side, side)
    net = make_elastic(model, (0.25, 1.0), (side,), size=size)
    x = torch.randn(2, *size, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), net.eval()(x))
        for width in WIDTHS:
            with net.at(width):
                narrow = answer(net, x)
            static = net.extract(width, calibrated=False)
            assert not any(isinstance(module, Elastic) for module in static.modules())
            torch.testing.assert_close(answer(static, x), narrow, rtol=1e-9, atol=1e-9)
            if family not in MIXED:
                torch.manual_seed(1)
                torch.testing.assert_close(masked(model.train(), net, width, x), narrow, rtol=1e-6, atol=1e-6)
    with net.at(0.5):
        answer(net, x).square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    costs = [measure(one.eval(), size).macs for one in (net.extract(0.5, calibrated=False), model)]
    assert costs[0] < costs[1]
    return net, costs[0] / costs[1]


@pytest.mark.parametrize("family", FAST)
def test_some_families(family: str) -> None:
    _, share = check(family)
    assert share < 0.35


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_convolutional_family(capsys: pytest.CaptureFixture[str]) -> None:
    refused: dict[str, str] = {}
    passed: dict[str, str] = {}
    for family in FAMILIES:
        if FAMILIES[family] not in timm.list_models():
            continue  # an older timm
        try:
            net, share = check(family)
        except LeanconvError as error:
            refused[family] = str(error)
        else:
            kept = [name for name, why in net.kept.items() if "output" not in why]
            told = f", wide at every width: {', '.join(kept)}" if kept else ""
            passed[family] = f"{len(elastic_leaves(net))} layers, {share:.0%} of the MACs at half width{told}"
    with capsys.disabled():
        total = len(passed) + len(refused)
        print(f"\n{len(passed)} of {total} convolutional families of timm {timm.__version__} are elastic")
        for family, what in passed.items():
            print(f"  {family}: {FAMILIES[family]}, {what}")
        for family, reason in refused.items():
            print(f"  refused, {family}: {FAMILIES[family]}: {reason}")
    assert set(refused) <= set(REFUSED)
    assert all(REFUSED[family] in reason for family, reason in refused.items())
    assert len(passed) >= 0.95 * total
