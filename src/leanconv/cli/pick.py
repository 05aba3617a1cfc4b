"""`leanconv pick`: the most accurate configuration of a query table within a budget."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.options import JsonOption
from leanconv.cli.output import print_json
from leanconv.cli.values import read_amount
from leanconv.errors import LeanconvError


def run(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A query table (.json or .csv), or the run folder.")],
    max_macs: Annotated[str | None, typer.Option(metavar="N", help="At most so many MACs, such as 150M.")] = None,
    max_params: Annotated[str | None, typer.Option(metavar="N", help="At most so many parameters.")] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="At most so much memory for one image, such as 20M.")
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="At most so many milliseconds.")] = None,
    setup: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose milliseconds, such as onnxruntime_t1_b1; default the first."),
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(metavar="P", help="At least this share correct, 0 to 1.")
    ] = None,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Allow milliseconds that were measured on another machine.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Pick the best configuration within a budget.

    The most accurate row of a query table that is within all limits; never one over them.
    """
    from leanconv.query import QueryTable
    from leanconv.report import print_table, query_table

    if all(limit is None for limit in (max_macs, max_params, max_memory, max_latency_ms, min_accuracy)):
        raise LeanconvError(
            "pick needs a limit: --max-macs, --max-params, --max-memory, --max-latency-ms or --min-accuracy"
        )
    loaded = QueryTable.load(table / "table.json" if os.path.isdir(table) else table)
    row = loaded.pick(
        max_macs=None if max_macs is None else read_amount(max_macs, "--max-macs"),
        max_params=None if max_params is None else read_amount(max_params, "--max-params"),
        max_peak_bytes=None if max_memory is None else read_amount(max_memory, "--max-memory"),
        max_latency_ms=max_latency_ms,
        min_accuracy=min_accuracy,
        setup=setup,
        any_machine=any_machine,
    )
    if json:
        print_json(asdict(row))
    else:
        print_table(query_table([row], title="picked"))
