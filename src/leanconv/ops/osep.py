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
group is given back until they meet; no layer of the paper's networks is touched by this. `search="exact"` and
`search="cheapest"` are ours: the true integer optimum among group counts that divide, and among all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, prod
from typing import ClassVar, Literal

from leanconv.errors import LeanconvError, PlanError
from leanconv.ops.drop_in import ChainRewrite, DropIn
from leanconv.ops.osep_groups import (
    best_stage_count,
    cheapest_groups,
    exact_groups,
    paper_groups,
)
from leanconv.plan import Plan, Share, WidthPolicy, grouped_stage, inner_width, shared_kernel, stage_axes
from leanconv.spec import ConvSpec

__all__ = [
    "OptimizedSeparable",
    "OptimizedSeparableConv1d",
    "OptimizedSeparableConv2d",
    "OptimizedSeparableConv3d",
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
        kernel_at: which stage convolves in space, and has the stride: "middle" is stage floor(N / 2) as in Algorithm 1
            (the first for N = 2), else the "first" or the "last".
        search: "paper" for Algorithm 1; "exact" for the cheapest group counts that divide the channels; "cheapest" for
            the cheapest of all, padded where they do not divide.
        stage_groups: fixed group counts, one per stage, None where the planner is free (the "masked" inputs of
            Algorithm 1).
        stage_kernels: the kernel of every stage (Algorithm 1's "preset" ones), along every axis of more than one tap;
            they must add up to the layer's, as 3 and 3 do to 5. None: one stage has all of it, which costs least.
        inner_channels: the channels between the stages, one number less than there are stages, in the place of `width`.
        at_most_dense: keep one dense stage where the chain would have more weights than the dense convolution, instead
            of refusing: the end of the sweep of gamma that the paper calls conventional.

    >>> print(OptimizedSeparable().plan(ConvSpec(in_channels=62, out_channels=62, kernel_size=(3, 3))))
    3x3 63->63 g21, shuffle 21; 1x1 63->63 g3
    >>> five = ConvSpec(in_channels=64, out_channels=64, kernel_size=(5, 5), padding=(2, 2))
    >>> print(OptimizedSeparable(stage_kernels=(3, 3)).plan(five))
    3x3 64->64 g8, shuffle 8; 3x3 64->64 g8
    >>> print(OptimizedSeparable(search="exact").plan(ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3))))
    3x3 64->64 g32, shuffle 32; 1x1 64->64 g2
    """

    stem: ClassVar[str] = "osep"

    num_separated: int = 2
    overlap: float = 1.0
    width: WidthPolicy = "normal"
    spatial: bool = False
    search: Literal["paper", "exact", "cheapest"] = "paper"
    stage_groups: tuple[int | None, ...] | None = None
    kernel_at: Literal["middle", "first", "last"] = "middle"
    at_most_dense: bool = False
    stage_kernels: tuple[int, ...] | None = None
    inner_channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_separated < 1:
            raise LeanconvError(f"osep: num_separated must be at least 1, got {self.num_separated}")
        if not self.overlap > 0:
            raise LeanconvError(
                f"osep: overlap must be above 0, got {self.overlap}: it is the share of the channel field to keep"
            )
        for name, legal in (("search", ("paper", "exact", "cheapest")), ("kernel_at", ("middle", "first", "last"))):
            if getattr(self, name) not in legal:
                raise LeanconvError(f"osep: {name} must be one of {', '.join(legal)}, got {getattr(self, name)!r}")
        for name, entries, per in (
            ("stage_groups", self.num_separated, "stage"),
            ("stage_kernels", self.num_separated, "stage"),
            ("inner_channels", self.num_separated - 1, "place between two stages"),
        ):
            given = getattr(self, name)
            if given is None:
                continue
            object.__setattr__(self, name, tuple(given))
            if len(given) != entries:
                raise LeanconvError(
                    f"osep: {name} needs one entry per {per} (num_separated={self.num_separated}), got {tuple(given)}"
                )
            if name != "stage_groups" and any(number < 1 for number in given):
                raise LeanconvError(f"osep: {name} are at least 1, got {tuple(given)}")
        if self.stage_kernels is not None and (self.spatial or self.kernel_at != "middle"):
            raise LeanconvError(
                "osep: stage_kernels say where the kernel is; spatial and kernel_at cannot say it as well"
            )

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`.

        Raises:
            PlanError: if the chain would have more weights than the dense convolution, or no legal groups exist.
        """
        self._check_stage_count(spec)
        count = self.num_separated
        shares = self._shares(spec)
        channels = [spec.in_channels, *self.widths_between(spec), spec.out_channels]
        taps = [prod(share.kernel_size) for share in shares]
        fixed = self.stage_groups or (None,) * count
        if self.overlap == inf and fixed == (None,) * count:
            plan = _chain(spec, shares, channels, (1,) * count)
        elif self.search == "exact":
            plan = _connected(
                spec, shares, channels, exact_groups(channels, taps, self.overlap, fixed), fixed, self.overlap
            )
        else:
            groups = paper_groups(channels, taps, self.overlap, fixed)
            plan = _connected(spec, shares, channels, groups, fixed, self.overlap)
            if self.search == "cheapest":
                plan = self._cheapest(spec, shares, channels, taps, fixed, plan)
        if plan.params > spec.params:
            if self.at_most_dense:
                whole = grouped_stage(spec, range(spec.ndim), spec.in_channels, spec.out_channels, 1, last=True)
                return Plan(spec=spec, stages=(whole,))
            raise PlanError(
                f"{spec.in_channels}->{spec.out_channels} channels with kernel {spec.kernel_size}: "
                f"the chain {plan} has {plan.params} weights, more than the {spec.params} of the dense convolution; "
                "lower overlap, use fewer stages, leave this layer out or keep it dense with at_most_dense"
            )
        return plan

    def _cheapest(
        self,
        spec: ConvSpec,
        shares: Sequence[Share],
        channels: list[int],
        taps: list[int],
        fixed: tuple[int | None, ...],
        rounded: Plan,
    ) -> Plan:
        """The cheapest chain of all; for gamma >= 1 only those in which every output sees every input."""

        def accept(groups: tuple[int, ...]) -> bool:
            return self.overlap < 1 or _chain(spec, shares, channels, groups).coverage == 1

        start = tuple(stage.conv.groups for stage in rounded.stages)
        groups = cheapest_groups(channels, taps, self.overlap, fixed, start, accept)
        return _chain(spec, shares, channels, groups)

    def _check_stage_count(self, spec: ConvSpec) -> None:
        """Refuse more stages than log(gamma C K^2), from where on a further one only adds weights (eq. 21)."""
        if self.num_separated <= 2 or self.overlap == inf:
            return
        best = best_stage_count(spec.in_channels, spec.out_channels, prod(spec.kernel_size), max(self.overlap, 1.0))
        if self.num_separated > max(2, ceil(best)):
            raise PlanError(
                f"num_separated (={self.num_separated}) is larger than useful for {spec.in_channels}->"
                f"{spec.out_channels} channels with kernel {spec.kernel_size}: the least cost is at "
                f"log(gamma C K^2) = {best:.2f} stages, more only add weights; use at most {max(2, ceil(best))}"
            )

    def widths_between(self, spec: ConvSpec) -> tuple[int, ...]:
        """The channels between the stages of the chain for `spec`."""
        count = self.num_separated
        if self.inner_channels is not None:
            return self.inner_channels
        return tuple(
            inner_width(self.width, spec.in_channels, spec.out_channels, step, count) for step in range(1, count)
        )

    def _shares(self, spec: ConvSpec) -> tuple[Share, ...]:
        if self.stage_kernels is not None:
            return shared_kernel(spec, self.stage_kernels)
        return tuple(stage_axes(spec, axes) for axes in self._axes(spec))

    def _axes(self, spec: ConvSpec) -> list[tuple[int, ...]]:
        """The spatial axes that each stage convolves (Algorithm 1: K x K at floor(N / 2), counted from 1)."""
        axes: list[tuple[int, ...]] = [()] * self.num_separated
        first = {"middle": max(1, self.num_separated // 2) - 1, "first": 0, "last": self.num_separated - 1}[
            self.kernel_at
        ]
        if self.spatial and self.kernel_at == "last":
            first = max(0, self.num_separated - spec.ndim)  # its parts are the last stages
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


def _connected(
    spec: ConvSpec,
    shares: Sequence[Share],
    channels: list[int],
    groups: tuple[int, ...],
    fixed: tuple[int | None, ...],
    overlap: float,
) -> Plan:
    """The chain with these groups; where rounding has cut what eq. 15 promises, with as many fewer as mend it."""
    plan = _chain(spec, shares, channels, groups)
    while overlap >= 1 and plan.coverage < 1:
        # Give back the group that mends most, then costs least.
        fewer = [
            (*groups[:l], groups[l] - 1, *groups[l + 1 :])
            for l in range(len(groups))
            if groups[l] > 1 and fixed[l] is None
        ]
        if not fewer:
            break
        plan, groups = max(
            ((_chain(spec, shares, channels, option), option) for option in fewer),
            key=lambda candidate: (candidate[0].coverage, -candidate[0].params),
        )
    return plan


def _chain(spec: ConvSpec, shares: Sequence[Share], channels: list[int], groups: tuple[int, ...]) -> Plan:
    """The chain with these group counts, its stages joined by shuffles."""
    last = len(groups) - 1
    stages = tuple(
        grouped_stage(
            spec,
            shares[l],
            channels[l],
            channels[l + 1],
            groups[l],
            shuffle=groups[l] if l < last else 1,
            last=l == last,
        )
        for l in range(len(groups))
    )
    return Plan(spec=spec, stages=stages)


class OptimizedSeparableConv1d(DropIn):
    """`OptimizedSeparable` in 1D, with the signature of `nn.Conv1d`."""

    rewrite, ndim = OptimizedSeparable, 1


class OptimizedSeparableConv2d(DropIn):
    """`OptimizedSeparable` in 2D, with the signature of `nn.Conv2d`."""

    rewrite, ndim = OptimizedSeparable, 2


class OptimizedSeparableConv3d(DropIn):
    """`OptimizedSeparable` in 3D, with the signature of `nn.Conv3d`."""

    rewrite, ndim = OptimizedSeparable, 3
