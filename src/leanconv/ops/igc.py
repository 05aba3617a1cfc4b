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
from typing import ClassVar

from leanconv.errors import LeanconvError, PlanError
from leanconv.ops.chain import ChainRewrite, DropIn
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
        secondary_partitions: M; L x M must be the number of output channels. One of the two is enough.

    >>> spec = ConvSpec(in_channels=32, out_channels=32, kernel_size=(3, 3))
    >>> print(InterleavedGroup(primary_partitions=4).plan(spec))
    3x3 32->32 g4, shuffle 4; 1x1 32->32 g8, shuffle 8
    """

    stem: ClassVar[str] = "igc"

    primary_partitions: int | None = None
    secondary_partitions: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("primary_partitions", "secondary_partitions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LeanconvError(f"igc: {name} must be at least 1, got {value}")

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`.

        Raises:
            PlanError: if L does not divide both channel counts, or L x M is not the number of output channels.
        """
        primary, secondary = self._partitions(spec)
        every_axis = range(spec.ndim)
        stages = (
            grouped_stage(spec, every_axis, spec.in_channels, spec.out_channels, primary, shuffle=primary),
            grouped_stage(spec, (), spec.out_channels, spec.out_channels, secondary, shuffle=secondary, last=True),
        )
        return Plan(spec=spec, stages=stages)

    def _partitions(self, spec: ConvSpec) -> tuple[int, int]:
        common = gcd(spec.in_channels, spec.out_channels)
        primary, secondary = self.primary_partitions, self.secondary_partitions
        if primary is None and secondary is None:
            taps = prod(spec.kernel_size)
            legal = [value for value in range(1, common + 1) if common % value == 0]
            # L = M S and L M = C: L = sqrt(C S); nearest in ratio, not in difference.
            primary = min(legal, key=lambda value: abs(log(value * value / (spec.out_channels * taps))))
        elif primary is None and secondary is not None:
            if spec.out_channels % secondary:
                raise PlanError(f"secondary_partitions (={secondary}) must divide out_channels (={spec.out_channels})")
            primary = spec.out_channels // secondary
        if primary is None or common % primary:
            raise PlanError(
                f"primary_partitions (={primary}) must divide in_channels (={spec.in_channels}) and "
                f"out_channels (={spec.out_channels}); their greatest common divisor is {common}"
            )
        if secondary is not None and primary * secondary != spec.out_channels:
            raise PlanError(
                f"primary_partitions x secondary_partitions (={primary} x {secondary}) must be out_channels "
                f"(={spec.out_channels}); leave one of the two unset to let it follow"
            )
        return primary, spec.out_channels // primary


class InterleavedGroupConv1d(DropIn):
    """`InterleavedGroup` in 1D, with the signature of `nn.Conv1d`."""

    rewrite, ndim = InterleavedGroup, 1


class InterleavedGroupConv2d(DropIn):
    """`InterleavedGroup` in 2D, with the signature of `nn.Conv2d`."""

    rewrite, ndim = InterleavedGroup, 2


class InterleavedGroupConv3d(DropIn):
    """`InterleavedGroup` in 3D, with the signature of `nn.Conv3d`."""

    rewrite, ndim = InterleavedGroup, 3
