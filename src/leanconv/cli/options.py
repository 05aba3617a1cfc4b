"""Arguments and options that several verbs share, with their help."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "CropOption",
    "ExifOption",
    "FolderArgument",
    "InterpolationOption",
    "JsonOption",
    "MeanOption",
    "ModelArgument",
    "ResolutionOption",
    "RewriteOption",
    "SetOption",
    "SizeOption",
    "SizesOption",
    "StdOption",
    "TestedArgument",
    "TrustOption",
    "WidthOption",
]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A name (leanconv list), timm/NAME, torchvision/NAME, package:function, a saved model or hf:OWNER/NAME.",
    ),
]
FolderArgument = Annotated[str, typer.Argument(metavar="FOLDER", help="A run folder, a saved model, or hf:OWNER/NAME.")]
TestedArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run folder, a saved model, hf:OWNER/NAME, or a file (.onnx, .xml, .pt2)."),
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="OPTION=VALUE", help="An option of the model; any number of times.")
]
RewriteOption = Annotated[
    list[str],
    typer.Option(
        "--rewrite",
        metavar="STEM:OPTION=VALUE,...",
        help="A rewrite, for example osep:overlap=1; any number of times, in order.",
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="C,H,W", help="Shape of one input (C,FRAMES,H,W for clips); default: the model's own."
    ),
]
SizesOption = Annotated[
    list[str],
    typer.Option(
        "--size",
        metavar="C,H,W",
        help="Shape of one input (C,FRAMES,H,W for clips), once for each input; default: the model's own.",
    ),
]
WidthOption = Annotated[
    float | None, typer.Option(help="Share of the channels that an elastic network uses; default: the largest.")
]
ResolutionOption = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Input side of an elastic network; default: the largest.")
]
MeanOption = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Mean of the pixels, from 0 to 1; default: what the model was trained with."),
]
StdOption = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Standard deviation of the pixels; default: as the mean."),
]
CropOption = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Share of the resized image that is kept, the centre; default: the model's."),
]
InterpolationOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="bilinear, bicubic, ... in which images are resized.")
]
ExifOption = Annotated[
    bool | None,
    typer.Option("--exif/--no-exif", help="Whether photographs are turned as their EXIF says; default: the model's."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-code", help="Allow a file, or --set, to run the code that it names (package:function)."),
]
