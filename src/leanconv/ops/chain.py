"""The one engine: a module that runs a `Plan` as plain `nn.ConvNd` leaves with channel shuffles between.

Because the leaves are ordinary convolutions, cost counting, elastic width, BatchNorm folding, export and quantization
need no code of their own for any of the operators planned here.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from leanconv.errors import LeanconvError, PlanError, unknown
from leanconv.ops.channels import ChannelCrop, ChannelGather, ChannelPad, ChannelShuffle, Device
from leanconv.plan import Plan
from leanconv.spec import ConvSpec

__all__ = [
    "CONVS",
    "Between",
    "ChainRewrite",
    "ConvChain",
    "DropIn",
    "arguments_of",
    "conv_maker",
    "spec_of",
]

Between = Literal["none", "relu", "bn", "bn_relu"]

CONVS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class ConvChain(nn.Sequential):
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
        planner: ChainRewrite | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if between not in get_args(Between):
            raise PlanError(f"between must be one of {', '.join(get_args(Between))}, got {between!r}")
        if len(plan.stages) == 1:
            between = "none"
        super().__init__(_leaves(plan, between, device, dtype))
        spec = plan.spec
        self.plan = plan
        self.between = between
        self.planner = planner
        self.in_channels, self.out_channels = spec.in_channels, spec.out_channels
        self.kernel_size, self.stride = spec.kernel_size, spec.stride
        self.padding, self.dilation = spec.padding, spec.dilation
        self.groups, self.padding_mode = spec.groups, spec.padding_mode
        self.reset_parameters()

    @property
    def convs(self) -> tuple[nn.Conv1d | nn.Conv2d | nn.Conv3d, ...]:
        """The convolutions of the stages, in order."""
        return tuple(leaf for leaf in self if isinstance(leaf, nn.Conv1d | nn.Conv2d | nn.Conv3d))

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last stage, the only one."""
        return self.convs[-1].bias

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
        return self._compose([conv.weight for conv in self.convs])

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
        conv.weight.copy_(self._compose([stage.weight.double() for stage in self.convs]))
        bias = self.dense_bias()
        if conv.bias is not None and bias is not None:
            conv.bias.copy_(bias)
        conv.requires_grad_(weight.requires_grad)
        return conv.train(self.training)

    def _compose(self, weights: list[Tensor]) -> Tensor:
        """`dense_kernel` of given stage weights. Each axis is convolved by one stage, so taps multiply, never add."""
        kernel: Tensor | None = None
        for index, (stage, weight) in enumerate(zip(self.plan.stages, weights, strict=True)):
            dense = _block_diagonal(weight, stage.conv.groups)
            if kernel is None:
                kernel = dense[:, : self.in_channels]
            else:
                ndim = self.plan.spec.ndim
                product = torch.einsum("omb,mia->oiba", dense.flatten(2), kernel.flatten(2))
                product = product.reshape(*product.shape[:2], *dense.shape[2:], *kernel.shape[2:])
                axes = [2 + axis + part * ndim for axis in range(ndim) for part in (0, 1)]
                sizes = [a * b for a, b in zip(dense.shape[2:], kernel.shape[2:], strict=True)]
                kernel = product.permute(0, 1, *axes).reshape(*product.shape[:2], *sizes)
            kernel = kernel[list(self.plan.wiring(index))]
        return cast(Tensor, kernel)

    def project_(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Fit the chain to the dense kernel `weight` (C_out, C_in, *K) by least squares, in place.

        Returns:
            The relative error ||W - W'|| / ||W||; 0 where the chain can express the kernel.

        Raises:
            PlanError: if an activation stands between the stages.
        """
        from leanconv.ops.project import project  # only conversions need it

        if "relu" in self.between:
            raise PlanError("a chain with a ReLU between its stages cannot be fitted to a kernel: use init='fresh'")
        error = project(self, weight)
        if bias is not None and self.bias is not None:
            with torch.no_grad():
                self.bias[list(self.plan.wiring(len(self.plan.stages) - 1))] = bias.to(self.bias)
        return error

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


def _block_diagonal(weight: Tensor, groups: int) -> Tensor:
    """A grouped kernel (O, I / g, *K) as the dense kernel (O, I, *K) with zeros off the blocks."""
    if groups == 1:
        return weight
    out, per_in, *kernel = weight.shape
    blocks = weight.new_zeros(groups, out // groups, groups, per_in, *kernel)
    index = torch.arange(groups, device=weight.device)
    blocks[index, :, index] = weight.reshape(groups, out // groups, per_in, *kernel)
    return blocks.reshape(out, groups * per_in, *kernel)


def spec_of(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> ConvSpec:
    """The `ConvSpec` of a convolution module."""
    return ConvSpec(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        padding=conv.padding if isinstance(conv.padding, str) else tuple(conv.padding),
        dilation=tuple(conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )


def arguments_of(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[Any, ...]:
    """The arguments that would build `conv` again, in the order of `nn.ConvNd`."""
    spec = spec_of(conv)
    return (
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        spec.stride,
        spec.padding,
        spec.dilation,
        spec.groups,
        spec.bias,
        spec.padding_mode,
        conv.weight.device,
        conv.weight.dtype,
    )


@dataclass(frozen=True, kw_only=True)
class ChainRewrite:
    """What every rewrite of a convolution into a chain has in common; its options are the fields of the subclasses.

    Args:
        where: which layers, in the language of `leanconv.rewrites.select`; by default every dense spatial convolution
            but the stem, as in the papers' networks.
        init: "project" fits the new weights to the old kernel by least squares and reports the relative error of each
            layer; "fresh" draws new ones.
        between: see `ConvChain`.
    """

    stem: ClassVar[str]

    where: str = "kernel>1 groups=1 !stem"
    init: Literal["project", "fresh"] = "project"
    between: Between = "none"

    def __post_init__(self) -> None:
        for name, legal in (("init", ("project", "fresh")), ("between", get_args(Between))):
            if getattr(self, name) not in legal:
                raise LeanconvError(
                    f"{self.stem}: {name} must be one of {', '.join(legal)}, got {getattr(self, name)!r}"
                )

    def plan(self, spec: ConvSpec) -> Plan:
        """The chain for the dense convolution `spec`.

        Raises:
            PlanError: if this convolution cannot be written so.
        """
        raise NotImplementedError

    def build(self, spec: ConvSpec, *, device: Device = None, dtype: torch.dtype | None = None) -> ConvChain:
        """A freshly drawn chain for `spec`."""
        return ConvChain(self.plan(spec), between=self.between, planner=self, device=device, dtype=dtype)


class DropIn(ConvChain):
    """A chain with the signature of `nn.ConvNd`; the options of its `rewrite` class follow as keywords.

    Subclasses name the rewrite and the number of axes, nothing else.
    """

    rewrite: ClassVar[type[ChainRewrite]]
    ndim: ClassVar[int]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "rewrite"):
            return
        own = list(inspect.signature(DropIn.__init__).parameters.values())[:-1]
        options = [
            inspect.Parameter(
                option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.type
            )
            for option in fields(cls.rewrite)
            if option.name not in ("where", "init")
        ]
        cls.__signature__ = inspect.Signature([*own[1:], *options])  # type: ignore[attr-defined]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        if groups != 1:
            raise PlanError(f"{type(self).__name__} plans its own groups: groups must be 1, got {groups}")
        settings = _configure(type(self).rewrite, options)
        spec = ConvSpec(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=self._each(kernel_size),
            stride=self._each(stride),
            padding=padding if isinstance(padding, str) else self._each(padding),
            dilation=self._each(dilation),
            bias=bias,
            padding_mode=padding_mode,
        )
        super().__init__(settings.plan(spec), between=settings.between, planner=settings, device=device, dtype=dtype)

    @classmethod
    def _each(cls, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * cls.ndim if isinstance(value, int) else tuple(value)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        *,
        init: Literal["project", "fresh"] = "project",
        **options: Any,
    ) -> DropIn:
        """The chain for the module `conv`, its weights fitted to `conv`'s kernel or, with init="fresh", drawn anew."""
        if conv.weight.ndim - 2 != cls.ndim:
            raise PlanError(f"{cls.__name__} takes {cls.ndim}D convolutions, got {type(conv).__name__}")
        new = cls(*arguments_of(conv), **options)
        if init == "project":
            new.project_(conv.weight, conv.bias)
        return new.train(conv.training)


def _configure(rewrite: type[ChainRewrite], options: dict[str, Any]) -> ChainRewrite:
    known = [option.name for option in fields(rewrite)]
    for name in options:
        if name not in known:
            raise unknown(f"option of {rewrite.__name__}", name, known)
    return rewrite(**options)


def conv_maker(rewrite: ChainRewrite | None, ndim: int = 2) -> Callable[..., nn.Module]:
    """A function with the signature of `nn.ConvNd` that builds `rewrite`'s chain, for the `conv=` of a network.

    With None, or for a convolution that already has groups, it builds the ordinary convolution.
    """
    plain = CONVS[ndim]
    if rewrite is None:
        return plain

    def make(*args: Any, device: Device = None, dtype: torch.dtype | None = None, **settings: Any) -> nn.Module:
        build = cast("Callable[..., nn.Conv1d | nn.Conv2d | nn.Conv3d]", plain)
        shape = build(*args, device="meta", **settings)
        if shape.groups != 1:
            return build(*args, device=device, dtype=dtype, **settings)
        return rewrite.build(spec_of(shape), device=device, dtype=dtype)

    return make
