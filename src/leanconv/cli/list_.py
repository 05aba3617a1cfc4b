"""`leanconv list`: the models, recipes and operators that have names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from leanconv.cli.options import JsonOption
from leanconv.cli.output import print_json
from leanconv.errors import LeanconvError, unknown


def run(
    pattern: Annotated[str, typer.Argument(help="A glob; timm/* and torchvision/* list those libraries.")] = "*",
    recipes: Annotated[bool, typer.Option("--recipes", help="List recipes for `leanconv train` instead.")] = False,
    operators: Annotated[bool, typer.Option("--operators", help="List what --rewrite takes instead.")] = False,
    json: JsonOption = False,
) -> None:
    """List models by name, or recipes by paper, or operators with their options."""
    if recipes and operators:
        raise LeanconvError("list: --recipes or --operators, not both")
    if operators:
        _operators(pattern, json)
    elif recipes:
        _recipes(pattern, json)
    else:
        from leanconv.zoo import list_models

        names = list_models(pattern)
        if not names:
            raise unknown("model", pattern, list_models())
        if json:
            print_json(list(names))
        else:
            typer.echo("\n".join(names))


def _recipes(pattern: str, json: bool) -> None:
    from leanconv.recipes import PAPERS, list_recipes

    notes = list_recipes()
    names = {name: note for name, note in notes.items() if fnmatchcase(name, pattern)}
    if not names:
        raise unknown("recipe", pattern, notes)
    if json:
        print_json(names)
        return
    for paper, members in PAPERS.items():
        rows = [f"  {name:40} {names[name]}" for name in members if name in names]
        if rows:
            typer.echo("\n".join([paper, *rows]))


def _operators(pattern: str, json: bool) -> None:
    from leanconv.rewrites.steps import STEPS, options_of

    found = {stem: options_of(stem) for stem in STEPS if fnmatchcase(stem, pattern)}
    if not found:
        raise unknown("operator", pattern, STEPS)
    if json:
        print_json(found)
        return
    for stem, options in found.items():
        typer.echo(f"{stem}: {_sentence(STEPS[stem])}")
        for name, default in options.items():
            typer.echo(f"  {name}={default}")


def _sentence(kind: Any) -> str:
    """The first sentence of a class's documentation."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())
