"""The zoo's octave networks against plain ones, written from the paper and the authors' networks, on equal weights.

The reference keeps high and low maps in two variables and calls nothing but torch's own functions; it takes a network's
tensors by name, and the shapes they must have follow from alpha by its own rule.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.build import create_model


class Pair(NamedTuple):
    """X^H and X^L; None where there is no such part."""

    high: Tensor
    low: Tensor | None = None


def pool(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)


def up(x: Tensor, like: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., : like.shape[-2], : like.shape[-1]]


def cut(channels: int, alpha: float) -> tuple[int, int]:
    low = int(alpha * channels + 1e-9)
    return channels - low, low


class Reference:
    """The layers of a network, by name, with its tensors."""

    def __init__(self, tensors: Mapping[str, Tensor], alpha: float, training: bool) -> None:
        self.tensors, self.alpha, self.training = tensors, alpha, training
        self.used: set[str] = set()

    def get(self, name: str, *shape: int) -> Tensor:
        tensor = self.tensors[name]
        assert tuple(tensor.shape) == shape, name
        self.used.add(name)
        return tensor

    def vanilla(
        self, name: str, x: Tensor, outputs: int, kernel: int, stride: int, groups: int = 1, *, pools: bool
    ) -> Tensor:
        """A convolution at full resolution; in the authors' octave networks its stride is a pool, save the stem's."""
        leaf = f"{name}.conv_hh.weight" if f"{name}.conv_hh.weight" in self.tensors else f"{name}.weight"
        weight = self.get(leaf, outputs, x.shape[1] // groups, kernel, kernel)
        if pools and stride == 2:
            x, stride = pool(x), 1
        return functional.conv2d(x, weight, None, stride, kernel // 2, 1, groups)

    def conv(self, name: str, x: Pair, outputs: int, alpha: float, kernel: int, stride: int, groups: int = 1) -> Pair:
        """Equations 7 and 8 of the paper; with groups, every group's channels are cut."""
        h_out, l_out = cut(outputs, alpha)
        if x.low is None and not l_out:
            return Pair(self.vanilla(name, x.high, outputs, kernel, stride, groups, pools=True))
        depthwise = groups == outputs

        def path(source: Tensor, to: int, end: str) -> Tensor:
            count = source.shape[1] if depthwise else groups
            weight = self.get(f"{name}.conv_{end}.weight", to, source.shape[1] // count, kernel, kernel)
            return functional.conv2d(source, weight, None, 1, kernel // 2, 1, count)

        high = pool(x.high) if stride == 2 else x.high
        if depthwise:
            assert x.low is not None
            return Pair(path(high, h_out, "hh"), path(pool(x.low) if stride == 2 else x.low, l_out, "ll"))
        y_high, y_low = path(high, h_out, "hh"), None
        if x.low is not None:
            risen = path(x.low, h_out, "lh")
            y_high = y_high + (risen if stride == 2 else up(risen, y_high))
        if l_out:
            y_low = path(pool(high), l_out, "hl")
            if x.low is not None:
                y_low = path(pool(x.low) if stride == 2 else x.low, l_out, "ll") + y_low
        return Pair(y_high, y_low)

    def norm(self, name: str, x: Pair) -> Pair:
        """Statistics and affine of each part."""

        def one(at: str, part: Tensor) -> Tensor:
            count = part.shape[1]
            mean, var = self.get(f"{at}.running_mean", count), self.get(f"{at}.running_var", count)
            weight, bias = self.get(f"{at}.weight", count), self.get(f"{at}.bias", count)
            return functional.batch_norm(part, mean.clone(), var.clone(), weight, bias, self.training, 0.1, 1e-5)

        if x.low is None:
            return Pair(one(name, x.high))
        return Pair(one(f"{name}.high", x.high), one(f"{name}.low", x.low))


def relu(x: Pair) -> Pair:
    return Pair(torch.relu(x.high), None if x.low is None else torch.relu(x.low))


def relu6(x: Pair) -> Pair:
    return Pair(x.high.clamp(0, 6), None if x.low is None else x.low.clamp(0, 6))


def linear(net: Reference, name: str, x: Tensor, classes: int) -> Tensor:
    return x.mean((2, 3)) @ net.get(f"{name}.weight", classes, x.shape[1]).T + net.get(f"{name}.bias", classes)


def resnet(net: Reference, x: Tensor, layers: tuple[int, ...], *, pre: bool, groups: int = 1, base: int = 64) -> Tensor:
    """Stem at full resolution, three octave stages, the last stage at full resolution; stride 2 on the 3x3."""

    def unit(name: str, x: Pair, outputs: int, alpha: float, kernel: int, stride: int, g: int, act: bool) -> Pair:
        if pre:
            return net.conv(f"{name}.conv", relu(net.norm(f"{name}.bn", x)), outputs, alpha, kernel, stride, g)
        y = net.norm(f"{name}.bn", net.conv(f"{name}.conv", x, outputs, alpha, kernel, stride, g))
        return relu(y) if act else y

    y = relu(net.norm("stem.0.bn", Pair(net.vanilla("stem.0.conv", x, 64, 7, 2, pools=False))))
    y = Pair(functional.max_pool2d(y.high, 3, 2, 1))
    for stage, count in enumerate(layers):
        alpha = 0.0 if stage == 3 else net.alpha
        width = 64 * 2**stage
        inner, outputs = width * base // 64 * groups if groups > 1 else width, 4 * width
        for block in range(count):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            z = unit(f"{name}.conv1", y, inner, alpha, 1, 1, 1, True)
            z = unit(f"{name}.conv2", z, inner, alpha, 3, stride, groups, True)
            z = unit(f"{name}.conv3", z, outputs, alpha, 1, 1, 1, False)
            side = y if block else unit(f"{name}.shortcut", y, outputs, alpha, 1, stride, 1, False)
            y = Pair(z.high + side.high, None if z.low is None or side.low is None else z.low + side.low)
            y = y if pre else relu(y)
    if pre:
        y = relu(net.norm("tail.0", y))
    return linear(net, "fc", y.high, 7)


def mobilenet_v1(net: Reference, x: Tensor, multiplier: float) -> Tensor:
    """13 units; the first depthwise, the last pointwise before the last stride and what follows are not octave."""
    y = relu(net.norm("features.0.1", Pair(net.vanilla("features.0.0", x, round(32 * multiplier), 3, 2, pools=False))))
    widths = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, *[1] * 5, 2, 1]
    for unit, (width, stride) in enumerate(zip(widths, strides, strict=True), 1):
        inputs = sum(part.shape[1] for part in y if part is not None)
        depth = net.alpha if 2 <= unit <= 11 else 0.0
        point = net.alpha if unit <= 10 else 0.0
        y = relu(net.norm(f"features.{unit}.1", net.conv(f"features.{unit}.0", y, inputs, depth, 3, stride, inputs)))
        y = relu(
            net.norm(f"features.{unit}.4", net.conv(f"features.{unit}.3", y, round(width * multiplier), point, 1, 1))
        )
    return linear(net, "classifier", y.high, 7)


def mobilenet_v2(net: Reference, x: Tensor, multiplier: float) -> Tensor:
    """Only the expanded tensor of the first 13 blocks is at two resolutions."""

    def wide(width: int) -> int:
        return int(width * multiplier + 0.5)

    y = relu6(net.norm("features.0.1", Pair(net.vanilla("features.0.0", x, wide(32), 3, 2, pools=False))))
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    unit = 0
    for factor, width, count, first in stages:
        for index in range(count):
            unit += 1
            stride, inputs = first if index == 0 else 1, y.high.shape[1]
            alpha, hidden, at = net.alpha if unit <= 13 else 0.0, inputs * factor, f"features.{unit}.body"
            z = relu6(net.norm(f"{at}.1", net.conv(f"{at}.0", y, hidden, alpha, 1, 1)))
            z = relu6(net.norm(f"{at}.4", net.conv(f"{at}.3", z, hidden, alpha, 3, stride, hidden)))
            z = net.norm(f"{at}.7", net.conv(f"{at}.6", z, wide(width), 0.0, 1, 1))
            y = Pair(y.high + z.high) if stride == 1 and inputs == wide(width) else z
    last = max(1280, wide(1280))
    y = relu6(net.norm("features.18.1", Pair(net.vanilla("features.18.0", y.high, last, 1, 1, pools=True))))
    return linear(net, "classifier", y.high, 7)


NETWORKS = {
    "oct_resnet26": ({"alpha": 0.25}, lambda net, x: resnet(net, x, (2, 2, 2, 2), pre=False)),
    "oct_resnet26, pre-activation": (
        {"alpha": 0.5, "pre_activation": True},
        lambda net, x: resnet(net, x, (2, 2, 2, 2), pre=True),
    ),
    "oct_resnet50": ({"alpha": 0.5}, lambda net, x: resnet(net, x, (3, 4, 6, 3), pre=False)),
    "oct_resnext50": ({"alpha": 0.25}, lambda net, x: resnet(net, x, (3, 4, 6, 3), pre=False, groups=32, base=4)),
    "oct_mobilenet_v1": ({"alpha": 0.375, "multiplier": 0.75}, lambda net, x: mobilenet_v1(net, x, 0.75)),
    "oct_mobilenet_v1, small": ({"alpha": 0.5, "multiplier": 0.125}, lambda net, x: mobilenet_v1(net, x, 0.125)),
    "oct_mobilenet_v2": ({"alpha": 0.375}, lambda net, x: mobilenet_v2(net, x, 1.0)),
}


def fill(net: nn.Module) -> None:
    """Weights by name, so that nothing is 0 or 1."""
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                value = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
                if tensor.ndim > 1:
                    value *= (1.5 / tensor[0].numel()) ** 0.5
                elif name.endswith("running_var"):
                    value = value.abs() * 0.2 + 0.9
                else:
                    value = value * 0.1 + name.endswith("weight")
                tensor.copy_(value)


@pytest.mark.parametrize("side", [224, 160, 225])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if "small" in name else pytest.mark.slow) for name in NETWORKS]
)
def test_equals_the_plain_network(name: str, side: int) -> None:
    options, reference = NETWORKS[name]
    net = create_model(name.partition(",")[0], num_classes=7, **options)
    fill(net)
    tensors = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        plain = Reference(tensors, options["alpha"], training)
        with torch.no_grad():
            wanted, got = reference(plain, x), net.train(training)(x)
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        unused = {key for key in tensors if not key.endswith("num_batches_tracked")} - plain.used
        assert not unused
