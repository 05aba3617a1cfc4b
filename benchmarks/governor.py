"""The governor under a changing load: latencies, 95th percentiles, and what a change of configuration costs.

    leanconv table FOLDER --out FOLDER/table.json
    python benchmarks/governor.py FOLDER --plot benchmarks/governor.png > benchmarks/governor.md

FOLDER holds a trained elastic network and its query table, whose latencies are measured again here, first thing. Then
this process and up to two competing ones share one core: a competing process takes half of it, two take two thirds.
The target lets the most accurate configuration run while nothing competes, and no longer once something does. Calls
should be much longer than the slices in which the system gives out the core (3 to 5 ms on Linux), or a latency says
more about slices than about the network: take a network of ImageNet size, or several images a call.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from load import Load, pin
from torch import Tensor

from leanconv.build import load
from leanconv.cost import compare_latency
from leanconv.elastic import ElasticNet
from leanconv.query import QueryTable, TimingSetup
from leanconv.report import plot_serve_log
from leanconv.serve import Governor, Runtime, ServeLog, serve


def timed_again(net: ElasticNet, table: QueryTable, rounds: int, batch: int) -> QueryTable:
    """The table with the latencies of this machine, now."""
    rows = [replace(row, latency_ms=None, latency_low_ms=None, latency_high_ms=None, times={}) for row in table.rows]
    about = {name: value for name, value in table.about.items() if name not in ("latency", "latencies")}
    return QueryTable(tuple(rows), about).timed(net, [TimingSetup("eager", batch=batch)], rounds=rounds)


def ways(net: ElasticNet, runtimes: dict[str, Runtime], x: Tensor, rounds: int) -> None:
    """The same configurations in three ways: memory, time of a change, of a call, and of the call after a change."""
    first, *_, last = runtimes["views"].configs
    print("\n## What a change of configuration costs\n")
    print(
        "Views: prepared networks that share the full weights. Copies: prepared networks with weights of their own. "
        f"Sliced: `net.at`, every layer cut anew in every call. Between {first} and {last}; medians.\n"
    )
    print("| way | weights [MiB] | change [us] | call [ms] | the first call after a change [ms] | ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    calls = {}
    for name, runtime in runtimes.items():
        runtime.use(*last)
        calls[name] = (lambda runtime=runtime: runtime(x))  # fmt: skip

    def sliced() -> None:
        with torch.inference_mode(), net.at(*last):
            net(x)

    calls["sliced"] = sliced
    steady = compare_latency(calls, rounds=rounds, threads=1)
    for name in calls:
        if name == "sliced":
            memory = sum(p.nbytes for p in net.parameters()) + sum(b.nbytes for b in net.buffers())
            change, after, same = changes_sliced(net, x, first, last, rounds)
        else:
            memory = runtimes[name].weight_bytes
            change, after, same = changes(runtimes[name], x, first, last, rounds)
        print(
            f"| {name} | {memory / 2**20:.1f} | {change:.2f} | {steady[name].median_ms:.2f} | {after:.2f} |"
            f" {after / same:.3f} |"
        )


def changes(runtime: Runtime, x: Tensor, first: tuple, last: tuple, rounds: int) -> tuple[float, float, float]:
    """Microseconds of a change; milliseconds of the first and of the second call after one."""
    after, same = [], []
    for _ in range(rounds):
        runtime.use(*first)
        runtime(x)
        runtime.use(*last)
        start = perf_counter()
        runtime(x)
        middle = perf_counter()
        runtime(x)
        after.append(middle - start)
        same.append(perf_counter() - middle)
    start = perf_counter()
    for _ in range(5000):
        runtime.use(*first)
        runtime.use(*last)
    spent = (perf_counter() - start) / 10_000
    return 1e6 * spent, 1e3 * statistics.median(after), 1e3 * statistics.median(same)


def changes_sliced(net: ElasticNet, x: Tensor, first: tuple, last: tuple, rounds: int) -> tuple[float, float, float]:
    after, same = [], []
    with torch.inference_mode():
        for _ in range(rounds):
            with net.at(*first):
                net(x)
            with net.at(*last):
                start = perf_counter()
                net(x)
                middle = perf_counter()
                net(x)
            after.append(middle - start)
            same.append(perf_counter() - middle)
    start = perf_counter()
    for _ in range(5000):
        with net.at(*first), net.at(*last):
            pass
    spent = (perf_counter() - start) / 10_000
    return 1e6 * spent, 1e3 * statistics.median(after), 1e3 * statistics.median(same)


def report(log: ServeLog) -> None:
    print(f"\n## Target {log.target_ms:.2f} ms\n")
    print("| from [s] | competing | calls | median [ms] | 95 % [ms] | over target [%] | accuracy [%] | changes |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for phase in log.phases():
        print(
            f"| {phase.second:.1f} | {phase.load} | {phase.calls} | {phase.median_ms:.2f} | {phase.p95_ms:.2f} |"
            f" {100 * phase.over:.1f} | {100 * phase.accuracy:.2f} | {phase.switches} |"
        )
    print("\nMedian, 95 % and over target: without the first 5 calls after a step of the load.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target-ms", type=float, help="default: 1.3 times the latency of the most accurate row")
    parser.add_argument("--load", default="10:1,20:2,30:1,40:0")
    parser.add_argument("--seconds", type=float, default=50.0)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument("--batch", type=int, default=1, help="images per call")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    folder = options.folder
    net = load(folder / "model" if (folder / "model").is_dir() else folder).eval()
    assert isinstance(net, ElasticNet)
    table = QueryTable.load(folder / "table.json")
    table.check(net)
    table = timed_again(net, table, options.rounds, options.batch)
    front = table.front("latency_ms")
    if len(front) < 2:
        sys.exit(f"{folder}: only {front[0].config} is worth running, so there is nothing to govern: train it first")
    target = options.target_ms or round(1.3 * (front[-1].latency_ms or 0.0), 1)
    print(
        f"{table.about['machine']}\n\n{len(front)} of {len(table.rows)} configurations are on the front of latency:\n"
    )
    print("| width | resolution | accuracy [%] | idle [ms] |")
    print("|---:|---:|---:|---:|")
    for row in front:
        print(f"| {row.width:g} | {row.resolution} | {100 * row.accuracy:.2f} | {row.latency_ms:.2f} |")

    configs = [row.config for row in front]
    runtimes = {"views": Runtime(net, configs), "copies": Runtime(net, configs, share=False)}
    x = torch.randn(options.batch, *net.settings["size"], generator=torch.Generator().manual_seed(0))
    for runtime in runtimes.values():
        runtime.warm_up()
    ways(net, runtimes, x, options.rounds)

    governor = Governor(table.rows, target)
    with Load.parse(options.load, core=options.core) as competing:
        log = serve(runtimes["views"], governor, [x], seconds=options.seconds, load=competing.follow)
    report(log)
    if options.log is not None:
        log.save(options.log)
    if options.plot is not None:
        plot_serve_log(log, options.plot, title=f"{table.about['model']}, target {target:.1f} ms, one core")
        print(f"\n![latency and configuration]({options.plot.name})")


if __name__ == "__main__":
    main()
