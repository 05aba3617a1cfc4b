"""`leanconv export`: a file whose outputs were compared with the model's before it got its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.cli.models import attach_given, configuration, find
from leanconv.cli.options import (
    CropOption,
    ExifOption,
    InterpolationOption,
    JsonOption,
    MeanOption,
    ModelArgument,
    ResolutionOption,
    RewriteOption,
    SetOption,
    SizesOption,
    StdOption,
    TrustOption,
    WidthOption,
)
from leanconv.cli.output import print_json
from leanconv.cli.values import read_contract
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import nn

    from leanconv.data import InputContract
    from leanconv.deploy import ExportReport


def run(
    model: ModelArgument,
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Where to write: .onnx, .xml (OpenVINO) or .pt2 (torch); or a folder."),
    ],
    options: SetOption = [],
    rewrites: RewriteOption = [],
    size: SizesOption = [],
    width: WidthOption = None,
    resolution: ResolutionOption = None,
    input_type: Annotated[
        str,
        typer.Option("--input", metavar="TYPE", help="float32, normalised values; or uint8, pixels as they are."),
    ] = "float32",
    precision: Annotated[str, typer.Option(metavar="NAME", help="fp32, fp16 or int8 (which needs --data).")] = "fp32",
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Test the file on these images, and calibrate int8 on some.")
    ] = None,
    calibration: Annotated[
        int, typer.Option(min=1, help="Images that int8 is calibrated on, and not tested on.")
    ] = 128,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every configuration of this query table into the folder FILE."),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="SUFFIX", help="onnx, xml or pt2: the files of --table.")
    ] = "onnx",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference from torch's outputs, as a share of the largest number of each; default: 1e-4, in"
            " fp16 0.01, in int8 0.5."
        ),
    ] = None,
    fixed_batch: Annotated[
        bool, typer.Option("--fixed-batch", help="Make the file for a batch of 1 instead of any batch.")
    ] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Leave height and width free, where the network allows it.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile a .pt2 for this machine (AOTInductor); takes minutes.")
    ] = False,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Run chains and small convolutions by leanconv's own kernels: an .onnx, and the library for it.",
        ),
    ] = False,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    interpolation: InterpolationOption = None,
    exif: ExifOption = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Export to ONNX, OpenVINO or .pt2 and compare the outputs.

    The file gets its name only after its outputs have been compared with torch's on new inputs. It says how its input
    is made: size, crop, mean, std, names of the classes.
    """
    from leanconv.deploy import export
    from leanconv.dryrun import detector_in
    from leanconv.report import export_table, print_table

    found = find(model, options, rewrites, size, trust_code=trust_code)
    given = read_contract(mean, std, crop, interpolation, exif)
    attach_given(found.final, found.final_size, given)
    if data is not None and detector_in(found.final) is not None:
        raise LeanconvError(
            f"--data {data}: a detector's file is compared with the detector on images of its own; test the detector"
            " with leanconv eval"
        )
    settings: dict[str, Any] = {
        "input_type": input_type,
        "precision": precision,
        "calibration": calibration,
        "tolerance": tolerance,
        "dynamic_batch": not fixed_batch,
        "dynamic_size": dynamic_size,
        "compiled": compiled,
        "kernels": kernels,
    }
    if table is not None:
        if width is not None or resolution is not None:
            raise LeanconvError(f"--table {table}: it says which widths and resolutions; leave the options out")
        reports = _all(found.final, path, table, f".{form.removeprefix('.')}", data, settings)
    else:
        network, shape = configuration(found.final, found.final_size, width, resolution)
        loader = None if data is None else _images(data, _contract_for(network, shape))
        reports = [export(network, path, size=shape, data=loader, **settings)]
    if json:
        print_json(reports[0].to_json() if table is None else [report.to_json() for report in reports])
    else:
        print_table(export_table(reports))


def _contract_for(network: nn.Module, size: tuple[Any, ...]) -> InputContract:
    from leanconv.data.contract import contract_of

    contract = contract_of(network)
    if contract is None or not isinstance(size[0], int):
        raise LeanconvError(
            "--data: nothing says how the inputs of this model are made: say --mean R,G,B --std R,G,B (of values from 0"
            " to 1), and --crop and --interpolation where they were not the central square in one bilinear step"
        )
    return contract.at(size)


def _images(spec: str, contract: InputContract) -> Iterable[Any]:
    from leanconv.data import open_inputs

    return open_inputs(spec, contract, batch_size=32, testing=True).eval_loader()


def _all(
    network: nn.Module, folder: Path, table: Path, suffix: str, data: str | None, settings: dict[str, Any]
) -> list[ExportReport]:
    """Every configuration of a query table."""
    from leanconv.deploy.configurations import export_configurations
    from leanconv.elastic import ElasticNet
    from leanconv.query import QueryTable

    if not isinstance(network, ElasticNet):
        raise LeanconvError(f"--table {table}: this network has a single configuration; leave it out")
    measured = QueryTable.load(table)
    measured.check(network)
    configs = [row.config for row in measured.rows]
    loader = None if data is None else (lambda contract: _images(data, contract))
    return export_configurations(network, folder, configs, suffix=suffix, data=loader, **settings)
