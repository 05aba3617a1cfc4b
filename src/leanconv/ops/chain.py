"""The one engine: a module that runs a `Plan` as plain `nn.ConvNd` leaves with channel shuffles between.

Because the leaves are ordinary convolutions, cost counting, elastic width, BatchNorm folding, export and quantization
need no code of their own for any of the operators planned here.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.errors import PlanError, unknown
from leanconv.ops.channels import ChannelCrop, ChannelGather, ChannelPad, ChannelShuffle, Device
from leanconv.ops.composing import composed_kernel, merged_kernel, merged_mask, prepare
from leanconv.ops.operator import CONVOLVE, CONVS, ConvOperator, ConvRewrite
from leanconv.ops.project import compose, project, relative_error, weight_shape
from leanconv.plan import Plan

__all__ = ["Between", "ChainForm", "ConvChain"]

Between = Literal["none", "relu", "bn", "bn_relu"]

ChainForm = Literal["chain", "composed", "merged"]
"""How a chain computes what it computes: stage by stage, as the one dense convolution that it equals, or stage by
stage in fewer and wider groups, with zeros where the chain has no weights."""

_WIRES = (ChannelShuffle, ChannelGather, ChannelPad, ChannelCrop)
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

    form: ChainForm = "chain"
    multiple: int = 1
    padded: bool = False

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

    def run_as(self, form: ChainForm, *, multiple: int = 1, padded: bool = False, least: int = 8) -> None:
        """Compute in another form from now on. Parameters and their names stay; results are equal up to rounding.

        Args:
            form: "composed" makes the dense kernel at every call, so gradients reach the stages' own weights;
                "merged" joins groups until each has `least` channels; "chain" undoes either.
            multiple: channel counts that "composed" runs with are multiples of it (tensor cores want 8).
            padded: "composed" gives the channels that were filled up away, as zeros, for a neighbour that takes them.

        Raises:
            PlanError: if "composed" is asked for and something stands between the stages, or an inner one has a bias.

        >>> from leanconv.ops.osep import OptimizedSeparableConv2d
        >>> chain, x = OptimizedSeparableConv2d(64, 64, 3, padding=1), torch.ones(1, 64, 8, 8)
        >>> before = chain(x)
        >>> chain.run_as("composed", multiple=8)
        >>> torch.allclose(chain(x), before, atol=1e-5), list(chain.state_dict())
        (True, ['conv1.weight', 'conv2.weight', 'conv2.bias'])
        """
        if form not in get_args(ChainForm):
            raise unknown("form", form, get_args(ChainForm))
        if form == "composed":
            self._refuse_between()
            if any(conv.bias is not None for conv in self.convs[:-1]):
                raise PlanError("an inner stage has a bias: such a chain is not composed at every call, see densify")
            prepare(self, self.plan)
        for index, conv in enumerate(self.convs):
            groups = _fewer_groups(conv, least) if form == "merged" else conv.groups
            mask = None
            if groups != conv.groups:
                mask = merged_mask(conv.out_channels, conv.in_channels, conv.groups, groups, conv.weight.device)
            self.register_buffer(f"merged{index}", mask, persistent=False)
        self.form, self.multiple, self.padded = form, multiple, padded

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *size) -> (B, out_channels, *out_size)."""
        if self.form == "composed":
            return self._run_composed(x)
        index = 0
        for leaf in self:
            if isinstance(leaf, nn.Conv1d | nn.Conv2d | nn.Conv3d) and self.form == "merged":
                mask = getattr(self, f"merged{index}")
                index += 1
                x = leaf(x) if mask is None else _run_merged(leaf, mask, x)
            else:
                x = leaf(x)
        return x

    def _run_composed(self, x: Tensor) -> Tensor:
        spec = self.plan.spec
        kernel = composed_kernel(self, self.plan, [conv.weight for conv in self.convs], self.multiple)
        bias = self.dense_bias()
        if bias is not None:
            bias = functional.pad(bias, (0, len(kernel) - len(bias)))
        if x.shape[1] < kernel.shape[1]:
            x = functional.pad(x, (0, 0) * spec.ndim + (0, kernel.shape[1] - x.shape[1]))
        padding: tuple[int, ...] | str = spec.padding
        if spec.padding_mode != "zeros":
            sides = zip(*(conv._reversed_padding_repeated_twice for conv in self.convs), strict=True)
            x = functional.pad(x, [sum(side) for side in sides], mode=spec.padding_mode)
            padding = (0,) * spec.ndim
        y = CONVOLVE[spec.ndim](x, kernel, bias, spec.stride, padding, spec.dilation)
        return y if self.padded or y.shape[1] == self.out_channels else y[:, : self.out_channels]

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
        wiring = self.plan.wiring(len(self.plan.stages) - 1)
        return self.bias if wiring == tuple(range(len(self.bias))) else self.bias[list(wiring)]

    @property
    def is_linear(self) -> bool:
        """Whether nothing stands between the stages; what was folded away stands there no more."""
        between = [leaf for leaf in self if not isinstance(leaf, (*CONVS.values(), *_WIRES, nn.Identity))]
        return not between

    def _refuse_between(self) -> None:
        if not self.is_linear:
            raise PlanError(f"a chain with between={self.between!r} is not one linear convolution")

    @property
    def cuts_inner_bias(self) -> bool:
        """Whether a stage pads behind one that has a bias (a folded norm): then the chain is no single convolution."""
        first = next((index for index, conv in enumerate(self.convs) if conv.bias is not None), len(self.convs))
        behind = self.convs[first + 1 :]
        return any(conv.padding not in ((0,) * self.plan.spec.ndim, "valid") for conv in behind)

    def _whole_bias(self) -> Tensor:
        """What the chain makes of nothing, (C_out,): its last bias, and the inner ones through what follows them.

        Raises `PlanError` where a later stage pads, which would cut an inner bias at the border.
        """
        if self.cuts_inner_bias:
            raise PlanError("an inner stage has a bias, which zero padding would cut at the border")
        first = next(index for index, conv in enumerate(self.convs) if conv.bias is not None)
        leaves = list(self)
        start = leaves.index(self.convs[first])
        bias = self.convs[first].bias
        assert bias is not None  # whoever asks has seen one
        value = bias.double().view(1, -1, *(1,) * self.plan.spec.ndim)
        for leaf in leaves[start + 1 :]:
            if isinstance(leaf, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                seen = (far * (size - 1) + 1 for far, size in zip(leaf.dilation, leaf.kernel_size, strict=True))
                value = copy.deepcopy(leaf).double()(value.expand(1, -1, *seen))  # the same everywhere that it sees
            else:
                value = leaf(value)
        return value.flatten()

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
            bias=any(stage.bias is not None for stage in self.convs),
            padding_mode=spec.padding_mode,  # type: ignore[arg-type]
            device=weight.device,
            dtype=weight.dtype,
        )
        conv.weight.copy_(compose(self.plan, [stage.weight.double() for stage in self.convs]))
        if conv.bias is not None:
            conv.bias.copy_(self._whole_bias())
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


def _fewer_groups(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, least: int) -> int:
    """The most groups that divide `conv`'s and have `least` channels on both sides."""
    narrow = min(conv.in_channels, conv.out_channels)
    return max(
        groups
        for groups in range(1, conv.groups + 1)
        if conv.groups % groups == 0 and (groups == 1 or narrow // groups >= least)
    )


def _run_merged(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, mask: Tensor, x: Tensor) -> Tensor:
    padding: tuple[int, ...] | str = conv.padding
    if conv.padding_mode != "zeros":
        x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
        padding = (0,) * (x.ndim - 2)
    groups = conv.in_channels // mask.shape[1]
    run = CONVOLVE[x.ndim - 2]
    return run(x, merged_kernel(conv.weight, mask), conv.bias, conv.stride, padding, conv.dilation, groups)


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
