"""Channel-separated convolution: channels interact in 1 x 1 x 1 convolutions only, space and time in depthwise ones.

    ip  interaction-preserved   1 x 1 x 1 dense, then K x K x K depthwise
    ir  interaction-reduced     K x K x K depthwise alone

(Channel-Separated Convolutional Networks, section 3.3.) In ip the dense 1 x 1 x 1 runs at the block's input
resolution: the stride sits on the depthwise stage. A BatchNorm but no ReLU follows it, as in the released ip-CSNs,
although the paper's figure 2 draws one; `between="bn_relu"` follows the figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from leanconv.errors import LeanconvError
from leanconv.ops.chain import Between, ChainRewrite, DropIn
from leanconv.ops.separable import Depthwise
from leanconv.plan import Plan, grouped_stage
from leanconv.spec import ConvSpec

__all__ = [
    "ChannelSeparated",
    "ChannelSeparatedConv1d",
    "ChannelSeparatedConv2d",
    "ChannelSeparatedConv3d",
]


@dataclass(frozen=True, kw_only=True)
class ChannelSeparated(ChainRewrite):
    """Rewrite a convolution into a channel-separated one.

    Args:
        mode: "ip" keeps the channel interactions, "ir" drops them.

    >>> print(ChannelSeparated().plan(ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3, 3))))
    1x1x1 64->64; 3x3x3 64->64 g64
    """

    stem: ClassVar[str] = "csn"

    between: Between = "bn"
    mode: Literal["ip", "ir"] = "ip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("ip", "ir"):
            raise LeanconvError(f"csn: mode must be 'ip' or 'ir', got {self.mode!r}")

    def plan(self, spec: ConvSpec) -> Plan:
        """See `ChainRewrite.plan`."""
        if self.mode == "ir":
            return Depthwise().plan(spec)
        outputs = spec.out_channels
        pointwise = grouped_stage(spec, (), spec.in_channels, outputs, 1)
        depthwise = grouped_stage(spec, range(spec.ndim), outputs, outputs, outputs, last=True)
        return Plan(spec=spec, stages=(pointwise, depthwise))


class ChannelSeparatedConv1d(DropIn):
    """`ChannelSeparated` in 1D, with the signature of `nn.Conv1d`."""

    rewrite, ndim = ChannelSeparated, 1


class ChannelSeparatedConv2d(DropIn):
    """`ChannelSeparated` in 2D, with the signature of `nn.Conv2d`."""

    rewrite, ndim = ChannelSeparated, 2


class ChannelSeparatedConv3d(DropIn):
    """`ChannelSeparated` in 3D, with the signature of `nn.Conv3d`."""

    rewrite, ndim = ChannelSeparated, 3
