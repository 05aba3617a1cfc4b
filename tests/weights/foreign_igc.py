"""Interleaved-group networks and the ResNets beside them, as their authors' MXNet scripts build and name them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from drawn import MXNET, Drawn
from torch import Tensor


def igc(seed: int = 1) -> Drawn:
    return Drawn(seed, eps=2e-5, norm=MXNET, join="_")


def reorder(x: Tensor, branches: int) -> Tensor:
    """Channels as a table of `branches` rows, read by columns: out[m * branches + l] = in[l * (C / branches) + m]."""
    channels = x.shape[1]
    order = [row * (channels // branches) + column for column in range(channels // branches) for row in range(branches)]
    return x[:, order]


def block(net: Drawn, x: Tensor, name: str, out: int, stride: int, primary: int, secondary: int) -> Tensor:
    """The two group convolutions and the shuffles behind each; no norm."""
    y = reorder(net.conv(x, f"{name}_conv1", out, 3, stride, primary), primary)
    return reorder(net.conv(y, f"{name}_conv2", out, 1, 1, secondary), secondary)


def plain(net: Drawn, image: Tensor, primary: int, secondary: int, blocks: int, classes: int) -> Tensor:
    width = primary * secondary
    x = torch.relu(net.norm(net.conv(image, "g0_conv", width, 3), "g0_bn"))
    for stage in range(3):
        for index in range(blocks):
            name, stride = f"g{stage + 1}_b{index + 1}", 2 if stage and not index else 1
            x = block(net, x, name, width * 2**stage, stride, primary, secondary * 2**stage)
            x = torch.relu(net.norm(x, f"{name}_bn"))
    return net.linear(x.mean((2, 3)), "fc_score", classes)


def plain_dense(net: Drawn, image: Tensor, width: int, blocks: int, classes: int) -> Tensor:
    x = torch.relu(net.norm(net.conv(image, "g0_conv", width, 3), "g0_bn"))
    for stage in range(3):
        for index in range(blocks):
            name, stride = f"g{stage + 1}_b{index + 1}", 2 if stage and not index else 1
            x = torch.relu(net.norm(net.conv(x, f"{name}_conv", width * 2**stage, 3, stride), f"{name}_bn"))
    return net.linear(x.mean((2, 3)), "fc_score", classes)


def cifar_residual(
    net: Drawn, image: Tensor, primary: int, secondary: int, blocks: int, classes: int, *, dense: bool = False
) -> Tensor:
    """ "+Ident.": the first pair of a stage has as many secondary groups as the stage before had."""
    width = primary * secondary
    x = torch.relu(net.norm(net.conv(image, "g0_conv", width, 3), "g0_bn"))
    for stage in range(3):
        for index in range(blocks):
            home, stride, out = f"g{stage + 1}_b{index + 1}", 2 if stage and not index else 1, width * 2**stage
            y = x
            for half, step in ((1, stride), (2, 1)):
                name, groups = f"{home}_p2_two{half}", y.shape[1] // primary
                if dense:
                    y = net.conv(y, f"{name}_conv", out, 3, step)
                else:
                    y = block(net, y, name, out, step, primary, groups)
                y = net.norm(y, f"{name}_bn")
                y = torch.relu(y) if half == 1 else y
            if stride == 2:
                line = net.conv(x, f"{home}_p0_line_conv", out, 1, 2, 1 if dense else primary)
                x = net.norm(line, f"{home}_p0_line_bn")
            x = torch.relu(x + y)
    return net.linear(x.mean((2, 3)), "fc", classes)


def imagenet(
    net: Drawn,
    image: Tensor,
    stem: int,
    widths: Sequence[int],
    primary: Sequence[int],
    classes: int,
    *,
    unit: str = "conv",
    dense: bool = False,
) -> Tensor:
    """18 layers; `primary` groups per stage. `unit` is "conv" in the released symbols, "igc" in the script."""
    suffix = "" if dense else "_conv"
    x = torch.relu(net.norm(net.conv(image, f"g0{suffix}", stem, 7, 2), "g0_bn"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, (out, groups) in enumerate(zip(widths, primary, strict=True)):
        for index in range(2):
            home, stride = f"g{stage + 1}_b{index + 1}", 2 if stage and not index else 1
            y = x
            for half, step in ((1, stride), (2, 1)):
                name = f"{home}_{unit}{half}"
                if dense:
                    y = net.conv(y, name, out, 3, step)
                else:
                    y = block(net, y, name, out, step, groups, out // groups)
                y = net.norm(y, f"{name}_bn")
                y = torch.relu(y) if half == 1 else y
            if x.shape[1] != out:
                line = net.conv(x, f"{home}_proj{suffix}", out, 1, stride, 1 if dense else groups)
                x = net.norm(line, f"{home}_proj_bn")
            x = torch.relu(x + y)
    return net.linear(x.mean((2, 3)), "fc_score", classes)
