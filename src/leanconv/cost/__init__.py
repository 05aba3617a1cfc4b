"""Measuring any network: counts from one forward on fake tensors (`measure`), and latency (`compare_latency`)."""

from __future__ import annotations

from leanconv.cost.latency import Latency, compare_latency
from leanconv.cost.network import measure
from leanconv.cost.summary import Comparison, Cost, ModuleCost, PartCost

__all__ = ["Comparison", "Cost", "Latency", "ModuleCost", "PartCost", "compare_latency", "measure"]
