"""`leanconv import-weights`: one's own checkpoint, or weights that another project has released, as a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.cli.models import attach_given
from leanconv.cli.options import (
    CropOption,
    ExifOption,
    InterpolationOption,
    JsonOption,
    MeanOption,
    ModelArgument,
    SetOption,
    SizeOption,
    StdOption,
    TrustOption,
)
from leanconv.cli.output import print_json
from leanconv.cli.values import read_contract, read_options, read_size
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import nn

    from leanconv.weights import Format, Imported, WeightFile

_FORMATS = (
    "plain (the model's own names), mmaction2, vmz, pytorchvideo, vmz-caffe2, gluoncv, octconv-pytorch, "
    "octconv-symbol, octconv-gluon, igc or mutualnet; by default the one whose names the file has."
)


def run(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A checkpoint of torch (.pth, .pt, .ckpt, .tar), safetensors, MXNet's .params, or Caffe2's .pkl.",
        ),
    ],
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Save the filled model here.")],
    format: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"How the file names a network: {_FORMATS}")
    ] = None,
    options: SetOption = [],
    new_classifier: Annotated[
        bool, typer.Option("--new-classifier", help="Leave out the classifier of the file: the model keeps a new one.")
    ] = False,
    entry: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Take the weights from this entry of the file, dotted; . is the whole file."),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the moving average of the weights, where the file has one beside them.")
    ] = False,
    ignore: Annotated[
        list[str],
        typer.Option(
            "--ignore",
            metavar="PATTERN",
            help="Pass over tensors called so ('data_preprocessor.*'); any number of times.",
        ),
    ] = [],
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    interpolation: InterpolationOption = None,
    exif: ExifOption = None,
    size: SizeOption = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B,...|FILE", help="Names of the outputs in order, or a text file with one a line."),
    ] = None,
    trust_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Import weights: every name is accounted for on both sides, then the model is saved.

    Nothing in the file is run. What training loops put around weights (other entries, prefixes such as module.) comes
    off and is reported. The file's classifier must have as many classes as the model: --set num_classes=10, or
    --new-classifier. How its inputs were made no file says, nor which output is which class: --mean, --std, --crop,
    --interpolation and --classes are kept with the model, and every verb obeys them.
    """
    from leanconv.build import default_size, located, save
    from leanconv.weights import fill, read_tensors

    given = read_contract(mean, std, crop, interpolation, exif)
    if classes is not None:
        given["class_names"] = _class_names(classes)
    model = located(model)
    shape = (read_size(size) if size else default_size(model)) if given or size else None
    tensors = read_tensors(file, entry=entry, ema=ema, ignore=ignore)
    network, found = _network(tensors, format, str(file), model, read_options(options), trust_code)
    done = fill(network, tensors, found, source=str(file), new_classifier=new_classifier)
    if shape is not None:
        attach_given(network, shape, given)
        _check_count(network, shape, given.get("class_names"))
    save(network.eval(), out, size=shape)
    if json:
        print_json({**done.to_json(), "saved": out})
    else:
        typer.echo(f"{file}: {_summary(done)}; saved to {out}")
        for line in _lines(done):
            typer.echo(f"  {line}")


def _class_names(text: str) -> tuple[str, ...]:
    """The names in a text file, one a line, or between commas."""
    path = Path(text)
    found = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    names = tuple(name.strip() for name in found if name.strip())
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LeanconvError(f"--classes {text}: {twice!r} is there twice, and every output has a name of its own")
    return names


def _check_count(network: nn.Module, size: tuple[Any, ...], names: tuple[str, ...] | None) -> None:
    """Raise unless every output has a name."""
    from leanconv.train.check import outputs_of

    if names is not None and (outputs := outputs_of(network, size)) != len(names):
        raise LeanconvError(f"--classes names {len(names)} classes, and the network has {outputs} outputs")


def _network(
    tensors: WeightFile, format: str | None, source: str, model: str, settings: dict[str, Any], trust_code: bool
) -> tuple[Any, Format]:
    """The network to fill and the file's format; built once more where the format's BatchNorms add another eps."""
    from leanconv.build import is_folder, resolve
    from leanconv.weights import find_format

    network = resolve(model, settings, trust_code=trust_code)
    found = find_format(tensors, format, source=source, own=network.state_dict())
    if not found.absorbs_eps and found.wants_other_eps(network) and "norm_eps" not in settings and not is_folder(model):
        network = resolve(model, {**settings, "norm_eps": found.norm_eps}, trust_code=trust_code)
    return network, found


def _summary(done: Imported) -> str:
    """One line: what was taken from where."""
    found = [f"entry {done.entry}"] * bool(done.entry) + [f"prefix {done.prefix!r} taken off"] * bool(done.prefix)
    where = f" ({', '.join(found)})" if found else ""
    fresh = "" if done.classifier else f", a fresh classifier ({', '.join(done.classifier_layers)})"
    return f"{done.tensors} tensors{where} of a {done.format} file, {done.network}{fresh}"


def _lines(done: Imported) -> list[str]:
    """What else there is to know, a line each."""
    lines = list(done.notes)
    if done.passed_over:
        more = f", and {len(done.passed_over) - 5} more" * (len(done.passed_over) > 5)
        lines.append(f"passed over: {', '.join(done.passed_over[:5])}{more}")
    if done.other_weights:
        lines.append(f"not taken, though it holds weights, too: {', '.join(done.other_weights)}")
    return lines
