"""`leanconv export`: an ONNX file whose outputs were compared with the model's before it got its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.models import configuration, find
from leanconv.cli.options import JsonOption, ModelArgument, RewriteOption, SetOption, SizeOption, TrustOption
from leanconv.cli.output import print_json


def run(
    model: ModelArgument,
    path: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="Where to write.")],
    options: SetOption = [],
    rewrites: RewriteOption = [],
    size: SizeOption = None,
    width: Annotated[float | None, typer.Option(help="Of an elastic network: the share of its channels.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Of an elastic network: the input side.")] = None,
    tolerance: Annotated[float, typer.Option(help="Largest absolute difference from torch.")] = 1e-4,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="Batch size 1 instead of any.")] = False,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Export to ONNX, compare with torch on fresh inputs, then give the file its name."""
    from leanconv.deploy import export
    from leanconv.report import export_table, print_table

    found = find(model, options, rewrites, size, trust_code=trust_code)
    network, shape = configuration(found.final, found.size, width, resolution)
    report = export(network, path, size=shape, tolerance=tolerance, dynamic_batch=not fixed_batch)
    if json:
        print_json(report.to_json())
    else:
        print_table(export_table([report]))
