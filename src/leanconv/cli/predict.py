"""`leanconv predict`: what a model takes images or videos for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.options import (
    CropOption,
    ExifOption,
    InterpolationOption,
    JsonOption,
    MeanOption,
    ResolutionOption,
    SetOption,
    SizeOption,
    StdOption,
    TrustOption,
    WidthOption,
)
from leanconv.cli.output import print_json
from leanconv.cli.values import read_contract, read_options, read_size
from leanconv.errors import LeanconvError


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A saved model, a run folder, hf:OWNER/NAME, an exported file (.onnx, .xml, .pt2), or a name with"
            " weights: timm/resnet18 --set pretrained=true.",
        ),
    ],
    files: Annotated[
        list[str], typer.Argument(metavar="FILE|FOLDER|GLOB ...", help="Images, or videos for a network for clips.")
    ],
    settings: SetOption = [],
    top: Annotated[int, typer.Option(min=1, help="How many classes of each, the most probable first.")] = 5,
    clips: Annotated[int | None, typer.Option(min=1, help="Clips per video; default: the model's, or 10.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write the prediction for every file.")
    ] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the first of them with their predictions.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Of a detector: draw boxes and masks into every image, here.")
    ] = None,
    least: Annotated[float, typer.Option(help="Of a detector: the least score that is shown.")] = 0.5,
    size: SizeOption = None,
    width: WidthOption = None,
    resolution: ResolutionOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    interpolation: InterpolationOption = None,
    exif: ExifOption = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Predict the classes of images or videos, or find the objects in images.

    They are prepared as `eval` prepares them, by the model's input contract. What cannot be read is named, and the
    others go on. Of a detector --predictions FILE.json is written in COCO's format of results.
    """
    from leanconv.recipes.detected import find_detector

    if (detector := find_detector(model, trust_code=trust_code)) is not None:
        from leanconv.cli.objects import predict_objects, refuse

        refuse(set=settings, clips=clips, size=size, mean=mean, std=std, crop=crop, interpolation=interpolation)
        predict_objects(
            detector,
            files,
            width=width,
            resolution=resolution,
            least=least,
            predictions=predictions,
            contact_sheet=contact_sheet,
            pictures=pictures,
            json=json,
        )
        return
    if pictures is not None:
        raise LeanconvError(f"--pictures {pictures}: {model} finds no objects; draw its answers with --contact-sheet")
    from leanconv.recipes import predict
    from leanconv.recipes.predicted import Predicted
    from leanconv.report import predictions_table, print_table
    from leanconv.train import save_predictions

    told = predict(
        model,
        files,
        top=top,
        options=read_options(settings),
        size=read_size(size) if size else None,
        width=width,
        resolution=resolution,
        clips=clips,
        given=read_contract(mean, std, crop, interpolation, exif),
        contact_sheet=contact_sheet,
        trust_code=trust_code,
    )
    assert isinstance(told, Predicted)  # detectors are done with
    if predictions is not None:
        save_predictions(predictions, told.predictions, told.class_names)
    if json:
        unread = [{"name": problem.name, "reason": problem.reason} for problem in told.unreadable]
        print_json({"model": model, "predictions": told.rows(), "unreadable": unread})
        return
    print_table(predictions_table(told.rows()))
    for path in (predictions, contact_sheet):
        if path is not None:
            typer.echo(f"written: {path}")
    if problems := told.unreadable:
        missing = sum(problem.is_missing for problem in problems)
        typer.echo(
            f"{len(problems)} of {len(told.predictions) + len(problems)} files could not be read"
            f" ({len(problems) - missing} broken, {missing} missing):"
            f" {', '.join(problem.name for problem in problems[:5])}"
        )
