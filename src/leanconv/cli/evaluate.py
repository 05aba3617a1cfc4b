"""`leanconv eval`: the accuracy of a saved model or a run on a set of images, or on whole videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from leanconv.cli.models import configuration
from leanconv.cli.options import (
    CropOption,
    ExifOption,
    FolderArgument,
    InterpolationOption,
    JsonOption,
    MeanOption,
    ResolutionOption,
    StdOption,
    TrustOption,
    WidthOption,
)
from leanconv.cli.output import print_json, write_json
from leanconv.cli.values import read_contract, read_size
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import nn

    from leanconv.data import ImageData, VideoData
    from leanconv.recipes import LoadedRun
    from leanconv.train import Evaluation, VideoEvaluation


def run(
    model: FolderArgument,
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="digits, folder:PATH, video-csv:TRAIN,TEST, ...; default: the run's."),
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
    accuracy on images; clip@1, video@1 and video@5 on whole videos; with 95 % intervals.
    """
    from leanconv.recipes import load_run

    shapes = [read_size(size) for size in sizes]
    given = read_contract(mean, std, crop, interpolation, exif)
    if confusions is not None and confusions.suffix not in (".png", ".json"):
        raise LeanconvError(f"--confusions {confusions}: expected a name that ends in .png or .json")
    if len(shapes) > 1:
        if per_class or any(option is not None for option in (baseline, confusions, predictions, contact_sheet)):
            raise LeanconvError(
                "--baseline, --per-class, --confusions, --predictions and --contact-sheet are for one --size"
            )
        wanted = partial(load_run, model, data=data, given=given, trust_code=trust_code)
        _at_sizes(model, [wanted(size=shape) for shape in shapes], _Views(clips, crops), width, resolution, json)
        return
    shape = shapes[0] if shapes else None
    loaded = load_run(model, data=data, size=shape, given=given, trust_code=trust_code)
    views = _Views(clips, crops, predictions, contact_sheet)
    others: list[dict[str, Any]] = []
    tested: Evaluation | VideoEvaluation
    if loaded.data.unit == "video":
        other = None if baseline is None else load_run(baseline, data=data, size=shape, trust_code=trust_code)
        if other is not None and other.data.unit != "video":
            raise LeanconvError(f"--baseline {baseline}: it was made for images, and {model} is tested on videos")
        tested, figures = _videos(model, loaded, views, width, resolution)
        if other is not None:
            others.append(_videos(str(baseline), other, _Views(clips, crops))[1])
    else:
        if any(value is not None for value in (clips, crops, baseline)):
            raise LeanconvError(f"{model} is tested on images: --clips, --crops and --baseline are for videos")
        tested, figures = _images(model, loaded, views, width, resolution)
    by_class = _by_class(tested, loaded.data, confusions, per_class)
    if json:
        told = {**figures, **({"per_class": by_class} if per_class else {})}
        print_json(told if not others else {**told, "baseline": others[0]})
        return
    _print(figures, others, loaded.data)
    if per_class:
        from leanconv.report import classes_table, print_table

        print_table(classes_table(by_class))
    for path in (predictions, contact_sheet, confusions):
        if path is not None:
            typer.echo(f"written: {path}")
    if not loaded.data.has_test:
        typer.echo("the data has no test part: this is its validation part, by which the best epoch was chosen")
    for remark in loaded.data.remarks:
        typer.echo(remark)


class _Views(NamedTuple):
    """What is asked for of a test: clips and crops of videos, and files to write."""

    clips: int | None = None
    crops: int | None = None
    predictions: Path | None = None
    contact_sheet: Path | None = None


def _images(
    name: str, loaded: LoadedRun, views: _Views, width: float | None, resolution: int | None
) -> tuple[Evaluation, dict[str, Any]]:
    """The test of one network on images, and its figures under its name."""
    from leanconv.recipes import image_figures, score_images

    with configured(loaded.network, width, resolution) as (network, which):
        evaluation = score_images(
            network,
            cast("ImageData", loaded.data),
            predictions=views.predictions,
            contact_sheet=views.contact_sheet,
        )
    return evaluation, {
        "model": name + which,
        **image_figures(evaluation),
        **_what_it_was(loaded.data),
        "remarks": list(loaded.data.remarks),
    }


def _at_sizes(
    name: str, runs: Sequence[LoadedRun], views: _Views, width: float | None, resolution: int | None, json: bool
) -> None:
    """The same network, opened at several sizes: what it scores at each, as a table."""
    from leanconv.report import print_table, sizes_table

    rows: list[dict[str, Any]] = []
    for loaded in runs:
        test = _videos if loaded.data.unit == "video" else _images
        rows.append({**test(name, loaded, views, width, resolution)[1], "size": list(loaded.data.input_size)})
    if json:
        print_json(rows)
    else:
        print_table(sizes_table(rows))


def _videos(
    name: str, loaded: LoadedRun, views: _Views, width: float | None = None, resolution: int | None = None
) -> tuple[VideoEvaluation, dict[str, Any]]:
    """The test of one network on videos, and its figures under its name."""
    from leanconv.recipes import score_videos, video_figures

    data = cast("VideoData", loaded.data)
    clips, crops = loaded.views(views.clips, views.crops)
    with configured(loaded.network, width, resolution) as (network, which):
        evaluation = score_videos(
            network,
            data,
            clips=clips,
            crops=crops,
            predictions=views.predictions,
            contact_sheet=views.contact_sheet,
        )
    figures = video_figures(evaluation, clips=clips, crops=crops)
    return evaluation, {"model": name + which, **figures, **_what_it_was(data)}


def _what_it_was(data: ImageData | VideoData) -> dict[str, Any]:
    """The part of the data, how many of its files could not be read, and how many of these are not there at all."""
    problems = data.test_problems
    return {
        "part": "test" if data.has_test else "validation",
        "unreadable": len(problems),
        "missing": sum(problem.is_missing for problem in problems),
    }


def _by_class(
    tested: Evaluation | VideoEvaluation, data: ImageData | VideoData, path: Path | None, wanted: bool
) -> list[dict[str, Any]]:
    """The rows of the classes, where they are `wanted`; writes the confusions to `path`."""
    from leanconv.train import called
    from leanconv.train import confusions as count

    if path is None and not wanted:
        return []
    counts = count(tested.predictions, tested.classes)
    names = [called(data.class_names, number) for number in range(tested.classes)]
    if path is not None and path.suffix == ".json":
        write_json({"class_names": names, "counts": counts, "rows": "labels", "columns": "predictions"}, path)
    elif path is not None:
        from leanconv.report import plot_confusions

        plot_confusions(counts, names, path)
    from leanconv.train import per_class

    return per_class(counts, names)


def _print(figures: dict[str, Any], others: list[dict[str, Any]], data: ImageData | VideoData) -> None:
    """The figures, and below them what could not be read, by name."""
    from leanconv.report import percent, percent_interval, print_table, videos_table

    unread = ""
    if figures["unreadable"]:
        broken = figures["unreadable"] - figures["missing"]
        unread = f"; {figures['unreadable']} more could not be read ({broken} broken, {figures['missing']} missing)"
    if data.unit == "video":
        print_table(videos_table([figures, *others], unread=unread))
    else:
        shares = [
            f"{called} {percent(figures[key], 2)} % ({percent_interval(*figures[f'{key}_interval'])})"
            for key, called in (("top1", "top-1"), ("top5", "top-5"))
            if figures[key] is not None
        ]
        typer.echo(f"{figures['model']}: {', '.join(shares)} on {figures['images']} images{unread}")
    if unread:
        names = ", ".join(problem.name for problem in data.test_problems[:5])
        typer.echo(f"{figures['unreadable']} {data.unit}s could not be read: {names}")


@contextmanager
def configured(network: nn.Module, width: float | None, resolution: int | None) -> Iterator[tuple[nn.Module, str]]:
    """The network to test, an elastic one at the width and resolution asked for, and words that say which."""
    import torch

    from leanconv.elastic import ElasticNet

    if torch.cuda.is_available():
        network.cuda()
    if not isinstance(network, ElasticNet):
        yield configuration(network, (), width, resolution)[0], ""
        return
    config = network.checked(width or network.widths[1], resolution or network.resolutions[0])
    with network.at(width=config.width, resolution=config.resolution):
        yield network, f" at width {config.width:g}, resolution {config.resolution}"
