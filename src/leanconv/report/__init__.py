"""What was measured, for people: tables on the terminal, curves and contact sheets as pictures."""

from __future__ import annotations

from leanconv.report.accuracy import classes_table, predictions_table, sizes_table, videos_table
from leanconv.report.bench_tables import bench_table, train_bench_table
from leanconv.report.confusions import plot_confusions
from leanconv.report.model_card import model_card
from leanconv.report.plans import layer_plan_table, model_plan_table, sweep_table
from leanconv.report.plots import plot_accuracy_latency, plot_accuracy_macs, save_curves
from leanconv.report.runs import plot_runs, runs_table
from leanconv.report.serve_log import plot_serve_log, serve_table
from leanconv.report.studies import plot_study, study_table
from leanconv.report.tables import (
    changes_table,
    comparison_table,
    cost_table,
    export_table,
    modules_table,
    query_table,
    skipped_table,
)
from leanconv.report.text_table import Column, TextTable, print_table
from leanconv.report.units import binary, percent, percent_interval, ratio, si

__all__ = [
    "Column",
    "TextTable",
    "bench_table",
    "binary",
    "changes_table",
    "classes_table",
    "comparison_table",
    "cost_table",
    "export_table",
    "layer_plan_table",
    "model_card",
    "model_plan_table",
    "modules_table",
    "percent",
    "percent_interval",
    "plot_accuracy_latency",
    "plot_accuracy_macs",
    "plot_confusions",
    "plot_runs",
    "plot_serve_log",
    "plot_study",
    "predictions_table",
    "print_table",
    "query_table",
    "ratio",
    "runs_table",
    "save_curves",
    "serve_table",
    "si",
    "skipped_table",
    "train_bench_table",
    "sweep_table",
    "sizes_table",
    "study_table",
    "videos_table",
]
