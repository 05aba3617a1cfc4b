"""`leanconv eval`: the accuracy of a saved model or a run on a set of images, or on whole videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
    SizeOption,
    StdOption,
    TrustOption,
    WidthOption,
)
from leanconv.cli.output import print_json
from leanconv.cli.values import read_contract, read_size
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import nn

    from leanconv.data import ImageData, VideoData
    from leanconv.recipes import LoadedRun


def run(
    model: FolderArgument,
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="digits, folder:PATH, video-csv:TRAIN,TEST, ...; default: the run's."),
    ] = None,
    size: SizeOption = None,
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
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write the prediction for every video.")
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw clips as rows of frames, each with its label and prediction."),
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
    accuracy on images; clip@1, video@1 and video@5 on whole videos.
    """
    from leanconv.recipes import load_run

    shape = read_size(size) if size else None
    given = read_contract(mean, std, crop, interpolation, exif)
    loaded = load_run(model, data=data, size=shape, given=given, trust_code=trust_code)
    if loaded.data.unit != "video":
        if any(value is not None for value in (clips, crops, baseline, predictions, contact_sheet)):
            raise LeanconvError(
                f"{model} is tested on images: --clips, --crops, --baseline, --predictions and --contact-sheet are for"
                " videos"
            )
        _images(model, loaded, width, resolution, json)
        return
    other = None if baseline is None else load_run(baseline, data=data, size=shape, trust_code=trust_code)
    if other is not None and other.data.unit != "video":
        raise LeanconvError(f"--baseline {baseline}: it was made for images, and {model} is tested on videos")
    rows = [_videos(model, loaded, clips, crops, width, resolution, predictions, contact_sheet)]
    if other is not None:
        rows.append(_videos(str(baseline), other, clips, crops))
    if json:
        print_json(rows[0] if other is None else {**rows[0], "baseline": rows[1]})
        return
    from leanconv.report import print_table, videos_table

    print_table(videos_table(rows))
    for path in (predictions, contact_sheet):
        if path is not None:
            typer.echo(f"written: {path}")
    _print_problems(loaded.data)


def _images(model: str, loaded: LoadedRun, width: float | None, resolution: int | None, json: bool) -> None:
    from leanconv.report import percent
    from leanconv.train import evaluate

    with _configured(loaded.network, width, resolution) as (network, which):
        result = evaluate(network, loaded.data.eval_loader())
    if json:
        figures = {**asdict(result), "unreadable": len(loaded.data.problems), "remarks": list(loaded.data.remarks)}
        print_json(figures)
        return
    five = "" if result.top5 is None else f", top-5 {percent(result.top5, 2)} %"
    typer.echo(f"{model}{which}: top-1 {percent(result.top1, 2)} %{five} on {result.images} images")
    _print_problems(loaded.data)


def _videos(
    name: str,
    loaded: LoadedRun,
    clips: int | None,
    crops: int | None,
    width: float | None = None,
    resolution: int | None = None,
    predictions: Path | None = None,
    contact_sheet: Path | None = None,
) -> dict[str, Any]:
    """The figures of one network, under its name."""
    from leanconv.data import contract_of
    from leanconv.recipes import score_videos, video_figures

    data = cast("VideoData", loaded.data)
    settings = None if loaded.recipe is None else loaded.recipe.data.video
    views = contract_of(loaded.network)
    clip = None if views is None else views.clip
    clips = clips or (settings.test_clips if settings else clip.clips if clip else 10)
    crops = crops or (settings.test_crops if settings else clip.crops if clip else 1)
    with _configured(loaded.network, width, resolution) as (network, which):
        evaluation = score_videos(
            network, data, clips=clips, crops=crops, predictions=predictions, contact_sheet=contact_sheet
        )
    figures = video_figures(evaluation, clips=clips, crops=crops)
    return {"model": name + which, **figures, "unreadable": len(data.problems)}


@contextmanager
def _configured(network: nn.Module, width: float | None, resolution: int | None) -> Iterator[tuple[nn.Module, str]]:
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


def _print_problems(data: ImageData | VideoData) -> None:
    for remark in data.remarks:
        typer.echo(remark)
    if data.problems:
        names = ", ".join(problem.name for problem in data.problems[:5])
        typer.echo(f"{len(data.problems)} {data.unit}s could not be read: {names}")
