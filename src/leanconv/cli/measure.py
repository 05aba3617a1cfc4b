"""`leanconv measure`: what models cost, before anything is trained or even computed."""

from __future__ import annotations

from typing import Annotated

import typer

from leanconv.cli.models import configuration, find
from leanconv.cli.options import (
    JsonOption,
    ResolutionOption,
    RewriteOption,
    SetOption,
    SizesOption,
    TrustOption,
    WidthOption,
)
from leanconv.cli.output import print_json


def run(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="One model, or several to see side by side.")],
    options: SetOption = [],
    rewrites: RewriteOption = [],
    sizes: SizesOption = [],
    width: WidthOption = None,
    resolution: ResolutionOption = None,
    modules: Annotated[int, typer.Option("--modules", metavar="N", help="Also show the N most expensive layers.")] = 0,
    all_operations: Annotated[
        bool, typer.Option("--all-operations", help="Count norms, pools, sums and activations, too, each by itself.")
    ] = False,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Count what models cost, without running them.

    Parameters, MACs, channel interactions, activation memory and receptive field; with --rewrite before and after. Of a
    detector MACs by part, for an image of --size, which it resizes itself.
    """
    from leanconv.cost import Cost, measure
    from leanconv.report import comparison_table, cost_table, modules_table, print_table

    costs: dict[str, Cost] = {}
    for name in models:
        found = find(name, options, rewrites, sizes, trust_code=trust_code)
        model, size = found.model, found.size
        if width is not None or resolution is not None:
            model, size = configuration(model, size, width, resolution, calibrated=False)
        costs[name] = measure(model, size, all_operations=all_operations)
        if found.rewritten:
            costs[f"{name} + {' + '.join(rewrites)}"] = measure(
                found.final, found.final_size, all_operations=all_operations
            )
    if json:
        print_json([{"model": name, **cost.to_json()} for name, cost in costs.items()])
        return
    if len(costs) == 1:
        for name, cost in costs.items():
            print_table(cost_table(name, cost))
    else:
        print_table(comparison_table(costs))
    if modules:
        for name, cost in costs.items():
            print_table(modules_table(name, cost, limit=modules))
