"""`leanconv train`: carry out a recipe, or one written out before, in a run folder that can be resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.options import TrustOption
from leanconv.ends import Terminated
from leanconv.errors import LeanconvError


def run(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A name (leanconv list --recipes).")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of a name: a recipe as a file, such as the config.yaml of a run."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Instead of a recipe: a saved model or run to finetune, or a name to train from scratch.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="folder:DIR, parquet:TRAIN,TEST, ...; default: the recipe's.")
    ] = None,
    elastic: Annotated[
        bool, typer.Option("--elastic", help="With --model: make it elastic, by mutual learning.")
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With --model: a saved model or run whose answers it learns too."),
    ] = None,
    new_classifier: Annotated[
        bool,
        typer.Option("--new-classifier", help="With --model: begin with a fresh classifier for the data's classes."),
    ] = False,
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
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Whether an elastic network's table has milliseconds.")
    ] = True,
    trust_code: TrustOption = False,
) -> None:
    """Train by recipe, or one's own network on one's own pictures, in a run folder.

    Writes checkpoints, metrics, the model and, if it is elastic, its query table. An interrupted run goes on with
    --resume --out DIR.
    """
    from leanconv.machine import keep_freed_memory
    from leanconv.recipes import change, finetune, get_recipe, read_recipe, run_recipe, to_yaml
    from leanconv.report import percent, percent_interval, print_table, query_table
    from leanconv.train import is_main_process

    if recipe is None and config is None and resume and out is not None:
        config = out / "config.yaml"
    if [recipe, config, model].count(None) != 2:
        raise LeanconvError(
            "train needs a recipe's name (leanconv list --recipes), --model MODEL with --data, or --config FILE, and"
            " one of them alone; to go on with a run: leanconv train --resume --out DIR"
        )
    if model is None and (elastic or teacher or new_classifier):
        raise LeanconvError(
            "--elastic, --teacher and --new-classifier belong to --model; a recipe says these things itself"
        )
    if model is not None and data is None:
        raise LeanconvError(f"--model {model}: say on which images with --data, for example --data folder:DIR")
    if config is not None:
        chosen = read_recipe(config)
    elif model is not None:
        chosen = finetune(model, str(data), elastic=elastic, teacher=teacher, new_classifier=new_classifier)
    else:
        chosen = get_recipe(str(recipe))
    chosen = chosen.tiny() if tiny else chosen
    if data is not None:
        chosen = replace(chosen, data=replace(chosen.data, spec=data))
    chosen = change(chosen, settings)
    if dry:
        typer.echo(to_yaml(chosen), nl=False)
        return
    folder = out or Path("runs") / chosen.name
    keep_freed_memory()  # every step needs again what the one before has freed
    try:
        result = run_recipe(chosen, folder, resume=resume, latency=latency, trust_code=trust_code)
    except (KeyboardInterrupt, Terminated) as ended:
        if str(ended):  # where training stopped
            raise
        word = "terminated" if isinstance(ended, Terminated) else "interrupted"
        line = f"{word} before the first step was finished, nothing to go on from"
        if (folder / "last.ckpt").exists():
            line = f"{word}; to go on: leanconv train --resume --out {folder}"
        raise type(ended)(line) from None
    if not is_main_process():
        return
    fitted = result.fit
    best = ""
    if fitted.best_accuracy is not None:
        best = f" (best {percent(fitted.best_accuracy, 2)} % in epoch {fitted.best_epoch})"
    if result.detected is not None:
        from leanconv.cli.objects import print_scores, table_text

        typer.echo(f"{fitted.part}: {print_scores(result.detected.scores)} on {result.detected.images} images")
        if result.table is not None:
            typer.echo(table_text(result.table))
        typer.echo(f"saved: {result.model_folder}; next: leanconv eval {folder}")
        return
    typer.echo(f"{fitted.part} accuracy {percent(fitted.accuracy, 2)} %{best}, {fitted.seconds:.0f} s")
    if result.images is not None and fitted.part == "validation":
        tested = result.images
        interval = percent_interval(*tested.intervals["top1"])
        typer.echo(f"saved model: top-1 {percent(tested.top1, 2)} % ({interval}) on {tested.images} images")
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
