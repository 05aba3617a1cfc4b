"""Octave networks as d-li14, and the OctConv authors in MXNet's Symbol and Gluon, build and name them.

Written from the description of their behaviour: stride 2 pools and then convolves at stride 1, in every convolution
of a block, and a path from low to high needs no up-sampling there; the last stage is at full resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from drawn import GLUON, MXNET, Drawn
from torch import Tensor

Pair = tuple[Tensor, Tensor | None]
Widths = tuple[int, int]


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def parts(channels: int, alpha: float) -> Widths:
    low = int(alpha * channels)
    return channels - low, low


def both(do: Callable[[Tensor, str], Tensor], x: Pair) -> Pair:
    return do(x[0], "h"), None if x[1] is None else do(x[1], "l")


def relu(x: Pair) -> Pair:
    return both(lambda y, _: torch.relu(y), x)


def add(x: Pair, y: Pair) -> Pair:
    return x[0] + y[0], None if x[1] is None or y[1] is None else x[1] + y[1]


def octave(
    net: Drawn, x: Pair, name: str, out: Widths, kernel: int = 1, stride: int = 1, groups: int = 1, *, path: str = "{}"
) -> Pair:
    """One octave convolution; `path`: how its layers are called behind `name`. Depthwise where groups are channels."""
    high, low = x
    depthwise = groups > 1 and groups == high.shape[1] + (0 if low is None else low.shape[1])
    call = lambda route: name + path.format(route)  # noqa: E731
    at = lambda y: y.shape[1] if depthwise else groups  # noqa: E731
    high = halve(high) if stride == 2 else high
    to_high = net.conv(high, call("h2h"), out[0], kernel, groups=at(high))
    to_low = net.conv(halve(high), call("h2l"), out[1], kernel, groups=groups) if out[1] and not depthwise else None
    if low is not None:
        if out[1]:
            kept = net.conv(halve(low) if stride == 2 else low, call("l2l"), out[1], kernel, groups=at(low))
            to_low = kept if to_low is None else to_low + kept
        if not depthwise:
            risen = net.conv(low, call("l2h"), out[0], kernel, groups=groups)
            to_high = to_high + (risen if stride == 2 else F.interpolate(risen, scale_factor=2.0))
    return to_high, to_low


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


# ---------------------------------------------------------------------------------------------------------- d-li14


def _unit(net: Drawn, x: Pair, name: str, out: Widths, *args: int, act: bool = True) -> Pair:
    x = octave(net, x, name, out, *args, path=".conv.conv_{}")
    x = both(lambda y, part: net.norm(y, f"{name}.bn_{part}"), x)
    return relu(x) if act else x


def dli14_resnet(net: Drawn, image: Tensor, layers: Sequence[int], classes: int) -> Tensor:
    y = torch.relu(net.norm(net.conv(image, "conv1", 64, 7, 2), "bn1"))
    x: Pair = F.max_pool2d(y, 3, 2, 1), None
    for stage, count in enumerate(layers):
        alpha, planes = 0.0 if stage == 3 else 0.5, 64 * 2**stage
        inner, out = parts(planes, alpha), parts(4 * planes, alpha)
        for block in range(count):
            stride, home = 2 if stage and not block else 1, f"layer{stage + 1}.{block}"
            y_ = _unit(net, x, f"{home}.conv1", inner)
            y_ = _unit(net, y_, f"{home}.conv2", inner, 3, stride)
            y_ = _unit(net, y_, f"{home}.conv3", out, act=False)
            if not block:
                x = _unit(net, x, f"{home}.downsample.0", out, 1, stride, act=False)
            x = relu(add(y_, x))
    return net.linear(pooled(x[0]), "fc", classes)


MOBILE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def dli14_mobilenet(net: Drawn, image: Tensor, classes: int) -> Tensor:
    y = torch.relu(net.norm(net.conv(image, "features.0.0", 32, 3, 2), "features.0.1"))
    x: Pair = y, None
    inside: Widths = (32, 0)
    for index, (width, stride) in enumerate(MOBILE):
        out = parts(width, 0.5 if index < 10 else 0.0)
        home = f"features.{index + 1}"
        x = _unit(net, x, f"{home}.0", inside, 3, stride, sum(inside))
        x, inside = _unit(net, x, f"{home}.1", out), out
    return net.linear(pooled(x[0]), "fc", classes)


# ---------------------------------------------------------------------------------------------- the authors' Symbol


def symbol(seed: int = 1) -> Drawn:
    return Drawn(seed, eps=1e-4, norm=MXNET, join="_")


def _before(net: Drawn, x: Pair, name: str, out: Widths, *args: int, octave_names: bool = True) -> Pair:
    """BatchNorm, ReLU, convolution."""
    suffix = "-{}" if octave_names else ""
    x = relu(both(lambda y, part: net.norm(y, f"{name}_bn{suffix.format(part)}"), x))
    if octave_names:
        return octave(net, x, f"{name}_conv", out, *args, path="-{}")
    kernel, stride, groups = (*args, 1, 1, 1)[:3] if args else (1, 1, 1)
    return net.conv(x[0], f"{name}_conv", out[0], kernel, stride, groups), None


def _symbol_gate(net: Drawn, x: Pair, name: str, out: Widths, *, octave_names: bool = True) -> Pair:
    inner, path = sum(out) // 16, "-h2{}" if octave_names else ""
    hidden = net.linear(pooled(x[0]), f"{name}_fc1{path.format('h')}", inner)
    if x[1] is not None:
        hidden = hidden + net.linear(pooled(x[1]), f"{name}_fc1-l2h", inner, bias=False)
    hidden = torch.relu(hidden)

    def scaled(y: Tensor, part: str) -> Tensor:
        gate = torch.sigmoid(net.linear(hidden, f"{name}_fc2{path.format(part)}", y.shape[1]))
        return y * gate[..., None, None]

    return both(scaled, x)


def symbol_resnet(
    net: Drawn,
    image: Tensor,
    layers: Sequence[int],
    alpha: float | None,
    classes: int,
    *,
    groups: int = 1,
    widen: int = 1,
    gate: bool = False,
) -> Tensor:
    """`alpha` None is their ordinary network, with strided convolutions and names without paths."""
    y = torch.relu(net.norm(net.conv(image, "conv1_conv", 64, 7, 2), "conv1_bn"))
    x: Pair = F.max_pool2d(y, 3, 2, 1), None
    octave_names = alpha is not None
    for stage, count in enumerate(layers):
        share, planes = 0.0 if stage == 3 or alpha is None else alpha, 64 * 2**stage
        inner, out = parts(widen * planes, share), parts(4 * planes, share)
        for block in range(count):
            stride, home = 2 if stage and not block else 1, f"L{stage + 2}_B{block + 1:02d}"
            y_ = _before(net, x, f"{home}_conv1", inner, octave_names=octave_names)
            y_ = _before(net, y_, f"{home}_conv2", inner, 3, stride, groups, octave_names=octave_names)
            y_ = _before(net, y_, f"{home}_conv3", out, octave_names=octave_names)
            y_ = _symbol_gate(net, y_, f"{home}_se", out, octave_names=octave_names) if gate else y_
            if not block:
                x = _before(net, x, f"{home}_conv4", out, 1, stride, octave_names=octave_names)
            x = add(x, y_)
    return net.linear(pooled(torch.relu(net.norm(x[0], "tail_bn"))), "classifier", classes)


def symbol_densenet(net: Drawn, image: Tensor, layers: Sequence[int], alpha: float, classes: int) -> Tensor:
    y = torch.relu(net.norm(net.conv(image, "conv1_conv", 64, 7, 2), "conv1_bn"))
    x: Pair = F.max_pool2d(y, 3, 2, 1), None
    for stage, count in enumerate(layers):
        share = 0.0 if stage == len(layers) - 1 else alpha
        if stage:
            width = (x[0].shape[1] + (0 if x[1] is None else x[1].shape[1])) // 2
            x = _before(net, x, f"L{stage + 2}_Trans_conv", parts(width, share))
            x = both(lambda y, _: halve(y), x)
        for block in range(count):
            home = f"L{stage + 2}_B{block + 1:02d}"
            new = _before(net, x, f"{home}_conv1", parts(128, share))
            new = _before(net, new, f"{home}_conv2", parts(32, share), 3)
            low = new[1] if x[1] is None else x[1] if new[1] is None else torch.cat([x[1], new[1]], 1)
            x = torch.cat([x[0], new[0]], 1), low
    return net.linear(pooled(torch.relu(net.norm(x[0], "tail_bn"))), "classifier", classes)


# ----------------------------------------------------------------------------------------------- the authors' Gluon


def gluon(seed: int = 1) -> Drawn:
    return Drawn(seed, norm=GLUON)


def _gluon_unit(net: Drawn, x: Pair, home: str, number: str, out: Widths, *args: int) -> Pair:
    x = octave(net, x, f"{home}.conv{number}", out, *args, path=".conv_{}")
    return both(lambda y, part: net.norm(y, f"{home}.bn{number}.bn_{part}"), x)


def _gluon_gate(net: Drawn, x: Pair, name: str) -> Pair:
    means = [part.mean((2, 3), keepdim=True) for part in x if part is not None]
    mean = torch.cat(means, 1)
    hidden = torch.relu(net.conv(mean, f"{name}.conv1", mean.shape[1] // 16, bias=True))
    scale = lambda y, part: y * torch.sigmoid(net.conv(hidden, f"{name}.conv2_{part}", y.shape[1], bias=True))  # noqa: E731
    return both(scale, x)


def _stem(net: Drawn, x: Tensor, convs: Sequence[tuple[int, int, int]]) -> Tensor:
    for index, (width, kernel, stride) in enumerate(convs):
        x = net.conv(x, f"conv1.{3 * index}", width, kernel, stride)
        x = torch.relu(net.norm(x, f"conv1.{3 * index + 1}"))
    return x


def gluon_resnet(
    net: Drawn,
    image: Tensor,
    layers: Sequence[int],
    alpha: float,
    classes: int,
    *,
    version: str = "v1b",
    se: bool = False,
) -> Tensor:
    """v1b has the stride on the 3x3; v1e a deep stem and the stride on the last 1x1; v1f a block at its stem's end."""
    stems = {
        "v1b": ((64, 7, 2),),
        "v1e": ((32, 3, 2), (32, 3, 1), (64, 3, 1)),
        "v1f": ((8, 3, 1), (32, 3, 2), (64, 3, 1)),
    }
    y = _stem(net, image, stems[version])
    if version == "v1f":
        z = torch.relu(net.norm(net.conv(y, "conv2.conv1", 32), "conv2.bn1"))
        z = torch.relu(net.norm(net.conv(z, "conv2.conv2", 32, 3, 2), "conv2.bn2"))
        z = net.norm(net.conv(z, "conv2.conv3", 64), "conv2.bn3")
        y = torch.relu(z + net.norm(net.conv(y, "conv2.conv4", 64, 1, 2), "conv2.bn4"))
    else:
        y = F.max_pool2d(y, 3, 2, 1)
    x: Pair = y, None
    for stage, count in enumerate(layers):
        share, planes = 0.0 if stage == 3 else alpha, 64 * 2**stage
        inner, out = parts(planes, share), parts(4 * planes, share)
        for block in range(count):
            home, stride = f"L{stage + 1}_B{block}", 2 if stage and not block else 1
            at_2, at_3 = (stride, 1) if version == "v1b" else (1, stride)
            free = lambda z, number, at=home: both(  # noqa: E731
                lambda q, part: net.norm(q, f"{at}.bn{number}.bn_{part}", affine=False), z
            )
            y_ = free(x, "1a") if se else x
            y_ = relu(_gluon_unit(net, y_, home, "1", inner))
            y_ = relu(_gluon_unit(net, y_, home, "2", inner, 3, at_2))
            y_ = _gluon_unit(net, y_, home, "3", out, 1, at_3)
            y_ = _gluon_gate(net, y_, f"{home}.se_block") if se else y_
            if not block:
                x = _gluon_unit(net, free(x, "4a") if se else x, home, "4", out, 1, stride)
            x = relu(add(y_, x))
    return net.conv(x[0].mean((2, 3), keepdim=True), "classifer", classes, bias=True).flatten(1)


def _names(strides: Sequence[int]) -> list[str]:
    names, stage, block = [], 1, 0
    for stride in strides:
        stage, block = (stage + 1, 0) if stride > 1 else (stage, block + 1)
        names.append(f"L{stage}_B{block}")
    return names


def gluon_mobilenet_v1(net: Drawn, image: Tensor, alpha: float, classes: int, multiplier: float = 1.0) -> Tensor:
    width = int(32 * multiplier)
    x: Pair = _stem(net, image, [(width, 3, 2)]), None
    inside: Widths = (width, 0)
    for index, (home, (width, stride)) in enumerate(zip(_names([s for _, s in MOBILE]), MOBILE, strict=True)):
        out = parts(int(width * multiplier), alpha if index < 10 else 0.0)
        x = relu(_gluon_unit(net, x, home, "1", inside, 3, stride, sum(inside)))
        x, inside = relu(_gluon_unit(net, x, home, "2", out)), out
    return net.conv(x[0].mean((2, 3), keepdim=True), "classifer", classes, bias=True).flatten(1)


INVERTED = (
    *((1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 32, 1), (6, 64, 2), *[(6, 64, 1)] * 3),
    *(*[(6, 96, 1)] * 3, (6, 160, 2), (6, 160, 1), (6, 160, 1), (6, 320, 1)),
)


def gluon_mobilenet_v2(net: Drawn, image: Tensor, alpha: float, classes: int, multiplier: float = 1.0) -> Tensor:
    relu6 = lambda x: both(lambda y, _: F.relu6(y), x)  # noqa: E731
    channels = int(32 * multiplier)
    y = F.relu6(net.norm(net.conv(image, "conv1.0", channels, 3, 2), "conv1.1"))
    for index, (home, (factor, width, stride)) in enumerate(
        zip(_names([s for *_, s in INVERTED]), INVERTED, strict=True)
    ):
        inner, out = parts(factor * channels, alpha if index < 13 else 0.0), int(width * multiplier)
        x = relu6(_gluon_unit(net, (y, None), home, "1", inner))
        x = relu6(_gluon_unit(net, x, home, "2", inner, 3, stride, factor * channels))
        new = _gluon_unit(net, x, home, "3", (out, 0))[0]
        y, channels = y + new if stride == 1 and channels == out else new, out
    last = int(1280 * multiplier) if multiplier > 1 else 1280
    y = F.relu6(net.norm(net.conv(y, "tail.0", last), "tail.1"))
    return net.conv(y.mean((2, 3), keepdim=True), "classifer", classes, bias=True).flatten(1)
