"""One row of the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

__all__ = ["Entry"]


class Entry(NamedTuple):
    """A zoo network: its `builder`, whose keywords are the options, and its input `size` without the batch axis."""

    builder: Callable[..., nn.Module]
    size: tuple[int, ...]
