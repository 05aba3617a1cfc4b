"""Chains folded back into dense convolutions: exact, more weights, and on many back-ends faster.

A chain without anything between its stages is one linear convolution. Its dense kernel has the weights that the chain
saved, but runs as the one kind of convolution that every back-end is tuned for.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from leanconv.deploy.fold import Kept, eval_copy
from leanconv.deploy.verify import compare
from leanconv.dryrun import ModelHolder, Size, as_module
from leanconv.errors import LeanconvError
from leanconv.ops.chain import ConvChain
from leanconv.rewrites.swap import swap

__all__ = ["Densified", "densify"]


@dataclass(frozen=True, kw_only=True)
class Densified:
    """`model` is a copy, `densified` names the chains that are now dense, `kept` the others, with reasons.

    `max_abs_difference` compares the outputs of the two models in eval mode; None where no size was given. Every
    function that takes a network takes this as it is; it has no story, because none leads to composed kernels.
    """

    model: nn.Module
    densified: tuple[str, ...]
    kept: tuple[Kept, ...]
    max_abs_difference: float | None
    story: None = None


def densify(model: nn.Module | ModelHolder, size: Size | None = None, *, tolerance: float = 1e-4) -> Densified:
    """A copy of `model` in which every `ConvChain` is the one dense convolution that it equals.

    Kernels are composed in double precision. Mode, device, dtype, requires_grad and names stay. A chain with a norm or
    an activation between its stages, or with a bias (a folded norm) before a stage that pads, stays as it is. With
    `size` (without the batch axis) the outputs for random inputs are compared; `LeanconvError` where they differ by
    more than `tolerance` of the largest.

    >>> from leanconv.ops.osep import OptimizedSeparableConv2d
    >>> net = nn.Sequential(OptimizedSeparableConv2d(16, 16, 3, padding=1), nn.ReLU())
    >>> densify(net).model[0]
    Conv2d(16, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    model = as_module(model)
    kept: list[Kept] = []

    def rule(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, ConvChain):
            return None
        reason = _obstacle(module)
        if reason is None:
            return module.dense_conv()
        kept.append(Kept(name, reason))
        return module

    new, names = swap(model, rule)
    difference = None
    if size is not None:
        difference = compare(eval_copy(model), eval_copy(new), size)
        if difference.beyond(tolerance):
            raise LeanconvError(
                f"the dense network differs from the chains by {difference.max_abs:.1e}, more than {tolerance:.0e} of "
                "its outputs: some layer does not run as its plan says"
            )
    return Densified(
        model=new,
        densified=names,
        kept=tuple(kept),
        max_abs_difference=None if difference is None else difference.max_abs,
    )


def _obstacle(chain: ConvChain) -> str | None:
    if not chain.is_linear:
        return f"between its stages stands {chain.between}: it is not one linear convolution"
    if chain.cuts_inner_bias:
        return "an inner stage has a bias, which zero padding would cut at the border"
    if any(module._forward_hooks or module._forward_pre_hooks for module in chain.modules()):
        return "it carries forward hooks"
    return None
