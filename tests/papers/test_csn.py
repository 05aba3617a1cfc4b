"""Printed numbers of "Video Classification with Channel-Separated Convolutional Networks" (ICCV 2019)."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_counts import count as counted
from torch import Tensor, nn

import leanconv as lc
from leanconv.build import create_model, default_size
from leanconv.cost import Cost, measure
from leanconv.nets.resnet3d import ResNet3D
from leanconv.ops.chain import ConvChain
from leanconv.spec import ConvSpec

CLIP = (3, 8, 224, 224)


def counts(name: str, size: tuple[int, ...] = CLIP, **options: Any) -> Cost:
    with torch.device("meta"):
        net = create_model(name, **options)
    return measure(net, size)


class Positions(nn.Module):
    """A network as the released models are tested: the classifier at every place of the map."""

    def __init__(self, net: ResNet3D) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.positions(x)


def test_r2plus1d_counts_as_its_own_papers_print() -> None:
    """Tran et al. 2018 (63.7 M, 152.4 G) and Ghadiyaram et al. 2019 (118.2 M, 252.0 G at 112 pixels)."""
    for name, params, macs in (("r2plus1d_34", 63.7, 152.4), ("r2plus1d_152", 118.2, 252.0)):
        with torch.device("meta"):
            net = create_model(name)
        found = counted(net, (3, 32, 112, 112))
        assert (round(found["params"] / 1e6, 1), round(found["macs"] / 1e9, 1)) == (params, macs)
    assert create_model("r2plus1d_34").stem[0].conv.spatial.out_channels == 45


def test_ir_csn_152_to_the_digit() -> None:
    """The authors' own counter, which also counts the interactions of the convolutional classifier."""
    with torch.device("meta"):
        net = create_model("ir_csn_152")
    assert isinstance(net, ResNet3D)
    cost = measure(Positions(net), (3, 32, 256, 256))
    assert cost.macs == 96_715_669_504
    assert cost.conv_params == 29_551_744
    assert round((cost.interactions + 400 * comb(2048, 2)) / 1e6, 2) == 11370.97
    assert default_size("ir_csn_152") == (3, 32, 224, 224)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("ir_csn_50", 13.13), ("ir_csn_101", 22.21), ("ip_csn_101", 24.60), ("ir_csn_152", 29.70), ("ip_csn_152", 33.02)],
)
def test_parameters_with_batchnorm(name: str, millions: float) -> None:
    """As mmaction2 and pytorchvideo print them."""
    with torch.device("meta"):
        net = create_model(name)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions


def test_figure_1_interactions() -> None:
    """24, 4 and 0 pairs for 4 -> 4 channels in one, two and four groups."""
    pairs = [ConvSpec(in_channels=4, out_channels=4, kernel_size=(3, 3, 3), groups=g).interactions for g in (1, 2, 4)]
    assert pairs == [24, 4, 0]


# --------------------------------------------------------------------------------- section 4.4, figures 6 and 7


@cache
def family(block: str, blocks: int, grouping: str, groups: int) -> Cost:
    layers = {8: (2, 2, 2, 2), 16: (3, 4, 6, 3)}[blocks]
    expansion = 4 if block == "bottleneck" and blocks == 16 else 1
    options = {"block": block, "layers": layers, "expansion": expansion, "grouping": grouping, "groups": groups}
    return counts("resnet3d", **options)


GROUPS = (2, 4, 8, 16, 32)


def of(costs: list[Cost]) -> tuple[list[int], list[int]]:
    return [cost.macs for cost in costs], [cost.interactions for cost in costs]


def falls(values: list[int]) -> bool:
    return all(after < before for before, after in pairwise(values))


def middle_interactions(cost: Cost) -> int:
    """What the 3x3x3 of the blocks contribute: everything but 1x1x1, projections and the stem."""
    leaves = cost.by_module().items()
    return sum(
        module.interactions
        for name, module in leaves
        if name.startswith("layer") and name.endswith(("1.conv", "2.conv"))
    )


@pytest.mark.parametrize("blocks", [8, 16])
def test_simple_blocks_lose_interactions_quadratically(blocks: int) -> None:
    """Figure 7: in G groups the 3x3x3 keep 1 / G^2 of their pairs. What is left at the end are the projections."""
    costs = [family("simple", blocks, "none", 1), *(family("simple", blocks, "G", groups) for groups in GROUPS)]
    macs, interactions = of(costs)
    assert falls(macs)
    assert falls(interactions)
    dense = middle_interactions(costs[0])
    assert dense > 0.9 * interactions[0]
    for groups, cost in zip(GROUPS[:3], costs[1:], strict=False):
        assert dense / middle_interactions(cost) == pytest.approx(groups**2, rel=0.15)
    depthwise = family("simple", blocks, "D", 1)
    assert depthwise.macs < macs[-1]
    assert depthwise.interactions < 0.2 * interactions[0]


@pytest.mark.parametrize(("blocks", "kept"), [(8, 0.63), (16, 0.95)])
def test_bottlenecks_keep_interactions_until_their_1x1x1_are_grouped(blocks: int, kept: float) -> None:
    """Figure 7: marginally less for bottleneck-G and -D, much less for -DG."""
    costs = [family("bottleneck", blocks, "none", 1), *(family("bottleneck", blocks, "G", g) for g in GROUPS)]
    costs.append(family("bottleneck", blocks, "D", 1))
    macs, interactions = of(costs)
    assert falls(macs)
    assert falls(interactions)
    assert interactions[-1] > kept * interactions[0]
    separated = [costs[-1], *(family("bottleneck", blocks, "DG", groups) for groups in GROUPS)]
    macs, interactions = of(separated)
    assert falls(macs)
    assert falls(interactions)
    assert interactions[1] < 0.6 * interactions[0]
    assert interactions[-1] < 0.4 * interactions[0]


@pytest.mark.parametrize(
    ("block", "blocks", "grouping", "macs", "weights", "interactions"),
    [
        ("bottleneck", 8, "none", "14.3", "20.4", "0.42"),
        ("bottleneck", 8, "D", "4.0", "1.7", "0.27"),
        ("bottleneck", 16, "none", "29.5", "46.9", "5.68"),
        ("bottleneck", 16, "D", "10.6", "13.1", "5.42"),
    ],
)
def test_the_families_hold_the_networks_of_table_2(
    block: str, blocks: int, grouping: str, macs: str, weights: str, interactions: str
) -> None:
    """Table 3 and figure 4: bottleneck-8 and -16 are ResNet3D-26 and -50, bottleneck-D is ir-CSN; printed there."""
    cost = family(block, blocks, grouping, 1)
    printed = (f"{cost.macs / 1e9:.1f}", f"{cost.conv_params / 1e6:.1f}", f"{cost.interactions / 1e9:.2f}")
    assert printed == (macs, weights, interactions)


@pytest.mark.parametrize(("blocks", "layers"), [(8, (2, 2, 2, 2)), (16, (3, 4, 6, 3))])
def test_simple_blocks_by_hand(blocks: int, layers: tuple[int, ...]) -> None:
    """Table 1: two 3x3x3 per block on maps that shrink in time from the second stage on; 8 x 224 x 224, 400 classes."""
    voxels, inputs = 8 * 56 * 56, 64
    macs = 8 * 112 * 112 * 64 * 3 * 3 * 7 * 7
    pairs = 64 * comb(3, 2)
    for stage, count in enumerate(layers):
        width = 64 * 2**stage
        if stage:
            voxels //= 8
            macs += voxels * inputs * width  # the projection
            pairs += width * comb(inputs, 2)
        for block in range(count):
            first = inputs if block == 0 else width
            macs += voxels * 27 * (first * width + width * width)
            pairs += width * (comb(first, 2) + comb(width, 2))
        inputs = width
    cost = family("simple", blocks, "none", 1)
    assert (cost.macs, cost.interactions) == (macs + 512 * 400, pairs)


# ------------------------------------------------------------------------- section 4.2 and the released networks


def test_space_time_decomposition_costs_nearly_nothing_more() -> None:
    """Section 4.2: more memory, roughly the same GFLOPs."""
    plain, split = counts("ir_csn_50"), counts("ir_csn_50", space_time=True)
    assert split.macs == pytest.approx(plain.macs, rel=0.05)
    assert split.macs < plain.macs
    assert split.interactions == plain.interactions
    assert split.activation_bytes > 1.1 * plain.activation_bytes
    with torch.device("meta"):
        chain = create_model("ir_csn_50", space_time=True).layer2[0].conv2.conv
    assert [conv.kernel_size for conv in chain.convs] == [(1, 3, 3), (3, 1, 1)]
    assert [conv.stride for conv in chain.convs] == [(1, 2, 2), (2, 1, 1)]
    assert [name for name, _ in chain.named_children()] == ["conv1", "bn1", "relu1", "conv2"]


def test_relu_between_the_ip_convolutions_is_a_option() -> None:
    """The released networks have a BatchNorm there and no ReLU; counts are the same."""
    with torch.device("meta"):
        chains = [create_model("ip_csn_26", relu_between=relu).layer3[0].conv2.conv for relu in (False, True)]
    names = [[name for name, _ in chain.named_children()] for chain in chains]
    assert names == [["conv1", "bn1", "conv2"], ["conv1", "bn1", "relu1", "conv2"]]
    # The extra 1x1x1 runs at the resolution of the block's input.
    assert [conv.stride for conv in chains[0].convs] == [(1, 1, 1), (2, 2, 2)]
    assert counts("ip_csn_26", relu_between=True).macs == counts("ip_csn_26").macs


def test_every_batchnorm_has_the_released_eps() -> None:
    with torch.device("meta"):
        net = create_model("ip_csn_26")
    assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm3d)} == {1e-3}
    assert sum(isinstance(m, ConvChain) for m in net.modules()) == 8


# --------------------------------------------------------------------------------- separation as a rewrite


@pytest.mark.parametrize("mode", ["ip", "ir"])
@pytest.mark.parametrize("depth", [26, 50])
def test_rewriting_the_dense_network_gives_the_zoos(mode: str, depth: int) -> None:
    with torch.device("meta"):
        dense = create_model(f"resnet3d_{depth}")
        zoo = create_model(f"{mode}_csn_{depth}")
        new = lc.rewrite(dense, lc.ChannelSeparated(mode=mode, init="fresh")).model
    ours, theirs = measure(new, CLIP), measure(zoo, CLIP)
    assert (ours.macs, ours.params, ours.interactions) == (theirs.macs, theirs.params, theirs.interactions)
    shapes = [{name: t.shape for name, t in net.state_dict().items()} for net in (new, zoo)]
    assert shapes[0] == shapes[1], "their weights are interchangeable"


@pytest.mark.parametrize("mode", ["ip", "ir"])
def test_torchvisions_r3d_18_separated(mode: str) -> None:
    """Sixteen 3x3x3 convolutions of simple blocks; the stem and the projections stay."""
    with torch.device("meta"):
        net = create_model("torchvision/r3d_18")
    new = lc.rewrite(net, lc.ChannelSeparated(mode=mode, init="fresh"), size=(3, 8, 112, 112))
    assert len(new.changes) == 16
    before, after = measure(net, (3, 8, 112, 112)), measure(new.model, (3, 8, 112, 112))
    assert after.macs < 0.25 * before.macs
    if mode == "ip":
        assert after.interactions == before.interactions
    else:
        assert after.interactions < 0.2 * before.interactions


# ------------------------------------------------------------------------------------- with the library's other ideas


@pytest.mark.parametrize(("name", "changed"), [("resnet3d_18", 16), ("ir_csn_26", 22), ("ip_csn_26", 16)])
def test_octave_composes(name: str, changed: int) -> None:
    """In the first three stages; the middle of an ip block, which has a BatchNorm inside, stays as it is."""
    net = create_model(name, num_classes=5)
    new = lc.rewrite(net, lc.Octave(alpha=0.5), size=(3, 4, 64, 64))
    assert len(new.changes) == changed
    assert new.model(torch.randn(2, 3, 4, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["resnet3d_26", "ir_csn_26", "ip_csn_26"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    net = create_model(name, num_classes=5, frames=4, norm_eps=1e-4).eval()
    lc.save(net, tmp_path / "model")
    x = torch.randn(1, 3, 4, 32, 32)
    again = lc.load(tmp_path / "model")
    assert isinstance(again, ResNet3D)
    assert torch.equal(again(x), net(x))
    assert torch.equal(again.positions(x), net.positions(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ir_csn_26", "ip_csn_26"])
def test_exported(name: str, tmp_path: Path) -> None:
    """To ONNX with a dynamic batch; the export itself compares the outputs."""
    net = create_model(name, num_classes=5).eval()
    report = lc.export(net, tmp_path / "net.onnx", size=(3, 8, 64, 64))
    assert report.dynamic_batch
    assert report.max_abs_difference < 1e-4
