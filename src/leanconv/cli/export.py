"""`leanconv export`: an ONNX file whose outputs were compared with the model's before it got its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.models import configuration, find
from leanconv.cli.options import (
    JsonOption,
    ModelArgument,
    ResolutionOption,
    RewriteOption,
    SetOption,
    SizeOption,
    TrustOption,
    WidthOption,
)
from leanconv.cli.output import print_json


def run(
    model: ModelArgument,
    path: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="Where to write.")],
    options: SetOption = [],
    rewrites: RewriteOption = [],
    size: SizeOption = None,
    width: WidthOption = None,
    resolution: ResolutionOption = None,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference from torch's outputs, as a share of the largest number of each.")
    ] = 1e-4,
    fixed_batch: Annotated[
        bool, typer.Option("--fixed-batch", help="Make the file for a batch of 1 instead of any batch.")
    ] = False,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Export to ONNX and compare the outputs.

    The file gets its name only after its outputs have been compared with torch's on new inputs.
    """
    from leanconv.deploy import export
    from leanconv.report import export_table, print_table

    found = find(model, options, rewrites, size, trust_code=trust_code)
    network, shape = configuration(found.final, found.final_size, width, resolution)
    report = export(network, path, size=shape, tolerance=tolerance, dynamic_batch=not fixed_batch)
    if json:
        print_json(report.to_json())
    else:
        print_table(export_table([report]))
