"""MutualNet's slimmable networks at one width: the first channels of full weights, statistics of its own set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from drawn import Drawn
from torch import Tensor


def rounded(value: float, divisor: int = 8) -> int:
    near = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return near + divisor if near < 0.9 * value else near


class Slimmable:
    """The tensors of all widths, and the width at which the forward runs; `divisor` is 1 in an older release."""

    def __init__(self, widths: Sequence[float], divisor: int = 8, seed: int = 1) -> None:
        self.net, self.widths, self.divisor = Drawn(seed), list(widths), divisor
        self.width = max(widths)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.net.tensors

    def count(self, channels: int, width: float, ratio: float) -> int:
        return int(rounded(round(channels * width / ratio, 6), self.divisor) * ratio)

    def conv(
        self,
        x: Tensor,
        name: str,
        into: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        depthwise: bool = False,
        ratio: float = 1,
        sliced: bool = True,
    ) -> Tensor:
        weight = self.net.kernel(f"{name}.weight", out, 1 if depthwise else into, kernel, kernel)
        kept = self.count(out, self.width, ratio) if sliced else out
        weight = weight[:kept] if depthwise else weight[:kept, : x.shape[1]]
        return F.conv2d(x, weight, None, stride, kernel // 2, 1, kept if depthwise else 1)

    def norm(self, x: Tensor, name: str, channels: int, *, ratio: float = 1) -> Tensor:
        scale = self.net.uniform(f"{name}.weight", channels, 0.8, 1.2)
        shift = self.net.uniform(f"{name}.bias", channels, -0.1, 0.1)
        for index, width in enumerate(self.widths):
            kept = self.count(channels, width, ratio)
            mean = self.net.uniform(f"{name}.bn.{index}.running_mean", kept, -0.1, 0.1)
            var = self.net.uniform(f"{name}.bn.{index}.running_var", kept, 0.5, 1.5)
            self.tensors.setdefault(f"{name}.bn.{index}.num_batches_tracked", torch.tensor(9))
            if width == self.width:
                y = F.batch_norm(x, mean, var, scale[: x.shape[1]], shift[: x.shape[1]])
        return y


MOBILE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
INVERTED = (
    *((1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1), (6, 32, 1), (6, 64, 2), *[(6, 64, 1)] * 3),
    *(*[(6, 96, 1)] * 3, (6, 160, 2), (6, 160, 1), (6, 160, 1), (6, 320, 1)),
)


def mobilenet_v1(net: Slimmable, x: Tensor, classes: int) -> Tensor:
    x = F.relu6(net.norm(net.conv(x, "features.0.0", 3, 32, 3, 2), "features.0.1", 32))
    channels = 32
    for index, (width, stride) in enumerate(MOBILE):
        home = f"features.{index + 1}.body"
        x = net.conv(x, f"{home}.0", channels, channels, 3, stride, depthwise=True)
        x = F.relu6(net.norm(x, f"{home}.1", channels))
        x = F.relu6(net.norm(net.conv(x, f"{home}.3", channels, width), f"{home}.4", width))
        channels = width
    weight = net.net.kernel("classifier.0.weight", classes, channels)[:, : x.shape[1]]
    return F.linear(x.mean((2, 3)), weight, net.net.uniform("classifier.0.bias", classes, -0.1, 0.1))


def mobilenet_v2(net: Slimmable, x: Tensor, classes: int) -> Tensor:
    x = F.relu6(net.norm(net.conv(x, "features.0.0", 3, 32, 3, 2), "features.0.1", 32))
    channels = 32
    for index, (factor, width, stride) in enumerate(INVERTED):
        home, inner, y, layer = f"features.{index + 1}.body", factor * channels, x, 0
        if factor > 1:
            y = net.norm(net.conv(y, f"{home}.0", channels, inner, ratio=factor), f"{home}.1", inner, ratio=factor)
            y, layer = F.relu6(y), 3
        y = net.conv(y, f"{home}.{layer}", inner, inner, 3, stride, depthwise=True, ratio=factor)
        y = F.relu6(net.norm(y, f"{home}.{layer + 1}", inner, ratio=factor))
        y = net.norm(net.conv(y, f"{home}.{layer + 3}", inner, width), f"{home}.{layer + 4}", width)
        x = x + y if stride == 1 and channels == width else y
        channels = width
    x = net.conv(x, "features.18.0", channels, 1280, sliced=False)
    x = F.relu6(net.net.norm(x, "features.18.1"))
    return net.net.linear(x.mean((2, 3)), "classifier.0", classes)


def resnet(net: Slimmable, x: Tensor, layers: Sequence[int], classes: int) -> Tensor:
    x = torch.relu(net.norm(net.conv(x, "features.0.0", 3, 64, 7, 2, ratio=0.25), "features.0.1", 64, ratio=0.25))
    x = F.max_pool2d(x, 3, 2, 1)
    channels, number = 64, 0
    for stage, count in enumerate(layers):
        inner, out = 64 * 2**stage, 256 * 2**stage
        for block in range(count):
            number += 1
            home, stride = f"features.{number}", 2 if stage and not block else 1
            y = net.conv(x, f"{home}.body.0", channels, inner, ratio=0.25)
            y = torch.relu(net.norm(y, f"{home}.body.1", inner, ratio=0.25))
            y = net.conv(y, f"{home}.body.3", inner, inner, 3, stride, ratio=0.25)
            y = torch.relu(net.norm(y, f"{home}.body.4", inner, ratio=0.25))
            y = net.norm(net.conv(y, f"{home}.body.6", inner, out), f"{home}.body.7", out)
            if not block:
                x = net.norm(net.conv(x, f"{home}.shortcut.0", channels, out, 1, stride), f"{home}.shortcut.1", out)
            x, channels = torch.relu(x + y), out
    weight = net.net.kernel("classifier.0.weight", classes, channels)[:, : x.shape[1]]
    return F.linear(x.mean((2, 3)), weight, net.net.uniform("classifier.0.bias", classes, -0.1, 0.1))
