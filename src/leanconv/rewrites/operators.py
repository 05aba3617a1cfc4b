"""An operator for a whole model: every convolution that its `where` selects becomes one, under its own name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from leanconv.errors import LeanconvError, NothingToRewrite, PlanError, RewriteError, shown
from leanconv.ops.chain import ConvChain
from leanconv.ops.operator import ConvOperator, ConvRewrite, spec_of
from leanconv.rewrites.changes import Applied, Change, Context, Kept, Skipped, Step
from leanconv.rewrites.guards import PLAIN, not_plannable, not_replaceable, tied_parameters
from leanconv.rewrites.select import Layer, Where, layers_of, parse
from leanconv.rewrites.swap import swap_

__all__ = ["Everywhere", "already_an_operator", "kernel_weights"]

EXACT = 1e-6
"""Relative errors below this are rounding: the operator computes the same function."""


@dataclass(frozen=True)
class _Made:
    """An operator that is ready to take the place of a convolution."""

    operator: ConvOperator
    change: Change


@dataclass(frozen=True, kw_only=True)
class Everywhere(Step):
    """The step that puts `operator` in the place of every convolution that `operator.where` selects."""

    operator: ConvRewrite

    @property
    def options(self) -> ConvRewrite:
        """The operator's."""
        return self.operator

    @property
    def needs_run(self) -> bool:
        """Whether `where` speaks of stage."""
        return parse(self.operator.where).needs_run

    @property
    def needs_order(self) -> bool:
        """Whether `where` speaks of an order of the layers."""
        return parse(self.operator.where).needs_order

    @property
    def selects(self) -> bool:
        """It has a `where`."""
        return True

    def apply(self, model: nn.Module, context: Context) -> Applied:
        """Replace in `model`, in place, every selected convolution that the operator can stand for.

        Raises:
            NothingToRewrite: if no convolution is selected, or every selected one has to be left alone.
            RewriteError: if the operator can stand for none of the selected convolutions.
        """
        step, where = self.operator, parse(self.operator.where)
        if self.needs_run and context.order is None:
            raise RewriteError(
                f"{step.stem}: where={shown(step.where)} speaks of stage, which only a forward pass can show: pass "
                "size, such as size=(3, 224, 224)"
            )
        layers = layers_of(model, context.order)
        tied = tied_parameters(model)
        made: dict[int, _Made] = {}
        skipped: list[Skipped] = []
        kept: list[str] = []
        failures: list[PlanError] = []
        already = 0
        for layer in filter(where, layers):
            module, reason = layer.module, not_plannable(layer.module)
            if isinstance(module, ConvOperator):
                already += 1
                reason = already_an_operator(module)
            elif reason is None:
                reason = "kept as the story says" if layer.name in context.keep else not_replaceable(module, tied)
                reason = reason or _not_finite(module, context.project, step)
                kept += [layer.name] if reason else []
            if reason is None and isinstance(module, PLAIN):
                try:
                    made[id(module)] = _make(layer.name, module, step, context.project)
                except PlanError as error:
                    failures.append(error)
                    reason = str(error)
            if reason is not None:
                skipped.append(Skipped(layer.name, reason))
        if not made and not already:
            raise _nothing(step, where, layers, skipped, failures)
        changes = tuple(one.change for one in made.values())
        if made:
            model = swap_(model, lambda _, module: _answer(module, made)).model
        return Applied(
            model=model,
            changes=changes,
            skipped=tuple(skipped),
            kept=tuple(kept),
        )


def already_an_operator(module: ConvOperator) -> str:
    """Why an operator is left alone, in words."""
    return "already a chain" if isinstance(module, ConvChain) else f"already a {type(module).__name__}"


def _answer(module: nn.Module, made: dict[int, _Made]) -> nn.Module | None:
    """The rule for `swap_`: the prepared operator, the very one that is already there, or look inside."""
    if id(module) in made:
        return made[id(module)].operator
    return module if isinstance(module, ConvOperator) else None


def _make(name: str, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, step: ConvRewrite, project: bool) -> _Made:
    """The operator for `conv`, on its device and in its dtype, mode, memory format and requires_grad."""
    spec = spec_of(conv)
    operator = step.build(spec, device=conv.weight.device, dtype=conv.weight.dtype)
    count = kernel_weights(operator)
    if count > spec.params:
        what = "chain" if isinstance(operator, ConvChain) else "operator"
        raise PlanError(f"the {what} {operator.describe()} has more weights ({count:,}) than the convolution has")
    weights: Kept = "fresh"
    error: float | None = None
    if project and step.init == "project" and not conv.weight.is_meta:
        error = float(operator.project_(conv.weight, conv.bias))
        weights = "exact" if error < EXACT else "projected"
        error = 0.0 if weights == "exact" else error
    operator.requires_grad_(conv.weight.requires_grad)
    if conv.bias is not None and operator.bias is not None:
        operator.bias.requires_grad_(conv.bias.requires_grad)
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        weight = conv.weight
        if weight.ndim == ndim and weight.is_contiguous(memory_format=layout) and not weight.is_contiguous():
            operator.to(memory_format=layout)
    change = Change(
        name=name,
        before=_describe(conv),
        after=f"{step.stem}: {operator.describe()}",
        weights=weights,
        error=error,
        params_before=sum(p.numel() for p in conv.parameters()),
        params_after=sum(p.numel() for p in operator.parameters()),
    )
    return _Made(operator.train(conv.training), change)


def kernel_weights(operator: ConvOperator) -> int:
    """Weights of all its convolutions, biases and norms not counted, as `ConvSpec.params` counts."""
    return sum(leaf.weight.numel() for leaf in operator.modules() if isinstance(leaf, PLAIN))


def _describe(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> str:
    """The convolution in a few characters, as plans print their stages."""
    text = f"{'x'.join(map(str, conv.kernel_size))} {conv.in_channels}->{conv.out_channels}"
    return text + (f" /{'x'.join(map(str, conv.stride))}" if max(conv.stride) > 1 else "")


def _not_finite(module: nn.Module, project: bool, step: ConvRewrite) -> str | None:
    """Nothing comes near a kernel with NaN or infinity."""
    weight = getattr(module, "weight", None)
    if not project or step.init != "project" or not isinstance(weight, torch.Tensor) or weight.is_meta:
        return None
    if bool(torch.isfinite(weight).all()):
        return None
    return "its weight holds NaN or infinity, which nothing can be fitted to: repair the weights or pass init='fresh'"


def _nothing(
    step: ConvRewrite, where: Where, layers: tuple[Layer, ...], skipped: list[Skipped], failures: list[PlanError]
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
        some = "; ".join(map(str, skipped[:3])) + ("; ..." if len(skipped) > 3 else "")
        return NothingToRewrite(
            f"{step.stem}: where={shown(step.where)} selects {len(skipped)} convolutions, but every one has to be left "
            f"alone: {some}"
        )
    why = where.explain_nothing(layers, lambda layer: not_plannable(layer.module) is None)
    return NothingToRewrite(f"{step.stem}: nothing matches where={shown(step.where)}: {why}")
