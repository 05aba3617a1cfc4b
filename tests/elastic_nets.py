"""Small networks, one per way in which channels hang together, and an oracle that never slices a weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.elastic import ElasticNet, make_elastic
from leanconv.elastic.layers.leaves import Elastic
from leanconv.elastic.slices import Layer
from leanconv.ops.igc import InterleavedGroupConv2d
from leanconv.ops.osep import OptimizedSeparableConv2d
from leanconv.rewrites import Octave, rewrite

SIDES = (16, 12)


def unit(ins: int, outs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(ins, outs, kernel, padding=kernel // 2, **options), nn.BatchNorm2d(outs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = unit(3, 32), unit(32, 48), nn.Conv2d(48, 32, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.b(self.a(x))
        y += x
        return self.head(y.relu().mean((2, 3)))


class Concat(nn.Module):
    """A dense block whose pieces are then read by an ordinary, a depthwise and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = unit(3, 32), unit(32, 16), unit(48, 24)
        self.norm, self.deep, self.mix = nn.BatchNorm2d(72), nn.Conv2d(72, 72, 3, groups=72), unit(72, 40, 1)
        self.head = nn.Linear(40 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.a(x)], 1)
        x = torch.cat([x, self.b(x)], dim=-3)
        x = self.mix(self.deep(self.norm(x)))
        return self.head(F.adaptive_avg_pool2d(x, 3).flatten(1))


class Gated(nn.Module):
    """Squeeze and excitation with linear layers, on a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = unit(3, 64, 1), unit(64, 64, groups=8)[:2]
        self.squeeze, self.expand, self.prelu = nn.Linear(64, 16), nn.Linear(16, 64), nn.PReLU(64)
        self.head = nn.Conv2d(64, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.grouped(self.stem(x)))
        gate = self.expand(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return self.head(x * gate[:, :, None, None])


class Multiplied(nn.Module):
    """A depthwise convolution that makes two channels of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.head = unit(3, 24), unit(24, 48, groups=24), nn.Conv2d(48, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.deep(self.stem(x)))


class ShortcutA(nn.Module):
    """Missing channels are zeros, as many as the other side has at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = unit(3, 16), unit(16, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.wide(x)
        y = y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return self.head(y.flatten(2).mean(-1))


class Shared(nn.Module):
    """One convolution on two maps, as in a detector's head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.tower = unit(3, 32), unit(32, 32, stride=2), unit(32, 24)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        return {"fine": self.head(self.tower(fine)), "coarse": self.head(self.tower(self.down(fine)))}


class SpatialAttention(nn.Module):
    """Channel means and maxima make a map that multiplies all channels; ECA's convolution runs along them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.look, self.along = unit(3, 32), nn.Conv2d(2, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.look(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        gate = self.along(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return self.head(x * gate.view(x.shape[0], -1, 1, 1))


class Parted(nn.Module):
    """Parts at places that the code holds as constants: split, chunk, slices; and a shuffle of their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.sizes = unit(3, 64), unit(24, 24), (24, 40)
        self.gate, self.head = unit(64, 64, 1), nn.Conv2d(32, 4, 1)
        self.middle, self.groups = 16, 4

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), self.sizes, dim=1)
        x = torch.cat([self.part(a), b], 1)
        batch, _, height, width = x.shape
        x = x.view(batch, self.groups, 64 // self.groups, height, width).transpose(1, 2)
        x = x.reshape(batch, 64, height, width)
        a, b = self.gate(x).chunk(2, dim=1)
        x = a * b.sigmoid()
        return self.head(torch.cat([x[:, self.middle :], x[:, : self.middle].relu()], 1))


class Late(nn.Module):
    """Two layers' channels side by side, halved again by a forward that looks at the size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = unit(3, 32), unit(32, 32, 1), unit(32, 32, 1)
        self.c, self.d = nn.Conv2d(32, 8, 1), nn.Conv2d(32, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = torch.cat([self.a(x), self.b(x)], 1).chunk(2, 1)
        return self.c(a) + self.d(b)


class Attentive(nn.Module):
    """Attention with three heads, whose queries, keys and values come from one layer, and a weight per position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.heads, self.length = unit(3, 48), 3, 16
        self.place = nn.Parameter(torch.zeros(1, 48, 4, 4))
        self.qkv, self.proj, self.head = nn.Linear(48, 144), nn.Linear(48, 48), nn.Linear(48, 5)
        self.bias = nn.Parameter(torch.zeros(3, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.stem(x), 4) * self.place
        x = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(x).reshape(len(x), 16, 3, self.heads, self.length).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        scores = (q @ k.transpose(-2, -1)) * 0.25 + self.bias
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(len(x), 16, 48)
        return self.head((x + self.proj(y)).mean(1))


class Scaled(nn.Module):
    """Parameters beside the layers: a layer scale, a blur with a kernel per channel; and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gamma = unit(3, 32), nn.Parameter(torch.ones(32))
        self.register_buffer("blur", torch.ones(32, 1, 3, 3) / 9)
        self.up, self.head = nn.ConvTranspose2d(32, 24, 2, stride=2), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + F.conv2d(x, self.blur, padding=1, groups=32) * self.gamma.view(1, -1, 1, 1)
        return self.head(self.up(x))


class FewGroups(nn.Module):
    """Two groups, too few to drop one: they stay and shrink inside; their outputs are then two branches, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.head = unit(3, 48), unit(48, 64, groups=2), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.stem(x))
        return self.head(x.view(len(x), 2, -1, *x.shape[2:]).sum(1))


class Chained(nn.Module):
    """Chains with shuffles in a residual block: interleaved groups, and an optimized separable one on spare slots."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.igc = unit(3, 32), InterleavedGroupConv2d(32, 32, 3, padding=1, primary_partitions=4)
        self.norm, self.osep = nn.BatchNorm2d(32), OptimizedSeparableConv2d(32, 62, 3, padding=1, between="bn")
        self.narrow, self.head = OptimizedSeparableConv2d(62, 32, 3, padding=1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.igc(x)).relu()
        return self.head(x + self.narrow(self.osep(y).relu()))


def octave_net() -> nn.Module:
    """A residual block at two resolutions, whose gate is dealt to both."""
    return rewrite(_Squeezed(), Octave(alpha=0.5, where=""), size=(3, 16, 16)).model


class _Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = unit(3, 32), unit(32, 48), nn.Conv2d(48, 32, 3, padding=1)
        self.squeeze, self.expand, self.head = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.b(self.a(x))
        gate = torch.sigmoid(self.expand(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head(torch.relu(x + y * gate))


def clip_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 32, 3, padding=1),
        nn.BatchNorm3d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def signal_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 32, 3, padding=1),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(4),
        nn.Flatten(),
        nn.Linear(128, 5),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "concat": Concat,
    "gated": Gated,
    "multiplied": Multiplied,
    "shortcut A": ShortcutA,
    "shared": Shared,
    "parted": Parted,
    "late": Late,
    "attentive": Attentive,
    "scaled": Scaled,
    "few groups": FewGroups,
    "chained": Chained,
    "octave": octave_net,
}
"""Those whose dropped channels may as well be zero, so that the oracle below holds for them."""


@cache
def _made(name: str, **options: Any) -> tuple[nn.Module, ElasticNet]:
    model = randomized(NETS[name]())
    return model, make_elastic(model, (0.25, 1.0), SIDES, **options)


def elastic(name: str, **options: Any) -> tuple[nn.Module, ElasticNet]:
    """A network of the table and its elastic form."""
    model, net = _made(name, **options)
    return copy.deepcopy(model), copy.deepcopy(net)


def masked(original: nn.Module, net: ElasticNet, width: float, x: Tensor) -> Any:
    """What the *original* network answers when every dropped channel is zeroed behind the layer that makes it."""
    handles = []
    leaves = elastic_leaves(net)
    for name, module in original.named_modules():
        if name not in leaves:
            continue
        outputs = leaves[name].elastic_layer.outputs
        keep = torch.zeros(outputs.full, dtype=x.dtype)
        for start, length in outputs.runs(net.checked(width).width):
            keep[start : start + length] = 1

        def hook(module: nn.Module, _: Any, y: Tensor, keep: Tensor = keep) -> Tensor:
            return y * keep.view(-1, *[1] * (0 if isinstance(module, nn.Linear) else y.ndim - 2))

        handles.append(module.register_forward_hook(hook))
    try:
        return original(x)
    finally:
        for handle in handles:
            handle.remove()


def elastic_leaves(net: ElasticNet) -> dict[str, Elastic]:
    """The layers whose channels follow the width, by name."""
    return {
        name: m
        for name, m in net.model.named_modules()
        if isinstance(m, Elastic) and isinstance(m.elastic_layer, Layer)
    }


def tensors(output: Any) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic drawn, so that nothing is 0 or 1 by default."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(
                torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 0.1) / max(1, p[0].numel()) ** 0.5
            )
            if p.ndim == 1:
                p.add_(0.5)
        for name, b in model.named_buffers():
            if b.is_floating_point():
                b.copy_(torch.rand(b.shape, generator=generator) + (0.5 if name.endswith("var") else 0.0))
    return model
