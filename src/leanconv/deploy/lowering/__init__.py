"""Operators of a network's graph as steps of a program: what each of them becomes, or why it cannot be one.

The rules are for the graph that `torch.export` makes, functional and in evaluation.
"""

from __future__ import annotations

from leanconv.deploy.lowering.builder import Builder, Map, Unfit
from leanconv.deploy.lowering.steps import STEPS
from leanconv.deploy.lowering.wires import WIRES

__all__ = ["RULES", "Builder", "Map", "Unfit"]

RULES = STEPS | WIRES
"""Name of an operator -> its rule."""
