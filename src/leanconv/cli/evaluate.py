"""`leanconv eval`: the accuracy of a saved model or a run on a set of images, or on whole videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from leanconv.cli.common import JsonOption, Opened, TrustOption, configuration, open_run, say_json
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import nn

    from leanconv.data import ImageData, VideoData


def run(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help="A run folder or a saved model.")],
    data: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="digits, folder:PATH, video-csv:TRAIN,TEST, ...; default: the run's."),
    ] = None,
    side: Annotated[int | None, typer.Option("--size", metavar="PIXELS", help="Side of the images.")] = None,
    width: Annotated[float | None, typer.Option(help="Of an elastic network: the share of its channels.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Of an elastic network: the input side.")] = None,
    clips: Annotated[
        int | None, typer.Option(min=1, help="Clips per video, evenly spread; default: the run's, or 10.")
    ] = None,
    crops: Annotated[
        int | None, typer.Option(help="Crops per clip: 1 (centre) or 3; default: the run's, or 1.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="A run on videos to print beside it, such as a single-frame one."),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write what was said of every video.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw clips as rows of frames, with label and prediction.")
    ] = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Evaluate on the test images (top-1 and top-5 accuracy) or videos (clip@1, video@1 and video@5)."""
    opened = open_run(model, data, side, trust_code=trust_code)
    if opened.data.unit != "video":
        if any(value is not None for value in (clips, crops, baseline, predictions, sheet)):
            raise LeanconvError(
                f"{model} is tested on images: --clips, --crops, --baseline, --predictions and --sheet are for videos"
            )
        _images(model, opened, width, resolution, json)
        return
    other = None if baseline is None else open_run(baseline, data, side, trust_code=trust_code)
    if other is not None and other.data.unit != "video":
        raise LeanconvError(f"--baseline {baseline}: it was made for images, and {model} is tested on videos")
    rows = [_videos(model, opened, clips, crops, width, resolution, predictions=predictions, sheet=sheet)]
    if other is not None:
        rows.append(_videos(str(baseline), other, clips, crops))
    if json:
        say_json(rows[0] if other is None else {**rows[0], "baseline": rows[1]})
        return
    _print_videos(rows)
    for path in (predictions, sheet):
        if path is not None:
            typer.echo(f"written: {path}")
    _print_problems(opened.data)


def _images(model: str, opened: Opened, width: float | None, resolution: int | None, json: bool) -> None:
    from leanconv.report import percent
    from leanconv.train import evaluate

    with _configured(opened.network, width, resolution) as (network, told):
        result = evaluate(network, opened.data.eval_loader())
    if json:
        say_json({**asdict(result), "unreadable": len(opened.data.problems)})
        return
    five = "" if result.top5 is None else f", top-5 {percent(result.top5, 2)} %"
    typer.echo(f"{model}{told}: top-1 {percent(result.top1, 2)} %{five} on {result.images} images")
    _print_problems(opened.data)


def _videos(
    name: str,
    opened: Opened,
    clips: int | None,
    crops: int | None,
    width: float | None = None,
    resolution: int | None = None,
    *,
    predictions: Path | None = None,
    sheet: Path | None = None,
) -> dict[str, Any]:
    """The figures of one network, under its name."""
    from leanconv.recipes import score_videos, video_figures

    data = cast("VideoData", opened.data)
    settings = None if opened.recipe is None else opened.recipe.data.video
    clips = clips or (settings.test_clips if settings else 10)
    crops = crops or (settings.test_crops if settings else 1)
    with _configured(opened.network, width, resolution) as (network, told):
        evaluation = score_videos(network, data, clips=clips, crops=crops, predictions=predictions, sheet=sheet)
    figures = video_figures(evaluation, clips=clips, crops=crops)
    return {"model": name + told, **figures, "unreadable": len(data.problems)}


@contextmanager
def _configured(network: nn.Module, width: float | None, resolution: int | None) -> Iterator[tuple[nn.Module, str]]:
    """The network to test, an elastic one at the width and resolution asked for, and words that say which."""
    import torch

    from leanconv.elastic import ElasticNet

    network.eval()
    if torch.cuda.is_available():
        network.cuda()
    if not isinstance(network, ElasticNet):
        yield configuration(network, (), width, resolution)[0], ""
        return
    config = network.checked(width or network.widths[1], resolution or network.resolutions[0])
    with network.at(width=config.width, resolution=config.resolution):
        yield network, f" at width {config.width:g}, resolution {config.resolution}"


def _print_videos(figures: Sequence[Mapping[str, Any]]) -> None:
    from leanconv.report import Column, Sheet, percent, print_table

    first = figures[0]
    chance = first["chance"]
    five = None if first["video5"] is None else 5 * chance
    rows = [*figures, {"model": "chance", "clip1": chance, "video1": chance, "video5": five}]
    clips = "1 clip" if first["clips"] == 1 else f"{first['clips']} clips"
    crops = "the centre of each" if first["crops"] == 1 else f"{first['crops']} crops of each"
    print_table(
        Sheet(
            title="",
            columns=(
                Column("model", "left", cut=1),
                Column("clip@1 [%]"),
                Column("video@1 [%]"),
                Column("video@5 [%]"),
            ),
            rows=tuple(
                (row["model"], *(percent(row[name], 2) for name in ("clip1", "video1", "video5"))) for row in rows
            ),
            notes=(f"{first['videos']} videos, {clips} of each, {crops}.",),
        )
    )


def _print_problems(data: ImageData | VideoData) -> None:
    if data.problems:
        names = ", ".join(problem.name for problem in data.problems[:5])
        typer.echo(f"{len(data.problems)} {data.unit}s could not be read: {names}")
