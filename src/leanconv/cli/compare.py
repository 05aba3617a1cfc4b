"""`leanconv compare`: runs or saved models on the same test items, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.cli.options import (
    CropOption,
    ExifOption,
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
    from leanconv.recipes import LoadedRun, TestedRun


def run(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL MODEL ...", help="Run folders, saved models or exported files; two or more."),
    ],
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="The images or videos to test all on; default: each run's own.")
    ] = None,
    size: SizeOption = None,
    clips: Annotated[int | None, typer.Option(min=1, help="Clips per video; default: each run's, or 10.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the accuracy after each epoch of the run folders.")
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    interpolation: InterpolationOption = None,
    exif: ExifOption = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Compare networks on the same test items.

    Accuracies with their intervals, and how each network differs from the first on the same items, with the interval
    for pairs: it tells two networks apart where their own intervals overlap. Elastic networks are taken at their
    largest.
    """
    from leanconv.recipes import load_run, paired_with
    from leanconv.report import plot_runs, print_table, runs_table
    from leanconv.train.runfolder import read_rows

    if len(models) < 2:
        raise LeanconvError(f"compare needs two or more run folders or saved models, got {', '.join(models) or 'none'}")
    if twice := sorted({name for name in models if models.count(name) > 1}):
        raise LeanconvError(f"compare: {twice[0]} is named twice, and it differs from itself by nothing")
    from leanconv.recipes.detected import find_detector

    detectors = [find_detector(name, trust_code=trust_code) for name in models]
    if any(detectors):
        from leanconv.cli.objects import compare_objects, refuse

        refuse(size=size, clips=clips, out=out, mean=mean, std=std, crop=crop, interpolation=interpolation)
        if None in detectors:
            raise LeanconvError(f"{models[detectors.index(None)]} is no detector, and others here are")
        compare_objects([one for one in detectors if one is not None], data, json=json)
        return
    shape = read_size(size) if size else None
    given = read_contract(mean, std, crop, interpolation, exif)
    curves = {name: read_rows(Path(name) / "metrics.csv") for name in models}
    if out is not None and not any(curves.values()):
        raise LeanconvError(f"--out {out}: none of these is a run folder with a metrics.csv, so there are no curves")
    rows: list[dict[str, Any]] = []
    first: TestedRun | None = None
    for name in models:
        loaded = load_run(name, data=data, size=shape, given=given, trust_code=trust_code)
        if rows and loaded.data.unit != rows[0]["unit"]:
            raise LeanconvError(f"{name} is tested on {loaded.data.unit}s, and {models[0]} on {rows[0]['unit']}s")
        tested, row = _tested(name, loaded, clips)
        difference = None if first is None else paired_with(first, tested)
        rows.append({**row, "difference": difference})
        first = first or tested
    if out is not None:
        plot_runs(curves, out)
    if json:
        print_json(rows)
        return
    print_table(runs_table(rows, unit=str(rows[0]["unit"])))
    if out is not None:
        typer.echo(f"written: {out}")


def _tested(name: str, loaded: LoadedRun, clips: int | None) -> tuple[TestedRun, dict[str, Any]]:
    """The test of one network, and its row."""
    from leanconv.cost import measure
    from leanconv.recipes import TestedRun, evaluate_loaded

    data = loaded.data
    done = evaluate_loaded(loaded, clips=clips if data.unit == "video" else None)
    cost = measure(loaded.network.cpu(), data.input_size)
    called = name + done.configuration
    tested = TestedRun(name=called, predictions=done.result.predictions, class_names=data.class_names)
    return tested, {
        "model": called,
        "unit": data.unit,
        "part": done.part,
        "items": len(done.result.predictions),
        "top1": done.top1,
        "top1_interval": list(done.interval),
        "unreadable": len(done.unreadable),
        "params": cost.params,
        "macs": cost.macs,
    }
