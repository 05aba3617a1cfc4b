"""VMZ's channel-separated networks, and R(2+1)D, as its Caffe2 builder makes and names them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from drawn import Drawn
from torch import Tensor


def caffe2(seed: int = 1) -> Drawn:
    return Drawn(seed, eps=1e-3, norm=("s", "b", "rm", "riv"), join="_")


def conv(net: Drawn, x: Tensor, name: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Tensor:
    weight = net.kernel(f"{name}_w", out, x.shape[1] // groups, kernel, kernel, kernel)
    return F.conv3d(x, weight, None, stride, kernel // 2, 1, groups)


def csn(net: Drawn, clip: Tensor, kind: str, layers: Sequence[int], classes: int) -> Tensor:
    weight = net.kernel("conv1_w", 64, 3, 3, 7, 7)
    x = torch.relu(net.norm(F.conv3d(clip, weight, None, (1, 2, 2), (1, 3, 3)), "conv1_spatbn_relu"))
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    number = 0
    for stage, count in enumerate(layers):
        base = 64 * 2**stage
        for block in range(count):
            stride, layer = 2 if stage and not block else 1, 1
            named = lambda what, at=number: f"comp_{at}_{what}"  # noqa: E731
            y = torch.relu(net.norm(conv(net, x, named("conv_1"), base), named("spatbn_1")))
            if kind == "ip":
                layer = 2
                y = net.norm(conv(net, y, named("conv_2_middle"), base), named("spatbn_2_middle"))
            else:
                layer = 3  # the helper for depthwise convolutions counts once more
            y = conv(net, y, named(f"conv_{layer}"), base, 3, stride, base)
            y = torch.relu(net.norm(y, named(f"spatbn_{layer}")))
            y = net.norm(conv(net, y, named(f"conv_{layer + 1}"), 4 * base), named(f"spatbn_{layer + 1}"))
            if not block:
                shortcut = f"shortcut_projection_{number}"
                x = net.norm(conv(net, x, shortcut, 4 * base, 1, stride), f"{shortcut}_spatbn")
            x, number = torch.relu(x + y), number + 1
    weight = net.kernel(f"last_out_L{classes}_w", classes, 2048)
    return F.linear(x.mean((2, 3, 4)), weight, net.uniform(f"last_out_L{classes}_b", classes, -0.1, 0.1))


def decomposed(
    net: Drawn, x: Tensor, name: str, norm: str, out: int, kernel: int = 3, stride: int = 1, middle: int | None = None
) -> Tensor:
    """1 x k x k, norm, ReLU, 3 x 1 x 1; as many channels between as make the weights of 3 x k x k."""
    area = kernel * kernel
    between = middle or int(3 * x.shape[1] * out * area / (x.shape[1] * area + 3 * out))
    weight = net.kernel(f"{name}_middle_w", between, x.shape[1], 1, kernel, kernel)
    x = F.conv3d(x, weight, None, (1, stride, stride), (0, kernel // 2, kernel // 2))
    x = torch.relu(net.norm(x, norm))
    time = 1 if middle else stride
    return F.conv3d(x, net.kernel(f"{name}_w", out, between, 3, 1, 1), None, (time, 1, 1), (1, 0, 0))


def r2plus1d(net: Drawn, clip: Tensor, simple: bool, layers: Sequence[int], classes: int) -> Tensor:
    x = decomposed(net, clip, "conv1", "conv1_middle_spatbn_relu", 64, 7, 2, middle=45)
    x, number = torch.relu(net.norm(x, "conv1_spatbn_relu")), 0
    for stage, count in enumerate(layers):
        base = 64 * 2**stage
        for block in range(count):
            stride, out = 2 if stage and not block else 1, base if simple else 4 * base
            conv_, norm = f"comp_{number}_conv_", f"comp_{number}_spatbn_"
            if simple:
                y = torch.relu(
                    net.norm(decomposed(net, x, f"{conv_}1", f"{norm}1_middle", base, 3, stride), f"{norm}1")
                )
                y = net.norm(decomposed(net, y, f"{conv_}2", f"{norm}2_middle", base), f"{norm}2")
            else:
                y = torch.relu(net.norm(conv(net, x, f"{conv_}1", base), f"{norm}1"))
                y = torch.relu(
                    net.norm(decomposed(net, y, f"{conv_}2", f"{norm}2_middle", base, 3, stride), f"{norm}2")
                )
                y = net.norm(conv(net, y, f"{conv_}3", out), f"{norm}3")
            if stride > 1 or x.shape[1] != out:
                shortcut = f"shortcut_projection_{number}"
                x = net.norm(conv(net, x, shortcut, out, 1, stride), f"{shortcut}_spatbn")
            x, number = torch.relu(x + y), number + 1
    weight = net.kernel(f"last_out_L{classes}_w", classes, x.shape[1])
    return F.linear(x.mean((2, 3, 4)), weight, net.uniform(f"last_out_L{classes}_b", classes, -0.1, 0.1))
