"""`leanconv run`: serve an elastic network under a latency target, whatever the load on the machine does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanconv.cli.common import JsonOption, TrustOption, open_inputs, say_json
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import Tensor

    from leanconv.elastic import ElasticNet
    from leanconv.report import Sheet
    from leanconv.serve import Trace


def run(
    model: Annotated[
        str, typer.Argument(metavar="FOLDER", help="The run folder or saved model of an elastic network.")
    ],
    target_ms: Annotated[float, typer.Option(metavar="MS", help="Milliseconds that 95 % of the calls should keep.")],
    seconds: Annotated[float, typer.Option(help="For how long.")] = 20.0,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its query table; default: table.json in the folder.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="SPEC", help="Images to serve; default: random numbers.")] = None,
    load: Annotated[
        str, typer.Option(metavar="SECOND:PROCESSES,...", help="Processes that compete from each second on.")
    ] = "",
    core: Annotated[int | None, typer.Option(help="Keep this process and the competing ones on one core.")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Write every call.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw latency and configuration.")] = None,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Allow a table whose latencies are of another machine.")
    ] = False,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Serve images one by one, always in the most accurate configuration that is expected to keep the target."""
    from dataclasses import asdict

    import torch

    from leanconv.build import load as load_model
    from leanconv.deploy.load import Load, pin
    from leanconv.elastic import ElasticNet
    from leanconv.query import QueryTable, Setting
    from leanconv.report import binary, plot_trace, print_table
    from leanconv.serve import Governor, Runtime
    from leanconv.serve.loop import serve

    if not seconds > 0:
        raise LeanconvError(f"--seconds {seconds:g}: expected a number above 0")
    competing = Load.parse(load, core=core)
    if core is not None:
        pin(core)
    folder = Path(model)
    network = load_model(folder / "model" if (folder / "model").is_dir() else folder, trust_code=trust_code)
    if not isinstance(network, ElasticNet):
        raise LeanconvError(f"{model} has a single configuration: there is nothing to change between calls")
    measured = QueryTable.load(table or folder / "table.json")
    measured.check(network)
    measured.check_latency(any_machine=any_machine)
    setting = Setting.from_tag(measured.settings[0])
    if (setting.backend, setting.batch) != ("eager", 1):
        raise LeanconvError(
            f"the first latencies of the table are of {setting.tag}, and this runs torch as it is, image by image: "
            "measure the table with --batch 1"
        )
    governor = Governor(measured.rows, target_ms)
    inputs = _inputs(network, data)
    torch.set_num_threads(setting.threads)  # as the table's latencies were measured
    runtime = Runtime(network, [row.config for row in governor.rows])
    runtime.warm_up()
    with competing:
        done = serve(runtime, governor, inputs, seconds=seconds, load=competing)
    if trace is not None:
        done.save(trace)
    if plot is not None:
        plot_trace(done, plot, title=f"{model}: target {target_ms:g} ms")
    if json:
        say_json([asdict(phase) for phase in done.phases()])
        return
    print_table(_phases(done, model))
    configurations = f"{len(runtime.configs)} configurations, {binary(runtime.weight_bytes)} of weights in all"
    typer.echo(f"{configurations}; {len(done.calls)} calls, {sum(p.switches for p in done.phases())} changes")
    for path in (trace, plot):
        if path is not None:
            typer.echo(f"written: {path}")


def _inputs(network: ElasticNet, data: str | None) -> list[Tensor]:
    import torch

    size = network.settings["size"]
    if data is None:
        return [torch.randn(1, *size, generator=torch.Generator().manual_seed(index)) for index in range(16)]
    batch = 16 if len(size) == 4 else 64  # clips are large
    inputs, _ = next(iter(open_inputs(data, size, batch_size=batch).eval_loader()))
    return list(torch.split(inputs, 1))


def _phases(trace: Trace, title: str) -> Sheet:
    from leanconv.report import Column, Sheet, percent

    phases = trace.phases()
    settling = phases[0].settling
    return Sheet(
        title=f"{title}, target {trace.target_ms:g} ms",
        columns=(
            Column("from [s]"),
            Column("competing"),
            Column("calls"),
            Column("median [ms]"),
            Column("95 % [ms]"),
            Column("over target [%]"),
            Column("accuracy [%]"),
            Column("changes"),
        ),
        rows=tuple(
            (
                f"{phase.second:.1f}",
                str(phase.load),
                str(phase.calls),
                f"{phase.median_ms:.2f}",
                f"{phase.p95_ms:.2f}",
                percent(phase.over, 1),
                percent(phase.accuracy),
                str(phase.switches),
            )
            for phase in phases
        ),
        notes=(
            f"median, 95 % and over target: without the first {settling} calls after a step of the load.",
            "accuracy: mean over the calls of what the query table says of the configuration that ran.",
        ),
    )
