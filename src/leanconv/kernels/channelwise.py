"""Channelwise convolutions as operators of torch, which on a GPU read every map once: `leanconv::channelwise_conv`.

    channelwise_conv(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, bool relu) -> Tensor
    channelwise_conv_input(Tensor gradient, Tensor weight, int[] size, int[] stride, int[] padding) -> Tensor
    channelwise_conv_weight(Tensor gradient, Tensor input, int[] kernel, int[] stride, int[] padding) -> Tensor

Maps are (B, C, h, w) or (B, C, t, h, w), weights (C, 1, *K), one filter for each channel. A convolution of one channel
at a time has so few multiply-adds that bytes decide its time; libraries run it several times slower than that, most of
all in 3D. On a GPU these operators are Triton kernels over channels-last maps (`kernels.triton`), which add the bias
and clip at zero on the way out; on a CPU they are torch's own convolutions. `torch.compile`, `torch.export` and
`measure` know them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanconv.kernels.autocast import casting

__all__ = ["channelwise_conv"]

_CONV = {2: functional.conv2d, 3: functional.conv3d}


def channelwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (1, 1, 1),
    *,
    relu: bool = False,
) -> Tensor:
    """(B, C, *size) with one filter (C, 1, *K) for each channel, to (B, C, *out_size); differentiable.

    `stride` and `padding` have one number for each axis of K; with `relu` what is below zero becomes zero.

    >>> x, weight = torch.ones(1, 8, 4, 4, 4), torch.ones(8, 1, 3, 3, 3)
    >>> channelwise_conv(x, weight)[0, 0, 1, 1, 1]
    tensor(27.)
    """
    made: Tensor = torch.ops.leanconv.channelwise_conv(x, weight, bias, list(stride), list(padding), relu)
    return made


def _sizes(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> list[int]:
    return [
        (n + 2 * pad - k) // step + 1
        for n, pad, k, step in zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
    ]


def _format(ndim: int) -> torch.memory_format:
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """What the GPU kernels make lies channels last; on a CPU as torch's convolution lays it."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_format(len(shape)))


def _forward_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], relu: bool
) -> Tensor:
    y = _CONV[x.ndim - 2](x, weight, bias, tuple(stride), tuple(padding), groups=x.shape[1])
    y = y.relu_() if relu else y
    return y.contiguous(memory_format=_format(x.ndim))


def _forward_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], relu: bool
) -> Tensor:
    from leanconv.kernels.triton.channelwise import forward

    y = _empty(x, (*x.shape[:2], *_sizes(x, weight, stride, padding)))
    forward(x.contiguous(memory_format=_format(x.ndim)), weight, bias, y, stride, padding, relu)
    return y


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], relu: bool
) -> Tensor:
    return _empty(x, (*x.shape[:2], *_sizes(x, weight, stride, padding)))


def _backward_cpu(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], mask: list[bool]
) -> Any:
    ndim = x.ndim - 2
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, list(stride), list(padding), [1] * ndim, False, [0] * ndim, x.shape[1], mask
    )


def _input_cpu(
    gradient: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    x = gradient.new_empty(tuple(size))
    found: Tensor = _backward_cpu(gradient, x, weight, stride, padding, [True, False, False])[0]
    return found.contiguous(memory_format=_format(found.ndim))


def _input_cuda(
    gradient: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    from leanconv.kernels.triton.channelwise import input_gradient

    made = _empty(gradient, tuple(size))
    input_gradient(gradient.contiguous(memory_format=_format(gradient.ndim)), weight, made, stride, padding)
    return made


def _input_fake(
    gradient: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    return _empty(gradient, tuple(size))


def _weight_cpu(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    weight = x.new_empty((x.shape[1], 1, *kernel))
    found: Tensor = _backward_cpu(gradient, x, weight, stride, padding, [False, True, False])[1]
    return found.contiguous()


def _weight_cuda(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    from leanconv.kernels.triton.channelwise import weight_gradient

    form = _format(x.ndim)
    found = weight_gradient(
        gradient.contiguous(memory_format=form), x.contiguous(memory_format=form), tuple(kernel), stride, padding
    )
    return found.to(x.dtype)


def _weight_fake(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    return x.new_empty((x.shape[1], 1, *kernel))


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, weight, bias, stride, padding, relu = inputs
    ctx.stride, ctx.padding, ctx.has_bias, ctx.relu = stride, padding, bias is not None, relu
    ctx.save_for_backward(x, weight, *([output] if relu else []))


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
    x, weight, *rest = ctx.saved_tensors
    if ctx.relu:
        gradient = gradient * (rest[0] > 0)
    of_input = of_weight = of_bias = None
    if ctx.needs_input_grad[0]:
        of_input = torch.ops.leanconv.channelwise_conv_input(gradient, weight, list(x.shape), ctx.stride, ctx.padding)
    if ctx.needs_input_grad[1]:
        of_weight = torch.ops.leanconv.channelwise_conv_weight(
            gradient, x, list(weight.shape[2:]), ctx.stride, ctx.padding
        )
    if ctx.has_bias and ctx.needs_input_grad[2]:
        of_bias = gradient.sum([0, *range(2, gradient.ndim)])
    return of_input, of_weight, of_bias, None, None, None


_OPERATORS: dict[str, tuple[str, Any, Any, Any]] = {
    "channelwise_conv": (
        "(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, bool relu) -> Tensor",
        _forward_cpu,
        _forward_cuda,
        _forward_fake,
    ),
    "channelwise_conv_input": (
        "(Tensor gradient, Tensor weight, SymInt[] size, SymInt[] stride, SymInt[] padding) -> Tensor",
        _input_cpu,
        _input_cuda,
        _input_fake,
    ),
    "channelwise_conv_weight": (
        "(Tensor gradient, Tensor input, SymInt[] kernel, SymInt[] stride, SymInt[] padding) -> Tensor",
        _weight_cpu,
        _weight_cuda,
        _weight_fake,
    ),
}


@functools.cache
def _register() -> torch.library.Library:
    library: Any = torch.library.Library("leanconv", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, (schema, on_cpu, on_cuda, fake) in _OPERATORS.items():
        library.define(name + schema)
        library.impl(name, on_cpu, "CPU")
        library.impl(name, on_cuda, "CUDA")
        torch.library.register_fake(f"leanconv::{name}", fake, lib=library)
    torch.library.register_autograd("leanconv::channelwise_conv", _backward, setup_context=_save, lib=library)
    library.impl("channelwise_conv", casting("channelwise_conv", "cuda"), "AutocastCUDA")
    library.impl("channelwise_conv", casting("channelwise_conv", "cpu"), "AutocastCPU")
    return library  # type: ignore[no-any-return]


_register()
