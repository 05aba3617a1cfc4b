"""Two maps convolved into one, as an operator of torch: what each output of an octave convolution is.

    octave_conv(Tensor high, Tensor low, Tensor weights, Tensor other, Tensor? bias, Tensor? residual, int kernel_size,
                int padding, int up, bool relu, int macs, int interactions) -> Tensor

    y = relu(weights * high + up(other * low) + bias + residual)

`high` (B, C_h, h, w) and the result (B, N, h, w) are at one resolution, `low` at 1 / up of it, up 1 or 2, rounded up.
Weights are (k * k, C, N). On a GPU it is one Triton kernel, on a CPU torch's own convolutions. For inference.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from leanconv.errors import LeanconvError
from leanconv.kernels.autocast import casting

__all__: list[str] = []


def _on_cpu(
    high: Tensor, low: Tensor, weights: Tensor, other: Tensor, bias: Tensor | None, residual: Tensor | None,
    kernel_size: int, padding: int, up: int, relu: bool, macs: int, interactions: int,
) -> Tensor:  # fmt: skip
    def kernel(packed: Tensor) -> Tensor:
        return packed.permute(2, 1, 0).unflatten(2, (kernel_size, kernel_size))  # type: ignore[no-untyped-call, no-any-return]

    y = functional.conv2d(high, kernel(weights), bias, 1, padding)
    rising = functional.conv2d(low, kernel(other), None, 1, padding)
    if up > 1:
        rising = functional.interpolate(rising, scale_factor=float(up))[..., : y.shape[2], : y.shape[3]]
    y = y + rising if residual is None else y + rising + residual
    y = y.relu() if relu else y
    return y.contiguous(memory_format=torch.channels_last)


def _on_cuda(
    high: Tensor, low: Tensor, weights: Tensor, other: Tensor, bias: Tensor | None, residual: Tensor | None,
    kernel_size: int, padding: int, up: int, relu: bool, macs: int, interactions: int,
) -> Tensor:  # fmt: skip
    from leanconv.kernels.triton.octave import run

    last = torch.channels_last
    y = _fake(high, low, weights, other, bias, residual, kernel_size, padding, up, relu, macs, interactions)
    residual = None if residual is None else residual.contiguous(memory_format=last)
    high, low = high.contiguous(memory_format=last), low.contiguous(memory_format=last)
    run(high, low, weights, other, bias, residual, y, kernel_size, padding, up, relu)
    return y


def _fake(
    high: Tensor, low: Tensor, weights: Tensor, other: Tensor, bias: Tensor | None, residual: Tensor | None,
    kernel_size: int, padding: int, up: int, relu: bool, macs: int, interactions: int,
) -> Tensor:  # fmt: skip
    return torch.empty(
        (high.shape[0], weights.shape[2], *high.shape[2:]), dtype=high.dtype, device=high.device,
        memory_format=torch.channels_last,
    )  # fmt: skip


def _no_gradient(context: Any, *gradients: Any) -> Any:
    raise LeanconvError("an octave convolution in one kernel is for inference: train the network it was made from")


@functools.cache
def _register() -> torch.library.Library:
    library: Any = torch.library.Library("leanconv", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(
        "octave_conv(Tensor high, Tensor low, Tensor weights, Tensor other, Tensor? bias, Tensor? residual, "
        "int kernel_size, int padding, int up, bool relu, SymInt macs, SymInt interactions) -> Tensor"
    )
    library.impl("octave_conv", _on_cpu, "CPU")
    library.impl("octave_conv", _on_cuda, "CUDA")
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        library.impl("octave_conv", casting("octave_conv", device), key)
    torch.library.register_fake("leanconv::octave_conv", _fake, lib=library)
    torch.library.register_autograd(
        "leanconv::octave_conv", _no_gradient, setup_context=lambda ctx, inputs, output: None, lib=library
    )
    return library  # type: ignore[no-any-return]


_register()
