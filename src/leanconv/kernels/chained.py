"""A chain of two stages in one pass, and a convolution with what follows it, as operators of torch.

    chain_conv(Tensor input, Tensor weights, Tensor second, Tensor? bias, Tensor? residual, Tensor kernel,
               int[] kernel_size, int stride, int padding, int step, int channels, bool relu,
               int position_macs, int interactions) -> Tensor
    conv_unit(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, int[] stride, int[] padding, int[] dilation,
              int groups, bool relu) -> Tensor

`chain_conv`: a grouped k x k, a shuffle, a grouped 1 x 1, then bias, residual and a clip at zero; the map between the
stages never leaves the multiprocessor. The first stage is cut into blocks of `step` input channels,

    weights (blocks, k_h * k_w, K_in, M)   zeros where a block has no weights; K_in and M are powers of two from 16 on
            (blocks, k_h * k_w, M)         of a depthwise first stage
    second  (blocks, M, C_out)             the second stage with both shuffles worked in, dense
    kernel  (channels, C_in, k_h, k_w)     the dense kernel that the chain equals: gradients go through it

`position_macs` are the chain's own multiply-adds for a position of its output, for `measure`.
On a CPU, and in the gradient, it is the one dense convolution `kernel`. `conv_unit` is a convolution, its residual sum
and its clip at zero, on a GPU one kernel of cuDNN in half precision. Maps are (B, C, *size), channels last.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanconv.kernels.autocast import casting

__all__ = ["LEAST"]

LEAST = 16
"""Matrix units take no fewer rows and columns of a block."""

_CONV: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def _layout(x: Tensor) -> torch.memory_format:
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)


def _ended(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y = y if residual is None else y + residual
    y = y.relu() if relu else y
    return y.contiguous(memory_format=_layout(y))


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(W x + b) as one matrix product; x channels last."""
    rows = x.movedim(1, -1)
    flat: Tensor = torch.ops.aten._addmm_activation(bias, rows.reshape(-1, x.shape[1]), weight.flatten(1).t())
    return flat.view(*rows.shape[:-1], len(weight)).movedim(-1, 1)


def _chain_cpu(
    x: Tensor, first: Tensor, second: Tensor, bias: Tensor | None, residual: Tensor | None, kernel: Tensor,
    kernel_size: Sequence[int], stride: int, padding: int, step: int, channels: int, relu: bool,
    position_macs: int, interactions: int,
) -> Tensor:  # fmt: skip
    return _ended(functional.conv2d(x, kernel, bias, stride, padding), residual, relu)


def _chain_fake(
    x: Tensor, first: Tensor, second: Tensor, bias: Tensor | None, residual: Tensor | None, kernel: Tensor,
    kernel_size: Sequence[int], stride: int, padding: int, step: int, channels: int, relu: bool,
    position_macs: int, interactions: int,
) -> Tensor:  # fmt: skip
    sides = [(n + 2 * padding - k) // stride + 1 for n, k in zip(x.shape[2:], kernel_size, strict=True)]
    return torch.empty(
        (x.shape[0], channels, *sides), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )


def _chain_cuda(
    x: Tensor, first: Tensor, second: Tensor, bias: Tensor | None, residual: Tensor | None, kernel: Tensor,
    kernel_size: Sequence[int], stride: int, padding: int, step: int, channels: int, relu: bool,
    position_macs: int, interactions: int,
) -> Tensor:  # fmt: skip
    from leanconv.kernels.triton.chained import run

    y = _chain_fake(x, first, second, bias, residual, kernel, kernel_size, stride, padding, step, channels, relu, 0, 0)
    last = torch.channels_last
    residual = None if residual is None else residual.contiguous(memory_format=last)
    run(x.contiguous(memory_format=last), first, second, bias, residual, y, kernel_size, stride, padding, step, relu)
    return y


def _chain_save(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, _, _, bias, residual, kernel, _, stride, padding, _, _, relu, _, _ = inputs
    ctx.settings = stride, padding, bias is not None, residual is not None, relu
    ctx.save_for_backward(x, kernel, *([output] if relu else []))


def _chain_backward(ctx: Any, gradient: Tensor) -> Any:
    x, kernel, *rest = ctx.saved_tensors
    stride, padding, has_bias, has_residual, relu = ctx.settings
    if relu:
        gradient = gradient * (rest[0] > 0)
    mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[5], False]
    of_x, of_kernel, _ = torch.ops.aten.convolution_backward(
        gradient, x, kernel, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
    )
    of_bias = gradient.sum((0, 2, 3)) if has_bias else None
    return of_x, None, None, of_bias, gradient if has_residual else None, of_kernel, *[None] * 8


def _unit_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, relu: bool,
) -> Tensor:  # fmt: skip
    run = _CONV[x.ndim - 2]
    return _ended(run(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups), residual, relu)


def _unit_cuda(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, relu: bool,
) -> Tensor:  # fmt: skip
    if not relu or x.ndim < 4:
        return _unit_cpu(x, weight, bias, residual, stride, padding, dilation, groups, relu)
    layout = _layout(x)
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    if residual is None and bias is not None and {*weight.shape[2:], *stride} == {1} and set(padding) == {0}:
        return _pointwise(x, weight, bias)
    if residual is None:
        made: Tensor = torch.ops.aten.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    else:
        made = torch.ops.aten.cudnn_convolution_add_relu(
            x, weight, residual.contiguous(memory_format=layout), 1.0, bias, stride, padding, dilation, groups
        )
    return made.contiguous(memory_format=layout)


def _unit_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, relu: bool,
) -> Tensor:  # fmt: skip
    sides = [
        (n + 2 * pad - gap * (k - 1) - 1) // step + 1
        for n, pad, gap, k, step in zip(x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    return torch.empty((x.shape[0], weight.shape[0], *sides), dtype=x.dtype, device=x.device, memory_format=_layout(x))


def _unit_save(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, weight, bias, residual, stride, padding, dilation, groups, relu = inputs
    ctx.settings = stride, padding, dilation, groups, bias is not None, residual is not None, relu
    ctx.save_for_backward(x, weight, *([output] if relu else []))


def _unit_backward(ctx: Any, gradient: Tensor) -> Any:
    x, weight, *rest = ctx.saved_tensors
    stride, padding, dilation, groups, has_bias, has_residual, relu = ctx.settings
    if relu:
        gradient = gradient * (rest[0] > 0)
    mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups, mask
    )
    of_bias = gradient.sum([0, *range(2, gradient.ndim)]) if has_bias else None
    return of_x, of_weight, of_bias, gradient if has_residual else None, *[None] * 5


@functools.cache
def _register() -> torch.library.Library:
    library: Any = torch.library.Library("leanconv", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(
        "chain_conv(Tensor input, Tensor weights, Tensor second, Tensor? bias, Tensor? residual, Tensor kernel, "
        "SymInt[] kernel_size, int stride, int padding, int step, int channels, bool relu, "
        "int position_macs, int interactions) -> Tensor"
    )
    library.define(
        "conv_unit(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, SymInt[] stride, SymInt[] padding, "
        "SymInt[] dilation, int groups, bool relu) -> Tensor"
    )
    for name, on_cpu, on_cuda, fake, save, backward in (
        ("chain_conv", _chain_cpu, _chain_cuda, _chain_fake, _chain_save, _chain_backward),
        ("conv_unit", _unit_cpu, _unit_cuda, _unit_fake, _unit_save, _unit_backward),
    ):
        library.impl(name, on_cpu, "CPU")
        library.impl(name, on_cuda, "CUDA")
        library.impl(name, casting(name, "cuda"), "AutocastCUDA")
        library.impl(name, casting(name, "cpu"), "AutocastCPU")
        torch.library.register_fake(f"leanconv::{name}", fake, lib=library)
        torch.library.register_autograd(f"leanconv::{name}", backward, setup_context=save, lib=library)
    return library  # type: ignore[no-any-return]


_register()
