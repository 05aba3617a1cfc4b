"""Optimized separable convolution: a chain of N grouped convolutions of the least cost that still sees everything.

Minimise the weights of the chain under the volumetric receptive field condition (Theorem 1):

    f(n, K) = sum_l C_{l+1} n_l K_l^H K_l^W                                                (eq. 12)
    n_1 n_2 ... n_N >= gamma C_1                 every output sees every input channel      (eq. 15)
    n_l* = (gamma prod_j C_j prod K)^(1/N) / (C_{l+1} K_l^H K_l^W)                          (eq. 17)

Paper -> code:  N = num_separated, gamma = overlap, C_l = the channels between (width), n_l = channels per group,
g_l = groups, K x K at stage floor(N / 2) (Algorithm 1).

Rounding, found from the counts the paper prints: n_l = ceil(n_l*) first, then g_l = min(ceil(C_l / n_l), C_l, C_{l+1}),
and groups that do not divide are built on spare slots which are counted.

Deviations. The slots between two stages are filled from the computed ones instead of being cropped and padded with
zeros (see `leanconv.plan`): same shapes, same counts, and 62 channels still meet through groups of 21 and 3. Where the
rounding disconnects channels all the same although gamma >= 1 (it can at a layer that narrows a little, 64 -> 59), a
group is given back until they meet; no layer of the paper's networks is touched by this. `search="exact"` is ours: the
cheapest group counts that divide, by exhaustive search.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, gcd, inf, prod
from typing import ClassVar, Literal

from leanconv.errors import LeanconvError, PlanError
from leanconv.ops.chain import ChainRewrite, DropIn
from leanconv.ops.separable import WidthPolicy, inner_width
from leanconv.plan import Plan, grouped_stage
from leanconv.spec import ConvSpec

__all__ = [
    "OptimizedSeparable",
    "OptimizedSeparableConv1d",
    "OptimizedSeparableConv2d",
    "OptimizedSeparableConv3d",
    "exact_groups",
    "paper_groups",
    "relaxed_channels_per_group",
]


@dataclass(frozen=True, kw_only=True)
class OptimizedSeparable(ChainRewrite):
    """Rewrite a convolution into `num_separated` grouped ones of the least total cost.

    Args:
        num_separated: N, the number of stages; the paper always uses 2.
        overlap: gamma. 1 keeps the volumetric receptive field at the least cost; more mixes more (infinity is a dense
            chain), less saves more and disconnects channels.
        width: channels between the stages: "normal" min(C_in, C_out), "linear" interpolated, "bottleneck"
            max(C_in, C_out) / 4, "inverted_residual" 4 min(C_in, C_out).
        spatial: split the kernel as well, K x 1 in one stage and 1 x K in the next (the paper's "so-" networks).
        search: "paper" for Algorithm 1; "exact" for the cheapest group counts that divide the channels.
        stage_groups: fixed group counts, one per stage, None where the planner is free (the "masked" inputs of
            Algorithm 1).

    >>> print(OptimizedSeparable().plan(ConvSpec(in_channels=62, out_channels=62, kernel_size=(3, 3))))
    3x3 63->63 g21, shuffle 21; 1x1 63->63 g3
    >>> print(OptimizedSeparable(search="exact").plan(ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3))))
    3x3 64->64 g32, shuffle 32; 1x1 64->64 g2
    """

    stem: ClassVar[str] = "osep"

    num_separated: int = 2
    overlap: float = 1.0
    width: WidthPolicy = "normal"
    spatial: bool = False
    search: Literal["paper", "exact"] = "paper"
    stage_groups: tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_separated < 1:
            raise LeanconvError(f"osep: num_separated must be at least 1, got {self.num_separated}")
        if not self.overlap > 0:
            raise LeanconvError(
                f"osep: overlap must be above 0, got {self.overlap}: it is the share of the channel field to keep"
            )
        if self.search not in ("paper", "exact"):
            raise LeanconvError(f"osep: search must be 'paper' or 'exact', got {self.search!r}")
        if self.stage_groups is not None:
            object.__setattr__(self, "stage_groups", tuple(self.stage_groups))
            if len(self.stage_groups) != self.num_separated:
                raise LeanconvError(
                    f"osep: stage_groups needs one entry per stage (num_separated={self.num_separated}), "
                    f"got {self.stage_groups}"
                )

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`.

        Raises:
            PlanError: if the chain would have more weights than the dense convolution, or no legal groups exist.
        """
        axes = self._axes(spec)
        count = self.num_separated
        channels = [
            spec.in_channels,
            *(inner_width(self.width, spec.in_channels, spec.out_channels, step, count) for step in range(1, count)),
            spec.out_channels,
        ]
        taps = [prod(spec.kernel_size[axis] for axis in chosen) for chosen in axes]
        fixed = self.stage_groups or (None,) * count
        find = paper_groups if self.search == "paper" else exact_groups
        groups = find(channels, taps, self.overlap, fixed)
        plan = _chain(spec, axes, channels, groups)
        while self.overlap >= 1 and plan.coverage < 1:
            # Rounding has cut what eq. 15 promises: give back the group that mends most, then costs least.
            fewer = [
                (*groups[:l], groups[l] - 1, *groups[l + 1 :])
                for l in range(count)
                if groups[l] > 1 and fixed[l] is None
            ]
            if not fewer:
                break
            plan, groups = max(
                ((_chain(spec, axes, channels, option), option) for option in fewer),
                key=lambda candidate: (candidate[0].coverage, -candidate[0].params),
            )
        if plan.params > spec.params:
            raise PlanError(
                f"{spec.in_channels}->{spec.out_channels} channels with kernel {spec.kernel_size}: "
                f"the chain {plan} has {plan.params} weights, more than the {spec.params} of the dense convolution; "
                "lower overlap, use fewer stages or leave this layer out"
            )
        return plan

    def _axes(self, spec: ConvSpec) -> list[tuple[int, ...]]:
        """The spatial axes that each stage convolves (Algorithm 1: K x K at floor(N / 2), counted from 1)."""
        axes: list[tuple[int, ...]] = [()] * self.num_separated
        first = max(1, self.num_separated // 2) - 1
        if not self.spatial:
            axes[first] = tuple(range(spec.ndim))
            return axes
        if spec.ndim == 1:
            raise PlanError("spatial=True splits a kernel along two axes; a 1D convolution has one")
        room = min(spec.ndim, self.num_separated - first)
        if room < 2:
            raise PlanError(f"spatial=True needs two stages for the kernel, num_separated is {self.num_separated}")
        for part in range(room):
            axes[first + part] = (part,) if part + 1 < room else tuple(range(part, spec.ndim))
        return axes


def _chain(spec: ConvSpec, axes: list[tuple[int, ...]], channels: list[int], groups: tuple[int, ...]) -> Plan:
    """The chain with these group counts, its stages joined by shuffles."""
    last = len(groups) - 1
    stages = tuple(
        grouped_stage(
            spec,
            axes[l],
            channels[l],
            channels[l + 1],
            groups[l],
            shuffle=groups[l] if l < last else 1,
            last=l == last,
        )
        for l in range(len(groups))
    )
    return Plan(spec=spec, stages=stages)


def relaxed_channels_per_group(
    channels: list[int], taps: list[int], overlap: float, fixed: tuple[int | None, ...] | None = None
) -> list[float]:
    """n_l*, the real-valued optimum of Theorem 1 (eq. 17), with the group counts in `fixed` held.

    The optimum makes all free stages cost the same: n_l C_{l+1} K_l = lambda for every free l.

    >>> [round(n, 3) for n in relaxed_channels_per_group([64, 64, 64], [9, 1], 1.0)]
    [2.667, 24.0]
    """
    count = len(taps)
    held = fixed or (None,) * count
    per_group = [inf if group is None else channels[l] / group for l, group in enumerate(held)]
    free = [l for l in range(count) if held[l] is None]
    if free:
        weight = {l: channels[l + 1] * taps[l] for l in free}
        needed = overlap * channels[0] / prod(per_group[l] for l in range(count) if l not in free)
        level = (needed * prod(weight.values())) ** (1 / len(free))
        for l in free:
            per_group[l] = level / weight[l]
    return per_group


def paper_groups(
    channels: list[int], taps: list[int], overlap: float, fixed: tuple[int | None, ...]
) -> tuple[int, ...]:
    """Group counts of Algorithm 1, re-optimised with a mask while a stage is out of its range.

    >>> paper_groups([62, 62, 62], [9, 1], 1.0, (None, None))
    (21, 3)
    """
    held = list(fixed)
    for l, group in enumerate(held):
        most = min(channels[l], channels[l + 1])
        if group is not None and not 1 <= group <= most:
            raise PlanError(f"stage_groups: groups of stage {l + 1} must be between 1 and {most}, got {group}")
    while True:
        per_group = relaxed_channels_per_group(channels, taps, overlap, tuple(held))
        masked = False
        for l, n in enumerate(per_group):
            most = min(channels[l], channels[l + 1])
            if held[l] is None and (channels[l] / n < 1 or channels[l] / n > most):
                held[l] = 1 if channels[l] / n < 1 else most
                masked = True
        if not masked:
            break
    groups = []
    for l, n in enumerate(per_group):
        group = held[l]
        if group is None:
            # 1e-9: an optimum that is a whole number must not be rounded up for a rounding error.
            group = min(ceil(channels[l] / ceil(n - 1e-9)), channels[l], channels[l + 1])
        groups.append(group)
    return tuple(groups)


def exact_groups(
    channels: list[int], taps: list[int], overlap: float, fixed: tuple[int | None, ...]
) -> tuple[int, ...]:
    """The cheapest group counts that divide their channels and satisfy n_1 ... n_N >= gamma C_1, by exhaustive search.

    >>> exact_groups([64, 64, 64], [9, 1], 1.0, (None, None))
    (32, 2)
    """
    count = len(taps)
    options = []
    for l in range(count):
        common = gcd(channels[l], channels[l + 1])
        legal = [g for g in range(1, common + 1) if common % g == 0 and fixed[l] in (None, g)]
        if not legal:
            raise PlanError(
                f"stage_groups: groups of stage {l + 1} (={fixed[l]}) must divide "
                f"{channels[l]} and {channels[l + 1]} channels"
            )
        options.append(legal)
    # More overlap than a dense chain has cannot be asked of it.
    needed = min(overlap * channels[0], prod(channels[:count]))

    def search(l: int, seen: float) -> Iterator[tuple[int, tuple[int, ...]]]:
        if l == count:
            if seen >= needed * (1 - 1e-9):
                yield 0, ()
            return
        for group in options[l]:
            per_group = channels[l] // group
            for cost, rest in search(l + 1, seen * per_group):
                yield cost + channels[l + 1] * per_group * taps[l], (group, *rest)

    found = min(search(0, 1.0), default=None)
    if found is None:
        raise PlanError(
            f"no group counts that divide {channels} keep an overlap of {overlap} with stage_groups={fixed}"
        )
    return found[1]


class OptimizedSeparableConv1d(DropIn):
    """`OptimizedSeparable` in 1D, with the signature of `nn.Conv1d`."""

    rewrite, ndim = OptimizedSeparable, 1


class OptimizedSeparableConv2d(DropIn):
    """`OptimizedSeparable` in 2D, with the signature of `nn.Conv2d`."""

    rewrite, ndim = OptimizedSeparable, 2


class OptimizedSeparableConv3d(DropIn):
    """`OptimizedSeparable` in 3D, with the signature of `nn.Conv3d`."""

    rewrite, ndim = OptimizedSeparable, 3
