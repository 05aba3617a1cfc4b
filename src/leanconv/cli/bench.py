"""`leanconv bench`: milliseconds of models on this machine, interleaved in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.models import configuration, find
from leanconv.cli.options import JsonOption, RewriteOption, SetOption, SizeOption, TrustOption
from leanconv.cli.output import print_json, write_json
from leanconv.errors import LeanconvError
from leanconv.machine import this_machine


def run(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="One or several; ratios refer to the first.")],
    options: SetOption = [],
    rewrites: RewriteOption = [],
    size: SizeOption = None,
    backends: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="What runs the models; our own kernels are leanconv (in torch) and onnxruntime+kernels.",
        ),
    ] = "eager,compile,onnxruntime,openvino",
    batch: Annotated[int, typer.Option(help="Inputs per call.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of every backend.")] = 1,
    rounds: Annotated[int, typer.Option(help="How often each is timed.")] = 50,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Also write the rows here.")] = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Time models on this machine.

    Models, and with --rewrite their rewritten forms, on several backends, all interleaved in one run; before that, the
    outputs of every backend are compared with torch's.
    """
    from leanconv.deploy import bench
    from leanconv.report import bench_table, print_table

    candidates = {}
    shape: tuple[int, ...] | None = None
    for name in models:
        found = find(name, options, rewrites, size, trust_code=trust_code)
        network, shape = configuration(found.model, found.size, None, None)
        candidates[name] = network
        if found.rewritten and found.final_size != found.size:
            raise LeanconvError(
                f"bench times networks on one input, and after {' + '.join(rewrites)} {name} takes {found.final_size} "
                f"instead of {found.size}: leanconv rewrite {name} ... --out DIR, then leanconv bench DIR"
            )
        if found.rewritten:
            candidates[f"{name} + {' + '.join(rewrites)}"] = configuration(found.final, found.size, None, None)[0]
    assert shape is not None  # there is at least one model
    names = [name.strip() for name in backends.split(",") if name.strip()]
    rows = bench(candidates, shape, backends=names, batch=batch, threads=threads, rounds=rounds)
    if out is not None:
        write_json([row.to_json() for row in rows], out)
    if json:
        print_json([row.to_json() for row in rows])
    else:
        print_table(bench_table(rows))
        typer.echo(f"Machine: {this_machine()}.")
