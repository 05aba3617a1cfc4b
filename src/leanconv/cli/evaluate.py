"""`leanconv eval`: the accuracy of a saved model or a run on a set of images, or on whole videos."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.cli.options import (
    CropOption,
    ExifOption,
    InterpolationOption,
    JsonOption,
    MeanOption,
    ResolutionOption,
    StdOption,
    TestedArgument,
    TrustOption,
    WidthOption,
)
from leanconv.cli.output import print_json, write_json
from leanconv.cli.values import read_contract, read_size
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from leanconv.recipes import LoadedRun, Tested


def run(
    model: TestedArgument,
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="digits, folder:PATH, video-csv:TRAIN,TEST, ...; default: the run's."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="test, validation or train, as training has it; default: the test part, and of --data that is not"
            " split all of it.",
        ),
    ] = None,
    sizes: Annotated[
        list[str],
        typer.Option(
            "--size",
            metavar="C,H,W",
            help="Shape of one input (C,FRAMES,H,W for clips); several times: a row for each; default: the model's.",
        ),
    ] = [],
    width: WidthOption = None,
    resolution: ResolutionOption = None,
    clips: Annotated[
        int | None, typer.Option(min=1, help="Clips per video, evenly spread; default: the run's, or 10.")
    ] = None,
    crops: Annotated[
        int | None, typer.Option(help="Crops per clip: 1 (the centre) or 3; default: the run's, or 1.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Another run on videos to show beside it, such as a single-frame one."),
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also a row for each class.")] = False,
    confusions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write who is taken for whom, as a picture (.png) or as numbers (.json)."),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write the prediction for every image or video.")
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw images, or clips as rows of frames, with label and prediction."),
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    interpolation: InterpolationOption = None,
    exif: ExifOption = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Test a network on images or videos.

    They are prepared as those that it was trained on, and data that is not split is used whole. Top-1 and top-5
    accuracy on images, average precision of detectors; clip@1, video@1 and video@5 on whole videos; with 95 %
    intervals.
    """
    from leanconv.recipes.detected import find_detector, is_results

    detector = None if is_results(model) else find_detector(model, trust_code=trust_code)
    if detector is not None or is_results(model):
        from leanconv.cli.objects import eval_objects, refuse, refuse_file
        from leanconv.recipes import evaluate
        from leanconv.recipes.detected import evaluate_objects, open_for

        refuse(part=part, size=sizes, clips=clips, crops=crops, baseline=baseline, per_class=per_class)
        refuse(confusions=confusions, contact_sheet=contact_sheet, mean=mean, std=std, crop=crop)
        refuse(interpolation=interpolation, exif=exif)
        refuse_file("--predictions", predictions, ".json")
        if detector is None:
            tested: Any = evaluate(model, data, width=width, resolution=resolution)
        else:
            tested = evaluate_objects(detector, open_for(detector, data), width=width, resolution=resolution)
        eval_objects(tested, model, predictions=predictions, json=json)
        return
    from leanconv.recipes import evaluate_loaded, load_run

    shapes = [read_size(size) for size in sizes]
    given = read_contract(mean, std, crop, interpolation, exif)
    if confusions is not None and confusions.suffix not in (".png", ".json"):
        raise LeanconvError(f"--confusions {confusions}: expected a name that ends in .png or .json")
    if len(shapes) > 1:
        if per_class or any(option is not None for option in (baseline, confusions, predictions, contact_sheet)):
            raise LeanconvError(
                "--baseline, --per-class, --confusions, --predictions and --contact-sheet are for one --size"
            )
        wanted = partial(load_run, model, data=data, given=given, part=part, trust_code=trust_code)
        views = {"width": width, "resolution": resolution, "clips": clips, "crops": crops}
        _at_sizes(model, [wanted(size=shape) for shape in shapes], views, json)
        return
    shape = shapes[0] if shapes else None
    loaded = load_run(model, data=data, size=shape, given=given, part=part, trust_code=trust_code)
    videos = loaded.data.unit == "video"
    if not videos and any(value is not None for value in (clips, crops, baseline)):
        raise LeanconvError(f"{model} is tested on images: --clips, --crops and --baseline are for videos")
    other = None if baseline is None else load_run(baseline, data=data, size=shape, part=part, trust_code=trust_code)
    if other is not None and other.data.unit != "video":
        raise LeanconvError(f"--baseline {baseline}: it was made for images, and {model} is tested on videos")
    tested = evaluate_loaded(
        loaded,
        width=width,
        resolution=resolution,
        clips=clips,
        crops=crops,
        predictions=predictions,
        contact_sheet=contact_sheet,
    )
    figures = tested.figures(model)
    others = [] if other is None else [evaluate_loaded(other, clips=clips, crops=crops).figures(str(baseline))]
    by_class = _by_class(tested, confusions, per_class)
    if json:
        told = {**figures, **({"per_class": by_class} if per_class else {})}
        print_json(told if not others else {**told, "baseline": others[0]})
        return
    _print(figures, others, tested, loaded.data.unit)
    if per_class:
        from leanconv.report import classes_table, print_table

        print_table(classes_table(by_class))
    for path in (predictions, contact_sheet, confusions):
        if path is not None:
            typer.echo(f"written: {path}")
    if tested.part == "validation" and part is None:
        typer.echo("the data has no test part: this is its validation part, by which the best epoch was chosen")
    elif tested.part != "test":
        typer.echo(f"this is the {tested.part} part, as training has it, and no test part")
    for remark in tested.remarks:
        typer.echo(remark)


def _at_sizes(name: str, runs: Sequence[LoadedRun], views: dict[str, Any], json: bool) -> None:
    """The same network, opened at several sizes: what it scores at each, as a table."""
    from leanconv.recipes import evaluate_loaded
    from leanconv.report import print_table, sizes_table

    if runs[0].data.unit != "video" and any(views[name] is not None for name in ("clips", "crops")):
        raise LeanconvError(f"{name} is tested on images: --clips and --crops are for videos")
    tested = [evaluate_loaded(loaded, **views) for loaded in runs]
    rows = [
        {**test.figures(name), "size": list(loaded.data.input_size)} for test, loaded in zip(tested, runs, strict=True)
    ]
    if json:
        print_json(rows)
        return
    print_table(sizes_table(rows))
    if tested[0].part != "test":
        typer.echo(f"this is the {tested[0].part} part, as training has it, and no test part")
    for remark in tested[0].remarks:
        typer.echo(remark)


def _by_class(tested: Tested, path: Path | None, wanted: bool) -> list[dict[str, Any]]:
    """The rows of the classes, where they are `wanted`; writes the confusions to `path`."""
    from leanconv.train import called
    from leanconv.train import confusions as count

    if path is None and not wanted:
        return []
    counts = count(tested.result.predictions, tested.result.classes)
    names = [called(tested.class_names, number) for number in range(tested.result.classes)]
    if path is not None and path.suffix == ".json":
        write_json({"class_names": names, "counts": counts, "rows": "labels", "columns": "predictions"}, path)
    elif path is not None:
        from leanconv.report import plot_confusions

        plot_confusions(counts, names, path)
    from leanconv.train import per_class

    return per_class(counts, names)


def _print(figures: dict[str, Any], others: list[dict[str, Any]], tested: Tested, unit: str) -> None:
    """The figures, and below them what could not be read, by name."""
    from leanconv.report import percent, percent_interval, print_table, videos_table

    unread = ""
    if figures["unreadable"]:
        broken = figures["unreadable"] - figures["missing"]
        unread = f"; {figures['unreadable']} more could not be read ({broken} broken, {figures['missing']} missing)"
    if unit == "video":
        print_table(videos_table([figures, *others], unread=unread))
    else:
        shares = [
            f"{called} {percent(figures[key], 2)} % ({percent_interval(*figures[f'{key}_interval'])})"
            for key, called in (("top1", "top-1"), ("top5", "top-5"))
            if figures[key] is not None
        ]
        typer.echo(f"{figures['model']}: {', '.join(shares)} on {figures['images']} images{unread}")
    if unread:
        names = ", ".join(problem.name for problem in tested.unreadable[:5])
        typer.echo(f"{figures['unreadable']} {unit}s could not be read: {names}")
