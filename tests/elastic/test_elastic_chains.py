"""Chains of grouped convolutions at a width: the rule of `narrowed_plan`, in integers and in modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from elastic_nets import masked, randomized
from leanconv.cost import measure
from leanconv.elastic import make_elastic
from leanconv.elastic.layers.chains import ElasticChain
from leanconv.elastic.layers.leaves import Elastic
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelGather, ChannelPad
from leanconv.ops.igc import InterleavedGroup, InterleavedGroupConv2d
from leanconv.ops.osep import OptimizedSeparable, OptimizedSeparableConv2d, OptimizedSeparableConv3d
from leanconv.plan import narrowed_plan
from leanconv.spec import ConvSpec


def spec(inputs: int, outputs: int) -> ConvSpec:
    return ConvSpec(in_channels=inputs, out_channels=outputs, kernel_size=(3, 3))


def around(chain: nn.Module, inputs: int, outputs: int) -> nn.Sequential:
    """The chain between two layers that follow the width."""
    return nn.Sequential(nn.Conv2d(3, inputs, 1), chain, nn.Conv2d(outputs, 4, 1))


def chains(net: nn.Module) -> list[nn.Conv2d]:
    return [m for m in net[1].modules() if isinstance(m, nn.Conv2d)]


def test_an_interleaved_block_at_half_width_is_one_of_half_the_partitions():
    """Whole primary partitions are dropped, the secondary ones stay: L and M become L / 2 and M."""
    plan = InterleavedGroup(primary_partitions=8).plan(spec(32, 32))
    left = narrowed_plan(plan, range(16), range(16))
    half = InterleavedGroup(primary_partitions=4).plan(spec(16, 16))
    for stage, wanted in zip(left.stages, half.stages, strict=True):
        assert len(stage.groups) == wanted.conv.groups
        assert len(stage.groups) * len(stage.reads) == wanted.conv.in_channels
        assert len(stage.rows) == wanted.conv.out_channels
    assert left.borders == (tuple(range(16)), half.wiring(0), half.wiring(1))


def test_an_optimized_separable_pair_drops_whole_groups_of_both_stages():
    plan = OptimizedSeparable().plan(spec(64, 64))  # 22 groups of 3, then 3 of 22, on 66 slots
    assert str(plan) == "3x3 66->66 g22, shuffle 22; 1x1 66->66 g3"
    first, second = narrowed_plan(plan, range(32), range(32)).stages
    assert (first.groups, first.reads, first.makes) == (tuple(range(11)), (0, 1, 2), (0, 1))
    assert (second.groups, second.reads, second.makes) == ((0, 1), tuple(range(11)), tuple(range(22)))


def test_what_nothing_feeds_reads_zero():
    """31 channels in groups of 3: the last group has two empty places."""
    plan = OptimizedSeparable().plan(spec(64, 64))
    left = narrowed_plan(plan, range(31), range(64))
    assert left.borders[0] == (*range(31), -1, -1)
    assert [len(stage.groups) for stage in left.stages] == [11, 3]


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(8, 40),
    outputs=st.integers(8, 40),
    kept=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    between=st.sampled_from(["none", "bn"]),
    overlap=st.sampled_from([0.5, 1.0, 2.0]),
    spatial=st.booleans(),
)
def test_any_chain_equals_itself_with_dropped_channels_zeroed(inputs, outputs, kept, between, overlap, spatial):
    settings = OptimizedSeparable(between=between, overlap=overlap, spatial=spatial, at_most_dense=True)
    model = randomized(around(settings.build(spec(inputs, outputs)), inputs, outputs)).double().train()
    net = make_elastic(model, (0.05, 1.0), (8,), divisor=None)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for width in kept:
        with torch.no_grad(), net.at(width):
            narrow = net(x)
            torch.testing.assert_close(narrow, masked(model, net, width, x), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(net.extract(width, calibrated=False)(x), narrow, rtol=1e-9, atol=1e-9)


def test_macs_of_both_operators():
    """An optimized separable pair shrinks with about the square of the width, an interleaved one's primary with it."""
    shares = {}
    for name, chain in (
        ("osep", OptimizedSeparableConv2d(256, 256, 3, padding=1)),
        ("igc", InterleavedGroupConv2d(256, 256, 3, padding=1, primary_partitions=32)),
    ):
        net = make_elastic(around(chain, 256, 256), (0.25, 1.0), (8,))
        macs = [measure(net.extract(w, calibrated=False)[1], (n, 8, 8)).macs for w, n in ((1.0, 256), (0.5, 128))]
        shares[name] = macs[1] / macs[0]
    assert shares["osep"] == pytest.approx(0.25, abs=0.05)
    # 3x3 in groups of 8: in proportion; 1x1 in 8 groups of 32: with the square
    assert shares["igc"] == pytest.approx((9 * 8 / 2 + 32 / 4) / (9 * 8 + 32), rel=1e-3)


def test_extracted_is_plain_and_as_small_as_it_says():
    chain = OptimizedSeparableConv2d(64, 64, 3, padding=1)
    net = make_elastic(around(chain, 64, 64), (0.25, 1.0), (8,))
    static = net.extract(0.5, calibrated=False)
    assert type(static[1]) is nn.Sequential
    assert not any(isinstance(m, (Elastic, ConvChain)) for m in static.modules())
    assert [(c.in_channels, c.out_channels, c.groups) for c in chains(static)] == [(33, 22, 11), (22, 44, 2)]
    assert [type(m) for m in static[1]] == [ChannelPad, nn.Conv2d, ChannelGather, nn.Conv2d, ChannelGather]
    assert all(c.weight.shape[:2] == (c.out_channels, c.in_channels // c.groups) for c in chains(static))
    full = net.extract(1.0)
    assert type(full[1]) is OptimizedSeparableConv2d
    assert list(full[1]._modules) == list(chain._modules)
    assert torch.equal(full[1].dense_kernel(), chain.dense_kernel())


def test_a_chain_in_three_dimensions():
    chain = OptimizedSeparableConv3d(32, 32, 3, padding=1)
    model = randomized(nn.Sequential(nn.Conv3d(3, 32, 1), chain, nn.Conv3d(32, 4, 1))).double()
    net = make_elastic(model, (0.25, 1.0), (8,), frames=(4, 2))
    x = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    assert torch.equal(model(x), net(x))
    with net.at(0.5, 8, 2):
        torch.testing.assert_close(net(x), masked(model, net, 0.5, x[:, :, ::2]))


def test_copies_and_pickles():
    net = make_elastic(around(InterleavedGroupConv2d(32, 32, 3, padding=1), 32, 32), (0.25, 1.0), (8,))
    x = torch.randn(2, 3, 8, 8)
    with net.at(0.5):
        expected = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with twin.at(0.5):
            assert torch.equal(twin(x), expected)
        assert net.active is not twin.active
        (chain,) = (m for m in twin.modules() if isinstance(m, ElasticChain))
        assert [step for step in chain.elastic_steps if isinstance(step, int)] == [0, 1, 2]
        assert all(m.elastic_config is twin.active for m in (chain, chain.conv1, chain.conv2))
