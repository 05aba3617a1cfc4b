"""The one engine: a module that runs a `Plan` as plain `nn.ConvNd` leaves with channel shuffles between.

Because the leaves are ordinary convolutions, cost counting, elastic width, BatchNorm folding, export and quantization
need no code of their own for any of the operators planned here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.errors import PlanError
from leanconv.ops.channels import ChannelCrop, ChannelGather, ChannelPad, ChannelShuffle, Device
from leanconv.ops.operator import CONVS, ConvOperator, ConvRewrite
from leanconv.ops.project import compose, project, relative_error, weight_shape
from leanconv.plan import Plan

__all__ = ["Between", "ConvChain"]

Between = Literal["none", "relu", "bn", "bn_relu"]

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class ConvChain(ConvOperator, nn.Sequential):
    """Run a plan: an `nn.Sequential` of `conv1`, `shuffle1`, `conv2`, ... with the attributes of an `nn.ConvNd`.

    Shapes: (B, in_channels, *size) -> (B, out_channels, *out_size), as the dense convolution `plan.spec`.

    Args:
        plan: the stages to run.
        between: what follows every stage but the last. The papers' operators have nothing there ("none"); the
            depth-separable baselines of optimized separable convolution and ip-CSN have "bn".

    >>> from leanconv.ops.osep import OptimizedSeparableConv2d
    >>> chain = OptimizedSeparableConv2d(64, 64, 3, padding=1)
    >>> chain(torch.zeros(1, 64, 8, 8)).shape
    torch.Size([1, 64, 8, 8])
    """

    def __init__(
        self,
        plan: Plan,
        *,
        between: Between = "none",
        planner: ConvRewrite | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if between not in get_args(Between):
            raise PlanError(f"between must be one of {', '.join(get_args(Between))}, got {between!r}")
        if len(plan.stages) == 1:
            between = "none"
        super().__init__(_leaves(plan, between, device, dtype))
        self.stand_for(plan.spec)
        self.plan = plan
        self.between = between
        self.planner = planner
        self.reset_parameters()

    composed = False
    """Whether it runs as the one dense convolution that it equals, see `leanconv.rewrites.composed`."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.composed:
            for leaf in self:
                x = leaf(x)
            return x
        spec = self.plan.spec
        moves = self._moves()
        kernel = compose(self.plan, [conv.weight for conv in self.convs], moves)
        bias = None if self.bias is None else moves[-1](self.bias)
        return _CONVOLVE[spec.ndim](x, kernel, bias, spec.stride, spec.padding, spec.dilation)

    def _moves(self) -> list[Callable[[Tensor], Tensor]]:
        """What the shuffle, gather or crop after each stage does, along the first axis; nothing is sent to the device."""
        after: list[list[nn.Module]] = []
        for leaf in self:
            if isinstance(leaf, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                after.append([])
            elif after:
                after[-1].append(leaf)

        def move(leaves: list[nn.Module]) -> Callable[[Tensor], Tensor]:
            def along_first(rows: Tensor) -> Tensor:
                rows = rows[None]
                for leaf in leaves:
                    rows = leaf(rows)
                return rows[0]

            return along_first

        return [move(leaves) for leaves in after]

    @property
    def convs(self) -> tuple[nn.Conv1d | nn.Conv2d | nn.Conv3d, ...]:
        """The convolutions of the stages, in order."""
        return tuple(leaf for leaf in self if isinstance(leaf, nn.Conv1d | nn.Conv2d | nn.Conv3d))

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last stage, the only one."""
        return self.convs[-1].bias

    @property
    def fits_plan(self) -> bool:
        """Whether the stages are those of the plan; not in a chain whose convolutions were sliced one by one."""
        shapes = [tuple(conv.weight.shape) for conv in self.convs]
        return shapes == [weight_shape(stage.conv) for stage in self.plan.stages]

    def reset_parameters(self) -> None:
        """Draw fresh weights so that the whole chain scales its input as a freshly drawn dense convolution would.

        The last stage is drawn as `nn.ConvNd` does. Inner stages have no activation, so they must keep the variance
        (1 / fan_in, gain 1); drawn as `nn.ConvNd` does, each would divide it by three.
        """
        for conv in self.convs:
            conv.reset_parameters()
        with torch.no_grad():
            for conv in self.convs[:-1]:
                nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)

    def dense_kernel(self) -> Tensor:
        """The dense kernel (C_out, C_in, *K) that the chain stands for; differentiable in the chain's weights.

        Raises:
            PlanError: if something stands between the stages; fold the BatchNorm first, a ReLU cannot be folded.
        """
        self._refuse_between()
        return compose(self.plan, [conv.weight for conv in self.convs])

    def dense_bias(self) -> Tensor | None:
        """The bias (C_out,) that goes with `dense_kernel`, or None."""
        if self.bias is None:
            return None
        return self.bias[list(self.plan.wiring(len(self.plan.stages) - 1))]

    def _refuse_between(self) -> None:
        if self.between != "none":
            raise PlanError(f"a chain with between={self.between!r} is not one linear convolution")

    @torch.no_grad()
    def dense_conv(self) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """The one convolution that the chain equals, composed in double precision; device, dtype and mode stay.

        Raises `PlanError` as `dense_kernel`.
        """
        self._refuse_between()
        spec, weight = self.plan.spec, self.convs[0].weight
        conv = CONVS[spec.ndim](
            spec.in_channels,
            spec.out_channels,
            spec.kernel_size,  # type: ignore[arg-type]
            stride=spec.stride,  # type: ignore[arg-type]
            padding=spec.padding,  # type: ignore[arg-type]
            dilation=spec.dilation,  # type: ignore[arg-type]
            bias=self.bias is not None,
            padding_mode=spec.padding_mode,  # type: ignore[arg-type]
            device=weight.device,
            dtype=weight.dtype,
        )
        conv.weight.copy_(compose(self.plan, [stage.weight.double() for stage in self.convs]))
        bias = self.dense_bias()
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
        conv.requires_grad_(weight.requires_grad)
        return conv.train(self.training)

    def project_(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Fit the chain to the dense kernel `weight` (C_out, C_in, *K) by least squares, in place.

        Returns:
            The relative error ||W - W'|| / ||W||; 0 where the chain can express the kernel.

        Raises:
            PlanError: if an activation stands between the stages.
        """
        if "relu" in self.between:
            raise PlanError("a chain with a ReLU between its stages cannot be fitted to a kernel: use init='fresh'")
        with torch.no_grad():
            for conv, value in zip(self.convs, project(self.plan, weight), strict=True):
                conv.weight.copy_(value)
            if bias is not None and self.bias is not None:
                self.bias[list(self.plan.wiring(len(self.plan.stages) - 1))] = bias.to(self.bias)
        return relative_error(self.plan, [conv.weight for conv in self.convs], weight)

    def describe(self) -> str:
        """The plan on one line, with what stands between its stages."""
        return str(self.plan) + ("" if self.between == "none" else f", {self.between} between")

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"


def _leaves(plan: Plan, between: Between, device: Device, dtype: torch.dtype | None) -> OrderedDict[str, nn.Module]:
    leaves: OrderedDict[str, nn.Module] = OrderedDict()
    spec, count = plan.spec, len(plan.stages)
    spare = plan.stages[0].conv.in_channels - spec.in_channels
    if spare:
        leaves["pad"] = ChannelPad(spare)
    for index, stage in enumerate(plan.stages):
        conv, number = stage.conv, index + 1
        leaves[f"conv{number}"] = CONVS[spec.ndim](
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias,
            padding_mode=conv.padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )
        last = number == count
        if not last and "bn" in between:
            leaves[f"bn{number}"] = _NORMS[spec.ndim](conv.out_channels, device=device, dtype=dtype)
        if not last and "relu" in between:
            leaves[f"relu{number}"] = nn.ReLU(inplace=True)
        wanted = conv.out_channels if last else plan.stages[number].conv.in_channels
        if wanted != conv.out_channels:
            leaves[f"shuffle{number}"] = ChannelGather(plan.wiring(index), device=device)
        elif stage.shuffle > 1:
            leaves[f"shuffle{number}"] = ChannelShuffle(stage.shuffle)
    if plan.stages[-1].conv.out_channels != spec.out_channels:
        leaves["crop"] = ChannelCrop(spec.out_channels)
    return leaves
