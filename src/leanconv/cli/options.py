"""Arguments and options that several verbs share, with their help."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "FolderArgument",
    "JsonOption",
    "ModelArgument",
    "ResolutionOption",
    "RewriteOption",
    "SetOption",
    "SizeOption",
    "SizesOption",
    "TrustOption",
    "WidthOption",
]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name (leanconv list), timm/NAME, torchvision/NAME, package:function or a saved model."
    ),
]
FolderArgument = Annotated[str, typer.Argument(metavar="FOLDER", help="A run folder, or a saved model.")]
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TrustOption = Annotated[
    bool,
    typer.Option("--trust-code", help="Allow a saved model to run the code that it names (package:function)."),
]
