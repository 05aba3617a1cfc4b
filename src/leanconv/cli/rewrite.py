"""`leanconv rewrite`: put cheaper operators where a model's convolutions are, and show what that did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.models import find
from leanconv.cli.options import JsonOption, ModelArgument, RewriteOption, SetOption, SizesOption, TrustOption
from leanconv.cli.output import print_json
from leanconv.errors import LeanconvError


def run(
    model: ModelArgument,
    rewrites: RewriteOption = [],
    options: SetOption = [],
    sizes: SizesOption = [],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Save the rewritten model here.")] = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Replace a model's convolutions by cheaper ones.

    Prints every changed layer, and the cost before and after; saves the result with --out.
    """
    if not rewrites:
        raise LeanconvError("rewrite needs at least one --rewrite, for example --rewrite osep:overlap=1")
    from dataclasses import asdict

    from leanconv.build import save
    from leanconv.cost import measure
    from leanconv.report import changes_table, comparison_table, print_table

    found = find(model, options, rewrites, sizes, trust_code=trust_code)
    done = found.rewritten
    assert done is not None  # there are rewrites
    before, after = measure(found.model, found.size), measure(done.model, found.final_size)
    if out is not None:
        save(done, out, size=found.final_size)
    if json:
        print_json(
            {
                "changes": [asdict(change) for change in done.changes],
                "skipped": [asdict(skip) for skip in done.skipped],
                "before": before.to_json(),
                "after": after.to_json(),
                "saved": out,
            }
        )
        return
    print_table(changes_table(done.changes, done.skipped, title=f"{model}: {' then '.join(rewrites)}"))
    print_table(comparison_table({"before": before, "after": after}))
    if out is not None:
        typer.echo(f"saved to {out}")
