"""The receptive field equals the gradient footprint of an output pixel, on networks small enough to see all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import measure


def footprint(net: nn.Module, size: tuple[int, ...], channels: int) -> tuple[int, ...]:
    """Widest extent, per axis, of the input positions with a gradient from one output pixel, over central pixels.

    Weights are made positive so that nothing cancels, and many random images let every side of a max pooling win.
    """
    net = net.double().eval()
    for p in net.parameters():
        p.data = p.data.abs() + 0.1
    images = 48 if "MaxPool" in str(net) or "unet" in str(getattr(net, "run", "")) else 2
    x = torch.rand(images, channels, *size, dtype=torch.double, requires_grad=True)
    out = net(x)
    rank = len(size)
    widest = [0] * rank
    for axis in range(rank):
        n = out.shape[2 + axis]
        for i in range(n // 2 - min(3, n // 4), n // 2 + min(3, n // 4) + 1):
            pixel = [m // 2 for m in out.shape[2:]]
            pixel[axis] = i
            (grad,) = torch.autograd.grad(out[(slice(None), slice(None), *pixel)].sum(), x, retain_graph=True)
            other = [d for d in range(2 + rank) if d != 2 + axis]
            hit = grad.abs().amax(other).nonzero().flatten()
            widest[axis] = max(widest[axis], int(hit.max() - hit.min()) + 1)
    return tuple(widest)


class Net(nn.Module):
    """Layers and how they are used."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(kernel: int | tuple[int, int], stride: int = 1, dilation: int = 1, pad: int | str = 0) -> nn.Conv2d:
    return nn.Conv2d(2, 2, kernel, stride=stride, dilation=dilation, padding=pad)


def seq(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def residual(net: Net, x: Tensor) -> Tensor:
    a, b = net.layers
    return F.relu(a(x) + b(x))


def concatenation(net: Net, x: Tensor) -> Tensor:
    a, b, c = net.layers
    return c(torch.cat([a(x), b(x)], 1))


def unet(net: Net, x: Tensor) -> Tensor:
    down, deep, out = net.layers
    skip = down(x)
    low = deep(F.max_pool2d(skip, 2))
    return out(skip + F.interpolate(low, scale_factor=2, mode="nearest"))


def shifted(net: Net, x: Tensor) -> Tensor:
    (a,) = net.layers
    return a(x)[:, :, 3:, :] + a(x)[:, :, :-3, :]


def channel_halves_in_place(net: Net, x: Tensor) -> Tensor:
    a, b, c = net.layers
    both = torch.zeros(x.shape, dtype=x.dtype)
    both[:, :1] = a(x)[:, :1]
    both[:, 1:] += b(x)[:, 1:]
    return c(both)


def shuffled(net: Net, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
    return net.layers[0](y)


def space_to_depth_and_back(net: Net, x: Tensor) -> Tensor:
    wide, back = net.layers
    b, c, h, w = x.shape
    y = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
    y = back(wide(y)).view(b, c, 2, 2, h // 2, w // 2)
    return y.permute(0, 1, 4, 2, 5, 3).reshape(b, c, h, w)


def tokens(net: Net, x: Tensor) -> Tensor:
    """A map flattened to tokens, a linear layer, and back."""
    a, mix, b = net.layers
    y = a(x)
    n, c, h, w = y.shape
    return b(mix(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w))


def octave(net: Net, x: Tensor) -> Tensor:
    """Two resolutions that exchange, at an odd size."""
    hh, lh, hl, ll = net.layers
    high, low = x, F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    for _ in range(2):
        up = F.interpolate(lh(low), scale_factor=2, mode="nearest")[:, :, : x.shape[2], : x.shape[3]]
        pooled = F.avg_pool2d(high, 2, ceil_mode=True, count_include_pad=False)
        high, low = hh(high) + up, ll(low) + hl(pooled)
    return high


def up(mode: str, scale: float, *, align: bool | None = None) -> Callable[[Net, Tensor], Tensor]:
    def forward(net: Net, x: Tensor) -> Tensor:
        a, b = net.layers
        return b(F.interpolate(a(x), scale_factor=scale, mode=mode, align_corners=align))

    return forward


CASES: dict[str, tuple[nn.Module, int]] = {
    "chain": (seq(conv(3), conv(5, stride=2), conv(3, stride=3), conv(1)), 60),
    "dilation": (seq(conv(3, dilation=2), conv(3, stride=2, dilation=3), conv(3, dilation=4)), 40),
    "even kernels": (seq(conv(2), conv(4, stride=2), conv(2)), 40),
    "rectangular": (seq(conv((1, 7)), conv((3, 1), stride=2), conv((5, 3))), 50),
    "stride with holes": (seq(conv(1, stride=3), conv(3)), 40),
    "same padding": (seq(conv(5, pad="same"), conv(3, dilation=2, pad="same")), 30),
    "max pooling": (seq(conv(3), nn.MaxPool2d(3, 2, 1), conv(3), nn.MaxPool2d(2)), 50),
    "average pooling": (seq(conv(3), nn.AvgPool2d(3, 2), conv(3), nn.ReLU()), 50),
    "adaptive pooling": (seq(conv(3, pad=1), nn.AdaptiveAvgPool2d(8)), 28),
    "normalised": (seq(conv(3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), conv(3)), 30),
    "residual add": (Net(residual, conv(3, pad=1), seq(conv(3, pad=1), conv(3, pad=2, dilation=2))), 40),
    "lopsided add": (Net(shifted, conv(3)), 40),
    "concatenation": (Net(concatenation, conv(5, pad=2), conv(3, pad=1), nn.Conv2d(4, 2, 3)), 40),
    "transposed": (seq(conv(3, stride=2), nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1), conv(3)), 40),
    "transposed with holes": (seq(nn.ConvTranspose2d(2, 2, 1, stride=3), conv(3), conv(3, dilation=2)), 24),
    "pixel shuffle": (seq(nn.Conv2d(2, 8, 3), nn.PixelShuffle(2), conv(3)), 30),
    "pixel unshuffle": (seq(conv(3, pad=1), nn.PixelUnshuffle(2), nn.Conv2d(8, 2, 3)), 30),
    "space to depth": (Net(space_to_depth_and_back, nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(2, 8, 1)), 24),
    "channel shuffle": (Net(shuffled, conv(3)), 20),
    "tokens": (Net(tokens, conv(3, stride=2), nn.Linear(2, 2), conv(3)), 31),
    "u-net": (Net(unet, conv(3, pad=1), conv(3, pad=1), conv(3, pad=1)), 32),
    "octave": (Net(octave, *(conv(3, pad=1) for _ in range(4))), 45),
    "nearest x2": (Net(up("nearest", 2), conv(3, stride=2), conv(3)), 41),
    "nearest x3": (Net(up("nearest", 3), conv(3, stride=2), conv(5)), 41),
    "nearest x1.5": (Net(up("nearest", 1.5), conv(3), conv(3)), 26),
    "nearest /2": (Net(up("nearest", 0.5), conv(3), conv(3)), 34),
    "nearest exact": (Net(up("nearest-exact", 0.5), conv(3), conv(3)), 34),
    "bilinear x2": (Net(up("bilinear", 2), conv(3, stride=2), conv(3)), 41),
    "bilinear aligned": (Net(up("bilinear", 2, align=True), conv(3, stride=2), conv(3)), 27),
    "bicubic x2": (Net(up("bicubic", 2), conv(3), conv(3)), 26),
    "area": (Net(up("area", 0.5), conv(3), conv(3)), 34),
    "writes into slices": (Net(channel_halves_in_place, conv(3, pad=1), conv(5, pad=2), conv(3)), 24),
    "circular padding": (seq(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), conv(3)), 24),
    "reflect padding": (seq(nn.Conv2d(2, 2, 5, padding=2, padding_mode="reflect"), conv(3)), 24),
    "zero padding": (seq(nn.ZeroPad2d((1, 3, 2, 0)), conv(3), conv(3)), 24),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_gradient_footprint(name: str) -> None:
    net, side = CASES[name]
    size = (side, side + 4)
    assert measure(net, (2, *size)).receptive_field == footprint(net, size, channels=2)


def test_one_and_three_axes() -> None:
    line = seq(nn.Conv1d(2, 2, 5, dilation=2), nn.MaxPool1d(2), nn.Conv1d(2, 2, 3))
    assert measure(line, (2, 40)).receptive_field == footprint(line, (40,), channels=2)
    video = seq(nn.Conv3d(2, 2, (3, 1, 1)), nn.Conv3d(2, 2, 3, stride=(1, 2, 2)), nn.AvgPool3d(2), nn.Conv3d(2, 2, 1))
    assert measure(video, (2, 10, 14, 16)).receptive_field == footprint(video, (10, 14, 16), channels=2)


def test_frames_folded_into_the_batch() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        y = net.layers[0](x.transpose(1, 2).reshape(b * t, c, h, w))
        y = y.view(b, t, *y.shape[1:]).transpose(1, 2)
        return net.layers[1](y)

    net = Net(forward, conv(3), nn.Conv3d(2, 2, (3, 1, 1)))
    assert measure(net, (2, 6, 10, 12)).receptive_field == (3, 3, 3)


def test_of_a_classifier_it_is_the_last_map() -> None:
    net = seq(conv(3, stride=2), nn.ReLU(), conv(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))
    cost = measure(net, (2, 33, 33))
    assert cost.receptive_field == (7, 7)  # 1 + 2 + 2 * 2
    assert cost.receptive_field_note == "the output of 2, shape (1, 2, 14, 14)"


class Gate(nn.Module):
    """Squeeze and excitation: every position is scaled by a summary of all."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class MeanOverWidth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(3, keepdim=True)


class SelfAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(y, y, y).transpose(1, 2).reshape(x.shape)


class MixPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


@pytest.mark.parametrize("layer", [Gate(), MeanOverWidth(), SelfAttention(), MixPositions(), nn.Softmax(-1)])
def test_no_number_when_every_position_sees_everything(layer: nn.Module) -> None:
    cost = measure(seq(conv(3, pad=1), layer, conv(3, pad=1)), (2, 10, 12))
    assert cost.receptive_field is None
    assert cost.receptive_field_note.startswith("every position sees the whole input: through aten.")


class Sort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(-1).values


class FirstRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x[:, :, 0, None]


@pytest.mark.parametrize("layer", [Sort(), FirstRow()])
def test_what_has_no_rule_is_said_not_guessed(layer: nn.Module) -> None:
    cost = measure(seq(conv(3, pad=1), layer), (2, 10, 12))
    assert cost.receptive_field is None
    assert cost.receptive_field_note.startswith("not known: the bookkeeping ends at aten.")
    after = seq(conv(3, pad=1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    assert measure(after, (2, 10, 12)).receptive_field is None  # never the map of before


def test_no_axes_no_field() -> None:
    assert measure(nn.Linear(4, 2), (4,)).receptive_field is None
