"""What optimized separable convolution promises, layer by layer: costs over N, over gamma, and against the classics.

The rows are plain integers; nothing is built. `leanconv plan` prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, inf, prod

from leanconv.errors import PlanError
from leanconv.ops.drop_in import ChainRewrite
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.osep_groups import best_stage_count, relaxed_cost
from leanconv.ops.separable import DepthSeparable, Depthwise, Grouped, SpatialSeparable
from leanconv.plan import Plan, shared_kernel
from leanconv.spec import ConvSpec

__all__ = ["GAMMAS", "Choice", "classics", "overlap_sweep", "relaxed_optimum", "stage_sweep", "two_stage_cost"]

GAMMAS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0)
"""The overlaps of tables 2 and 4, between depthwise (0) and conventional (infinity)."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to write a convolution: its `plan` (None where `reason` says why there is none) and the cost of the
    `relaxed` optimum of Theorem 1 at the overlap asked for (None where that does not apply)."""

    name: str
    plan: Plan | None
    relaxed: float | None = None
    reason: str = ""


def relaxed_optimum(spec: ConvSpec, step: OptimizedSeparable) -> float:
    """Weights of the relaxed optimum for this layer, with `step`'s N, gamma and inner widths (eq. 20).

    >>> spec = ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3))
    >>> round(relaxed_optimum(spec, OptimizedSeparable()))
    3072
    """
    count = step.num_separated
    taps = [prod(spec.kernel_size), *(1,) * (count - 1)]  # only the product counts
    if step.stage_kernels is not None:
        taps = [prod(share.kernel_size) for share in shared_kernel(spec, step.stage_kernels)]
    return relaxed_cost([spec.in_channels, *step.widths_between(spec), spec.out_channels], taps, step.overlap)


def two_stage_cost(channels: int, kernel: int, groups: float, first: float, *, ndim: int = 1) -> float:
    """Weights of two stages that share a kernel of `kernel` taps, `first` and kernel + 1 - first of them (eq. 2 and 3).

    The first has `groups` groups, the second channels / groups, so that the channel condition holds with nothing to
    spare (eq. 5, gamma 1). Figure 2 draws it for `ndim` 1; real numbers are what derivatives are taken of. Equal parts
    of the kernel are a saddle, so that all of it belongs in one stage, which is what the planner does where
    `stage_kernels` do not say otherwise.

    >>> two_stage_cost(64, 5, 8, 3), two_stage_cost(64, 5, 8, 3, ndim=2)
    (3072.0, 9216.0)
    >>> round(two_stage_cost(64, 5, 64 / (5 * 64) ** 0.5, 1))  # the optimum with all of it in the second
    2290
    """
    weights = channels**2
    other = channels / groups
    return weights / groups * first**ndim + weights / other * (kernel + 1 - first) ** ndim


def stage_sweep(spec: ConvSpec, step: OptimizedSeparable | None = None) -> tuple[Choice, ...]:
    """The layer with N = 1, 2, ... stages, up to the first whole number from the relaxed optimum N* on (eq. 21).

    The cheapest plan is not always at round(N*): whole groups stop halving before.

    >>> spec = ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3))
    >>> [choice.plan.params for choice in stage_sweep(spec) if choice.plan]
    [36864, 3234, 1600, 1344, 1506, 1566, 1344]
    """
    step = replace(step or OptimizedSeparable(), stage_groups=None, stage_kernels=None, inner_channels=None)
    taps = prod(spec.kernel_size)
    best = best_stage_count(spec.in_channels, spec.out_channels, taps, max(step.overlap, 1.0))
    most = max(2, ceil(best)) if step.overlap < inf else 2
    choices = []
    for count in range(1, most + 1):
        option = replace(step, num_separated=count, spatial=step.spatial and count > 1)
        choices.append(_choice(f"N={count}", spec, option, relaxed_optimum(spec, option)))
    return tuple(choices)


def overlap_sweep(
    spec: ConvSpec, step: OptimizedSeparable | None = None, gammas: Sequence[float] = GAMMAS
) -> tuple[Choice, ...]:
    """The layer from depthwise to conventional (tables 2 and 4): both ends, and `gammas` between them."""
    step = replace(step or OptimizedSeparable(), at_most_dense=True)
    rows = [_choice("depthwise (gamma -> 0)", spec, Depthwise(), None)]
    for gamma in gammas:
        option = replace(step, overlap=gamma)
        rows.append(_choice(f"gamma={gamma:g}", spec, option, relaxed_optimum(spec, option)))
    rows.append(_choice("conventional (gamma -> inf)", spec, Grouped(groups=1), None))
    return tuple(rows)


def classics(spec: ConvSpec) -> tuple[Choice, ...]:
    """The other columns of table 1: conventional, depthwise, depth separable, spatial separable, grouped, point-wise.

    The groups are the divisor of both channel counts that is nearest to the root of the smaller one; the point-wise
    convolution has the stride of the layer and sees nothing around.
    """
    both, root = gcd(spec.in_channels, spec.out_channels), min(spec.in_channels, spec.out_channels) ** 0.5
    groups = min((g for g in range(1, both + 1) if both % g == 0), key=lambda g: abs(g - root))
    ones = (1,) * spec.ndim
    pointwise = replace(spec, kernel_size=ones, padding=(0,) * spec.ndim, dilation=ones)
    forms: tuple[tuple[str, ChainRewrite], ...] = (
        ("conventional", Grouped(groups=1)),
        ("depthwise", Depthwise()),
        ("depth separable", DepthSeparable()),
        ("spatial separable", SpatialSeparable()),
    )
    made = tuple(_choice(name, spec, step, None) for name, step in forms)
    return (
        *made,
        _choice(f"grouped (g={groups})", spec, Grouped(groups=groups), None),
        _choice("point-wise", pointwise, Grouped(groups=1), None),
    )


def _choice(name: str, spec: ConvSpec, step: ChainRewrite, relaxed: float | None) -> Choice:
    try:
        return Choice(name=name, plan=step.plan(spec), relaxed=relaxed)
    except PlanError as error:
        return Choice(name=name, plan=None, relaxed=relaxed, reason=str(error))
