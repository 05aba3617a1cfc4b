"""`leanconv demo`: the main job on embedded real digits, from the cost of a network to exported files, in minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from leanconv.deploy import ExportReport
    from leanconv.elastic import ElasticNet
    from leanconv.query import QueryTable

REWRITES = ("osep:overlap=1", "igc", "depth_separable", "spatial_separable")
SIZE = (3, 32, 32)
# Shares of the full network's MACs: a device that can afford half of it, a fifth, a twentieth.
BUDGETS = (0.5, 0.2, 0.05)


def run(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The run folder; must not exist yet.")] = Path(
        "runs/demo"
    ),
    epochs: Annotated[int | None, typer.Option(help="Train for so many epochs instead of the recipe's.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace an earlier demo in that folder.")] = False,
) -> None:
    """See the whole job on embedded real digits, in minutes.

    Rewrites and measures a ResNet-20, trains it elastic, picks for three budgets, exports and verifies.
    """
    from leanconv.errors import LeanconvError
    from leanconv.recipes import get_recipe, run_recipe
    from leanconv.report import export_table, print_table, query_table, save_curves

    start = time.perf_counter()
    if again:
        _clear(out)
    if out.exists() and any(out.iterdir()):
        raise LeanconvError(f"{out} exists already: add --again to replace it, or choose another folder with --out")
    _say("1. What a ResNet-20 costs, and its rewritten forms (measured on this machine, one thread)")
    _compare()

    recipe = get_recipe("demo", overrides=[] if epochs is None else [f"epochs={epochs}"])
    _say(f"2. One set of weights for every width and resolution: {recipe.note}")
    result = run_recipe(recipe, out)
    table, network = result.table, result.net
    assert table is not None  # the recipe is elastic

    _say("3. The query table: what each configuration scores on digits it has never seen, and what it costs")
    print_table(query_table(table.rows))
    curves = save_curves(table, out, title="Elastic ResNet-20 on handwritten digits")

    _say("4. The best configuration for three budgets, exported to ONNX and compared with torch")
    reports = _export(table, network, out)  # type: ignore[arg-type]
    print_table(export_table(reports))

    minutes = (time.perf_counter() - start) / 60
    best = max(table.rows, key=lambda row: row.macs)
    _say(f"Done in {minutes:.1f} minutes. Full network: {best.accuracy:.1%} of the held-out digits. Look at:")
    for path in (*curves, out / "table.json", out / "model", *(report.path for report in reports)):
        typer.echo(f"   {path}")
    typer.echo(
        "\nNext:\n"
        f"   leanconv pick {out} --max-macs 10M\n"
        f"   leanconv eval {out} --width 0.5 --resolution 24\n"
        "   leanconv measure timm/resnet50 --rewrite osep:overlap=1\n"
        "   leanconv train o_resnet20_cifar10 --set data.spec=parquet:TRAIN,TEST\n"
        "   leanconv list"
    )


def _say(text: str) -> None:
    typer.echo(f"\n{text}\n")


def _clear(out: Path) -> None:
    """Remove an earlier demo, and nothing that is not one."""
    import shutil

    from leanconv.errors import LeanconvError

    if not out.exists():
        return
    if not (out / "config.yaml").exists() and any(out.iterdir()):
        raise LeanconvError(f"{out} is not a run folder (no config.yaml in it), so --again does not remove it")
    shutil.rmtree(out)


def _compare() -> None:
    import torch

    from leanconv.build import create_model
    from leanconv.cost import measure
    from leanconv.cost.latency import compare_latency
    from leanconv.report import comparison_table, print_table
    from leanconv.rewrites import parse_step, rewrite

    model = create_model("resnet20")
    forms = {"resnet20": model}
    for text in REWRITES:
        forms[f"+ {text}"] = rewrite(
            model, parse_step(f"{text},init=fresh" if ":" in text else f"{text}:init=fresh")
        ).model
    x = torch.zeros(1, *SIZE)
    with torch.no_grad():
        calls = {name: (lambda net=form.eval(): net(x)) for name, form in forms.items()}
        latencies = compare_latency(calls, rounds=30, threads=1)
    costs = {name: measure(form, SIZE) for name, form in forms.items()}
    print_table(comparison_table(costs, latencies=latencies))


def _export(table: QueryTable, network: ElasticNet, out: Path) -> list[ExportReport]:
    from leanconv.cli.models import configuration
    from leanconv.deploy import export

    full = max(row.macs for row in table.rows)
    reports = []
    for share in BUDGETS:
        row = table.pick(max_macs=share * full)
        typer.echo(
            f"   at most {share:4.0%} of the MACs: width {row.width:g} at {row.resolution} pixels, "
            f"{row.accuracy:.1%} correct, {row.macs / 1e6:.2f} M MACs"
        )
        plain, size = configuration(network, SIZE, row.width, row.resolution)
        path = out / f"width{round(100 * row.width)}_at{row.resolution}.onnx"
        reports.append(export(plain, path, size=size))
    typer.echo()
    return reports
