"""The 3D form of every 2D layer of torch: the same computation in each frame, kernels that may reach over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.ops.octave import OctConv2d, OctConv3d
from leanconv.rewrites.guards import own_meaning

__all__ = ["Conv2d", "converted", "inflated_conv", "inflated_kernel", "inflated_octave"]

Conv2d = nn.Conv2d | OctConv2d


def inflated_kernel(weight: Tensor, length: int, mode: str) -> Tensor:
    """(O, I, h, w) to (O, I, length, h, w)."""
    if mode == "mean":
        return weight.unsqueeze(2).expand(-1, -1, length, -1, -1) / length
    kernel = weight.new_zeros(*weight.shape[:2], length, *weight.shape[2:])
    kernel[:, :, length // 2] = weight
    return kernel


def inflated_conv(conv: nn.Conv2d, length: int, mode: str, kind: Callable[..., nn.Conv3d] = nn.Conv3d) -> nn.Conv3d:
    """`conv` as a `kind` whose kernel is `length` long in time, with all that hangs on it."""
    weight = conv.weight
    new = kind(**_settings(conv, length), bias=conv.bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        new.weight.copy_(inflated_kernel(weight, length, mode))
        if conv.bias is not None and new.bias is not None:
            new.bias.copy_(conv.bias)
            new.bias.requires_grad_(conv.bias.requires_grad)
    new.weight.requires_grad_(weight.requires_grad)
    return cast(nn.Conv3d, _taken_over(conv, new))


def inflated_octave(conv: OctConv2d, length: int, mode: str) -> nn.Module:
    """The same four paths, each inflated."""
    some = next(conv.parameters())
    made = OctConv3d(
        **_settings(conv, length),
        bias=any(name.endswith("bias") for name, _ in conv.named_parameters()),
        device=some.device,
        dtype=some.dtype,
        low_in=conv.low_in,
        low_out=conv.low_out,
        stride_mode=conv.stride_mode,
        downsample=conv.downsample,
        exchange=conv.exchange,
        runs_in=conv.runs_in,
        out_groups=conv.out_groups,
        strict=conv.strict,
    )
    flat = dict(conv.named_parameters())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            old = flat[name]
            parameter.copy_(inflated_kernel(old, length, mode) if old.ndim == 4 else old)
            parameter.requires_grad_(old.requires_grad)
    return _taken_over(conv, made)


def _settings(conv: Conv2d, length: int) -> dict[str, Any]:
    padding = (0, 0) if conv.padding == "valid" else conv.padding
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": (length, *conv.kernel_size),
        "stride": (1, *conv.stride),
        "padding": padding if isinstance(padding, str) else (length // 2, *padding),
        "dilation": (1, *conv.dilation),
        "groups": conv.groups,
        "padding_mode": conv.padding_mode,
    }


def converted(module: nn.Module) -> nn.Module | None:
    """The 3D form of a layer without kernel, hooks and mode included; None where `module` is no 2D layer of torch's.

    A subclass counts as the layer that it comes from unless it defines a meaning of its own.
    """
    for kind in type(module).__mro__:
        if kind in _LAYERS:
            return None if own_meaning(module, kind) else _taken_over(module, _LAYERS[kind](module))
    return None


def _taken_over(old: nn.Module, new: nn.Module) -> nn.Module:
    """`new` in the mode of `old` and with its hooks."""
    for table, hooks in vars(old).items():
        if table.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            vars(new)[table] = hooks
    return new.train(old.training)


def _norm(kind: type[nn.Module]) -> Callable[[Any], nn.Module]:
    def convert(norm: Any) -> nn.Module:
        new: Any = kind(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )  # its tensors are replaced by the old ones
        new._parameters = dict(norm._parameters)
        new._buffers = dict(norm._buffers)
        return cast(nn.Module, new)

    return convert


def _one_frame(value: Any) -> tuple[Any, ...]:
    return (1, *value) if isinstance(value, tuple) else (1, value, value)


def _no_frame(value: Any) -> tuple[Any, ...]:
    return (0, *value) if isinstance(value, tuple) else (0, value, value)


def _adaptive(kind: type[nn.Module]) -> Callable[[Any], nn.Module]:
    """To one pixel means over the whole clip; to more, frame by frame."""

    def convert(pool: Any) -> nn.Module:
        size = pool.output_size
        return kind(1 if size in (1, (1, 1)) else (None, *(size if isinstance(size, tuple) else (size, size))))

    return convert


def _pad(kind: Callable[..., nn.Module]) -> Callable[[Any], nn.Module]:
    return lambda pad: kind((*pad.padding, 0, 0))


def _upsample(layer: Any) -> nn.Module:
    size, scale = layer.size, layer.scale_factor
    mode = {"bilinear": "trilinear"}.get(layer.mode, layer.mode)
    if mode not in ("nearest", "trilinear", "nearest-exact", "area") or size is not None:
        return FrameByFrame(layer)
    factors = scale if isinstance(scale, tuple) else (scale, scale)
    return nn.Upsample(None, (1.0, *factors), mode, layer.align_corners, layer.recompute_scale_factor)


class FrameByFrame(nn.Module):
    """A 2D layer that 3D has no form of, in every frame by itself: (N, C, T, H, W) in, (N, C', T, H', W') out.

    >>> FrameByFrame(nn.PixelShuffle(2))(torch.zeros(1, 8, 3, 4, 4)).shape
    torch.Size([1, 2, 3, 8, 8])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """The layer on all frames as if they were images."""
        y = self.layer(x.transpose(1, 2).flatten(0, 1))
        return cast(Tensor, y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2))


def _transposed(conv: Any) -> nn.Module:
    new: Any = nn.ConvTranspose3d(
        conv.in_channels,
        conv.out_channels,
        (1, *conv.kernel_size),
        (1, *conv.stride),
        (0, *conv.padding),
        (0, *conv.output_padding),
        conv.groups,
        conv.bias is not None,
        (1, *conv.dilation),
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    with torch.no_grad():
        new.weight.copy_(conv.weight.unsqueeze(2))
    new.weight.requires_grad_(conv.weight.requires_grad)
    new._parameters["bias"] = conv.bias
    return cast(nn.Module, new)


_LAYERS: dict[type, Callable[[Any], nn.Module]] = {
    nn.BatchNorm2d: _norm(nn.BatchNorm3d),
    nn.InstanceNorm2d: _norm(nn.InstanceNorm3d),
    nn.MaxPool2d: lambda pool: nn.MaxPool3d(
        _one_frame(pool.kernel_size),
        _one_frame(pool.stride),
        _no_frame(pool.padding),
        _one_frame(pool.dilation),
        pool.return_indices,
        pool.ceil_mode,
    ),
    nn.AvgPool2d: lambda pool: nn.AvgPool3d(
        _one_frame(pool.kernel_size),
        _one_frame(pool.stride),
        _no_frame(pool.padding),
        pool.ceil_mode,
        pool.count_include_pad,
        pool.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: _adaptive(nn.AdaptiveAvgPool3d),
    nn.AdaptiveMaxPool2d: _adaptive(nn.AdaptiveMaxPool3d),
    nn.LPPool2d: FrameByFrame,
    nn.Dropout2d: lambda drop: nn.Dropout3d(drop.p, drop.inplace),
    nn.ZeroPad2d: _pad(nn.ZeroPad3d),
    nn.ConstantPad2d: lambda pad: nn.ConstantPad3d((*pad.padding, 0, 0), pad.value),
    nn.ReflectionPad2d: _pad(nn.ReflectionPad3d),
    nn.ReplicationPad2d: _pad(nn.ReplicationPad3d),
    nn.CircularPad2d: FrameByFrame,
    nn.ConvTranspose2d: _transposed,
    nn.Upsample: _upsample,
    nn.PixelShuffle: FrameByFrame,
    nn.PixelUnshuffle: FrameByFrame,
    nn.Softmax2d: lambda _: nn.Softmax(1),
    nn.Unfold: FrameByFrame,
}
