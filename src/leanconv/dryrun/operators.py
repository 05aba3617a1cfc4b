"""What an ATen operator says of itself: the names of its arguments, what it overwrites, whether it is elementwise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

__all__ = ["bind", "is_pointwise", "written"]

_POINTWISE = {
    *("hardswish", "hardsigmoid", "hardtanh", "mish", "elu", "gelu", "silu", "leaky_relu", "prelu", "_prelu_kernel"),
    *("rrelu_with_noise", "log_sigmoid_forward", "masked_fill", "fill", "zero", "copy", "_to_copy", "bernoulli"),
    *("native_dropout", "dropout"),
}
"""Elementwise operators that not all versions of torch tag so."""


def bind(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those that were not given with their defaults, in the operator's order.

    >>> bind(torch.ops.aten.sum.dim_IntList, (torch.ones(2), [0]), {})
    {'self': tensor([1., 1.]), 'dim': [0], 'keepdim': False, 'dtype': None}
    """
    names = _defaults(operator)
    return {
        name: args[i] if i < len(args) else kwargs.get(name, default) for i, (name, default) in enumerate(names.items())
    }


@cache
def _defaults(operator: Any) -> dict[str, Any]:
    arguments = operator._schema.arguments
    return {one.name: one.default_value if one.has_default_value() else None for one in arguments}


@cache
def written(operator: Any) -> tuple[str, ...]:
    """The names of the arguments that it changes in place."""
    arguments = operator._schema.arguments
    return tuple(one.name for one in arguments if one.alias_info is not None and one.alias_info.is_write)


@cache
def is_pointwise(operator: Any) -> bool:
    """Whether it works element by element, with broadcasting."""
    return torch.Tag.pointwise in operator.tags or operator.overloadpacket.__name__.removesuffix("_") in _POINTWISE
