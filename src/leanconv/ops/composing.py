"""The dense kernel of a chain, composed anew at every step: few kernels of a GPU, none of which waits for the host.

`project.compose` says what is computed; here the same product is taken with everything that does not depend on the
weights (where a group's block lies, who reads whom) put into buffers once.

    dense(W, g) = repeat(W, g) * mask                 (O, I / g, *K) -> (O, I, *K), zeros off the blocks
    kernel_1    = dense_1[:, :C_in][wiring_1]
    kernel_n    = (dense_n x kernel_{n-1})[wiring_n]  see `project.behind`
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.ops.project import behind
from leanconv.plan import Plan

__all__ = ["composed_kernel", "merged_kernel", "merged_mask", "prepare"]


def prepare(chain: nn.Module, plan: Plan) -> None:
    """Put what `composed_kernel` needs on `chain` as buffers that no state dict holds."""
    device = next(chain.parameters()).device
    for index, stage in enumerate(plan.stages):
        conv, wiring = stage.conv, plan.wiring(index)
        if conv.groups > 1:
            mask = merged_mask(conv.out_channels, conv.in_channels, conv.groups, 1, device)
            chain.register_buffer(f"mask{index}", mask, persistent=False)
        identity = wiring == tuple(range(conv.out_channels))
        order = None if identity else torch.tensor(wiring, device=device)
        chain.register_buffer(f"order{index}", order, persistent=False)


def merged_mask(outputs: int, inputs: int, groups: int, merged: int, device: torch.device) -> Tensor:
    """(C_out, C_in / merged): whether an output of a group reads an input, where `merged` groups hold all of them."""
    out = torch.arange(outputs, device=device)[:, None]
    into = torch.arange(inputs // merged, device=device)[None]
    first = out // (outputs // merged) * (inputs // merged)
    return out // (outputs // groups) == (first + into) // (inputs // groups)


def merged_kernel(weight: Tensor, mask: Tensor) -> Tensor:
    """(C_out, C_in / g, *K) as (C_out, C_in / m, *K), the kernel of fewer groups m with zeros off the blocks."""
    times = mask.shape[1] // weight.shape[1]
    return weight.repeat(1, times, *(1,) * (weight.ndim - 2)) * mask.to(weight.dtype).view(
        *mask.shape, *(1,) * (weight.ndim - 2)
    )


def composed_kernel(chain: nn.Module, plan: Plan, weights: list[Tensor], multiple: int = 1) -> Tensor:
    """The dense kernel (C_out, C_in, *K), differentiable in `weights`; both channel counts filled up with zeros to a
    multiple of `multiple`. `prepare` comes first. Autocast is left aside: rounding comes once, where it is used.
    """
    ndim = plan.spec.ndim
    kernel: Tensor | None = None
    with torch.autocast(weights[0].device.type, enabled=False):
        for index, (stage, weight) in enumerate(zip(plan.stages, weights, strict=True)):
            dense = weight
            if stage.conv.groups > 1:
                dense = merged_kernel(weight, getattr(chain, f"mask{index}"))
            if kernel is None:
                kernel = dense[:, : plan.spec.in_channels]
            elif dense.shape[2:].numel() == 1:
                kernel = (dense.flatten(1) @ kernel.flatten(1)).view(len(dense), *kernel.shape[1:])
            else:
                kernel = behind(kernel, dense)
            order = getattr(chain, f"order{index}")
            if order is not None:
                kernel = kernel.index_select(0, order)
        assert kernel is not None  # a plan has at least one stage
        outputs, inputs = kernel.shape[:2]
        spare = (0, 0) * ndim + (0, -inputs % multiple, 0, -outputs % multiple)
        return functional.pad(kernel, spare) if any(spare) else kernel
