"""The query table: what every configuration of an elastic network scores and costs, and the best one for a budget."""

from __future__ import annotations

from leanconv.query.rows import Row, TimingSetup
from leanconv.query.table import QueryTable

__all__ = ["QueryTable", "Row", "TimingSetup"]
