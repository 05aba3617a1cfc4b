"""The facts of a plan as plain data, for tables and JSON: weights, bound, MACs, and what an output channel sees."""

from __future__ import annotations

from math import prod
from typing import Any

from leanconv.errors import LeanconvError
from leanconv.ops.drop_in import ChainRewrite
from leanconv.ops.igc import InterleavedGroup
from leanconv.ops.igc_theory import widest, widths_for_budget
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.osep_groups import best_stage_count, relaxed_minimum
from leanconv.ops.osep_theory import Choice, classics, overlap_sweep, relaxed_optimum, stage_sweep
from leanconv.plan import Plan
from leanconv.spec import ConvSpec

__all__ = ["plan_facts", "stage_facts", "sweep_facts"]


def plan_facts(plan: Plan, step: ChainRewrite | None = None, in_size: tuple[int, ...] | None = None) -> dict[str, Any]:
    """What a plan costs and connects; MACs where `in_size` is given.

    Where `step` is an optimized separable convolution, `params_relaxed` is what Theorem 1 says for its overlap, and
    `overlap` the one that its chain reaches. `coverage` is the share of the input channels that an output channel sees,
    on average, and `least_channels` the fewest that one sees.
    """
    spec = plan.spec
    return {
        "conv": [spec.in_channels, spec.out_channels, list(spec.kernel_size), list(spec.stride)],
        "plan": str(plan),
        "groups": [stage.conv.groups for stage in plan.stages],
        "params": plan.params,
        "params_dense": spec.params,
        "params_relaxed": relaxed_optimum(spec, step) if isinstance(step, OptimizedSeparable) else None,
        "overlap": _reached(plan) if isinstance(step, OptimizedSeparable) else None,
        "macs": None if in_size is None else plan.macs(in_size),
        "interactions": plan.interactions,
        "receptive_field": [
            (k - 1) * dilation + 1 for k, dilation in zip(spec.kernel_size, spec.dilation, strict=True)
        ],
        "coverage": plan.coverage,
        "least_channels": min(mask.bit_count() for mask in plan.channel_field),
    }


def stage_facts(plan: Plan, in_size: tuple[int, ...] | None = None) -> list[dict[str, Any]]:
    """Every convolution of the chain, in order."""
    rows = []
    for stage in plan.stages:
        conv = stage.conv
        in_size = None if in_size is None else conv.out_size(in_size)
        rows.append(
            {
                "kernel": list(conv.kernel_size),
                "stride": list(conv.stride),
                "in_channels": conv.in_channels,
                "out_channels": conv.out_channels,
                "groups": conv.groups,
                "shuffle": stage.shuffle,
                "params": conv.params,
                "macs": None if in_size is None else conv.macs(in_size),
            }
        )
    return rows


def sweep_facts(step: ChainRewrite, spec: ConvSpec) -> dict[str, Any]:
    """What `step` could be for this layer: over N and gamma (osep), or over L for its number of weights (igc).

    Raises `LeanconvError` for any other operator.
    """
    taps = prod(spec.kernel_size)
    if isinstance(step, InterleavedGroup):
        budget = step.plan(spec).params
        rows = [width._asdict() for width in widths_for_budget(budget, taps)]
        return {"budget": budget, "widest": widest(budget, taps)._asdict(), "rows": rows}
    if not isinstance(step, OptimizedSeparable):
        raise LeanconvError(f"--sweep is for osep and igc, {step.stem} has nothing to vary")
    forms = {form.name: form for form in (*stage_sweep(spec, step), *overlap_sweep(spec, step), *classics(spec)[2:])}
    return {
        "best_stage_count": best_stage_count(spec.in_channels, spec.out_channels, taps, step.overlap),
        "least_relaxed": relaxed_minimum(spec.in_channels, spec.out_channels, taps, step.overlap),
        "rows": [_form_facts(form) for form in forms.values()],
    }


def _form_facts(form: Choice) -> dict[str, Any]:
    facts = {"name": form.name, "reason": form.reason, "params_relaxed": form.relaxed}
    if form.plan is not None:
        facts |= {"plan": str(form.plan), "params": form.plan.params, "coverage": form.plan.coverage}
        facts["overlap"] = None if form.relaxed is None else _reached(form.plan)
    return facts


def _reached(plan: Plan) -> float | None:
    """The overlap of a chain; a single dense convolution, which takes its place where it is cheaper, has none."""
    return plan.overlap if len(plan.stages) > 1 else None
