"""The networks of "Interleaved Group Convolutions" (ICCV 2017), convolution injected, and its summation-fusion block.

    plain     3x3 stem - stages of B units  relu(BN(conv(x)))  - average pool - linear
    residual  the same, a unit being        relu(BN(conv(relu(BN(conv(x))))) + shortcut(x))        ("+Ident.")

The first unit of every stage but the first halves the map; the shortcut is the identity, or 1x1 and BatchNorm where the
width changes. Published settings: BatchNorm with eps 2e-5 (momentum .01 in torch's sense in the plain networks, .1 in
the residual ones), every convolution drawn from N(0, 2 / fan_in), also the two inside one interleaved block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor, nn

from leanconv.errors import LeanconvError
from leanconv.nets._shared import ConvMaker, at_least_one

__all__ = ["IgcNet", "SummedBranches", "blocks_per_stage"]

_EPS = 2e-5


class IgcNet(nn.Module):
    """Stages of `blocks` units, `widths[i]` channels wide, behind a stem of `stem_width` (default: the first width).

    Args:
        conv: makes the 3x3 convolutions of the units.
        widening_conv: makes the first one of a residual unit that changes the width; by default `conv`.
        shortcut: makes the 1x1 convolution around such a unit.
        residual: "+Ident." units of two convolutions instead of plain units of one.
        momentum: of every BatchNorm, in torch's sense; by default the published .01 of plain networks, .1 of residual
            ones. At .01 running statistics follow over some hundred steps: plain networks test at chance in short runs.
        stem: "cifar" is 3x3 at stride 1, "imagenet" 7x7 at stride 2 and a 3x3 max pool.

    Raises `LeanconvError` for counts and widths below 1.

    >>> import torch
    >>> IgcNet((16, 32, 64), 2)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        *,
        num_classes: int = 10,
        residual: bool = False,
        stem: Literal["cifar", "imagenet"] = "cifar",
        stem_width: int | None = None,
        conv: ConvMaker = nn.Conv2d,
        widening_conv: ConvMaker | None = None,
        shortcut: ConvMaker = nn.Conv2d,
        momentum: float | None = None,
    ) -> None:
        super().__init__()
        if not widths:
            raise LeanconvError("widths must name the channels of at least one stage, got none")
        for index, width in enumerate(widths):
            at_least_one(f"widths[{index}]", width)
        at_least_one("blocks", blocks)
        at_least_one("num_classes", num_classes)
        if stem not in ("cifar", "imagenet"):
            raise LeanconvError(f"stem must be 'cifar' or 'imagenet', got {stem!r}")
        channels = widths[0] if stem_width is None else at_least_one("stem_width", stem_width)
        if momentum is None:
            momentum = 0.1 if residual else 0.01
        elif not 0 < momentum <= 1:
            raise LeanconvError(f"momentum of BatchNorm must be above 0 and at most 1, got {momentum!r}")
        if stem == "cifar":
            first = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        else:
            first = [nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)]
        layers: list[nn.Module] = [*first, _norm(channels, momentum), nn.ReLU(inplace=True)]
        if stem == "imagenet":
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stem = nn.Sequential(*layers)
        stages: list[nn.Module] = []
        for index, width in enumerate(widths):
            units: list[nn.Module] = []
            for block in range(blocks):
                stride = 2 if index and not block else 1
                if residual:
                    widening = widening_conv or conv
                    units.append(_Residual(channels, width, stride, conv, widening, shortcut, momentum))
                else:
                    units.append(_plain_unit(channels, width, stride, conv, momentum))
                channels = width
            stages.append(nn.Sequential(*units))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        _draw(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, h, w) to class scores (b, num_classes)."""
        scores: Tensor = self.fc(self.flatten(self.pool(self.stages(self.stem(x)))))
        return scores


class SummedBranches(nn.Module):
    """Summation fusion: `branches` convolutions of the same input, added up (eq. 21).

    All branches read the same channels, so together they are one convolution with `branches` times the outputs.
    Takes the arguments of `nn.Conv2d`: (b, in_channels, h, w) to (b, out_channels, h', w').
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, branches: int = 4, **settings: object
    ) -> None:
        super().__init__()
        self.branches = at_least_one("branches", branches)
        self.conv = nn.Conv2d(in_channels, branches * out_channels, kernel_size, **settings)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The sum over the branches."""
        y: Tensor = self.conv(x)
        return y.reshape(len(y), self.branches, -1, *y.shape[2:]).sum(1)

    def extra_repr(self) -> str:
        """The number of branches."""
        return f"branches={self.branches}"


def blocks_per_stage(depth: int, *, stages: int = 3, residual: bool = False) -> int:
    """Units per stage of a network of `depth` layers: stem, classifier, and one (plain) or two layers per unit.

    >>> blocks_per_stage(20), blocks_per_stage(50, residual=True)
    (6, 8)
    """
    step = at_least_one("stages", stages) * (2 if residual else 1)
    blocks, rest = divmod(at_least_one("depth", depth) - 2, step)
    if blocks < 1 or rest:
        legal = ", ".join(str(step * count + 2) for count in (1, 2, 3))
        kind = "residual" if residual else "plain"
        raise LeanconvError(
            f"depth of a {kind} network with {stages} stages must be {step}n + 2 ({legal}, ...), got {depth}"
        )
    return blocks


class _Residual(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)), the stride in the first convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        conv: ConvMaker,
        widening_conv: ConvMaker,
        shortcut: ConvMaker,
        momentum: float,
    ) -> None:
        super().__init__()
        widens = in_channels != out_channels
        first = widening_conv if widens else conv
        self.conv1 = first(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = _norm(out_channels, momentum)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = _norm(out_channels, momentum)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if widens or stride > 1:
            projection = shortcut(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, _norm(out_channels, momentum))

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, ceil(h / stride), ceil(w / stride))."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


def _plain_unit(in_channels: int, out_channels: int, stride: int, conv: ConvMaker, momentum: float) -> nn.Sequential:
    layer = conv(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(layer, _norm(out_channels, momentum), nn.ReLU(inplace=True))


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS, momentum=momentum)


def _draw(net: nn.Module) -> None:
    """As published: He-normal over the fan-in of each group; the classifier uniform in +-sqrt(1 / fan_in), bias 0."""
    for layer in _leaves(net):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        else:
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)


def _leaves(net: nn.Module) -> Iterator[nn.Conv2d | nn.Linear]:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield module
