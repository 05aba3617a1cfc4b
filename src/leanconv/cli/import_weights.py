"""`leanconv import-weights`: weights that another project has released, as a saved model of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.options import JsonOption, ModelArgument, SetOption
from leanconv.cli.output import print_json
from leanconv.cli.values import read_options


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Safetensors, or a .pth that holds tensors only.")],
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Save the filled model here.")],
    format: Annotated[
        str | None, typer.Option(help="mmaction2, vmz or pytorchvideo; default: recognised by the names in the file.")
    ] = None,
    options: SetOption = [],
    new_classifier: Annotated[
        bool, typer.Option("--new-classifier", help="Leave out the classifier of the file: the model keeps a new one.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Import weights that another project released.

    Every tensor of the file and of the model must find its counterpart; then the model is saved.
    """
    from leanconv.build import resolve, save
    from leanconv.weights import fill, find_format, read_tensors
    from leanconv.weights.naming import OURS

    tensors = read_tensors(file)
    naming = find_format(tensors, format, source=str(file))
    settings = read_options(options)
    if naming.norm_eps != OURS.norm_eps:
        settings.setdefault("norm_eps", naming.norm_eps)
    network = resolve(model, settings)
    done = fill(network, tensors, naming, source=str(file), new_classifier=new_classifier)
    save(network.eval(), out)
    if json:
        print_json({**done.to_json(), "saved": out})
        return
    fresh = "" if done.classifier else ", a fresh classifier"
    typer.echo(f"{file}: {done.tensors} tensors of a {done.format} file, {done.network}{fresh}; saved to {out}")
