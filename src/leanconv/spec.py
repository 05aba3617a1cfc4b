"""One convolution in plain integers: what it promises its neighbours and what it costs, before any tensor exists."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, prod

from leanconv.errors import PlanError

__all__ = ["ConvSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSpec:
    """The arguments of an `nn.Conv1d/2d/3d`, one integer per spatial axis, and the papers' cost formulas.

    Units: `params` counts kernel weights (no bias), `macs` multiply-adds per image, `interactions` pairs of input
    channels that meet in one output channel, summed over output channels.

    >>> spec = ConvSpec(in_channels=64, out_channels=64, kernel_size=(3, 3), padding=(1, 1))
    >>> spec.params, spec.macs((32, 32)), spec.interactions
    (36864, 37748736, 129024)
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        ndim = len(self.kernel_size)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            if value == ():
                object.__setattr__(self, name, (default,) * ndim)
            elif not isinstance(value, str) and len(value) != ndim:
                raise PlanError(f"{name} must have {ndim} entries, one per axis of kernel_size, got {value}")
        if isinstance(self.padding, str) and self.padding not in ("same", "valid"):
            raise PlanError(f"padding must be integers, 'same' or 'valid', got {self.padding!r}")
        if min(self.in_channels, self.out_channels, self.groups, *self.kernel_size) < 1:
            raise PlanError(
                f"channels, groups and kernel sizes must be at least 1, got in_channels={self.in_channels}, "
                f"out_channels={self.out_channels}, groups={self.groups}, kernel_size={self.kernel_size}"
            )
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise PlanError(
                f"groups (={self.groups}) must divide in_channels (={self.in_channels}) and "
                f"out_channels (={self.out_channels})"
            )

    @property
    def ndim(self) -> int:
        """Number of spatial axes: 1, 2 or 3."""
        return len(self.kernel_size)

    @property
    def params(self) -> int:
        """Kernel weights: C_out * (C_in / g) * prod(K)."""
        return self.out_channels * (self.in_channels // self.groups) * prod(self.kernel_size)

    @property
    def interactions(self) -> int:
        """Channel interactions, C_out * binom(C_in / g, 2) (CSN, eq. 3)."""
        return self.out_channels * comb(self.in_channels // self.groups, 2)

    def macs(self, out_size: tuple[int, ...]) -> int:
        """Multiply-adds for one image whose *output* map has `out_size`."""
        return self.params * prod(out_size)

    def out_size(self, in_size: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the output map for an input map of `in_size`."""
        if self.padding == "same":
            return in_size
        padding = (0,) * self.ndim if isinstance(self.padding, str) else self.padding
        return tuple(
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, pad, dilation in zip(
                in_size, self.kernel_size, self.stride, padding, self.dilation, strict=True
            )
        )
