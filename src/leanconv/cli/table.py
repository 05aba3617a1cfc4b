"""`leanconv table`: what an elastic network scores and costs in each configuration, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.common import JsonOption, TrustOption, open_run, say_json
from leanconv.errors import LeanconvError


def run(
    model: Annotated[
        str, typer.Argument(metavar="FOLDER", help="The run folder or saved model of an elastic network.")
    ],
    data: Annotated[str | None, typer.Option(metavar="SPEC", help="The images; by default the run's.")] = None,
    side: Annotated[int | None, typer.Option("--size", metavar="PIXELS", help="Side of the images.")] = None,
    step: Annotated[float, typer.Option(help="Distance between the widths of the grid.")] = 0.05,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table (.json or .csv).")] = None,
    latency: Annotated[bool, typer.Option(help="Measure milliseconds on this machine as well.")] = True,
    threads: Annotated[int, typer.Option(help="Threads while latency is measured.")] = 1,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the curves into this folder.")] = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Calibrate where needed and measure the query table of an elastic network."""
    from dataclasses import asdict

    from leanconv.elastic import ElasticNet, QueryTable, calibrate
    from leanconv.report import print_table, query_table, save_curves

    network, images = open_run(model, data, side, trust_code=trust_code)
    if not isinstance(network, ElasticNet):
        raise LeanconvError(f"{model} has a single configuration: a query table is for elastic networks")
    if out is not None and out.suffix not in (".json", ".csv"):
        raise LeanconvError(f"--out {out}: expected a name that ends in .json or .csv")
    configs = network.configurations(step)
    missing = [config for config in configs if not network.can_evaluate(config.width, config.resolution)]
    if missing:
        calibrate(network, images.train_loader(), missing)
    measured = QueryTable.measure(network, images.eval_loader(), configs=configs, latency=latency, threads=threads)
    if out is not None:
        measured.save(out)
    if plots is not None:
        save_curves(measured, plots, title=model)
    if json:
        say_json([asdict(row) for row in measured.rows])
    else:
        print_table(query_table(measured.rows, title=model))
