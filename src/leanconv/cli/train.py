"""`leanconv train`: carry out a recipe, or one written out before, in a run folder that can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanconv.errors import LeanconvError


def run(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A name (leanconv list --recipes).")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of a name: a recipe as a file, such as the config.yaml of a run."),
    ] = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="Change the recipe: epochs=3, optim.lr=0.2, ...")
    ] = [],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The run folder; by default runs/RECIPE.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Two steps on the embedded digits, to see that the recipe works.")
    ] = False,
    dry: Annotated[bool, typer.Option("--dry", help="Print the recipe with its changes, and stop.")] = False,
) -> None:
    """Train by recipe, in a run folder.

    Writes checkpoints, metrics, the model and, if it is elastic, its query table. An interrupted run goes on with
    --resume --out DIR.
    """
    from leanconv.recipes import change, get_recipe, read_recipe, run_recipe, to_yaml
    from leanconv.report import percent, print_table, query_table
    from leanconv.train import is_main_process

    if recipe is None and config is None and resume and out is not None:
        config = out / "config.yaml"
    if (recipe is None) == (config is None):
        raise LeanconvError(
            "train needs a recipe's name (leanconv list --recipes) or --config FILE, and not both; "
            "to go on with a run: leanconv train --resume --out DIR"
        )
    if config is not None:
        chosen = read_recipe(config)
        chosen = change(chosen.tiny() if tiny else chosen, settings)
    else:
        chosen = get_recipe(str(recipe), tiny=tiny, overrides=settings)
    if dry:
        typer.echo(to_yaml(chosen), nl=False)
        return
    folder = out or Path("runs") / chosen.name
    result = run_recipe(chosen, folder, resume=resume)
    if not is_main_process():
        return
    fitted = result.fit
    typer.echo(
        f"test accuracy {percent(fitted.accuracy, 2)} % (best {percent(fitted.best_accuracy, 2)} % in epoch "
        f"{fitted.best_epoch}), {fitted.seconds:.0f} s"
    )
    if result.videos is not None:
        videos = result.videos
        five = "" if videos.video5 is None else f", video@5 {percent(videos.video5, 2)} %"
        typer.echo(
            f"clip@1 {percent(videos.clip1, 2)} %, video@1 {percent(videos.video1, 2)} %{five} on {videos.videos}"
            f" videos (chance {percent(1 / videos.classes, 2)} %); look at {folder / 'contact_sheet.png'}"
        )
    if result.table is not None:
        print_table(query_table(result.table.rows, title=f"query table, {folder / 'table.json'}"))
    typer.echo(f"saved: {result.model_folder}; next: leanconv eval {folder}")
