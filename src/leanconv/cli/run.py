"""`leanconv run`: serve an elastic network under a latency target, whatever the load on the machine does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanconv.cli.options import FolderArgument, JsonOption, TrustOption
from leanconv.cli.output import print_json
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import Tensor

    from leanconv.elastic import ElasticNet


def run(
    model: FolderArgument,
    target_ms: Annotated[float, typer.Option(metavar="MS", help="Milliseconds that 95 % of the calls should keep.")],
    seconds: Annotated[float, typer.Option(help="How long to serve.")] = 20.0,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its query table; default: table.json in the folder.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Images or videos to serve; default: random numbers.")
    ] = None,
    log: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Write a row for every call.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the latencies and the configurations.")
    ] = None,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Allow milliseconds that were measured on another machine.")
    ] = False,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Serve an elastic network under a latency target.

    Images one by one, always in the most accurate configuration that is expected to keep the target, whatever else the
    machine has to do.
    """
    from dataclasses import asdict

    import torch

    from leanconv.build import load, located
    from leanconv.elastic import ElasticNet
    from leanconv.query import QueryTable, TimingSetup
    from leanconv.report import binary, plot_serve_log, print_table, serve_table
    from leanconv.serve import Governor, Runtime
    from leanconv.serve.loop import serve
    from leanconv.train.runfolder import saved_model

    if not seconds > 0:
        raise LeanconvError(f"--seconds {seconds:g}: expected a number above 0")
    folder = Path(located(model))
    network = load(saved_model(folder), trust_code=trust_code)
    if not isinstance(network, ElasticNet):
        raise LeanconvError(f"{model} has a single configuration: there is nothing to change between calls")
    measured = QueryTable.load(table or folder / "table.json")
    measured.check(network)
    measured.check_latency(any_machine=any_machine)
    setup = TimingSetup.from_tag(measured.setups[0])
    if (setup.backend, setup.batch) != ("eager", 1):
        raise LeanconvError(
            f"the first latencies of the table are of {setup.tag}, and this runs torch as it is, image by image: "
            "measure the table with --batch 1"
        )
    governor = Governor(measured.rows, target_ms)
    inputs = _inputs(network, data)
    torch.set_num_threads(setup.threads)  # as the table's latencies were measured
    runtime = Runtime(network, [row.config for row in governor.rows])
    runtime.warm_up()
    done = serve(runtime, governor, inputs, seconds=seconds)
    if log is not None:
        done.save(log)
    if plot is not None:
        plot_serve_log(done, plot, title=f"{model}: target {target_ms:g} ms")
    if json:
        print_json([asdict(phase) for phase in done.phases()])
        return
    print_table(serve_table(done, title=model))
    configurations = f"{len(runtime.configs)} configurations, {binary(runtime.weight_bytes)} of weights in all"
    typer.echo(f"{configurations}; {len(done.calls)} calls, {sum(p.switches for p in done.phases())} changes")
    for path in (log, plot):
        if path is not None:
            typer.echo(f"written: {path}")


def _inputs(network: ElasticNet, data: str | None) -> list[Tensor]:
    import torch

    from leanconv.data import contract_of, open_inputs
    from leanconv.elastic import ElasticDetector

    if data is not None and isinstance(network, ElasticDetector):
        from leanconv.recipes.detected import LoadedDetector, open_for

        found = open_for(LoadedDetector(network, "this detector", None), data).eval_loader()
        return [image[None] for (images, _), _ in zip(found, range(16), strict=False) for image in images]
    size = network.default_input_size
    if data is None:
        return [torch.randn(1, *size, generator=torch.Generator().manual_seed(index)) for index in range(16)]
    contract = contract_of(network)
    if contract is None:
        raise LeanconvError(
            "nothing says how the inputs of this model were made (mean, std, ...), so --data cannot be fed to it: leave"
            " it out to serve random numbers, which take as long"
        )
    batch = 16 if len(size) == 4 else 64  # clips are large
    opened = open_inputs(data, contract.at(size), batch_size=batch, testing=True)
    inputs, _ = next(iter(opened.eval_loader()))
    return list(torch.split(inputs, 1))
