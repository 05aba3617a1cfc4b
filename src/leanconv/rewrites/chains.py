"""Apply one `ChainRewrite` to a model: every selected dense convolution becomes a chain at the same qualified name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from leanconv.errors import LeanconvError, NothingToRewrite, PlanError, RewriteError
from leanconv.ops.chain import ChainRewrite, ConvChain, spec_of
from leanconv.rewrites.changes import Change, Flow, Kept, Skipped
from leanconv.rewrites.guards import PLAIN, convolutions, not_plannable, not_replaceable, tied_parameters
from leanconv.rewrites.order import Order
from leanconv.rewrites.select import Layer, Where, parse
from leanconv.rewrites.swap import swap_

__all__ = ["Applied", "apply_chain", "layers_of"]

EXACT = 1e-6
"""Relative errors below this are rounding: the chain computes the same function."""

ALREADY = "already a chain"


class Applied(NamedTuple):
    """The outcome of one step: the model, what changed, what did not, and which layers were left alone for a reason
    that a later replay on a bare model could not see (a hook, a tied weight); `flows` is for octave."""

    model: nn.Module
    changes: tuple[Change, ...]
    skipped: tuple[Skipped, ...]
    kept: tuple[str, ...]
    flows: tuple[Flow, ...] = ()


@dataclass(frozen=True)
class _Made:
    """A chain that is ready to take the place of a convolution."""

    chain: ConvChain
    change: Change


def apply_chain(
    model: nn.Module,
    step: ChainRewrite,
    *,
    order: Order | None = None,
    keep: Collection[str] = (),
    project: bool = True,
) -> Applied:
    """Replace in `model`, in place, every convolution that `step.where` selects and `step` can plan.

    Args:
        order: what a forward pass showed; needed when `where` speaks of `stage`.
        keep: names of layers to leave alone whatever `where` says (a replayed story knows them).
        project: False draws fresh weights whatever `step.init` says, for weights that are loaded afterwards.

    Raises:
        NothingToRewrite: if no convolution is selected, or every selected one has to be left alone.
        RewriteError: if `step` can plan none of the selected convolutions.
    """
    where = parse(step.where)
    if where.needs_example and order is None:
        raise RewriteError(
            f"{step.stem}: where={step.where!r} speaks of stage, which only a forward pass can tell: pass "
            "size, such as size=(3, 224, 224)"
        )
    layers = layers_of(model, order)
    tied = tied_parameters(model)
    made: dict[int, _Made] = {}
    skipped: list[Skipped] = []
    kept: list[str] = []
    failures: list[PlanError] = []
    chains = 0
    for layer in filter(where, layers):
        module, reason = layer.module, not_plannable(layer.module)
        if isinstance(module, ConvChain):
            chains += 1
            reason = ALREADY
        elif reason is None:
            reason = "kept as the story says" if layer.name in keep else not_replaceable(module, tied)
            reason = reason or _not_finite(module, project, step)
            kept += [layer.name] if reason else []
        if reason is None and isinstance(module, PLAIN):
            try:
                made[id(module)] = _make(layer.name, module, step, project)
            except PlanError as error:
                failures.append(error)
                reason = str(error)
        if reason is not None:
            skipped.append(Skipped(layer.name, reason))
    if not made and not chains:
        raise _nothing(step, where, layers, skipped, failures)
    changes = tuple(one.change for one in made.values())
    if made:
        model = swap_(model, lambda _, module: _answer(module, made)).model
    return Applied(model, changes, tuple(skipped), tuple(kept))


def layers_of(model: nn.Module, order: Order | None = None) -> tuple[Layer, ...]:
    """Every convolution of `model` as `where` sees it, in order of execution, or of registration without `order`."""
    found = list(convolutions(model))
    stages: dict[str, int] = {}
    if order is not None:
        stages = order.stages
        rank = {name: position for position, name in enumerate(order.names)}
        found.sort(key=lambda pair: rank.get(pair[1][0], len(rank)))  # stable: the ones that never ran stay in order
    return tuple(Layer(module, names, depth, stages.get(names[0])) for depth, (module, names) in enumerate(found))


def _answer(module: nn.Module, made: dict[int, _Made]) -> nn.Module | None:
    """The rule for `swap_`: the prepared chain, the very chain that is already there, or look inside."""
    if id(module) in made:
        return made[id(module)].chain
    return module if isinstance(module, ConvChain) else None


def _make(name: str, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, step: ChainRewrite, project: bool) -> _Made:
    """The chain for `conv`, on its device and in its dtype, mode, memory format and requires_grad."""
    spec = spec_of(conv)
    chain = step.build(spec, device=conv.weight.device, dtype=conv.weight.dtype)
    if chain.plan.params > spec.params:
        raise PlanError(f"the chain {chain.plan} has more weights ({chain.plan.params:,}) than the convolution has")
    weights: Kept = "fresh"
    error: float | None = None
    if project and step.init == "project" and not conv.weight.is_meta:
        error = float(chain.project_(conv.weight, conv.bias))
        weights = "exact" if error < EXACT else "projected"
        error = 0.0 if weights == "exact" else error
    chain.requires_grad_(conv.weight.requires_grad)
    if conv.bias is not None and chain.bias is not None:
        chain.bias.requires_grad_(conv.bias.requires_grad)
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        weight = conv.weight
        if weight.ndim == ndim and weight.is_contiguous(memory_format=layout) and not weight.is_contiguous():
            chain.to(memory_format=layout)
    change = Change(
        name=name,
        before=_describe(conv),
        after=f"{step.stem}: {chain.plan}" + ("" if chain.between == "none" else f", {chain.between} between"),
        weights=weights,
        error=error,
        params_before=sum(p.numel() for p in conv.parameters()),
        params_after=sum(p.numel() for p in chain.parameters()),
    )
    return _Made(chain.train(conv.training), change)


def _describe(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> str:
    """The convolution in a few characters, as plans print their stages."""
    text = f"{'x'.join(map(str, conv.kernel_size))} {conv.in_channels}->{conv.out_channels}"
    return text + (f" /{'x'.join(map(str, conv.stride))}" if max(conv.stride) > 1 else "")


def _not_finite(module: nn.Module, project: bool, step: ChainRewrite) -> str | None:
    """A kernel with NaN or infinity has no nearest chain."""
    weight = getattr(module, "weight", None)
    if not project or step.init != "project" or not isinstance(weight, torch.Tensor) or weight.is_meta:
        return None
    if bool(torch.isfinite(weight).all()):
        return None
    return "its weight holds NaN or infinity, which nothing can be fitted to: repair the weights or pass init='fresh'"


def _nothing(
    step: ChainRewrite, where: Where, layers: tuple[Layer, ...], skipped: list[Skipped], failures: list[PlanError]
) -> LeanconvError:
    """The error for a step that would change no layer."""
    if failures:
        rest = len(skipped) - len(failures)
        also = f" ({rest} more were left alone for other reasons)" if rest else ""
        first = next(skip for skip in skipped if skip.reason == str(failures[0]))
        error = RewriteError(
            f"{step.stem}: none of the {len(failures)} selected convolutions can be planned{also}; the first, "
            f"{first.name}: {failures[0]}"
        )
        error.__cause__ = failures[0]
        return error
    if skipped:
        told = "; ".join(map(str, skipped[:3])) + ("; ..." if len(skipped) > 3 else "")
        return NothingToRewrite(
            f"{step.stem}: where={step.where!r} selects {len(skipped)} convolutions, but every one has to be left "
            f"alone: {told}"
        )
    why = where.explain_nothing(layers, lambda layer: not_plannable(layer.module) is None)
    return NothingToRewrite(f"{step.stem}: nothing matches where={step.where!r}: {why}")
