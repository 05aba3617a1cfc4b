"""`leanconv study`: several seeds of one or several recipes, and how sure the differences are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.options import JsonOption, TrustOption
from leanconv.cli.output import print_json
from leanconv.errors import LeanconvError


def run(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE ...", help="Names (leanconv list --recipes), or recipes as files (*.yaml)."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="How many seeds: 0 to N - 1; default: 3, or the study's.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="folder:DIR, parquet:TRAIN,TEST, ...; default: the recipes'.")
    ] = None,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="Change all recipes alike: epochs=3, ...")
    ] = [],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The folder of the study.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out, or add to it.")] = False,
    begin: Annotated[
        bool, typer.Option("--run/--no-run", help="With --no-run: report what is finished in --out, and run nothing.")
    ] = True,
    at_once: Annotated[int, typer.Option(metavar="N", help="Runs at a time; they share the cores.")] = 1,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Two steps on the embedded digits, to see that it works.")
    ] = False,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Whether the networks are timed.")] = True,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Where to draw; default: figure.png in --out.")
    ] = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Run recipes under several seeds, and compare them.

    Mean, standard deviation and 95 % interval of every recipe's accuracy, and its differences from the first recipe,
    seed by seed, with theirs; the papers' figure with the printed values beside ours. Every run is a run folder of its
    own in --out. An interrupted study goes on with --resume --out DIR.
    """
    from leanconv.recipes import RECIPES, change, get_recipe, read_recipe
    from leanconv.recipes.study import study
    from leanconv.report import plot_study, print_table, study_table

    if out is None:
        raise LeanconvError("study needs a folder for its runs: --out DIR")
    if not recipes and not resume and begin:
        raise LeanconvError(
            "study needs recipes (leanconv list --recipes); to go on with one: leanconv study --resume --out DIR"
        )
    if not recipes and (settings or data is not None or tiny):
        raise LeanconvError(
            "--set, --data and --tiny change recipes, and none is named: a study in --out stays as it is"
        )
    chosen = []
    for name in recipes or []:
        recipe = read_recipe(name) if name.endswith((".yaml", ".yml")) else get_recipe(name)
        recipe = recipe.tiny() if tiny else recipe
        recipe = recipe if data is None else replace(recipe, data=replace(recipe.data, spec=data))
        chosen.append(change(recipe, settings))
    names = {recipe.name for recipe in chosen} | {name for name in RECIPES if (out / name).exists()}
    originals = {name: RECIPES[name]() for name in names & RECIPES.keys()}
    results = study(
        chosen,
        range(seeds if seeds is not None else 3 if chosen and not resume else 0),
        out,
        originals=originals,
        resume=resume,
        begin=begin,
        at_once=at_once,
        latency=latency,
        progress=not json,
        trust_code=trust_code,
    )
    drawn = plot_study(results, figure or out / "figure.png")
    if json:
        print_json(results)
        return
    print_table(study_table(results))
    typer.echo(f"written: {out / 'results.json'}, {drawn}")
