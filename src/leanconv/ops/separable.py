"""The classic cheap convolutions that the papers compare with, as plans for the same engine.

    Grouped           g independent convolutions of C / g channels                            C^2 K^2 / g
    Depthwise         one convolution per channel: no channel sees another                    C K^2
    DepthSeparable    depthwise K x K, then 1 x 1                                             C K^2 + C^2
    SpatialSeparable  one convolution per axis, K x 1 then 1 x K                              2 C^2 K

(Optimized separable convolution, Table 1.) The stride sits on the stage that convolves its axis, as in the
d-ResNets of that paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from leanconv.errors import PlanError
from leanconv.ops.drop_in import ChainRewrite, DropIn
from leanconv.plan import Plan, WidthPolicy, grouped_stage, inner_width
from leanconv.spec import ConvSpec

__all__ = [
    "DepthSeparable",
    "DepthSeparableConv2d",
    "Depthwise",
    "Grouped",
    "SpatialSeparable",
]


def _all_axes(spec: ConvSpec) -> range:
    return range(spec.ndim)


@dataclass(frozen=True, kw_only=True)
class Grouped(ChainRewrite):
    """One convolution of `groups` groups.

    >>> print(Grouped(groups=4).plan(ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3))))
    3x3 64->64 g4
    """

    stem: ClassVar[str] = "group"

    groups: int = 2

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`."""
        if self.groups < 1 or spec.in_channels % self.groups or spec.out_channels % self.groups:
            raise PlanError(
                f"groups (={self.groups}) must divide in_channels (={spec.in_channels}) and "
                f"out_channels (={spec.out_channels})"
            )
        stage = grouped_stage(spec, _all_axes(spec), spec.in_channels, spec.out_channels, self.groups, last=True)
        return Plan(spec=spec, stages=(stage,))


@dataclass(frozen=True, kw_only=True)
class Depthwise(ChainRewrite):
    """One convolution per input channel, C_out / C_in outputs each; channels never mix."""

    stem: ClassVar[str] = "depthwise"

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`."""
        if spec.out_channels % spec.in_channels:
            raise PlanError(
                f"a depthwise convolution gives a whole number of outputs per input: out_channels "
                f"(={spec.out_channels}) must be a multiple of in_channels (={spec.in_channels})"
            )
        return Grouped(groups=spec.in_channels).plan(spec)


@dataclass(frozen=True, kw_only=True)
class DepthSeparable(ChainRewrite):
    """A depthwise convolution, then a 1 x 1 that mixes the channels.

    >>> print(DepthSeparable().plan(ConvSpec(in_channels=16, out_channels=32, kernel_size=(3, 3))))
    3x3 16->16 g16; 1x1 16->32
    """

    stem: ClassVar[str] = "depth_separable"

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`."""
        depthwise = grouped_stage(spec, _all_axes(spec), spec.in_channels, spec.in_channels, spec.in_channels)
        pointwise = grouped_stage(spec, (), spec.in_channels, spec.out_channels, 1, last=True)
        return Plan(spec=spec, stages=(depthwise, pointwise))


@dataclass(frozen=True, kw_only=True)
class SpatialSeparable(ChainRewrite):
    """One convolution per spatial axis: K x 1, then 1 x K (in 3D one for time, height and width each).

    Args:
        width: channels between the stages, see `leanconv.ops.osep.OptimizedSeparable`.
    """

    stem: ClassVar[str] = "spatial_separable"

    width: WidthPolicy = "normal"

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`."""
        axes = [axis for axis in _all_axes(spec) if spec.kernel_size[axis] > 1]
        if len(axes) < 2:
            raise PlanError(f"a kernel of {spec.kernel_size} has fewer than two spatial axes to separate")
        flat = [axis for axis in _all_axes(spec) if spec.kernel_size[axis] == 1]
        groups_of_axes = [(axis,) if index else (axis, *flat) for index, axis in enumerate(axes)]
        count = len(groups_of_axes)
        widths = [
            spec.in_channels,
            *(inner_width(self.width, spec.in_channels, spec.out_channels, step, count) for step in range(1, count)),
            spec.out_channels,
        ]
        stages = tuple(
            grouped_stage(spec, chosen, widths[index], widths[index + 1], 1, last=index + 1 == count)
            for index, chosen in enumerate(groups_of_axes)
        )
        return Plan(spec=spec, stages=stages)


class DepthSeparableConv2d(DropIn):
    """`DepthSeparable` in 2D, with the signature of `nn.Conv2d`."""

    rewrite, ndim = DepthSeparable, 2
