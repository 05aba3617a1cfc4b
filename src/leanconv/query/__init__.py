"""The query table: what every configuration of an elastic network scores and costs, and the best one for a budget."""

from __future__ import annotations

from leanconv.query.rows import Row, Setting
from leanconv.query.table import QueryTable
from leanconv.query.times import time_table

__all__ = ["QueryTable", "Row", "Setting", "time_table"]
