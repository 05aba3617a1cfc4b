"""Layers that compute what they computed, another way: the class of a module changes, its parameters stay its own.

`Channelwise*` run one filter per channel by `kernels.channelwise`. `Padded*` run on channels filled up to a multiple:
matrix units take eight at a time, and a convolution of 58 channels runs several times slower than one of 64. Weights
are filled up with zeros at every call, so what stands in the spare channels reaches no other; a network in this form
takes and gives the tensors that it did. An optimizer, an average of weights and a file meet the same names and shapes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from leanconv.kernels.channelwise import channelwise_conv
from leanconv.ops.operator import CONVOLVE

__all__ = ["CHANNELWISE", "PADDED", "ChannelwiseUnit", "filled", "is_channelwise", "materialized"]


def is_channelwise(conv: nn.Module) -> bool:
    """Whether a convolution has one filter for each channel, and no more than the kernels know."""
    return (
        isinstance(conv, nn.Conv2d | nn.Conv3d)
        and conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and set(conv.dilation) == {1}
    )


class _Channelwise(_ConvNd):
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size) -> (B, C, *out_size), the same channels filled up where they come so."""
        padding, spare = cast("tuple[int, ...]", self.padding), x.shape[1] - self.in_channels
        weight, bias = self.weight, self.bias
        if spare:
            weight = functional.pad(weight, (0, 0) * (weight.ndim - 1) + (0, spare))
            bias = None if bias is None else functional.pad(bias, (0, spare))
        return channelwise_conv(x, weight, bias, self.stride, padding)


class ChannelwiseConv2d(_Channelwise, nn.Conv2d):
    """`nn.Conv2d` with one filter for each channel."""


class ChannelwiseConv3d(_Channelwise, nn.Conv3d):
    """`nn.Conv3d` with one filter for each channel."""


class ChannelwiseUnit(nn.Module):
    """A channelwise convolution and, with `relu`, a clip at zero, for inference: (B, C, *size) -> (B, C, *out_size)."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, *, relu: bool) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        conv = self.conv
        padding = cast("tuple[int, ...]", conv.padding)
        return channelwise_conv(x, conv.weight, conv.bias, conv.stride, padding, relu=self.relu)


def filled(tensor: Tensor, multiple: int, axis: int, value: float = 0.0) -> Tensor:
    """`tensor` with `axis` filled up to a multiple of `multiple`."""
    spare = -tensor.shape[axis] % multiple
    if not spare:
        return tensor
    return functional.pad(tensor, (0, 0) * (tensor.ndim - 1 - axis) + (0, spare), value=value)


class _PaddedConv(_ConvNd):
    multiple: int

    def filled(self) -> tuple[Tensor, Tensor | None, int]:
        """Weight, bias and groups of the convolution that runs."""
        weight = filled(self.weight, self.multiple, 0)
        groups = self.groups
        if groups == 1:
            weight = filled(weight, self.multiple, 1)
        elif self.weight.shape[1] == 1:
            groups = len(weight)
        return weight, None if self.bias is None else filled(self.bias, self.multiple, 0), groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, *size), filled up or not, -> (B, C_out filled up, *out_size)."""
        weight, bias, groups = self.filled()
        inputs = weight.shape[1] * groups
        if x.shape[1] < inputs and x.shape[1] == self.weight.shape[1] * self.groups:
            if x.shape[1] < self.multiple:  # the first layer's few channels: cheaper as they are
                weight = self.weight if groups > 1 else filled(self.weight, self.multiple, 0)
            else:
                x = filled(x, self.multiple, 1)
        return CONVOLVE[x.ndim - 2](x, weight, bias, self.stride, self.padding, self.dilation, groups)


class PaddedConv1d(_PaddedConv, nn.Conv1d):
    """`nn.Conv1d` on channels filled up."""


class PaddedConv2d(_PaddedConv, nn.Conv2d):
    """`nn.Conv2d` on channels filled up."""


class PaddedConv3d(_PaddedConv, nn.Conv3d):
    """`nn.Conv3d` on channels filled up."""


class _PaddedNorm(_BatchNorm):
    multiple: int

    def forward(self, x: Tensor) -> Tensor:
        """(B, C filled up, *size), spare channels to zero; statistics are kept of the C channels."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        mean, var = self.running_mean, self.running_var
        wide_mean = None if mean is None else filled(mean, self.multiple, 0)
        wide_var = None if var is None else filled(var, self.multiple, 0, 1.0)
        y = functional.batch_norm(
            x,
            wide_mean,
            wide_var,
            None if self.weight is None else filled(self.weight, self.multiple, 0),
            None if self.bias is None else filled(self.bias, self.multiple, 0),
            self.training or mean is None,
            momentum,
            self.eps,
        )
        if self.training and mean is not None and wide_mean is not mean:
            with torch.no_grad():
                mean.copy_(cast(Tensor, wide_mean)[: len(mean)])
                cast(Tensor, var).copy_(cast(Tensor, wide_var)[: len(mean)])
        return y


class PaddedBatchNorm1d(_PaddedNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` on channels filled up."""


class PaddedBatchNorm2d(_PaddedNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` on channels filled up."""


class PaddedBatchNorm3d(_PaddedNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` on channels filled up."""


class PaddedLinear(nn.Linear):
    """`nn.Linear` that reads features filled up, and makes as many as it did."""

    def forward(self, x: Tensor) -> Tensor:
        """(*, features filled up or not) -> (*, out_features)."""
        spare = x.shape[-1] - self.in_features
        weight = functional.pad(self.weight, (0, spare)) if spare else self.weight
        return functional.linear(x, weight, self.bias)


CHANNELWISE: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: ChannelwiseConv2d, nn.Conv3d: ChannelwiseConv3d}
PADDED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: PaddedConv1d,
    nn.Conv2d: PaddedConv2d,
    nn.Conv3d: PaddedConv3d,
    nn.BatchNorm1d: PaddedBatchNorm1d,
    nn.BatchNorm2d: PaddedBatchNorm2d,
    nn.BatchNorm3d: PaddedBatchNorm3d,
    nn.Linear: PaddedLinear,
}


@torch.no_grad()
def materialized(layer: nn.Module, features: int | None = None) -> nn.Module:
    """A padded layer as a plain one whose weights are filled up for good, for inference."""
    if isinstance(layer, _PaddedConv):
        weight, bias, groups = layer.filled()
        if layer.groups == 1 and layer.in_channels < layer.multiple:
            weight = filled(layer.weight, layer.multiple, 0)
        kind: Any = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.ndim]
        conv: nn.Module = kind(
            weight.shape[1] * groups, len(weight), layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            groups, bias is not None, layer.padding_mode, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        cast(Tensor, conv.weight).copy_(weight)
        if bias is not None:
            cast(Tensor, conv.bias).copy_(bias)
        return conv.requires_grad_(layer.weight.requires_grad).train(layer.training)
    if isinstance(layer, PaddedLinear) and features is not None and features != layer.in_features:
        weight = functional.pad(layer.weight, (0, features - layer.in_features))
        new = nn.Linear(features, layer.out_features, layer.bias is not None, weight.device, weight.dtype)
        new.weight.copy_(weight)
        if layer.bias is not None:
            new.bias.copy_(layer.bias)
        return new.requires_grad_(layer.weight.requires_grad).train(layer.training)
    return layer
