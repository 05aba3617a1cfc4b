"""What was measured, for people: tables on the terminal and curves on paper."""

from __future__ import annotations

from leanconv.report.plots import plot_accuracy_latency, plot_accuracy_macs, save_curves
from leanconv.report.serve_log import plot_serve_log
from leanconv.report.sheet import Column, Sheet, print_table
from leanconv.report.tables import (
    bench_table,
    changes_table,
    comparison_table,
    cost_table,
    export_table,
    modules_table,
    query_table,
    skipped_table,
)
from leanconv.report.units import binary, percent, ratio, si

__all__ = [
    "Column",
    "Sheet",
    "bench_table",
    "binary",
    "changes_table",
    "comparison_table",
    "cost_table",
    "export_table",
    "modules_table",
    "percent",
    "plot_accuracy_latency",
    "plot_accuracy_macs",
    "plot_serve_log",
    "print_table",
    "query_table",
    "ratio",
    "save_curves",
    "si",
    "skipped_table",
]
