"""The video ResNet: injection, strides in time, fully convolutional testing, torchvision's networks as reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, BasicStem, Bottleneck, Conv3DSimple, VideoResNet

from leanconv.errors import LeanconvError
from leanconv.nets.resnet3d import Bottleneck3d, ResNet3D, Simple3d, resnet3d

TINY = (1, 1, 1, 1)


def clips(frames: int = 8, side: int = 64) -> Tensor:
    return torch.randn(2, 3, frames, side, side)


def live(net: nn.Module) -> nn.Module:
    """`net` in eval mode with statistics and biases that are not the neutral ones."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.8, 1.2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.1, 0.1)
    return net.eval()


@pytest.mark.parametrize("block", ["simple", "bottleneck"])
@pytest.mark.parametrize("grouping", ["none", "G", "D", "DG"])
def test_every_block_gives_scores_and_gradients(block: Any, grouping: Any) -> None:
    if (block, grouping) == ("simple", "DG"):
        return
    net = resnet3d(block=block, grouping=grouping, groups=8 if "G" in grouping else 1, layers=TINY, num_classes=7)
    scores = net(clips(side=33))
    assert scores.shape == (2, 7)
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def groups_of(net: nn.Module, kernel: int) -> list[int]:
    stages = [getattr(net, f"layer{stage}") for stage in (1, 2, 3, 4)]
    convs = [
        m for stage in stages for name, m in stage.named_modules() if isinstance(m, nn.Conv3d) and "sho" not in name
    ]
    return [conv.groups for conv in convs if conv.kernel_size[0] == kernel]


def test_groups_are_where_the_paper_puts_them() -> None:
    with torch.device("meta"):
        simple_g = resnet3d(block="simple", grouping="G", groups=4, layers=TINY)
        simple_d = resnet3d(block="simple", grouping="D", layers=TINY)
        bottle_g = resnet3d(grouping="G", groups=128, layers=TINY)
        bottle_d = resnet3d(grouping="D", layers=TINY)
        bottle_dg = resnet3d(grouping="DG", groups=16, layers=TINY)
    assert groups_of(simple_g, 3) == [4] * 8
    assert groups_of(simple_d, 3) == [64, 64, 128, 128, 256, 256, 512, 512]
    assert groups_of(simple_d, 1) == [1, 1, 1]  # the dense 1x1x1 where the channels change, in three of four blocks
    assert groups_of(bottle_g, 3) == [64, 128, 128, 128]
    assert groups_of(bottle_g, 1) == [1] * 8
    assert groups_of(bottle_d, 3) == groups_of(bottle_dg, 3) == [64, 128, 256, 512]
    assert groups_of(bottle_dg, 1) == [16] * 8
    for net in (simple_g, bottle_g, bottle_dg):
        shortcuts = [net.layer2[0].shortcut.conv, net.layer3[0].shortcut.conv]
        assert [conv.groups for conv in shortcuts] == [1, 1]
        assert net.stem[0].conv.groups == 1


def test_simple_d_widens_before_it_looks_around() -> None:
    """1x1x1, BatchNorm, ReLU, then the depthwise convolution with the block's stride."""
    first = resnet3d(block="simple", grouping="D", layers=TINY).layer2[0].conv1.conv
    assert isinstance(first, nn.Sequential)
    widen, depthwise = first
    assert [type(layer) for layer in widen] == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU]
    assert (widen.conv.stride, depthwise.stride, depthwise.groups) == ((1, 1, 1), (2, 2, 2), 128)


def test_any_convolution_and_block_can_be_injected() -> None:
    calls: list[tuple[int, ...]] = []

    def conv(cin: int, cout: int, kernel: int, **kw: Any) -> nn.Module:
        calls.append((cin, cout, kernel))
        return nn.Conv3d(cin, cout, kernel, **kw)

    ResNet3D((1, 2, 1, 1), conv=conv)
    assert calls == [(64, 64, 3), (128, 128, 3), (128, 128, 3), (256, 256, 3), (512, 512, 3)]

    class Plain(nn.Module):
        def __init__(self, cin: int, width: int, cout: int, stride: tuple[int, ...], *, conv: Any) -> None:
            super().__init__()
            self.conv = conv(cin, cout, 3, stride=stride, padding=1)
            self.forward = self.conv.forward  # type: ignore[method-assign]

    net = ResNet3D(TINY, block=Plain, expansion=1, num_classes=3)
    assert net(clips()).shape == (2, 3)


@pytest.mark.parametrize(
    ("frames", "left"), [(1, 1), (2, 1), (3, 2), (4, 1), (5, 2), (7, 2), (8, 1), (9, 2), (16, 2), (32, 4)]
)
def test_short_clips_keep_their_frames(frames: int, left: int) -> None:
    """conv3 always halves time, conv4 from 4 frames on, conv5 from 8: ceil(ceil(ceil(T / 2) / 2) / 2)."""
    with torch.device("meta"):
        net = ResNet3D(TINY, frames=frames).eval()
        assert net.features(torch.empty(1, 3, frames, 32, 32)).shape == (1, 2048, left, 1, 1)
    time = [stage[0].conv2.conv.stride[0] for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
    assert time == [1, 2, 2 if frames >= 4 else 1, 2 if frames >= 8 else 1]


@pytest.mark.parametrize(("pool1", "eps"), [(True, 1e-3), (False, 1e-5)])
@pytest.mark.parametrize("kind", ["simple", "bottleneck"])
def test_it_is_torchvisions_network(kind: Any, pool1: bool, eps: float) -> None:
    """With the same weights, the same scores as torchvision's own class, with and without the pool of the stem."""

    def stem() -> nn.Sequential:
        pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        return nn.Sequential(*BasicStem(), *([pool] if pool1 else []))

    block = BasicBlock if kind == "simple" else Bottleneck
    theirs = VideoResNet(block, [Conv3DSimple] * 4, [1, 2, 1, 1], stem, num_classes=5)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = eps
    ours = resnet3d(block=kind, layers=(1, 2, 1, 1), num_classes=5, pool1=pool1, norm_eps=eps)
    live(theirs), ours.eval()
    # both register their tensors in the same order but for the shortcut, which torchvision puts last, as we do
    mine, foreign = ours.state_dict(), theirs.state_dict()
    assert [tuple(t.shape) for t in mine.values()] == [tuple(t.shape) for t in foreign.values()]
    ours.load_state_dict(dict(zip(mine, foreign.values(), strict=True)))
    x = clips(side=48)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_fully_convolutional_testing() -> None:
    """256 pixels give the four 7 x 7 windows of the 8 x 8 map, row by row; the native size one, the plain forward."""
    net = live(resnet3d(block="simple", layers=TINY, num_classes=5))
    x = torch.randn(1, 3, 2, 256, 256)
    with torch.no_grad():
        scores = net.positions(x)
        y = net.features(x)
        by_hand = [
            net.fc(y[..., top : top + 7, left : left + 7].mean((2, 3, 4)))
            for top, left in ((0, 0), (0, 1), (1, 0), (1, 1))
        ]
        assert scores.shape == (1, 5, 4)
        torch.testing.assert_close(scores, torch.stack(by_hand, 2), rtol=1e-4, atol=1e-5)
        native = x[..., :224, :224]
        torch.testing.assert_close(net.positions(native)[..., 0], net(native), rtol=1e-4, atol=1e-5)
        oblong = net.positions(x[..., :64, :112], crop=64)
        assert oblong.shape == (1, 5, 1 * 3)
        assert net.positions(x[..., :64, :64]).shape == (1, 5, 1)  # smaller than the window: one position
        bare = live(resnet3d(block="simple", layers=TINY, num_classes=5, pool1=False))
        assert bare.positions(x[..., :80, :64], crop=64).shape == (1, 5, 2)


def test_published_settings() -> None:
    net = ResNet3D((1, 1, 1, 1), dropout=0.5)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.1)}
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5]
    convs = [m for m in net.modules() if isinstance(m, nn.Conv3d)]
    assert all(conv.bias is None for conv in convs)
    for conv in convs:
        if conv.weight.numel() > 20_000:
            assert conv.weight.std().item() == pytest.approx((2 / conv.weight[0].numel()) ** 0.5, rel=0.03)
    assert net.fc.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not net.fc.bias.any()


def test_shortcuts_stand_where_the_shape_changes() -> None:
    bottleneck = ResNet3D((2, 1, 1, 1))
    assert not isinstance(bottleneck.layer1[0].shortcut, nn.Identity)  # 64 to 256, stride 1
    assert isinstance(bottleneck.layer1[1].shortcut, nn.Identity)
    shortcut = bottleneck.layer2[0].shortcut
    assert (shortcut.conv.stride, shortcut.conv.kernel_size) == ((2, 2, 2), (1, 1, 1))
    assert [name for name, _ in shortcut.named_children()] == ["conv", "bn"]
    simple = resnet3d(block="simple", layers=(2, 1, 1, 1))
    assert all(isinstance(block.shortcut, nn.Identity) for block in simple.layer1)
    assert isinstance(simple.layer1[0], Simple3d)
    assert isinstance(bottleneck.layer1[0], Bottleneck3d)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": (2, 2, 2)}, r"four stages, got \[2, 2, 2\]"),
        ({"layers": (2, 2, 0, 2)}, r"layers\[2\] must be an integer of at least 1"),
        ({"num_classes": 0}, "num_classes must be"),
        ({"frames": 0}, "frames must be"),
        ({"expansion": 0}, "expansion must be"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"norm_eps": 0}, "norm_eps must be a number above 0"),
        ({"block": "basic"}, "unknown block 'basic': expected one of bottleneck, simple"),
        ({"block": "simple", "grouping": "DG"}, "unknown grouping of simple blocks 'DG'"),
        ({"grouping": "D", "groups": 4}, "groups=4 is for grouping G and DG"),
        ({"groups": 4}, "groups=4 is for grouping G and DG, got grouping='none'"),
        ({"grouping": "G", "groups": 24}, r"groups \(=24\) must divide the channels .* here 64 -> 64"),
        ({"grouping": "DG", "groups": 96}, r"groups \(=96\) must divide .*: take a power of two"),
        ({"grouping": "G", "groups": 0}, "groups must be an integer of at least 1"),
        ({"block": "simple", "expansion": 4}, "simple blocks do not expand"),
        ({"grouping": "D", "conv": nn.Conv3d}, "grouping must be 'none'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(LeanconvError, match=match), torch.device("meta"):
        resnet3d(**{"layers": TINY, **options})
