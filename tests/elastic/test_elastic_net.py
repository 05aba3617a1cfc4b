"""`make_elastic` on networks of every kind of coupling: equal to the original at width 1, to an oracle below."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from elastic_nets import (
    NETS,
    SIDES,
    SpatialAttention,
    clip_net,
    elastic,
    elastic_leaves,
    masked,
    randomized,
    signal_net,
    tensors,
    unit,
)
from leanconv.elastic import Width, from_settings, make_elastic
from leanconv.elastic.inputs import resized
from leanconv.elastic.layers.leaves import Elastic
from leanconv.errors import LeanconvError, NotCalibrated, RewriteError, UnknownName
from leanconv.ops.channels import ChannelGather
from leanconv.story import Story, remember, story_of


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("train", [False, True])
def test_full_width_is_the_original_bit_for_bit(name, train):
    model, net = elastic(name)
    x = torch.randn(4, 3, 16, 16)
    for a, b in zip(tensors(model.train(train)(x)), tensors(net.train(train)(x)), strict=True):
        assert torch.equal(a, b)
    for (a_name, a), (b_name, b) in zip(model.state_dict().items(), net.model.state_dict().items(), strict=True):
        assert a_name == b_name
        assert torch.equal(a, b)


@pytest.mark.parametrize("divisor", [8, None])
@pytest.mark.parametrize("name", NETS)
def test_narrow_equals_the_original_with_dropped_channels_zeroed(name, divisor):
    model, net = elastic(name, divisor=divisor)
    x = torch.randn(4, 3, 16, 16)
    model.train(), net.train()
    for width in (0.25, 0.4, 0.55, 0.9):
        with net.at(width):
            narrow = tensors(net(x))
        for a, b in zip(tensors(masked(model, net, width, x)), narrow, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_extract_equals_at_and_is_plain(name):
    _, net = elastic(name)
    net.train()
    x = torch.randn(4, 3, 16, 16)
    for width in (0.25, 0.5, 1.0):
        static = net.extract(width, 12, calibrated=False)
        assert not any(isinstance(m, Elastic) or hasattr(m, "elastic_config") for m in static.modules())
        with net.at(width, 12):
            expected = tensors(net(x))
        for a, b in zip(tensors(static(resized(x, 12))), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        mine = {p.data_ptr() for p in net.parameters()}
        assert not mine & {p.data_ptr() for p in static.parameters()}
        counts = [m for m in static.modules() if isinstance(m, nn.Conv2d)]
        assert all(m.weight.shape[:2] == (m.out_channels, m.in_channels // m.groups) for m in counts)


def test_extract_within_a_scope_does_not_disturb_it():
    _, net = elastic("residual")
    with net.at(0.5, 12):
        net.extract(0.25, 16, calibrated=False)
        assert net.active.config == (0.5, 12)
    assert net.active.config == (1.0, 16)


@pytest.mark.parametrize("name", NETS)
def test_gradients_reach_the_kept_channels_only(name):
    _, net = elastic(name)
    net.train()
    with net.at(0.5):
        sum(t.square().sum() for t in tensors(net(torch.randn(4, 3, 16, 16)))).backward()
    checked = 0
    for module in net.model.modules():
        for parameter, axes in module.elastic_layer.tensors.items() if isinstance(module, Elastic) else ():
            if parameter not in module._parameters:
                continue
            gradient = module._parameters[parameter].grad
            kept = torch.ones_like(gradient, dtype=torch.bool)
            for axis, channels in enumerate(axes):
                here = torch.zeros(gradient.shape[axis], dtype=torch.bool)
                for start, length in ((0, len(here)),) if channels is None else channels.runs(Width(0.5)):
                    here[start : start + length] = True
                kept &= here.view(-1, *[1] * (gradient.ndim - axis - 1))
            assert not gradient[~kept].any()
            assert gradient[kept].any()
            checked += not kept.all()
    assert checked


def test_channel_counts_follow_the_law():
    _, net = elastic("gated")
    leaves = elastic_leaves(net)
    counts = {name: leaf.elastic_layer.outputs.count(Width(0.5)) for name, leaf in leaves.items()}
    assert counts["stem.0"] == counts["grouped.0"] == counts["grouped.1"] == counts["prelu"] == counts["expand"] == 32
    assert counts["head"] == 6
    static = net.extract(0.5, calibrated=False)
    assert static.grouped[0].groups == 4
    assert static.prelu.num_parameters == 32


def test_divisor_and_ratio_are_settings():
    model = NETS["residual"]()
    counts = [
        make_elastic(model, resolutions=SIDES, **options).model.a[0].elastic_layer.outputs.count(Width(0.3))
        for options in ({}, {"divisor": None}, {"divisor": 4}, {"ratios": {"a.*": 2.0}})
    ]
    assert counts == [16, 14, 16, 16]


def test_kept_layers_stay_wide():
    model = NETS["residual"]()
    net = make_elastic(model, resolutions=SIDES, keep=["a.0"])
    assert net.model.a[0].elastic_layer.outputs.count(Width(0.25)) == 48
    assert net.model.stem[0].elastic_layer.outputs.count(Width(0.25)) == 8


def test_attention_along_and_across_the_channels():
    model = randomized(SpatialAttention())
    net = make_elastic(model, (0.25, 1.0), SIDES).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.eval()(x), net(x))
    net.train()
    with net.at(0.5):
        assert torch.allclose(net(x), net.extract(0.5, calibrated=False)(x), atol=1e-6)


@pytest.mark.parametrize(("make", "size"), [(clip_net, (3, 4, 16, 16)), (signal_net, (2, 16))])
def test_clips_and_signals(make, size):
    model = randomized(make())
    net = make_elastic(model, (0.25, 1.0), SIDES, size=size)
    x = torch.randn(3, *size)
    assert torch.equal(model.eval()(x), net.eval()(x))
    net.train()
    with net.at(0.5, 12):
        assert torch.allclose(net(x), net.extract(0.5, 12, calibrated=False)(resized(x, 12)), atol=1e-5)
    assert resized(x, 12).shape == (3, *size[: len(size) - min(2, len(size) - 1)], *[12] * min(2, len(size) - 1))


def test_clip_is_resized_frame_by_frame():
    x = torch.randn(2, 3, 4, 16, 16)
    frames = [F.interpolate(x[:, :, i], (12, 12), mode="bilinear", align_corners=True) for i in range(4)]
    assert torch.equal(resized(x, 12), torch.stack(frames, 2))


def test_scopes_nest_and_close_after_errors():
    _, net = elastic("residual")
    with net.at(0.5, 12):
        with net.at(0.25):
            assert net.active.config == (0.25, 16)
        with pytest.raises(RuntimeError), net.at(0.25):
            net(torch.zeros(1, 4, 16, 16))
        assert net.active.config == (0.5, 12)
    assert net.active.config == (1.0, 16)


@pytest.mark.parametrize("name", ["concat", "parted", "scaled", "chained"])
def test_copies_have_a_configuration_of_their_own(name):
    _, net = elastic(name)
    x = torch.randn(4, 3, 16, 16)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with net.at(0.25):
            assert twin.active.width == 1.0
            assert all(m.elastic_config is twin.active for m in twin.modules() if isinstance(m, Elastic))
        with net.at(0.5), twin.at(0.5):
            assert torch.equal(net.train()(x), twin.train()(x))


@pytest.mark.parametrize("widths", [(0.25, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("order", [(*range(16, 32), *range(16)), tuple(range(8, 24))])
def test_a_reordering_of_channels_between_layers(order, widths):
    model = randomized(
        nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), ChannelGather(order), nn.Conv2d(len(order), 4, 1))
    ).double()
    net = make_elastic(model, widths, SIDES, divisor=None)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with net.at(1.0):
        torch.testing.assert_close(net(x), model(x))
    for width in (0.5, 0.8, widths[1]):
        static = net.extract(width)
        with net.at(width):
            torch.testing.assert_close(static(x), net(x))
            if widths[1] == 1:
                torch.testing.assert_close(net(x), masked(model, net, width, x))
        assert type(static[2]) is ChannelGather
        assert len(static[2].index) == static[3].in_channels


def test_the_input_model_is_left_alone():
    model = NETS["residual"]().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    types = [type(m) for m in model.modules()]
    net = make_elastic(model, resolutions=SIDES)
    assert [type(m) for m in model.modules()] == types
    assert all(m.training for m in model.modules())
    assert net.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*model.modules(), *net.modules()))


def test_elastic_leaves_are_still_what_they_were():
    _, net = elastic("gated")
    assert isinstance(net.model.stem[0], nn.Conv2d)
    assert isinstance(net.model.stem[1], nn.BatchNorm2d)
    assert isinstance(net.model.squeeze, nn.Linear)


def test_frozen_parameters_stay_frozen():
    model = NETS["residual"]()
    model.stem[0].weight.requires_grad_(False)
    static = make_elastic(model, resolutions=SIDES).extract(0.5, calibrated=False)
    assert [n for n, p in static.named_parameters() if not p.requires_grad] == ["stem.0.weight"]


def test_grid():
    _, net = elastic("residual")
    grid = net.configurations(0.25)
    assert grid == tuple((w, r) for r in (16, 12) for w in (1.0, 0.75, 0.5, 0.25))
    assert len(net.configurations()) == 32
    assert {c.width for c in net.configurations(0.4)} == {1.0, 0.6, 0.25}
    with pytest.raises(LeanconvError, match="step must be above 0"):
        net.configurations(0)


def test_story_is_told_and_replayed():
    model = NETS["residual"]()
    remember(model, Story(model="residual"))
    net = make_elastic(model, (0.5, 1.0), SIDES, keep=["a.0"])
    story = story_of(net)
    assert story.steps == (("elastic", net.settings),)
    again = from_settings(NETS["residual"](), story.to_json()["steps"][0][1])
    assert again.settings == net.settings
    static = net.extract(0.5, 12, calibrated=False)
    stem, settings = story_of(static).steps[-1]
    replayed = from_settings(net, settings)
    assert stem == "elastic"
    assert [p.shape for p in replayed.parameters()] == [p.shape for p in static.parameters()]


def test_replay_of_foreign_settings():
    with pytest.raises(LeanconvError, match="do not fit this version"):
        from_settings(NETS["residual"](), {"widths": [0.5, 1.0], "depths": [1]})
    with pytest.raises(LeanconvError, match="Residual is not elastic"):
        from_settings(NETS["residual"](), {"calibrated": [[0.5, 16]]})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: make_elastic(m, (1.5, 2.0)), LeanconvError, "smallest width must be at most 1"),
        (lambda m: make_elastic(m, (0.25, 0.5)), LeanconvError, "largest width must be at least 1"),
        (lambda m: make_elastic(m, (0.0, 1.0)), LeanconvError, "0 < smallest"),
        (lambda m: make_elastic(m, (1.0, 0.5)), LeanconvError, "smallest <= largest"),
        (lambda m: make_elastic(m, 0.5), LeanconvError, "widths must be"),
        (lambda m: make_elastic(m, resolutions=()), LeanconvError, "resolutions must be one or more"),
        (lambda m: make_elastic(m, resolutions=(16, 0.5)), LeanconvError, "whole numbers above 0"),
        (lambda m: make_elastic(m, divisor=0), LeanconvError, "divisor must be"),
        (lambda m: make_elastic(m, resolutions=SIDES, keep=["nope"]), UnknownName, "unknown layer pattern 'nope'"),
        (lambda m: make_elastic(m, resolutions=SIDES, keep=["*"]), RewriteError, "nothing to make elastic"),
        (
            lambda m: make_elastic(m, resolutions=SIDES, size=(4, 16, 16)),
            RewriteError,
            "fails on .* of module 'stem.0'",
        ),
        (lambda m: make_elastic(nn.Linear(3, 4)), RewriteError, "Linear has no convolution"),
        (lambda m: make_elastic(clip_net()), RewriteError, "needs frames=, or size="),
        (lambda m: make_elastic(make_elastic(m, resolutions=SIDES)), RewriteError, "elastic already"),
        (lambda m: make_elastic(nn.DataParallel(m)), RewriteError, "DataParallel"),
        (lambda m: make_elastic(unit(3, 32), resolutions=SIDES), RewriteError, "nothing to make"),
    ],
)
def test_bad_settings(call, error, message):
    with pytest.raises(error, match=message):
        call(NETS["residual"]())


def test_network_without_tensors_to_return():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 32, 1)

        def forward(self, x):
            return str(self.conv(x).shape)

    with pytest.raises(RewriteError, match="Wrapped returns str"):
        make_elastic(Wrapped(), resolutions=SIDES)


@pytest.mark.parametrize(
    ("width", "resolution", "message"),
    [(0.2, None, "between 0.25 and 1"), (1.2, None, "between"), ("a", None, "between"), (0.5, 14, "one of 16, 12")],
)
def test_configurations_outside_the_range(width, resolution, message):
    _, net = elastic("residual")
    with pytest.raises(LeanconvError, match=message), net.at(width, resolution):
        pass
    with pytest.raises(LeanconvError, match=message):
        net.extract(width, resolution)


def test_uncalibrated_configurations_refuse_to_evaluate():
    _, net = elastic("residual")
    net.eval()
    x = torch.randn(2, 3, 16, 16)
    for config in ((0.5, 16), (1.0, 12), (0.5, None)):
        with net.at(*config), pytest.raises(NotCalibrated, match=r"call calibrate\(net, loader"):
            net(x)
        with pytest.raises(NotCalibrated, match="configuration "):
            net.extract(*config)
    assert torch.equal(net.extract()(x), net(x))
