"""Interleaved group convolution: two complementary grouped convolutions whose product is dense.

    x' = P W^s P^T W^p x                                                                    (eq. 5)

W^p  primary: a spatial convolution of L groups of M channels
W^s  secondary: a 1 x 1 convolution of M groups of L channels
P    the channel shuffle between the two groupings, and its inverse

Paper -> code:  L = primary_partitions, M = secondary_partitions, S = the taps of the kernel. Nothing stands between the
two convolutions (an activation there hurts, footnote 4); one bias at most, at the end. At a block that widens, the
secondary has C_out / L groups, so that both shuffles stay inverse permutations.

Deviation: with neither L nor M given, L is the divisor nearest to the widest block, L = M S (eq. 15); the paper leaves
the choice to the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, log, prod
from typing import ClassVar, Literal

from leanconv.errors import LeanconvError, PlanError
from leanconv.ops.drop_in import ChainRewrite, DropIn
from leanconv.plan import Plan, grouped_stage
from leanconv.spec import ConvSpec

__all__ = [
    "InterleavedGroup",
    "InterleavedGroupConv1d",
    "InterleavedGroupConv2d",
    "InterleavedGroupConv3d",
]


@dataclass(frozen=True, kw_only=True)
class InterleavedGroup(ChainRewrite):
    """Rewrite a convolution into an interleaved group convolution.

    Args:
        primary_partitions: L; must divide the input and the output channels.
        secondary_partitions: M; L x M must be the number of channels that `secondary_of` names. One of the two
            partitions is enough.
        secondary_of: whose channels L x M counts where they differ. "in" is the residual networks as published, where
            the first block of a stage has C_in / L secondary groups; its two shuffles are then not inverse.
        spatial: which convolution has the kernel (section 4 of the paper): the "primary", the "secondary", or "both",
            the first axis in the primary and the others in the secondary. Never the same axis twice: two kernels on
            one axis make another convolution at the border than one dense kernel does.
        split_primary: the primary as two, K x 1 then 1 x K, each of L groups.
        primary_outputs: share of the output channels that the primary gives, below 1 for a bottleneck.
        dense_secondary: the secondary as one dense 1 x 1 convolution, which mixes all partitions without a shuffle.

    >>> spec = ConvSpec(in_channels=32, out_channels=32, kernel_size=(3, 3))
    >>> print(InterleavedGroup(primary_partitions=4).plan(spec))
    3x3 32->32 g4, shuffle 4; 1x1 32->32 g8, shuffle 8
    >>> print(InterleavedGroup(primary_partitions=4, primary_outputs=0.5).plan(spec))
    3x3 32->16 g4, shuffle 4; 1x1 16->32 g4, shuffle 4
    """

    stem: ClassVar[str] = "igc"

    primary_partitions: int | None = None
    secondary_partitions: int | None = None
    secondary_of: Literal["out", "in"] = "out"
    spatial: Literal["primary", "secondary", "both"] = "primary"
    split_primary: bool = False
    primary_outputs: float = 1.0
    dense_secondary: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("primary_partitions", "secondary_partitions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LeanconvError(f"igc: {name} must be at least 1, got {value}")
        for name, legal in (("secondary_of", ("out", "in")), ("spatial", ("primary", "secondary", "both"))):
            if getattr(self, name) not in legal:
                raise LeanconvError(f"igc: {name} must be one of {', '.join(legal)}, got {getattr(self, name)!r}")
        if not 0 < self.primary_outputs <= 1:
            raise LeanconvError(
                f"igc: primary_outputs must be above 0 and at most 1, got {self.primary_outputs}: it is the share of "
                "the output channels that the primary convolution gives"
            )
        if self.dense_secondary and self.secondary_partitions is not None:
            raise LeanconvError("igc: dense_secondary is one secondary partition: leave secondary_partitions unset")
        if self.split_primary and self.spatial != "primary":
            raise LeanconvError(f"igc: split_primary splits the primary's kernel, but spatial is {self.spatial!r}")

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`.

        Raises:
            PlanError: if L does not divide both channel counts, or L x M is not the number of channels it should be.
        """
        primary, secondary, between = self._partitions(spec)
        stages = []
        inputs = spec.in_channels
        *primary_axes, secondary_axes = self._axes(spec)
        if self.dense_secondary:
            secondary = 1
        for index, axes in enumerate(primary_axes):
            shuffle = primary if index + 1 == len(primary_axes) and not self.dense_secondary else 1
            stages.append(grouped_stage(spec, axes, inputs, between, primary, shuffle=shuffle))
            inputs = between
        stages.append(
            grouped_stage(spec, secondary_axes, between, spec.out_channels, secondary, shuffle=secondary, last=True)
        )
        return Plan(spec=spec, stages=tuple(stages))

    def _axes(self, spec: ConvSpec) -> list[tuple[int, ...]]:
        """The axes that each convolution convolves; the last entry is the secondary's."""
        every = tuple(range(spec.ndim))
        if self.spatial == "secondary":
            return [(), every]
        if self.spatial == "primary" and not self.split_primary:
            return [every, ()]
        option = "split_primary=True" if self.split_primary else "spatial='both'"
        if spec.ndim == 1:
            raise PlanError(f"{option} splits a kernel along two axes; a 1D convolution has one")
        return [every[:1], every[1:], ()] if self.split_primary else [every[:1], every[1:]]

    def _partitions(self, spec: ConvSpec) -> tuple[int, int, int]:
        """L, M and the number of channels between the two convolutions."""
        common = gcd(spec.in_channels, spec.out_channels)
        primary, secondary = self.primary_partitions, self.secondary_partitions
        counted = spec.out_channels if self.secondary_of == "out" else spec.in_channels
        if primary is None and secondary is None:
            taps = prod(spec.kernel_size)
            legal = [value for value in range(1, common + 1) if common % value == 0]
            # L = M S and L M = C: L = sqrt(C S); nearest in ratio, not in difference.
            primary = min(legal, key=lambda value: abs(log(value * value / (spec.out_channels * taps))))
        elif primary is None and secondary is not None:
            if counted % secondary:
                raise PlanError(
                    f"secondary_partitions (={secondary}) must divide {self.secondary_of}_channels (={counted})"
                )
            primary = counted // secondary
        if primary is None or common % primary:
            raise PlanError(
                f"primary_partitions (={primary}) must divide in_channels (={spec.in_channels}) and "
                f"out_channels (={spec.out_channels}); their greatest common divisor is {common}"
            )
        if secondary is not None and primary * secondary != counted:
            raise PlanError(
                f"primary_partitions x secondary_partitions (={primary} x {secondary}) must be "
                f"{self.secondary_of}_channels (={counted}); leave one of the two unset to let it follow"
            )
        if self.primary_outputs == 1.0:
            return primary, counted // primary, spec.out_channels
        # M shrinks with the primary's outputs, so that a secondary group still holds one channel of each partition.
        if self.secondary_of == "in":
            raise PlanError("primary_outputs below 1 decides the secondary partitions: leave secondary_of at 'out'")
        wanted = spec.out_channels // primary * self.primary_outputs
        groups = round(wanted)
        if groups < 1 or abs(groups - wanted) > 1e-6 or spec.out_channels % groups:
            raise PlanError(
                f"primary_outputs (={self.primary_outputs}) leaves {wanted:g} of {spec.out_channels // primary} "
                f"channels to each of the {primary} partitions: it must be a whole number that divides "
                f"{spec.out_channels}"
            )
        return primary, groups, primary * groups


class InterleavedGroupConv1d(DropIn):
    """`InterleavedGroup` in 1D, with the signature of `nn.Conv1d`."""

    rewrite, ndim = InterleavedGroup, 1


class InterleavedGroupConv2d(DropIn):
    """`InterleavedGroup` in 2D, with the signature of `nn.Conv2d`."""

    rewrite, ndim = InterleavedGroup, 2


class InterleavedGroupConv3d(DropIn):
    """`InterleavedGroup` in 3D, with the signature of `nn.Conv3d`."""

    rewrite, ndim = InterleavedGroup, 3
