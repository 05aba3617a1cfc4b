"""Widths above 1: the original is the first part of wider layers, and answers as it did."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from elastic_nets import NETS, SIDES, elastic_leaves, randomized, tensors
from leanconv.build import create_model, load, save
from leanconv.elastic import make_elastic
from leanconv.elastic.inputs import resized
from leanconv.elastic.width import Width, channels_at
from leanconv.errors import NotCalibrated, RewriteError
from leanconv.nets import CifarResNet

WIDENING = [name for name in NETS if name != "chained"]


def widened(name, widths=(1.0, 2.0)):
    model = randomized(NETS[name]()).double()
    return model, make_elastic(model, widths, SIDES)


@pytest.mark.parametrize("name", WIDENING)
def test_the_original_is_a_part(name):
    model, net = widened(name)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    for train in (False, True):  # training drops the statistics, so it comes last
        model.train(train), net.train(train)
        with net.at(1.0):
            for a, b in zip(tensors(model(x)), tensors(net(x)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        if not train:
            static = net.extract(1.0)
            for (a_name, a), (b_name, b) in zip(model.state_dict().items(), static.state_dict().items(), strict=True):
                assert a_name == b_name
                assert torch.equal(a, b)


@pytest.mark.parametrize("name", WIDENING)
@pytest.mark.parametrize("width", [1.3, 2.0])
def test_wider_parts(name, width):
    _, net = widened(name, (0.5, 2.0))
    net.train()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    static = net.extract(width, 12, calibrated=False)
    with net.at(width, 12):
        wide = tensors(net(x))
    for a, b in zip(tensors(static(resized(x, 12))), wide, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    sum(y.square().mean() for y in wide).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_counts_follow_the_law_and_the_weights_are_as_wide():
    _, net = widened("residual", (0.25, 1.6))
    for name, leaf in elastic_leaves(net).items():
        if leaf.elastic_layer.outputs.slices[0].law is None:
            assert name == "head"
            continue
        (one,) = leaf.elastic_layer.outputs.slices
        assert leaf.elastic_layer.outputs.full == channels_at(one.units, 1.6) == leaf.weight.shape[0]
        assert leaf.elastic_layer.outputs.count(Width(1.0)) == one.units
        assert leaf.elastic_layer.outputs.count(Width(0.5)) < one.units
    assert net.model.stem[0].out_channels == 48  # 32 * 1.6 = 51.2, and 48 is the nearest multiple of 8


def test_new_weights_have_the_scale_of_the_old():
    net = make_elastic(CifarResNet(8), (1.0, 2.0), (32,))
    original = make_elastic(CifarResNet(8), (1.0, 1.0), (32,))
    for name, old in original.named_parameters():
        new = net.get_parameter(name)
        if new.ndim == 4 and new.shape[1] > 3:
            assert new.shape[:2] == (2 * old.shape[0], 2 * old.shape[1])
            scale = [w.detach().square().mean().sqrt() for w in (new[old.shape[0] :], old)]
            assert scale[0] / scale[1] == pytest.approx(0.5**0.5, rel=0.15)
        elif "bn" in name:
            assert torch.equal(new, torch.full_like(new, float(name.endswith("weight"))))


def test_the_draw_is_the_same_every_time_and_leaves_the_generator_alone():
    model = NETS["residual"]()
    state = torch.get_rng_state()
    one, other = (make_elastic(model, (1.0, 2.0), SIDES) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_widest_network_has_no_statistics_before_it_has_run():
    _, net = widened("residual")
    net.eval()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    assert net.calibrated == ((1.0, 16),)
    assert net.can_evaluate(1.0)
    assert not net.can_evaluate(2.0)
    with pytest.raises(NotCalibrated, match="configuration 2-16"):
        net(x)
    net.train()
    net(x)
    assert net.calibrated == ()
    twin = copy.deepcopy(net)
    for one in (net, twin):
        one.eval()
        assert one.can_evaluate(2.0)
        assert not one.can_evaluate(1.0)
        assert torch.equal(one(x), net(x))


@pytest.mark.parametrize("trained", [False, True])
def test_saved_and_loaded(tmp_path, trained):
    net = make_elastic(create_model("resnet20"), (1.0, 1.5), (32, 20))
    x = torch.randn(2, 3, 32, 32)
    if trained:
        net.train()(x)
    again = load(save(net, tmp_path / "model"))
    assert again.widths == (1.0, 1.5)
    width = 1.5 if trained else 1.0
    for one in (net, again):
        one.eval()
        assert [one.can_evaluate(w) for w in (1.0, 1.5)] == [not trained, trained]
    with net.at(width), again.at(width):
        assert torch.equal(net(x), again(x))


def test_a_chain_has_no_wider_form():
    with pytest.raises(RewriteError, match="a chain of grouped convolutions has no wider form"):
        make_elastic(NETS["chained"](), (1.0, 2.0), SIDES)


def test_a_network_without_batch_norm_needs_nothing():
    net = make_elastic(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 5, 1)), (0.5, 2.0), (16,)).eval()
    for width in (0.5, 1.0, 1.5, 2.0):
        with net.at(width):
            assert net(torch.zeros(1, 3, 16, 16)).shape == (1, 5, 14, 14)
