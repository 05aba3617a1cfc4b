"""`leanconv eval`: the accuracy of a saved model or a run on a set of images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from leanconv.cli.common import JsonOption, TrustOption, open_run, say_json


def run(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help="A run folder or a saved model.")],
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="digits, folder:PATH, parquet:TRAIN,TEST; default: the run's.")
    ] = None,
    side: Annotated[int | None, typer.Option("--size", metavar="PIXELS", help="Side of the images.")] = None,
    width: Annotated[float | None, typer.Option(help="Of an elastic network: the share of its channels.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Of an elastic network: the input side.")] = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Evaluate on the test images: top-1 and top-5 accuracy."""
    from leanconv.cli.common import configuration
    from leanconv.elastic import ElasticNet
    from leanconv.report import percent
    from leanconv.train import evaluate

    network, images = open_run(model, data, side, trust_code=trust_code)
    network.eval()
    told = ""
    if isinstance(network, ElasticNet):
        config = network.checked(width or network.widths[1], resolution or network.resolutions[0])
        told = f" at width {config.width:g}, resolution {config.resolution}"
        with network.at(width=config.width, resolution=config.resolution):
            result = evaluate(network, images.eval_loader())
    else:
        network, _ = configuration(network, (), width, resolution)
        result = evaluate(network, images.eval_loader())
    if json:
        say_json({**asdict(result), "unreadable": len(images.problems)})
        return
    five = "" if result.top5 is None else f", top-5 {percent(result.top5, 2)} %"
    typer.echo(f"{model}{told}: top-1 {percent(result.top1, 2)} %{five} on {result.images} images")
    if images.problems:
        typer.echo(f"{len(images.problems)} images could not be read: {', '.join(p.name for p in images.problems[:5])}")
