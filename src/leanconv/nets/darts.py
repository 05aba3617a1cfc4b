"""The evaluation networks of DARTS (Liu et al., ICLR 2019), genotype V2, its 3x3 units injected.

With other cells those of P-DARTS (Chen et al., ICCV 2019) and PC-DARTS (Xu et al., ICLR 2020).

A cell reads the two cells before it; each of its four nodes adds two operations on earlier nodes; its output is the
four nodes side by side. Two cells, at a third and two thirds of the depth, halve the map and double the width.

    sep   relu, unit (with the stride), BN, relu, unit, BN        skip   identity, or `Halve` where the map halves
    dil   relu, unit with dilation 2, BN                          pool   3x3 max pool, `average` the mean
    sep5, dil5   the same with units of 5x5

A unit is anything with the signature of `nn.Conv2d`; the paper's is a depthwise 3x3 and a 1x1 without anything between.
Deviation: `Halve` also takes maps of odd size (its second half reads one zero row and column there).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.errors import LeanconvError
from leanconv.nets._shared import ConvMaker, at_least_one

__all__ = ["CELLS", "Darts", "Edge", "Halve", "depth_separable"]

Kind = Literal["sep", "sep5", "dil", "dil5", "skip", "pool", "average"]


class Edge(NamedTuple):
    """One operation of a cell and the node it reads; 0 and 1 are the cells before, 2 is the first node."""

    kind: Kind
    source: int


Cells = Literal["darts_v2", "pdarts", "pcdarts"]

CELLS: dict[Cells, tuple[tuple[Edge, ...], tuple[Edge, ...]]] = {
    "darts_v2": (
        (
            Edge("sep", 0), Edge("sep", 1),
            Edge("sep", 0), Edge("sep", 1),
            Edge("sep", 1), Edge("skip", 0),
            Edge("skip", 0), Edge("dil", 2),
        ),
        (
            Edge("pool", 0), Edge("pool", 1),
            Edge("skip", 2), Edge("pool", 1),
            Edge("pool", 0), Edge("skip", 2),
            Edge("skip", 2), Edge("pool", 1),
        ),
    ),
    "pdarts": (
        (
            Edge("skip", 0), Edge("dil", 1),
            Edge("skip", 0), Edge("sep", 1),
            Edge("sep", 1), Edge("sep", 3),
            Edge("sep", 0), Edge("dil5", 4),
        ),
        (
            Edge("average", 0), Edge("sep5", 1),
            Edge("sep", 0), Edge("dil5", 2),
            Edge("pool", 0), Edge("dil", 1),
            Edge("dil", 1), Edge("dil5", 3),
        ),
    ),
    "pcdarts": (
        (
            Edge("sep", 1), Edge("skip", 0),
            Edge("sep", 0), Edge("dil", 1),
            Edge("sep5", 0), Edge("sep", 1),
            Edge("average", 0), Edge("dil", 1),
        ),
        (
            Edge("sep5", 1), Edge("pool", 0),
            Edge("sep5", 1), Edge("sep5", 2),
            Edge("sep", 0), Edge("sep", 3),
            Edge("sep", 1), Edge("sep", 2),
        ),
    ),
}  # fmt: skip
"""Genotype -> the normal and the reducing cell: two edges per node, node by node. P- and PC-DARTS: those for CIFAR."""

_NODES = 4


class Darts(nn.Module):
    """`cells` cells, the first ones with `channels` channels per node.

    Args:
        stem: "cifar" is one 3x3 to 3 x channels; "imagenet" three 3x3 of stride 2.
        unit: makes the 3x3 and 5x5 units of the sep and dil operations.
        genotype: which cells, a key of `CELLS`.
        auxiliary: add a second classifier behind the second reduction; `forward_all` gives its scores too.

    `drop_path` is the share of images for which an operation is left out in training (never a skip that is the
    identity); the training recipe raises it from 0.
    Raises `LeanconvError` for fewer than three cells and counts below 1.

    >>> Darts(4, cells=3)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        channels: int = 36,
        *,
        cells: int = 20,
        num_classes: int = 10,
        stem: Literal["cifar", "imagenet"] = "cifar",
        unit: ConvMaker | None = None,
        auxiliary: bool = False,
        genotype: Cells = "darts_v2",
    ) -> None:
        super().__init__()
        if genotype not in CELLS:
            raise LeanconvError(f"genotype must be one of {', '.join(CELLS)}, got {genotype!r}")
        normal, reduction = CELLS[genotype]
        if at_least_one("cells", cells) < 3:
            raise LeanconvError(f"cells must be at least 3, two of them halve the map, got {cells}")
        if stem not in ("cifar", "imagenet"):
            raise LeanconvError(f"stem must be 'cifar' or 'imagenet', got {stem!r}")
        at_least_one("channels", channels)
        at_least_one("num_classes", num_classes)
        unit = depth_separable if unit is None else unit
        self.drop_path = 0.0
        if stem == "cifar":
            self.stem = nn.Sequential(nn.Conv2d(3, 3 * channels, 3, padding=1, bias=False), _norm(3 * channels))
            self.stem2: nn.Module = nn.Identity()
            before, last, halved = 3 * channels, 3 * channels, False
        else:
            half = max(channels // 2, 1)
            self.stem = nn.Sequential(
                _halving(3, half), _norm(half), nn.ReLU(), _halving(half, channels), _norm(channels)
            )
            self.stem2 = nn.Sequential(nn.ReLU(), _halving(channels, channels), _norm(channels))
            before, last, halved = channels, channels, True
        reductions = (cells // 3, 2 * cells // 3)
        self.cells = nn.ModuleList()
        self.auxiliary_after = reductions[1]
        self.auxiliary: nn.Module | None = None
        for index in range(cells):
            reduces = index in reductions
            channels *= 2 if reduces else 1
            edges = reduction if reduces else normal
            cell = _Cell(before, last, channels, edges, reduces=reduces, halved_before=halved, unit=unit)
            self.cells.append(cell)
            before, last, halved = last, _NODES * channels, reduces
            if auxiliary and index == self.auxiliary_after:
                self.auxiliary = _auxiliary(last, num_classes, 3 if stem == "cifar" else 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, h, w) to class scores (b, num_classes)."""
        return self._run(x)[0]

    def forward_all(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The class scores and those of the auxiliary classifier; `LeanconvError` where there is none."""
        scores, features = self._run(x)
        if self.auxiliary is None:
            raise LeanconvError("this network has no auxiliary classifier: build it with auxiliary=true")
        return scores, self.auxiliary(features)

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self.stem(x)
        last = self.stem2(before)
        features = last
        rate = self.drop_path if self.training else 0.0
        for index, cell in enumerate(self.cells):
            before, last = last, cell(before, last, rate)
            if index == self.auxiliary_after:
                features = last
        return self.classifier(self.flatten(self.pool(last))), features


class Halve(nn.Module):
    """Half the map without losing pixels: two 1x1 of stride 2, one of them a pixel further, side by side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, stride=2, bias=False)
        self.bn = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, ceil(h / 2), ceil(w / 2))."""
        x = self.relu(x)
        further = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        out: Tensor = self.bn(torch.cat([self.conv1(x), self.conv2(further)], 1))
        return out


def depth_separable(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int, padding: int, dilation: int, bias: bool
) -> nn.Module:
    """DARTS' own unit: depthwise, then 1x1, nothing between."""
    depthwise = nn.Conv2d(
        in_channels,
        in_channels,
        kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=in_channels,
        bias=False,
    )
    return nn.Sequential(depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=bias))


class _Cell(nn.Module):
    def __init__(
        self,
        before: int,
        last: int,
        channels: int,
        edges: tuple[Edge, ...],
        *,
        reduces: bool,
        halved_before: bool,
        unit: ConvMaker,
    ) -> None:
        super().__init__()
        # The cell before the last one is larger than the last when the last has halved the map.
        self.prepare0 = Halve(before, channels) if halved_before else _relu_conv_norm(before, channels)
        self.prepare1 = _relu_conv_norm(last, channels)
        self.edges = edges
        self.operations = nn.ModuleList(
            _operation(edge.kind, channels, 2 if reduces and edge.source < 2 else 1, unit) for edge in self.edges
        )

    def forward(self, before: Tensor, last: Tensor, drop_path: float) -> Tensor:
        states = [self.prepare0(before), self.prepare1(last)]
        for node in range(_NODES):
            terms = []
            for position in (2 * node, 2 * node + 1):
                operation = self.operations[position]
                term = operation(states[self.edges[position].source])
                if drop_path > 0 and not isinstance(operation, nn.Identity):
                    term = _drop_path(term, drop_path)
                terms.append(term)
            states.append(terms[0] + terms[1])
        return torch.cat(states[2:], 1)


def _operation(kind: Kind, channels: int, stride: int, unit: ConvMaker) -> nn.Module:
    if kind == "pool":
        return nn.MaxPool2d(3, stride=stride, padding=1)
    if kind == "average":
        return nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
    if kind == "skip":
        return nn.Identity() if stride == 1 else Halve(channels, channels)
    side = 5 if kind.endswith("5") else 3
    separated = kind.startswith("sep")
    dilation = 1 if separated else 2
    padding = side // 2 * dilation
    layers: list[nn.Module] = []
    for step in (stride, 1) if separated else (stride,):
        made = unit(channels, channels, side, stride=step, padding=padding, dilation=dilation, bias=False)
        layers += [nn.ReLU(), made, _norm(channels)]
    return nn.Sequential(*layers)


class _TowerPool(nn.Module):
    """5x5 average pool of the given stride; a map too small for it to leave 2x2 is brought to that size."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < 5 + self.stride:
            return F.adaptive_avg_pool2d(x, 2)
        return F.avg_pool2d(x, 5, self.stride)


def _auxiliary(channels: int, num_classes: int, stride: int) -> nn.Sequential:
    """Average pool, 1x1 to 128, 2x2 to 768, linear; for maps of 8 (CIFAR, stride 3) or 7 pixels (ImageNet, 2)."""
    return nn.Sequential(
        nn.ReLU(),
        _TowerPool(stride),
        nn.Conv2d(channels, 128, 1, bias=False),
        _norm(128),
        nn.ReLU(),
        nn.Conv2d(128, 768, 2, bias=False),
        _norm(768),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(768, num_classes),
    )


def _drop_path(x: Tensor, rate: float) -> Tensor:
    """Leave the operation out for a share `rate` of the images, and scale up the others."""
    keep = 1.0 - rate
    mask = torch.empty((len(x), 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
    return x * (mask / keep)


def _relu_conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False), _norm(out_channels))


def _halving(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)
