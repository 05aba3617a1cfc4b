"""Channel-separated convolution: channels interact in 1 x 1 x 1 convolutions only, space and time in depthwise ones.

    ip  interaction-preserved   1 x 1 x 1 dense, then K x K x K depthwise
    ir  interaction-reduced     K x K x K depthwise alone

(Channel-Separated Convolutional Networks, section 3.3.) In ip the dense 1 x 1 x 1 runs at the block's input
resolution: the stride sits on the depthwise stage. A BatchNorm but no ReLU follows it, as in the released ip-CSNs,
although the paper's figure 2 draws one; `between="bn_relu"` follows the figure.

`space_time` splits the depthwise convolution once more, into 1 x K x K and K x 1 x 1 (section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from leanconv.errors import LeanconvError, PlanError
from leanconv.ops.chain import Between
from leanconv.ops.drop_in import ChainRewrite, DropIn
from leanconv.ops.separable import Depthwise
from leanconv.plan import Plan, Stage, grouped_stage
from leanconv.spec import ConvSpec

__all__ = [
    "ChannelSeparated",
    "ChannelSeparatedConv2d",
    "ChannelSeparatedConv3d",
]


@dataclass(frozen=True, kw_only=True)
class ChannelSeparated(ChainRewrite):
    """Rewrite a convolution into a channel-separated one.

    Args:
        mode: "ip" keeps the channel interactions, "ir" drops them.
        space_time: depthwise over space, then over time, instead of over both at once; 3D only.

    >>> print(ChannelSeparated().plan(ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3, 3))))
    1x1x1 64->64; 3x3x3 64->64 g64
    >>> step = ChannelSeparated(mode="ir", space_time=True)
    >>> print(step.plan(ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3, 3))))
    1x3x3 64->64 g64; 3x1x1 64->64 g64
    """

    stem: ClassVar[str] = "csn"

    between: Between = "bn"
    mode: Literal["ip", "ir"] = "ip"
    space_time: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("ip", "ir"):
            raise LeanconvError(f"csn: mode must be 'ip' or 'ir', got {self.mode!r}")

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`."""
        inputs, outputs = spec.in_channels, spec.out_channels
        stages: list[Stage] = []
        if self.mode == "ip":
            stages.append(grouped_stage(spec, (), inputs, outputs, 1))
            inputs = outputs
        elif not self.space_time:
            return Depthwise().plan(spec)
        if self.space_time and (spec.ndim != 3 or outputs % inputs):
            raise PlanError(
                f"a space-time decomposition needs a 3D kernel and out_channels (={outputs}) that are a multiple of "
                f"the {inputs} channels it reads, got a {spec.ndim}D kernel"
            )
        if self.space_time:
            stages.append(grouped_stage(spec, (1, 2), inputs, outputs, inputs))
            inputs = outputs
        rest = (0,) if self.space_time else range(spec.ndim)
        stages.append(grouped_stage(spec, rest, inputs, outputs, inputs, last=True))
        return Plan(spec=spec, stages=tuple(stages))


class ChannelSeparatedConv2d(DropIn):
    """`ChannelSeparated` in 2D, with the signature of `nn.Conv2d`."""

    rewrite, ndim = ChannelSeparated, 2


class ChannelSeparatedConv3d(DropIn):
    """`ChannelSeparated` in 3D, with the signature of `nn.Conv3d`."""

    rewrite, ndim = ChannelSeparated, 3
