"""`leanconv table`: what an elastic network scores and costs in each configuration, measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from leanconv.cli.options import (
    CropOption,
    ExifOption,
    FolderArgument,
    InterpolationOption,
    JsonOption,
    MeanOption,
    SizeOption,
    StdOption,
    TrustOption,
)
from leanconv.cli.output import print_json
from leanconv.cli.values import read_contract, read_size
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from leanconv.query import TimingSetup


def run(
    model: FolderArgument,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="The images or videos to test on; default: the run's.")
    ] = None,
    size: SizeOption = None,
    step: Annotated[float, typer.Option(help="Distance between the widths of the table.")] = 0.05,
    resolutions: Annotated[
        list[int],
        typer.Option("--resolution", metavar="PIXELS", help="Only this one; any number of times; default: all."),
    ] = [],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the table here (.json or .csv).")] = None,
    latency: Annotated[bool, typer.Option(help="Measure milliseconds on this machine as well.")] = True,
    backends: Annotated[
        list[str],
        typer.Option(
            "--backend",
            metavar="NAME",
            help="What `bench --backends` takes, such as compile or onnxruntime; any number of times; default: eager.",
        ),
    ] = [],
    threads: Annotated[list[int], typer.Option(help="Threads while latency is measured; any number of times.")] = [1],
    batches: Annotated[list[int], typer.Option("--batch", help="Inputs per timed call; any number of times.")] = [1],
    store: Annotated[
        bool,
        typer.Option(help="Keep the BatchNorm statistics that are measured for this in the model's folder (not hf:)."),
    ] = True,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the curves into this folder.")] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    interpolation: InterpolationOption = None,
    exif: ExifOption = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Measure every configuration of an elastic network.

    Accuracy, MACs, parameters, memory and milliseconds: the query table that `leanconv pick` chooses from.
    """
    from dataclasses import asdict

    from leanconv.build import located, save
    from leanconv.elastic import ElasticNet, calibrate
    from leanconv.query import QueryTable
    from leanconv.recipes import load_run
    from leanconv.recipes.detected import find_detector, measure_objects, open_for
    from leanconv.report import print_table, query_table, save_curves
    from leanconv.train.runfolder import saved_model

    def leave(found: QueryTable, show: Callable[[], None]) -> None:
        """Write the table to where it is wanted, and print it."""
        if out is not None:
            found.save(out)
        if plots is not None:
            save_curves(found, plots, title=model)
        if json:
            print_json([asdict(row) for row in found.rows])
        else:
            show()

    if out is not None and out.suffix not in (".json", ".csv"):
        raise LeanconvError(f"--out {out}: expected a name that ends in .json or .csv")
    if (detector := find_detector(model, trust_code=trust_code)) is not None:
        from leanconv.cli.objects import refuse, table_text

        refuse(size=size, mean=mean, std=std, crop=crop, interpolation=interpolation)
        kept = saved_model(model) if store and located(model) == model else None
        opened = open_for(detector, data)
        table = measure_objects(detector, opened, step=step, resolutions=resolutions, store=kept)
        if latency:
            table = table.timed(cast("ElasticNet", detector.network), _setups(backends or ["eager"], threads, batches))
        leave(table, lambda: typer.echo(table_text(table)))
        return
    shape = read_size(size) if size else None
    given = read_contract(mean, std, crop, interpolation, exif)
    network, images, recipe = load_run(model, data=data, size=shape, given=given, trust_code=trust_code)
    if not isinstance(network, ElasticNet):
        raise LeanconvError(f"{model} is one network as it is: a query table is for elastic networks")
    setups = _setups(backends or ["eager"], threads, batches) if latency else []
    sides = [network.checked(network.widths[1], side).resolution for side in resolutions] or network.resolutions
    configs = [config for config in network.configurations(step) if config.resolution in sides]
    missing = [config for config in configs if not network.can_evaluate(*config)]
    if missing:
        training = images
        if data is not None:  # of a run its own training images, else those of the data, which are then not tested on
            named = data if recipe is None else None
            training = load_run(model, data=named, size=shape, given=given, whole=False, trust_code=trust_code).data
            images = training if recipe is None else images
        if recipe is not None:
            training.set_epoch(recipe.epochs)  # images as training has not seen them
        calibrate(network, training.train_loader(), missing)
        if store and located(model) == model:
            save(network, saved_model(model))
    measured = QueryTable.measure(network, images.eval_loader(), configs=configs, latency=False)
    measured = measured.timed(network, setups)
    leave(measured, lambda: print_table(query_table(measured.rows, title=model)))


def _setups(backends: list[str], threads: list[int], batches: list[int]) -> list[TimingSetup]:
    """Every back-end with every number of threads and batch: one latency column each."""
    from itertools import product

    from leanconv.query import TimingSetup

    for name, values in (("--threads", threads), ("--batch", batches)):
        if min(values) < 1:
            raise LeanconvError(f"{name} {min(values)}: expected a whole number from 1")
    return list(dict.fromkeys(TimingSetup(*choice) for choice in product(backends, threads, batches)))
