"""Inflation of networks as people write them: equal to the image network on a still clip, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanconv as lc
from leanconv.errors import RewriteError
from leanconv.rewrites import rewrite
from leanconv.rewrites.inflate.frames import FrameConv3d


class Net(nn.Module):
    """Two convolutions with something between them, and a head."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], *, channels: int = 8, **layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(channels, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.between = between
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.between(self, torch.relu(self.conv(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1) if x.ndim == 4 else x.mean((2, 3, 4)))


def gate(net: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(net.gate(x.mean((2, 3), keepdim=True)) * 5)


def shuffled(_: Any, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def attention(_: Any, x: Tensor) -> Tensor:
    y = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(y, y, y).transpose(1, 2).unflatten(2, x.shape[2:])


def shifted(_: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, 1:] = x[:, :, :-1]
    return y


AXES: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]] = {
    "squeeze and excitation": (gate, {"gate": nn.Conv2d(8, 8, 1)}),
    "strided slice": (lambda _, x: x[:, :, ::2, ::2], {}),
    "assignment": (shifted, {}),
    "channel shuffle": (shuffled, {}),
    "attention": (attention, {}),
    "transpose of the sides": (lambda _, x: x.transpose(2, 3) * 2 + x.mean(3, keepdim=True).transpose(2, 3), {}),
    "channels last": (lambda net, x: net.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), {"norm": nn.LayerNorm(8)}),
    "sum over the sides": (lambda _, x: x / x.sum((2, 3), keepdim=True), {}),
    "standardized over the sides": (lambda _, x: (x - x.mean((-2, -1), True)) / x.std((-2, -1), keepdim=True), {}),
    "padded channels": (lambda _, x: F.pad(x, (0, 0, 0, 0, 4, 4)), {"channels": 16}),
    "padded sides": (lambda _, x: F.pad(x, (1, 2, 3, 4), mode="reflect"), {}),
    "interpolated": (lambda _, x: F.interpolate(x, size=(7, 9), mode="bilinear"), {}),
    "interpolated by a factor": (lambda _, x: F.interpolate(x, scale_factor=2, mode="bicubic"), {}),
    "functional pools": (lambda _, x: F.max_pool2d(F.avg_pool2d(x, 3, 2, 1), 2), {}),
    "grid": (lambda _, x: F.grid_sample(x, F.affine_grid(x.new_ones(x.shape[0], 2, 3), list(x.shape))), {}),
    "its own kernel": (lambda _, x: F.conv2d(x, x.new_ones(8, 1, 3, 3), groups=8, padding=1), {}),
    "rotated": (lambda _, x: torch.rot90(x, 1, (2, 3)), {}),
    "flip and roll": (lambda _, x: x.flip(2).roll(1, 3), {}),
    "softmax over the sides": (lambda _, x: x * x.flatten(2).softmax(2).view_as(x), {}),
    "rows": (lambda _, x: torch.stack([row * i for i, row in enumerate(x.unbind(2))], 2), {}),
    "branch on the axes": (lambda _, x: x[:, :, 1:] if x.shape[2] == 12 else x, {}),
}


@pytest.mark.filterwarnings("ignore:Default grid_sample", "ignore:Default upsampling")
@pytest.mark.parametrize("temporal", [(), (("last", 3),)], ids=["still", "temporal"])
@pytest.mark.parametrize("name", AXES)
def test_what_a_forward_says_about_axes_means_the_same(name: str, temporal: Any) -> None:
    between, options = AXES[name]
    compare(Net(between, **options), lc.Inflate(frames=4, temporal=temporal, mode="mean" if temporal else "centre"))


def compare(net: nn.Module, step: lc.Inflate, size: tuple[int, ...] = (3, 12, 14), frames: int = 4) -> lc.Rewritten:
    """The network inflated, after its outputs on a still clip were found to be those on the image.

    Kernels that reach over time see padding at both ends: only the middle frame of a long clip is compared then.
    """
    torch.manual_seed(0)
    net.eval()
    done = rewrite(net, step, size=size)
    x = torch.randn(2, *size)
    clip = x.unsqueeze(2).expand(-1, -1, frames, -1, -1)
    with torch.no_grad():
        wanted, found = net(x), done.model(clip)
    assert done.size == (size[0], step.frames, *size[1:])
    if step.mode == "mean" and step.temporal:  # the ends differ; what each frame gives is still finite and of the shape
        assert found.shape == wanted.shape
        return done
    if wanted.ndim == 4:
        wanted = wanted.unsqueeze(2).expand_as(found)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    return done


@pytest.mark.parametrize(
    "layer",
    [
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.Upsample(size=(5, 7)),
        nn.UpsamplingBilinear2d(scale_factor=2),
        nn.ConvTranspose2d(8, 8, 4, 2, 1),
        nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2)),
        nn.ReflectionPad2d((1, 2, 3, 1)),
        nn.ReplicationPad2d(1),
        nn.ZeroPad2d((1, 0, 2, 0)),
        nn.ConstantPad2d(1, 3.0),
        nn.CircularPad2d(1),
        nn.LPPool2d(2, 2),
        nn.AdaptiveMaxPool2d((3, 5)),
        nn.InstanceNorm2d(8, affine=True),
        nn.GroupNorm(2, 8),
        nn.LocalResponseNorm(3),
        nn.Softmax2d(),
        nn.Dropout2d(),
        nn.PReLU(8),
        nn.ChannelShuffle(2),
        nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect"),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_and_outputs_that_are_maps(layer: nn.Module) -> None:
    compare(nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 2, 1)), lc.Inflate(frames=3))


def test_dictionaries_lists_and_maps_of_several_sizes() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.top, self.side = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            low = self.low(x)
            top = self.top(low)
            up = F.interpolate(top, size=low.shape[-2:], mode="nearest")
            return {"maps": [self.side(low) + up, top], "classes": top.mean((2, 3))}

    net = Pyramid().eval()
    done = rewrite(net, lc.Inflate(frames=4), size=(3, 16, 20))
    x = torch.randn(2, 3, 16, 20)
    wanted, found = net(x), done.model(x.unsqueeze(2).expand(-1, -1, 4, -1, -1))
    for image, clip in zip(wanted["maps"], found["maps"], strict=True):
        torch.testing.assert_close(clip, image.unsqueeze(2).expand_as(clip))
    torch.testing.assert_close(found["classes"], wanted["classes"])


class Activated(nn.BatchNorm2d):
    """As timm's norms with an activation inside."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class Named(nn.BatchNorm2d):
    """Means what its parent means."""


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), True), self.bias, self.stride, self.padding)


def test_subclasses() -> None:
    named = compare(nn.Sequential(nn.Conv2d(3, 8, 3), Named(8), nn.Conv2d(8, 2, 1)), lc.Inflate(frames=3))
    assert isinstance(named.model[1], nn.BatchNorm3d)
    active = compare(nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8), nn.Conv2d(8, 2, 1)), lc.Inflate(frames=3))
    assert isinstance(active.model[1], Activated)
    assert isinstance(active.model[0], FrameConv3d)
    assert "on frames" in active.changes[0].after
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Standardized(8, 8, 3))
    done = compare(net, lc.Inflate(frames=3))
    assert [skip.name for skip in done.skipped] == ["1"]
    with pytest.raises(RewriteError, match=r"Sequential has no 3D form: .*1 has none: Standardized is not a plain"):
        rewrite(net, lc.Inflate(frames=3, temporal=(("1", 3),)), size=(3, 8, 8))


def test_hooks_modes_and_frozen_parameters_are_kept() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval(), nn.MaxPool2d(2), nn.Conv2d(8, 2, 1))
    seen: list[str] = []
    for index in (0, 1, 2):
        net[index].register_forward_hook(lambda module, _, y: seen.append(type(module).__name__) or y * 2)
    net[0].requires_grad_(False)
    with torch.no_grad():
        wanted = net.train()(torch.ones(2, 3, 8, 8))
    net[1].eval()
    done = rewrite(net, lc.Inflate(frames=2), size=(3, 8, 8)).model
    seen.clear()
    done(torch.ones(2, 3, 2, 8, 8))
    assert seen == ["Conv3d", "BatchNorm3d", "MaxPool3d"]
    assert not done[1].training
    assert not done[0].weight.requires_grad
    assert wanted.shape == (2, 2, 3, 3)


def test_temporal_kernels_and_pools_see_the_clip_where_the_forward_runs_on_frames() -> None:
    class Staged(Net):
        def __init__(self) -> None:
            super().__init__(gate, gate=nn.Conv2d(8, 8, 1), stage=nn.Sequential(nn.Conv2d(8, 8, 1)))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.stage(self.conv(x))[:, :3])

    net = Staged().eval()
    step = lc.Inflate(frames=4, temporal=(("last", 3),), mode="mean", pool_after=("stage",))
    new = rewrite(net, step, size=(3, 12, 12)).model
    moving = torch.randn(1, 3, 4, 12, 12)
    assert not torch.allclose(new(moving), new(moving[:, :, [0, 2, 1, 3]]), atol=1e-6)
    assert new(torch.randn(3, 3, 6, 12, 12)).shape == (3, 5)  # any length that can be halved
    new(moving).sum().backward()
    assert all(parameter.grad is not None for parameter in new.parameters())
    with pytest.raises(lc.LeanconvError, match=r"takes clips, \(N, C, T, H, W\), of one length"):
        new(torch.randn(1, 3, 12, 12))


def test_nothing_hides_behind_a_zero() -> None:
    """A branch that begins at zero would make any mistake in it equal."""

    def branch(net: Any, x: Tensor) -> Tensor:
        return x + net.scale(x.mean((2, 3), keepdim=True))

    scale = nn.BatchNorm2d(8)
    nn.init.zeros_(scale.weight)
    net = Net(branch, scale=scale).eval()
    clips = rewrite(net, lc.Inflate(frames=4), size=(3, 12, 12)).model
    assert isinstance(clips.conv, FrameConv3d)
    assert not scale.weight.any()
    assert not clips.scale.weight.any()


def test_what_has_no_3d_form_is_refused_with_the_line() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x).flip(3)
            return self.two(torch.cat([x, x]))

    with pytest.raises(
        RewriteError,
        match=r"Pairs has no 3D form: as a network of clips, .*; frame by frame, it does not run on clips: .*a kernel "
        r"of \(3, 3, 3\) reaches over time .* in `return self\.two\(torch\.cat\(\[x, x\]\)\)` at .*forwards\.py:\d+",
    ):
        rewrite(Pairs(), lc.Inflate(frames=4, temporal=(("two", 3),)), size=(3, 12, 12))

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) / x.shape[0]

    with pytest.raises(RewriteError, match=r"frame by frame, its outputs on a clip that stands still are .*% off"):
        rewrite(Counting(), lc.Inflate(by_frame=True), size=(3, 12, 12))
    with pytest.raises(
        RewriteError, match=r"Linear.* does not run on images|does not run on images.*pass size, such as"
    ):
        rewrite(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 49, 2)), lc.Inflate())


def test_a_random_network_and_one_without_weights() -> None:
    net = Net(lambda _, x: F.dropout(x, 0.5, True)).eval()
    assert rewrite(net, lc.Inflate(frames=4), size=(3, 12, 12)).changes
    with torch.device("meta"):
        empty = Net(gate, gate=nn.Conv2d(8, 8, 1))
    assert rewrite(empty, lc.Inflate(frames=4), size=(3, 12, 12)).model.conv.weight.shape == (8, 3, 1, 3, 3)


NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.conv(x)[:, :, ::2].mean((2, 3)))
"""


def test_saved_loaded_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inflated_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    from inflated_nets import Net as Own

    done = rewrite(Own(), lc.Inflate(frames=4, temporal=(("conv", 3),)), size=(3, 16, 16), source="inflated_nets:Net")
    assert done.story is not None
    assert done.story.steps[0][1]["by_frame"] is True
    done.model(torch.randn(2, 3, 4, 16, 16))
    loaded = lc.load(lc.save(done, "saved", size=done.size), trust_code=True)
    x = torch.randn(1, 3, 5, 16, 16)
    assert torch.equal(loaded(x), done.model(x))
    assert lc.measure(done, done.size).macs == 4 * (3 * 3 * 3 * 3 * 8 * 14 * 14 + 8 * 5)


@pytest.mark.slow
def test_a_forward_on_frames_is_exported(tmp_path: Path) -> None:
    done = rewrite(Net(gate, gate=nn.Conv2d(8, 8, 1)), lc.Inflate(frames=4, temporal=(("last", 3),)), size=(3, 12, 12))
    assert done.changes[0].after.endswith("on frames")
    assert lc.export(done, tmp_path / "clips.onnx", size=done.size).path.is_file()
