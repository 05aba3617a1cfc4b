"""Operators that are chains: `ChainRewrite` plans them, a `DropIn` is one with the signature of `nn.ConvNd`.

A new one writes `plan`, and for each number of axes a class of two attributes:

    class Mine(ChainRewrite):            stem = "mine"; its options; plan(spec) -> Plan
    class MineConv2d(DropIn):            rewrite, ndim = Mine, 2
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from leanconv.errors import PlanError, unknown
from leanconv.ops.chain import Between, ConvChain
from leanconv.ops.channels import Device
from leanconv.ops.operator import ConvRewrite, arguments_of
from leanconv.plan import Plan
from leanconv.spec import ConvSpec

__all__ = ["ChainRewrite", "DropIn"]


@dataclass(frozen=True, kw_only=True)
class ChainRewrite(ConvRewrite):
    """What every rewrite of a convolution into a chain has in common.

    Args:
        where, init: see `ConvRewrite`.
        between: see `ConvChain`.
    """

    between: Between = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("between", get_args(Between))

    @abstractmethod
    def plan(self, spec: ConvSpec) -> Plan:
        """The chain for the dense convolution `spec`.

        Raises:
            PlanError: if this convolution cannot be written so.
        """

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
