"""A fully connected layer as an optimized separable convolution of kernel 1 (appendix G of the paper).

There is no kernel to separate, so the whole saving comes from the channels: for two stages C_in C_out becomes
2 min(C_in, C_out) max(C_in, C_out)^(1/2). Depth separable convolution cannot do this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import PlanError
from leanconv.ops.channels import Device
from leanconv.ops.osep import OptimizedSeparableConv1d

__all__ = ["OptimizedSeparableLinear"]


class OptimizedSeparableLinear(nn.Module):
    """`nn.Linear` as a chain of grouped 1x1 convolutions; the options of `OptimizedSeparable` follow as keywords.

    Shapes: (*, in_features) -> (*, out_features).
    Raises `PlanError` where the chain would have more weights than the linear layer.

    >>> layer = OptimizedSeparableLinear(256, 256)
    >>> print(layer.chain.plan)
    1 256->256 g16, shuffle 16; 1 256->256 g16
    >>> layer(torch.zeros(2, 5, 256)).shape
    torch.Size([2, 5, 256])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.chain = OptimizedSeparableConv1d(
            in_features, out_features, 1, bias=bias, device=device, dtype=dtype, **options
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> tuple[OptimizedSeparableLinear, float]:
        """The chain fitted to `linear` by least squares, and its relative error ||W - W'|| / ||W||."""
        if not isinstance(linear, nn.Linear):
            raise PlanError(f"expected an nn.Linear, got {type(linear).__name__}")
        weight, bias = linear.weight, linear.bias
        new = cls(linear.in_features, linear.out_features, bias is not None, weight.device, weight.dtype, **options)
        return new.train(linear.training), new.chain.project_(weight.detach()[..., None], bias)

    def dense_weight(self) -> Tensor:
        """The weight (out_features, in_features) of the linear layer that the chain stands for."""
        return self.chain.dense_kernel()[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        """Every vector of the last axis, through the chain."""
        flat = x.reshape(-1, self.in_features, 1)
        out: Tensor = self.chain(flat)
        return out.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, as `nn.Linear` says them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"
