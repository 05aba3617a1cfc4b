"""A width for every layer: drawn once per group of coupled layers, right in every way that channels hang together."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from elastic_nets import NETS, elastic, elastic_leaves, masked, tensors
from leanconv.build import create_model
from leanconv.elastic import MutualObjective, Width, calibrate, make_elastic, plan_step
from leanconv.elastic.layers.leaves import Elastic
from leanconv.errors import LeanconvError, NotCalibrated
from leanconv.query import QueryTable
from leanconv.serve import Runtime


@pytest.mark.parametrize("name", NETS)
def test_equals_the_original_with_dropped_channels_zeroed_and_what_is_extracted(name):
    model, net = elastic(name)
    x = torch.randn(4, 3, 16, 16)
    model.train(), net.train()
    for seed in range(3):
        width = Width.by_layer(0.25, 1.0, seed)
        with net.at(width):
            narrow = tensors(net(x))
        static = net.extract(width, calibrated=False)
        assert not any(isinstance(module, Elastic) for module in static.modules())
        for a, b, c in zip(tensors(masked(model, net, width, x)), narrow, tensors(static(x)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(c, b, rtol=1e-5, atol=1e-5)


def test_layers_differ_and_coupled_layers_agree():
    net = make_elastic(create_model("resnet20"), (0.25, 1.0), (32,), divisor=None)
    width = Width.by_layer(0.25, 1.0, seed=1)
    outputs = {name: leaf.elastic_layer.outputs for name, leaf in elastic_leaves(net).items()}
    shares = {name: channels.count(width) / channels.full for name, channels in outputs.items()}
    assert len({round(share, 2) for share in shares.values()}) > 8
    assert all(
        0.25 - 0.04 <= share <= 1 for name, share in shares.items() if any(one.law for one in outputs[name].slices)
    )
    adds = [name for name in shares if name.startswith("stages.1") and name.endswith("bn2")]
    assert len({shares[name] for name in adds}) <= 1


def test_equal_seeds_are_equal_widths_wherever_they_are_drawn():
    width = Width.by_layer(0.25, 1.0, seed=5)
    assert width == copy.deepcopy(width) == pickle.loads(pickle.dumps(width))
    assert width != Width.by_layer(0.25, 1.0, seed=6)
    assert width != float(width)
    assert Width.by_layer(0.25, 1.0, seed=5).of("a") == width.of("a") != width.of("b")
    plan = plan_step(0, 3, (0.25, 1.0), (32, 24), layer_widths=True)
    assert plan == plan_step(0, 3, (0.25, 1.0), (32, 24), layer_widths=True)
    assert [config.width.drawn is not None for config in plan] == [False, True, True, False]
    assert (plan[0].width, plan[-1].width) == (1.0, 0.25)
    assert plan[1].width != plan[2].width


@pytest.mark.parametrize("low_memory", [False, True])
def test_training_reaches_all_weights(low_memory):
    torch.manual_seed(0)
    net = make_elastic(create_model("resnet20"), (0.25, 1.0), (32, 24), divisor=4).train()
    objective = MutualObjective(net, layer_widths=True, low_memory=low_memory)
    parts = objective(torch.randn(4, 3, 32, 32), torch.arange(4), 0)
    parts["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert parts["kl"] > 0


def test_is_for_training_alone():
    _, net = elastic("residual")
    width, x = Width.by_layer(0.25, 1.0, seed=0), torch.randn(8, 3, 16, 16)
    with pytest.raises(NotCalibrated), net.eval().at(width):
        net(x)
    for refused in (
        lambda: calibrate(net, [x, x], [(width, 16)]),
        lambda: QueryTable.measure(net, [(x, torch.zeros(8))], configs=[(width, 16)]),
        lambda: Runtime(net, [(width, 16)]),
    ):
        with pytest.raises(LeanconvError, match="for training"):
            refused()
    with pytest.raises(LeanconvError, match="beyond the widths"):
        net.checked(Width.by_layer(0.1, 1.0, seed=0))
