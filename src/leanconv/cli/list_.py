"""`leanconv list`: the models and recipes that have names."""

from __future__ import annotations

from typing import Annotated

import typer

from leanconv.cli.options import JsonOption
from leanconv.cli.output import print_json


def run(
    pattern: Annotated[str, typer.Argument(help="A glob; timm/* and torchvision/* list those libraries.")] = "*",
    recipes: Annotated[bool, typer.Option("--recipes", help="List recipes for `leanconv train` instead.")] = False,
    json: JsonOption = False,
) -> None:
    """List models by name, or recipes."""
    from leanconv.errors import unknown

    if recipes:
        from fnmatch import fnmatchcase

        from leanconv.recipes import list_recipes

        known = list_recipes()
        names = {name: note for name, note in known.items() if fnmatchcase(name, pattern)}
    else:
        from leanconv.zoo import list_models

        known = dict.fromkeys(list_models(), "")
        names = dict.fromkeys(list_models(pattern), "")
    if not names:
        raise unknown("recipe" if recipes else "model", pattern, known)
    if json:
        print_json(names if recipes else list(names))
        return
    for name, note in names.items():
        typer.echo(f"{name:32} {note}" if note else name)
