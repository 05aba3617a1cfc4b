"""The networks that have names: `networks` is the table of the papers' own, `names` looks names up everywhere."""

from __future__ import annotations

from leanconv.zoo.names import list_models
from leanconv.zoo.networks import ZOO, Entry

__all__ = ["ZOO", "Entry", "list_models"]
