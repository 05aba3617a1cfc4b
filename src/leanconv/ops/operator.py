"""What every operator is: a module in the place of one convolution, and the settings that say which and how.

A new operator is a `ConvRewrite` with its options and a `build`, in a file of its own. What it builds is a
`ConvOperator` made of plain `nn.ConvNd` leaves, so that cost, elastic width, BatchNorm folding and export need no code
of their own for it. A chain of grouped convolutions has less to write, see `leanconv.ops.drop_in`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.errors import LeanconvError, PlanError
from leanconv.ops.channels import Device
from leanconv.spec import ConvSpec

__all__ = ["CONVOLVE", "CONVS", "ConvOperator", "ConvRewrite", "arguments_of", "conv_maker", "spec_of"]

CONVS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
"""The functions that these call, by the number of axes."""


class ConvOperator(nn.Module):
    """A module that takes the place of one dense convolution: same inputs, outputs of the same shape.

    Shapes: (B, in_channels, *size) -> (B, out_channels, *out_size). After `stand_for` it has the attributes of the
    `nn.ConvNd` that it stands for, because other people's code reads them.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def stand_for(self, spec: ConvSpec) -> None:
        """Take over the attributes of the convolution `spec`."""
        self.in_channels, self.out_channels = spec.in_channels, spec.out_channels
        self.kernel_size, self.stride = spec.kernel_size, spec.stride
        self.padding, self.dilation = spec.padding, spec.dilation
        self.groups, self.padding_mode = spec.groups, spec.padding_mode

    @property
    def bias(self) -> Tensor | None:
        """The bias that takes over that of the convolution, None where no single tensor does."""
        return None

    def project_(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Come as near as possible to the dense kernel `weight` (C_out, C_in, *K), in place.

        Returns the relative error ||W - W'|| / ||W||. Raises `PlanError` where the operator cannot be fitted.
        """
        raise PlanError(f"{type(self).__name__} cannot be fitted to a kernel: use init='fresh'")

    def describe(self) -> str:
        """The operator on one line, for reports."""
        return f"{type(self).__name__}({self.extra_repr()})"


@dataclass(frozen=True, kw_only=True)
class ConvRewrite(ABC):
    """What every rewrite of one convolution at a time has in common; its options are the fields of the subclasses.

    Args:
        where: which layers, in the language of `leanconv.rewrites.select`; by default every dense spatial convolution
            but the stem, as in the papers' networks.
        init: "project" fits the new weights to the old kernel by least squares and reports the relative error of each
            layer; "fresh" draws new ones.
    """

    stem: ClassVar[str]

    where: str = "kernel>1 groups=1 !stem"
    init: Literal["project", "fresh"] = "project"

    def __post_init__(self) -> None:
        self._check("init", ("project", "fresh"))

    def _check(self, name: str, legal: tuple[str, ...]) -> None:
        """Raise `LeanconvError` unless the option `name` has one of the `legal` values."""
        if getattr(self, name) not in legal:
            raise LeanconvError(f"{self.stem}: {name} must be one of {', '.join(legal)}, got {getattr(self, name)!r}")

    @abstractmethod
    def build(self, spec: ConvSpec, *, device: Device = None, dtype: torch.dtype | None = None) -> ConvOperator:
        """A freshly drawn operator for the dense convolution `spec`.

        Raises:
            PlanError: if this convolution cannot be written so.
        """


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


def conv_maker(rewrite: ConvRewrite | None, ndim: int = 2) -> Callable[..., nn.Module]:
    """A function with the signature of `nn.ConvNd` that builds `rewrite`'s operator, for the `conv=` of a network.

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
