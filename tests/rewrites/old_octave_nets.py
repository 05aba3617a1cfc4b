"""Small networks of one's own, whose octave forms leanconv 0.1 saved; see `test_octave_stories.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def unit(inputs: int, outputs: int, stride: int = 1, groups: int = 1, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=groups > 1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Mixed(nn.Module):
    """Concatenated, grouped and depthwise convolutions, a gate, a PReLU, pools, a dropout and a residual in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = unit(3, 8, 2), unit(8, 8), unit(8, 8)
        self.grouped, self.depthwise = unit(16, 16, groups=2), unit(16, 16, groups=16)
        self.act, self.pool = nn.PReLU(16), nn.MaxPool2d(3, 2, 1)
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.last, self.fc = unit(16, 8, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.one(x), self.two(x)], 1)
        x = self.act(self.grouped(x))
        y = self.depthwise(x)
        y += x
        gate = torch.sigmoid(self.expand(functional.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        y = functional.dropout(self.pool(y * gate), 0.1, self.training)
        return self.fc(functional.adaptive_avg_pool2d(self.last(y), 1).flatten(1))


class Plain(nn.Module):
    """Nothing but a residual block between a stem and a last stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = unit(3, 8), unit(8, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.last, self.fc = unit(16, 8, 2), nn.Linear(8, 4)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x))
        return self.fc(self.flatten(self.pool(self.last(torch.relu(x + self.b(x))))))


def mixed() -> nn.Module:
    return Mixed()


def plain() -> nn.Module:
    return Plain()
