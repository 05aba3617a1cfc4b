"""Two ways to differentiate a sum of losses: in one backward, or part by part, which needs less memory.

    d(l_1 + ... + l_n)/dW  =  dl_1/dW + ... + dl_n/dW

One backward keeps the activations of every part until the last one is there; part by part only those of one are alive,
for one more copy of the gradients. Either way the caller gets a scalar and calls `backward` on it once: part by part,
the gradients are computed on the way and that backward only hands them over. So whatever waits for gradients
(DistributedDataParallel, gradient accumulation, clipping) sees the same single backward of every parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import LeanconvError

__all__ = ["part_by_part", "together"]


def together(parts: Iterable[Tensor]) -> Tensor:
    """The sum of scalar `parts`, to be differentiated at once."""
    first, *others = parts
    for part in others:
        first = first + part
    return first


def part_by_part(parts: Iterable[Tensor], parameters: Iterable[nn.Parameter]) -> Tensor:
    """The sum of scalar `parts`, each differentiated by `parameters` and let go before the next one is asked for.

    `parts` is best a generator that holds no part itself. Parameters that no part depends on get no gradient, as in one
    backward. Where gradients are off it is `together`.
    Raises `LeanconvError` under float16 autocast, where small gradients need a scale that only the caller knows.

    >>> weight = nn.Parameter(torch.tensor(3.0))
    >>> part_by_part((weight**power for power in (1, 2)), [weight]).backward()
    >>> weight.grad
    tensor(7.)
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if not wanted or not torch.is_grad_enabled():
        return together(parts)
    kind = wanted[0].device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        raise LeanconvError(
            "low memory mode computes gradients before the loss is scaled, and in float16 small ones would vanish: "
            "use bfloat16 (precision=bf16-mixed) or set low_memory=False"
        )
    total: Tensor | None = None
    gradients: list[Tensor | None] = [None] * len(wanted)
    for part in parts:
        value = part.detach()
        total = value if total is None else total + value
        for index, found in enumerate(torch.autograd.grad(part, wanted, allow_unused=True)):
            before = gradients[index]
            # Never in place: what autograd returns may be an expanded tensor, or shared with another parameter.
            gradients[index] = found if before is None or found is None else before + found
        del part, found
    loss: Tensor = _HandedOver.apply(total, gradients, *wanted)
    return loss


class _HandedOver(torch.autograd.Function):
    """The value as it is; its derivatives by the parameters are those given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("low memory mode lets the gradients go with the first backward; there is no second one")
        ctx.gradients = None
        scaled: list[Tensor | None] = []
        while gradients:  # one by one, so that there is never a second copy of them all
            found = gradients.pop(0)
            scaled.append(None if found is None else found * scale)
        return (None, None, *scaled)
