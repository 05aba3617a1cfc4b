"""`leanconv table`: what an elastic network scores and costs in each configuration, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanconv.cli.common import JsonOption, TrustOption, open_run, say_json
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from leanconv.elastic import ElasticNet
    from leanconv.query import Setting


def run(
    model: Annotated[
        str, typer.Argument(metavar="FOLDER", help="The run folder or saved model of an elastic network.")
    ],
    data: Annotated[str | None, typer.Option(metavar="SPEC", help="The images; by default the run's.")] = None,
    side: Annotated[int | None, typer.Option("--size", metavar="PIXELS", help="Side of the images.")] = None,
    step: Annotated[float, typer.Option(help="Distance between the widths of the grid.")] = 0.05,
    resolutions: Annotated[
        list[int], typer.Option("--resolution", metavar="PIXELS", help="Of the grid, any number of times; default all.")
    ] = [],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table (.json or .csv).")] = None,
    latency: Annotated[bool, typer.Option(help="Measure milliseconds on this machine as well.")] = True,
    backends: Annotated[
        list[str],
        typer.Option("--backend", metavar="NAME", help="eager, compile, onnxruntime, openvino; default eager."),
    ] = [],
    threads: Annotated[list[int], typer.Option(help="Threads while latency is measured; any number of times.")] = [1],
    batches: Annotated[list[int], typer.Option("--batch", help="Images per timed call; any number of times.")] = [1],
    store: Annotated[
        bool, typer.Option(help="Keep the BatchNorm statistics of new configurations in the model's folder.")
    ] = True,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the curves into this folder.")] = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Calibrate where needed and measure the query table of an elastic network."""
    from dataclasses import asdict

    from leanconv.elastic import ElasticNet, calibrate
    from leanconv.query import QueryTable, time_table
    from leanconv.report import print_table, query_table, save_curves

    network, images, recipe = open_run(model, data, side, trust_code=trust_code)
    if not isinstance(network, ElasticNet):
        raise LeanconvError(f"{model} has a single configuration: a query table is for elastic networks")
    if out is not None and out.suffix not in (".json", ".csv"):
        raise LeanconvError(f"--out {out}: expected a name that ends in .json or .csv")
    settings = _settings(backends or ["eager"], threads, batches) if latency else []
    sides = [network.checked(network.widths[1], side).resolution for side in resolutions] or network.resolutions
    configs = [config for config in network.configurations(step) if config.resolution in sides]
    missing = [config for config in configs if not network.can_evaluate(*config)]
    if missing:
        if recipe is not None:
            images.set_epoch(recipe.epochs)  # images as training has not seen them
        calibrate(network, images.train_loader(), missing)
        if store:
            _store(network, Path(model))
    direct = bool(settings) and settings[0].backend == "eager"
    measured = QueryTable.measure(
        network,
        images.eval_loader(),
        configs=configs,
        latency=direct,
        threads=threads[0],
        batch=batches[0],
    )
    measured = time_table(measured, network, settings[direct:])
    if out is not None:
        measured.save(out)
    if plots is not None:
        save_curves(measured, plots, title=model)
    if json:
        say_json([asdict(row) for row in measured.rows])
    else:
        print_table(query_table(measured.rows, title=model))


def _store(network: ElasticNet, folder: Path) -> None:
    from leanconv.build import save

    save(network, folder / "model" if (folder / "model").is_dir() else folder)


def _settings(backends: list[str], threads: list[int], batches: list[int]) -> list[Setting]:
    """Every back-end with every number of threads and batch: one latency column each."""
    from itertools import product

    from leanconv.query import Setting

    for name, values in (("--threads", threads), ("--batch", batches)):
        if min(values) < 1:
            raise LeanconvError(f"{name} {min(values)}: expected a whole number from 1")
    return list(dict.fromkeys(Setting(*choice) for choice in product(backends, threads, batches)))
