"""VMZ's channel-separated networks as its Caffe2 builder makes and names them."""

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
