"""`leanconv bench`: milliseconds of models on this machine, interleaved in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanconv.cli.models import configuration, find
from leanconv.cli.options import JsonOption, RewriteOption, SetOption, SizeOption, TrustOption
from leanconv.cli.output import print_json, write_json
from leanconv.errors import LeanconvError
from leanconv.machine import gpu_names, this_machine

if TYPE_CHECKING:
    from leanconv.deploy import BenchRow, TrainBenchRow


def run(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="One or several; ratios refer to the first.")],
    options: SetOption = [],
    rewrites: RewriteOption = [],
    size: SizeOption = None,
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="What runs the models: eager, compile, onnxruntime, openvino; onnxruntime_forms and openvino_forms, "
            "with octave convolutions in the way that is fastest there; our own kernels, leanconv (in torch) and "
            "onnxruntime_kernels; with --train eager, compile, leanconv.  [default: eager,compile,"
            "onnxruntime,openvino; with --train eager]",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Inputs per call.  [default: 1; with --train 8]", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of every backend.")] = 1,
    rounds: Annotated[
        int | None, typer.Option(help="How often each is timed.  [default: 50; with --train 20]", show_default=False)
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Time steps of training, and say what memory they need.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda", help="Where --train trains.  [default: cpu]", show_default=False)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="32-true|bf16-mixed", help="Of --train, as in recipes.  [default: 32-true]", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Also write the rows here.")] = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Time models on this machine.

    Models, and with --rewrite their rewritten forms, on several backends, all interleaved in one run; before that, the
    outputs of every backend are compared with torch's. With --train a step of training each: images (clips) per second,
    the bytes that autograd saves for the backward, and on a GPU the peak of a step's memory.
    """
    from leanconv.deploy import bench, bench_training
    from leanconv.report import bench_table, print_table, train_bench_table

    if not train and (device is not None or precision is not None):
        raise LeanconvError(
            f"bench: --{'device' if device is not None else 'precision'} is for --train, and inference is timed on the "
            "CPU in the type of the weights: leave it out, or add --train"
        )
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
    told = backends if backends is not None else "eager" if train else "eager,compile,onnxruntime,openvino"
    names = [name.strip() for name in told.split(",") if name.strip()]
    rows: list[BenchRow] | list[TrainBenchRow]
    if train:
        rows = bench_training(
            candidates,
            shape,
            backends=names,
            batch=8 if batch is None else batch,
            device=device or "cpu",
            precision=precision or "32-true",
            threads=threads,
            rounds=20 if rounds is None else rounds,
        )
        table = train_bench_table(rows)
    else:
        rows = bench(
            candidates,
            shape,
            backends=names,
            batch=1 if batch is None else batch,
            threads=threads,
            rounds=50 if rounds is None else rounds,
        )
        table = bench_table(rows)
    if out is not None:
        write_json([row.to_json() for row in rows], out)
    if json:
        print_json([row.to_json() for row in rows])
    else:
        print_table(table)
        typer.echo(f"Machine: {this_machine()}.")
        if train and device not in (None, "cpu"):
            typer.echo(f"GPUs: {', '.join(gpu_names())}.")
