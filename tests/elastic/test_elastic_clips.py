"""Frames as a third axis beside width and resolution: 3D networks, their configurations, statistics and stories."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from elastic_nets import clip_net, randomized
from leanconv.build import create_model, load, save
from leanconv.cost import measure
from leanconv.elastic import Config, MutualObjective, calibrate, from_settings, make_elastic
from leanconv.elastic.inputs import resized, sampled
from leanconv.errors import LeanconvError, NotCalibrated
from leanconv.query import QueryTable, Row
from leanconv.rewrites import Inflate, rewrite
from leanconv.serve import Runtime
from leanconv.story import Story, remember, story_of

FRAMES = (8, 4, 2)


def net_of(frames=FRAMES):
    return make_elastic(randomized(clip_net()), (0.25, 1.0), (16, 12), frames=frames)


@pytest.mark.parametrize(
    ("total", "frames", "places"),
    [(32, 8, range(0, 32, 4)), (8, 8, range(8)), (8, 3, (0, 2, 5)), (10, 4, (0, 2, 5, 7)), (5, 1, (0,))],
)
def test_frames_are_taken_evenly(total, frames, places):
    x = torch.randn(2, 3, total, 4, 4)
    assert torch.equal(sampled(x, frames), x[:, :, list(places)])


def test_all_three_axes_at_once():
    model = randomized(clip_net())
    net = net_of()
    x = torch.randn(3, 3, 8, 16, 16)
    assert net.settings["size"] == [3, 8, 16, 16]
    assert torch.equal(model.eval()(x), net.eval()(x))
    with net.at(1.0, 16, 8):
        assert torch.equal(model(x), net(x))
    net.train()
    with net.at(width=0.5, resolution=12, frames=4):
        assert net.active.config == (0.5, 12, 4)
        answer = net(x)
    static = net.extract(0.5, 12, 4, calibrated=False)
    torch.testing.assert_close(static(resized(x[:, :, ::2], 12)), answer)
    assert net.active.config == (1.0, 16, 8)
    with net.at(0.5):  # frames and resolution as they come count as native
        assert net.active.config == Config(0.5, 16, 8)
        assert net(torch.randn(3, 3, 5, 16, 16)).shape == (3, 5)


def test_the_number_of_frames_reaches_the_network():
    seen = []
    net = net_of()
    net.model[0].register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    for frames in FRAMES:
        with net.at(1.0, 12, frames), torch.no_grad():
            net.train()(torch.randn(2, 3, 16, 16, 16))
    assert seen == [(2, 3, frames, 12, 12) for frames in FRAMES]


def test_statistics_belong_to_one_configuration_each():
    net = net_of().eval()
    x = torch.randn(4, 3, 8, 16, 16)
    configs = [(0.5, 12, 4), (0.5, 12, 8), (1.0, 16, 2)]
    assert calibrate(net, [x], configs, min_images=1) == tuple(configs)
    assert net.calibrated == ((0.5, 12, 8), (0.5, 12, 4), (1.0, 16, 2))
    assert {"1.mean_w05000_r12_f4", "1.var_w10000_r16_f2"} <= net.model.state_dict().keys()
    answers = []
    for config in configs:
        with net.at(*config):
            answers.append(net(x))
        static = net.extract(*config)
        torch.testing.assert_close(static(resized(sampled(x, config[2]), config[1])), answers[-1])
    message = r"0.5-12-2 .* calibrate\(net, loader, \[\(0.5, 12, 2\)\]"
    with net.at(0.5, 12, 2), pytest.raises(NotCalibrated, match=message):
        net(x)


def test_the_grid_has_all_three():
    grid = net_of().configurations(0.375)
    assert len(grid) == len(set(grid)) == 3 * 2 * 3
    assert grid[0] == (1.0, 16, 8)
    assert grid[-1] == (0.25, 12, 2)
    assert [str(config) for config in grid[:2]] == ["1-16-8", "0.625-16-8"]


def test_without_elastic_frames_nothing_changes():
    net = make_elastic(clip_net(), resolutions=(16,), size=(3, 8, 16, 16))
    assert net.frames == ()
    assert net.active.config == (1.0, 16)
    assert "frames" not in net.settings
    with pytest.raises(LeanconvError, match="this network's frames are not elastic"), net.at(0.5, 16, 4):
        pass


def test_story_and_files(tmp_path):
    model = clip_net()
    remember(model, Story(model="clip"))
    net = make_elastic(model, (0.5, 1.0), (16,), frames=(8, 4))
    again = from_settings(clip_net(), story_of(net).to_json()["steps"][0][1])
    assert (again.frames, again.settings) == ((8, 4), net.settings)
    static = net.extract(0.5, 16, 4, calibrated=False)
    _, settings = story_of(static).steps[-1]
    assert settings == {"extract": {"width": 0.5, "resolution": 16, "frames": 4}}
    assert [p.shape for p in from_settings(net, settings).parameters()] == [p.shape for p in static.parameters()]

    video = rewrite(create_model("regconv_w16", depth=8), Inflate()).model
    net = make_elastic(video, (0.25, 1.0), (32,), frames=(4, 2))
    calibrate(net, [torch.randn(2, 3, 4, 32, 32)], [(0.25, 32, 2)], min_images=1)
    again = load(save(net, tmp_path / "model"))
    assert again.calibrated == net.calibrated == ((0.25, 32, 2),)
    x = torch.randn(1, 3, 4, 32, 32)
    with net.at(0.25, 32, 2), again.at(0.25, 32, 2):
        assert torch.equal(net.eval()(x), again.eval()(x))
    assert copy.deepcopy(net).frames == (4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: net_of(frames=(0, 4)), "frames must be one or more whole numbers above 0"),
        (lambda: net_of(frames=8), "frames must be one or more whole numbers"),
        (lambda: make_elastic(nn.Conv2d(3, 8, 1), resolutions=(16,), frames=(8,)), r"frames are for clips of 8 frames"),
        (
            lambda: make_elastic(clip_net(), resolutions=(16,), frames=(8,), size=(3, 4, 16, 16)),
            r"size must be \(channels, 8, height, width\), got \(3, 4, 16, 16\)",
        ),
        (lambda: net_of().extract(0.5, 16, 3), "frames must be one of 8, 4, 2, .* got 3"),
    ],
)
def test_bad_frames(call, message):
    with pytest.raises(LeanconvError, match=message):
        call()


def test_a_clip_with_too_few_frames():
    net = net_of().train()
    with net.at(1.0, 16, 4), pytest.raises(LeanconvError, match=r"4 frames are to be taken from .*\(2, 3, 2, 16, 16\)"):
        net(torch.zeros(2, 3, 2, 16, 16))


def test_a_network_that_needs_a_number_of_frames_says_so():
    model = nn.Sequential(nn.Conv3d(3, 16, 1), nn.AdaptiveAvgPool3d((None, 1, 1)), nn.Flatten(), nn.Linear(16 * 8, 5))
    with pytest.raises(LeanconvError, match="does not run at width 1 and resolution 16, 4 frames"):
        make_elastic(model, resolutions=(16,), frames=(8, 4))


def test_learning_measuring_and_running_with_frames(tmp_path):
    """Students draw their frames too; the table has a column for them, and the runtime takes them."""
    net = net_of()
    objective = MutualObjective(net)
    plans = [objective.plan(step) for step in range(8)]
    assert all(plan[0] == (1.0, 16, 8) for plan in plans)
    assert {config.frames for plan in plans for config in plan[1:]} == set(FRAMES)
    assert plans == [objective.plan(step) for step in range(8)]
    x, labels = torch.randn(4, 3, 8, 16, 16), torch.tensor([0, 1, 2, 3])
    objective.train()(x, labels, 0)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

    configs = [(1.0, 16, 8), (0.5, 12, 2)]
    calibrate(net, [x], configs, min_images=1)
    table = QueryTable.measure(net, [(x, labels)], latency=False)
    assert [row.config for row in table.rows] == [(1.0, 16, 8), (0.5, 12, 2)]
    static = net.extract(0.5, 12, 2)
    assert table.rows[1].macs == measure(static.eval(), (3, 2, 12, 12)).macs
    for suffix in ("json", "csv"):
        again = QueryTable.load(table.save(tmp_path / f"table.{suffix}"))
        assert again.rows == table.rows
        assert again.pick(max_macs=table.rows[1].macs).frames == 2
    runtime = Runtime(net, configs)
    for config in configs:
        runtime.use(*config)
        with net.eval().at(*config), torch.no_grad():
            torch.testing.assert_close(runtime(x), net(x))


def test_a_table_of_images_has_no_column_for_frames(tmp_path):
    row = Row(width=0.5, resolution=32, accuracy=0.5, macs=1, params=1)
    table = QueryTable((row,))
    text = table.save(tmp_path / "table.csv").read_text()
    assert "frames" not in text
    assert QueryTable.load(tmp_path / "table.csv").rows[0].config == (0.5, 32)
