"""What `bench` measured, as tables: latencies on backends, and steps of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leanconv.report.count_notes import MACS_NOTE, share_note
from leanconv.report.tables import size_text, spread_text
from leanconv.report.text_table import Column, TextTable
from leanconv.report.units import NONE, binary, decimals, fixed, ratio, scientific, si

if TYPE_CHECKING:
    from leanconv.deploy import BenchRow
    from leanconv.deploy.train_bench import TrainBenchRow

__all__ = ["bench_table", "train_bench_table"]


def bench_table(rows: Sequence[BenchRow], *, title: str | None = None) -> TextTable:
    """Latencies of models on backends; what could not be measured stays in the table, with the reason below."""
    if title is None and rows:
        plural = "s" if rows[0].threads > 1 else ""
        title = f"input {rows[0].batch} x {size_text(rows[0].size)}, CPU, {rows[0].threads} thread{plural}"
    digits = decimals(row.median_ms for row in rows)
    measured = [row for row in rows if row.problem is None]
    notes = [MACS_NOTE, *share_note({row.model: row.share_not_counted for row in rows})]
    if measured:
        notes.append(
            f"ms: median of {measured[0].rounds} interleaved rounds; low-high: their middle 80 %; "
            f"x: relative to {measured[0].model} on {measured[0].backend}."
        )
        notes.append("differs: largest absolute difference of the outputs from torch's.")
    return TextTable(
        title=title or "",
        columns=(
            Column("model", "left", cut=1),
            Column("backend", "left"),
            Column("params"),
            Column("MACs"),
            Column("ms"),
            Column("low-high"),
            Column("x"),
            Column("differs"),
        ),
        rows=tuple(
            (
                row.model,
                row.backend,
                si(row.params),
                si(row.macs),
                fixed(row.median_ms, digits) if row.problem is None else "failed",
                spread_text(row.low_ms, row.high_ms, digits),
                ratio(row.ratio),
                scientific(row.max_abs_difference),
            )
            for row in rows
        ),
        notes=(*notes, *(f"{row.model} on {row.backend}: {row.problem}" for row in rows if row.problem is not None)),
    )


def train_bench_table(rows: Sequence[TrainBenchRow]) -> TextTable:
    """Steps of training: inputs per second, milliseconds and memory; what could not be measured with the reason."""
    first = rows[0]
    what = "clips" if len(first.size) == 4 else "images"
    threads = f", {first.threads} thread{'s' if first.threads > 1 else ''}" if first.device == "cpu" else ""
    on_gpu = first.device != "cpu"
    measured = [row for row in rows if row.problem is None]
    digits = decimals(row.median_ms for row in rows)
    speeds = decimals(row.per_second for row in rows)
    notes = [MACS_NOTE, *share_note({row.model: row.share_not_counted for row in rows})]
    if measured:
        notes.append(
            f"a step: forward, backward and SGD with momentum on {first.batch} {what} of noise; ms: median of "
            f"{measured[0].rounds} interleaved rounds; low-high: their middle 80 %; {what}/s: from the median; x: time "
            f"relative to {measured[0].model} on {measured[0].backend}."
        )
        notes.append("saved: what autograd keeps from the forward for the backward, without parameters and buffers.")
    if measured and on_gpu:
        notes.append(
            "peak: most that was allocated on the GPU during a step, weights, gradients and momentum included."
        )
    return TextTable(
        title=f"training, {first.batch} x {size_text(first.size)}, {first.device}{threads}, {first.precision}",
        columns=(
            Column("model", "left", cut=1),
            Column("backend", "left"),
            Column("params"),
            Column("MACs"),
            Column(f"{what}/s"),
            Column("ms"),
            Column("low-high"),
            Column("x"),
            Column("saved"),
            *((Column("peak"),) * on_gpu),
        ),
        rows=tuple(
            (
                row.model,
                row.backend,
                si(row.params),
                si(row.macs),
                fixed(row.per_second, speeds) if row.problem is None else "failed",
                fixed(row.median_ms, digits),
                spread_text(row.low_ms, row.high_ms, digits),
                ratio(row.ratio),
                NONE if row.saved_bytes is None else binary(row.saved_bytes),
                *((NONE if row.peak_bytes is None else binary(row.peak_bytes),) * on_gpu),
            )
            for row in rows
        ),
        notes=(*notes, *(f"{row.model} on {row.backend}: {row.problem}" for row in rows if row.problem is not None)),
    )
