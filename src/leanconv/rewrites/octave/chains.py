"""Octave meets chains: a chain becomes the dense convolution that it equals, octave, and its four paths chains again.

So `rewrite(model, OptimizedSeparable(), Octave())` and a zoo network made of chains become what `Octave` first and
the chain rewrite after would give. The four paths are planned by what planned the chain, and fitted to their parts of
its kernel. A chain of one convolution (depthwise, ir) is that convolution, groups and all, and needs no planning.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from leanconv.errors import PlanError
from leanconv.ops.chain import ConvChain
from leanconv.ops.octave import OctConv
from leanconv.ops.operator import spec_of
from leanconv.rewrites.changes import Change
from leanconv.rewrites.guards import PLAIN, tied_parameters
from leanconv.rewrites.operators import kernel_weights
from leanconv.rewrites.swap import swap_

__all__ = ["close_chains", "open_chains"]


def open_chains(model: nn.Module) -> dict[str, ConvChain]:
    """Put dense convolutions in the place of `model`'s linear chains, in place; the chains by qualified name."""
    tied = tied_parameters(model)
    chains: dict[str, ConvChain] = {}

    def rule(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, ConvChain):
            return None
        if not _is_linear(module) or any(id(parameter) in tied for parameter in module.parameters()):
            return module
        chains[name] = module
        return module.convs[0] if len(module) == 1 else module.dense_conv()

    swap_(model, rule)
    return chains


def close_chains(
    model: nn.Module, chains: dict[str, ConvChain], changes: list[Change], *, project: bool = True
) -> list[Change]:
    """Make chains of the paths where `model` now has an octave convolution, in place, and put the others back.

    Returns `changes` with what became of these layers' weights.
    """
    told = {change.name: change for change in changes}

    def rule(name: str, module: nn.Module) -> nn.Module | None:
        if name not in chains:
            return None
        if not isinstance(module, OctConv):
            return chains[name]
        if len(chains[name]) == 1:
            return module
        change = _separate(module, chains[name], told[name], project)
        told[name] = change
        return module

    swap_(model, rule)
    return list(told.values())


def _is_linear(chain: ConvChain) -> bool:
    """Whether the chain, as it is now, is one convolution and somebody could plan another like it."""
    if chain.planner is None or chain.between != "none":
        return False
    if any(conv.bias is not None for conv in chain.convs[:-1]):
        return False  # a folded norm, which zero padding would cut at the border
    return not any(module._forward_hooks or module._forward_pre_hooks for module in chain.modules())


def _separate(octave: OctConv, chain: ConvChain, change: Change, project: bool) -> Change:
    """Chains for the paths of `octave`, in place; a path that cannot be one, or would not shrink, stays dense."""
    planner = chain.planner
    assert planner is not None  # `_is_linear` has seen to it
    missed = total = 0.0
    fitted = project and planner.init == "project"
    for name in ("conv_hh", "conv_hl", "conv_lh", "conv_ll"):
        path = getattr(octave, name)
        if not isinstance(path, PLAIN):
            continue
        spec = spec_of(path)
        norm = 0.0 if path.weight.is_meta else float(path.weight.detach().double().square().sum())
        total += norm
        try:
            made = planner.build(spec, device=path.weight.device, dtype=path.weight.dtype)
        except PlanError:
            continue
        if kernel_weights(made) > spec.params:
            continue
        if fitted and not path.weight.is_meta:
            missed += norm * made.project_(path.weight, path.bias) ** 2
        made.requires_grad_(path.weight.requires_grad)
        setattr(octave, name, made.train(path.training))
    fresh = not fitted or chain.convs[0].weight.is_meta
    return replace(
        change,
        before=f"{planner.stem}: {chain.plan}",
        after=f"{change.after}, each path {planner.stem}",
        weights="fresh" if fresh else "projected",
        error=None if fresh else (missed / total) ** 0.5 if total else 0.0,
        params_before=sum(parameter.numel() for parameter in chain.parameters()),
        params_after=sum(parameter.numel() for parameter in octave.parameters()),
    )
