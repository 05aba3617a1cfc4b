"""Calibration: what is measured, where it is kept, and when it is dropped."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from elastic_nets import NETS, SIDES, elastic
from leanconv.elastic import Config, calibrate, from_settings, make_elastic
from leanconv.elastic.inputs import resized
from leanconv.errors import DataError, LeanconvError, NotCalibrated
from leanconv.story import Story, remember, story_of

CONFIGS = [(0.5, 16), (0.25, 12), (1.0, 12), (1.0, 16)]


def batches(count: int = 3, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(size, 3, 16, 16) + i, torch.zeros(size)) for i in range(count)]


@pytest.fixture
def calibrated():
    _, net = elastic("concat")
    loader = batches()
    calibrate(net, loader, CONFIGS)
    return net, loader


def test_statistics_are_the_cumulative_mean_of_the_batches(calibrated):
    net, loader = calibrated
    for width, resolution in CONFIGS:
        plain = net.extract(width, resolution).train()
        reference = copy.deepcopy(plain)
        for module in reference.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # torch's own cumulative average
        for inputs, _ in loader:
            reference(resized(inputs, resolution))
        for (name, a), (_, b) in zip(plain.named_buffers(), reference.named_buffers(), strict=True):
            if "running" in name:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_calibrated_configurations_evaluate_and_extract(calibrated):
    net, _ = calibrated
    net.eval()
    x = torch.randn(2, 3, 16, 16)
    for width, resolution in CONFIGS:
        with net.at(width, resolution):
            y = net(x)
        static = net.extract(width, resolution)
        assert torch.allclose(static(resized(x, resolution)), y, atol=1e-5)
        assert not [name for name, _ in static.named_buffers() if "mean_w" in name]
    assert set(net.calibrated) == {Config(*config) for config in CONFIGS}
    with net.at(0.75), pytest.raises(NotCalibrated, match=r"0.75-16 .*calibrated: 1-16, 0.5-16, 1-12"):
        net(x)


def test_calibration_changes_neither_weights_nor_modes_nor_running_statistics():
    _, net = elastic("concat")
    net.train()
    net.model.a.eval()
    modes = [m.training for m in net.modules()]
    before = {name: t.clone() for name, t in net.state_dict().items()}
    calibrate(net, batches(), CONFIGS)
    assert [m.training for m in net.modules()] == modes
    after = net.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in before.items())
    assert len(after) > len(before)


def test_dropout_is_off_while_calibrating():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.Dropout(0.9), nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)
    )
    nets = []
    for seed in (0, 1):
        net = make_elastic(model, resolutions=SIDES).train()
        torch.manual_seed(7)
        loader = batches()
        torch.manual_seed(seed)
        calibrate(net, loader, CONFIGS)
        nets.append(net.state_dict())
    assert all(torch.equal(t, nets[1][name]) for name, t in nets[0].items())


def test_uneven_batches_count_by_their_size():
    _, net = elastic("residual")
    images = torch.randn(12, 3, 16, 16)
    calibrate(net, [images[:8], images[8:]], [(0.5, 16)], min_images=12)
    uneven = net.model.stem[1].mean_w05000_r16.clone()
    calibrate(net, [images], [(0.5, 16)], min_images=12)
    torch.testing.assert_close(uneven, net.model.stem[1].mean_w05000_r16)


def test_only_max_images_are_read():
    _, net = elastic("residual")
    read = []

    def loader():
        for i in range(100):
            read.append(i)
            yield torch.randn(8, 3, 16, 16), torch.zeros(8)

    calibrate(net, loader(), [(0.5, 16)], max_images=20)
    assert len(read) == 3


def test_default_is_the_grid():
    _, net = elastic("residual")
    assert calibrate(net, batches(2)) == net.configurations()
    assert set(net.calibrated) == set(net.configurations())


def test_state_dict_round_trip(calibrated):
    net, _ = calibrated
    fresh = elastic("concat")[1].eval()
    state = net.state_dict()
    assert all(isinstance(t, torch.Tensor) for t in state.values())
    fresh.load_state_dict(state)
    x = torch.randn(2, 3, 16, 16)
    for config in CONFIGS:
        with net.eval().at(*config), fresh.at(*config):
            assert torch.equal(net(x), fresh(x))


def test_loading_a_state_without_calibration_drops_the_old_one(calibrated):
    net, _ = calibrated
    net.load_state_dict(elastic("concat")[1].state_dict())
    assert net.calibrated == ()
    with net.eval().at(0.5), pytest.raises(NotCalibrated):
        net(torch.randn(2, 3, 16, 16))


def test_a_training_forward_drops_calibrations(calibrated):
    net, _ = calibrated
    net.eval()(torch.randn(2, 3, 16, 16))
    assert net.calibrated
    net.train()(torch.randn(2, 3, 16, 16))
    assert net.calibrated == ()


def test_statistics_move_with_the_network(calibrated):
    net, _ = calibrated
    net = copy.deepcopy(net).double().eval()
    with net.at(0.5):
        assert net(torch.randn(2, 3, 16, 16).double()).dtype == torch.float64


def test_calibrated_configurations_are_in_the_story():
    model = NETS["residual"]()
    remember(model, Story(model="residual"))
    net = make_elastic(model, (0.25, 1.0), SIDES)
    assert len(story_of(net).steps) == 1
    calibrate(net, batches(), CONFIGS)
    calibrate(net, batches(), [(0.75, 16)])
    story = story_of(net)
    assert len(story.steps) == 2
    again = from_settings(NETS["residual"](), story.steps[0][1])
    again = from_settings(again, story.steps[1][1])
    assert set(again.state_dict()) == set(net.state_dict())
    assert again.calibrated == net.calibrated
    again.load_state_dict(net.state_dict())
    net.train()(torch.randn(2, 3, 16, 16))
    assert len(story_of(net).steps) == 1


def test_nothing_is_stored_when_a_configuration_fails():
    _, net = elastic("residual")

    def loader():
        yield torch.randn(8, 3, 16, 16)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        calibrate(net, loader(), CONFIGS)
    assert net.calibrated == ()
    assert not any("forward" in vars(norm) for norm in net.norms)
    assert net.active.config == (1.0, 16)


@pytest.mark.parametrize(
    ("loader", "options", "error", "message"),
    [
        ([], {}, DataError, "loader yields no images"),
        ([torch.zeros(0, 3, 16, 16)], {}, DataError, "loader yields no images"),
        ([{"x": 1}], {}, DataError, "must yield inputs or .* got dict"),
        ([torch.zeros(4, 3, 16, 16)], {"max_images": 0}, LeanconvError, "max_images must be"),
        ([torch.zeros(4, 3, 16, 16)], {"min_images": 0}, LeanconvError, "min_images must be"),
        ([torch.zeros(9, 3, 16, 16)], {}, DataError, "needs at least 16 images, the loader has 9: .* min_images="),
        ([torch.zeros(4, 3, 16, 16)], {"configs": [(2.0, 16)]}, LeanconvError, "width must be between"),
    ],
)
def test_bad_input(loader, options, error, message):
    _, net = elastic("residual")
    with pytest.raises(error, match=message):
        calibrate(net, loader, **options)
    assert not net.calibrated


def test_asking_for_few_images_is_meant():
    _, net = elastic("residual")
    calibrate(net, [torch.randn(9, 3, 16, 16)], CONFIGS, max_images=8)
    assert len(net.calibrated) == len(CONFIGS)


def test_one_value_per_channel_has_no_variance():
    net = make_elastic(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32), nn.Conv2d(32, 2, 1)),
        resolutions=SIDES,
    )
    with pytest.raises(DataError, match="batch of 1 leaves BatchNorm one value per channel"):
        calibrate(net, [torch.randn(1, 3, 16, 16)])
    calibrate(net, [torch.randn(16, 3, 16, 16), torch.randn(1, 3, 16, 16)], CONFIGS)


def test_norms_without_memory_need_no_calibration():
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32, track_running_stats=False), nn.Conv2d(32, 2, 1))
    net = make_elastic(model, resolutions=SIDES).eval()
    x = torch.randn(4, 3, 16, 16)
    with net.at(0.5):
        assert torch.allclose(net(x), net.extract(0.5).eval()(x), atol=1e-6)
    assert torch.equal(net(x), model.eval()(x))
