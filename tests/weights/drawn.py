"""Networks of other projects written as one forward that draws each tensor, by its name there, when first asked.

    net = Drawn(); scores = some_forward(net, x); net.tensors   # name -> tensor, as a file of that project has them

Statistics are off neutral and variances positive, so that every tensor matters. Tensors are kept as a file has them and
computed with in the precision of the input: in double precision nothing but the network itself differs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MXNET = ("gamma", "beta", "moving_mean", "moving_var")
GLUON = ("gamma", "beta", "running_mean", "running_var")
TORCH = ("weight", "bias", "running_mean", "running_var")


class Drawn:
    def __init__(self, seed: int = 1, *, eps: float = 1e-5, norm: tuple[str, ...] = TORCH, join: str = ".") -> None:
        self.tensors: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.eps, self.norm_names, self.join = eps, norm, join

    def uniform(self, name: str, size: int, low: float, high: float) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = torch.rand(size, generator=self.generator) * (high - low) + low
        return self.tensors[name]

    def kernel(self, name: str, *shape: int) -> Tensor:
        if name not in self.tensors:
            fan_in = torch.Size(shape[1:]).numel()
            self.tensors[name] = torch.randn(shape, generator=self.generator) * (2 / fan_in) ** 0.5
        assert self.tensors[name].shape == shape
        return self.tensors[name]

    def conv(
        self, x: Tensor, layer: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, bias: bool = False
    ) -> Tensor:
        weight = self.kernel(f"{layer}{self.join}weight", out, x.shape[1] // groups, kernel, kernel).to(x)
        shift = self.uniform(f"{layer}{self.join}bias", out, -0.1, 0.1).to(x) if bias else None
        return F.conv2d(x, weight, shift, stride, kernel // 2, 1, groups)

    def linear(self, x: Tensor, layer: str, out: int, *, bias: bool = True) -> Tensor:
        weight = self.kernel(f"{layer}{self.join}weight", out, x.shape[1]).to(x)
        return F.linear(x, weight, self.uniform(f"{layer}{self.join}bias", out, -0.1, 0.1).to(x) if bias else None)

    def norm(self, x: Tensor, layer: str, *, affine: bool = True) -> Tensor:
        channels, names = x.shape[1], [f"{layer}{self.join}{name}" for name in self.norm_names]
        ranges = ((0.8, 1.2), (-0.1, 0.1), (-0.1, 0.1), (0.5, 1.5))
        scale, shift, mean, var = (
            self.uniform(name, channels, *limits).to(x) for name, limits in zip(names, ranges, strict=True)
        )
        if not affine:  # MXNet writes both all the same; it uses neither
            self.tensors[names[1]] = torch.zeros(channels)
            return F.batch_norm(x, mean, var, eps=self.eps)
        return F.batch_norm(x, mean, var, scale, shift, eps=self.eps)
