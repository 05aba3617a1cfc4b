"""What the backbones share: the type of an injected maker, argument checks, the initialization of He et al. (2015)."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from leanconv.errors import LeanconvError

__all__ = ["ConvMaker", "at_least_one", "init_he", "positive"]

ConvMaker = Callable[..., nn.Module]
"""Makes a convolution from `nn.Conv2d`'s arguments: `nn.Conv2d` itself, or an operator with its options bound."""


def at_least_one(name: str, value: int) -> int:
    """`value` when it is an integer of 1 or more; raises `LeanconvError` naming the option otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LeanconvError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


def positive(name: str, value: float) -> float:
    """`value` when it is a finite number above 0; raises `LeanconvError` naming the option otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise LeanconvError(f"{name} must be a number above 0, got {value!r}")
    return float(value)


def init_he(model: nn.Module) -> None:
    """Draw every convolution of `model` from N(0, 2 / fan_in), every linear layer from N(0, 0.01); biases 0.

    An injected operator that draws itself (a module of several leaves with a `reset_parameters`) is left as it is: it
    knows which of its stages have an activation behind them.
    """
    for child in model.children():
        if isinstance(child, nn.Conv2d | nn.Linear):
            if isinstance(child, nn.Conv2d):
                nn.init.kaiming_normal_(child.weight, mode="fan_in", nonlinearity="relu")
            else:
                nn.init.normal_(child.weight, std=0.01)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif not callable(getattr(child, "reset_parameters", None)):
            init_he(child)
