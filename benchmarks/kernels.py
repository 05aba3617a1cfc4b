"""Chains on leanconv's own kernels against dense networks of like MACs, each at its best, on this machine's CPU.

    python benchmarks/kernels.py --out benchmarks/kernels.json > benchmarks/kernels.md

One thread, batch 1 and 16, all networks and back-ends of a group interleaved in one run. A ratio is the network's best
back-end over the dense network's best of torch.compile, onnxruntime and openvino, and beside it over the dense network
on the same kernels: medians over medians, and in brackets tenth percentiles, what the machine does when it is quiet.
The bars are those of the plan. Then a batch on two threads, by the wall clock, and the steps of each program, timed
alone, beside what the core's multiply-adds reach.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

SIZE = (3, 32, 32)
GROUPS: tuple[tuple[str, dict[str, dict[str, float]]], ...] = (
    ("resnet20", {"resnet20": {}, "o_resnet20": {"multiplier": 3.625}, "d_resnet20": {"multiplier": 2.75}}),
    ("regconv_w18", {"regconv_w18": {}, "igc_l24m2": {}, "igc_l4m8": {}}),
)
BARS = {"o_resnet20": (1.0, 1.15), "d_resnet20": (0.95, 1.1), "igc_l24m2": (0.42, 0.63), "igc_l4m8": (0.55, 0.88)}
"""At most so many times the dense network on the best other back-end, and on our own kernels."""
OURS = "leanconv"


def folded(networks: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The networks, their BatchNorms folded."""
    from leanconv.build import create_model
    from leanconv.deploy import fold

    return {name: fold(create_model(name, **options).eval(), SIZE).model for name, options in networks.items()}


def ratios(rows: list[Any], dense: str) -> list[str]:
    """One line of a table for each network but the dense one."""
    times = {(row.model, row.backend): row for row in rows if row.median_ms is not None}
    lines = []
    for name in dict.fromkeys(row.model for row in rows if row.model != dense):
        cells = []
        for bar, wanted in zip(
            BARS[name], (lambda backend: backend != OURS, lambda backend: backend == OURS), strict=True
        ):
            found = []
            for field in ("median_ms", "low_ms"):
                mine = min(getattr(row, field) for (model, _), row in times.items() if model == name)
                theirs = min(
                    getattr(row, field) for (model, one), row in times.items() if model == dense and wanted(one)
                )
                found.append(mine / theirs)
            cells.append(f"{found[0]:.2f} ({found[1]:.2f}) | {bar}")
        lines.append(f"| {name} / {dense} | {rows[0].batch} | {' | '.join(cells)} |")
    return lines


def markdown(table: Any) -> str:
    """A table of text as one of Markdown."""
    marks = ["---:" if column.align == "right" else "---" for column in table.columns]
    lines = [[column.header for column in table.columns], marks, *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def peak(seconds: float = 0.2) -> float:
    """GFLOP/s of multiply-adds alone, the best of many short loops."""
    from leanconv.kernels.library import load

    best, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        start = time.thread_time_ns()
        done = load().peak(20_000)
        best = max(best, done / (time.thread_time_ns() - start))
    return best


def described(step: Any) -> str:
    """What a step computes, in a few words."""
    stages = getattr(step, "stages", None)
    if stages is None:
        return type(step).__name__.lower()
    return ", then ".join(
        f"{'x'.join(map(str, stage.kernel))} {stage.in_channels} > {len(stage.weight)} in {stage.groups}"
        + (f" stride {stage.stride[0]}" if stage.stride != (1, 1) else "")
        for stage in stages
    ) or ("sum" if step.residual else "copy")


def moved(program: Any, step: Any) -> int:
    """Bytes of the maps that a step reads and writes, and of its weights, each once."""
    wires = {*step.reads, *(getattr(step, "residual", None) or ())}
    maps = [program.buffers[wire.buffer] for wire in wires if wire.buffer >= 0]
    out = program.buffers[step.writes]
    floats = sum(one.height * one.width for one in maps) + out.channels * out.height * out.width
    return 4 * (floats + sum(stage.weight.size + stage.bias.size for stage in getattr(step, "stages", ())))


def steps(name: str, network: Any, rounds: int) -> list[str]:
    """A line for each kind of step: microseconds at the tenth percentile, share of the peak, bytes moved."""
    import numpy as np
    import torch

    from leanconv.deploy import accelerate
    from leanconv.kernels.library import Runnable

    (program,) = accelerate(network, SIZE).programs
    runnable = Runnable(program)
    x, y = torch.randn(1, *SIZE), torch.zeros(1, *runnable.outputs[0])
    taken = []
    for _ in range(rounds):
        runnable.run([x.data_ptr()], [y.data_ptr()], 1)  # its own maps and weights in the caches
        taken.append(runnable.time())
    quiet, top = np.quantile(np.array(taken), 0.1, axis=0) / 1e3, peak()
    kinds: dict[str, list[tuple[float, int, int]]] = {}
    for step, spent in zip(program.steps, quiet, strict=True):
        out = program.buffers[step.writes]
        macs = sum(stage.weight.size for stage in getattr(step, "stages", ())) * out.height * out.width
        text = f"{described(step)} to {out.height} x {out.width}"
        kinds.setdefault(text, []).append((float(spent), macs, moved(program, step)))
    lines = [f"\n{name}: {quiet.sum():.0f} us, {2e-3 * program.macs / quiet.sum() / top:.0%} of {top:.0f} GFLOP/s\n"]
    lines += ["| step | times | us each | GFLOP/s | of the peak | KB moved |", "|---|---:|---:|---:|---:|---:|"]
    for text, found in kinds.items():
        spent, macs = sum(one for one, *_ in found) / len(found), found[0][1]
        rate = 2e-3 * macs / spent
        lines.append(
            f"| {text} | {len(found)} | {spent:.1f} | {rate:.0f} | {rate / top:.0%} | {found[0][2] / 1e3:.0f} |"
        )
    return lines


def two_threads(name: str, network: Any, rounds: int, images: int = 16) -> str:
    """One line of a table: a batch on one thread and on two, by turns, and how many times faster two are."""
    import numpy as np
    import torch

    from leanconv.deploy import accelerate
    from leanconv.kernels.library import Runnable

    (program,) = accelerate(network, SIZE).programs
    runnable = Runnable(program)
    x, y = torch.randn(images, *SIZE), torch.zeros(images, *runnable.outputs[0])
    taken: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds + 3):
        for threads, times in taken.items():
            start = time.perf_counter()
            runnable.run([x.data_ptr()], [y.data_ptr()], images, threads)
            if turn >= 3:
                times.append((time.perf_counter() - start) * 1e3)
    one, two = (float(np.median(times)) for times in taken.values())
    return f"| {name} | {one:.2f} | {two:.2f} | {one / two:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the rows here, as JSON")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--backends", nargs="+", default=["compile", "onnxruntime", "openvino", OURS])
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()

    from leanconv.deploy import bench
    from leanconv.machine import this_machine, versions
    from leanconv.report import bench_table

    networks = {dense: folded(names) for dense, names in GROUPS}
    rows, summary = [], []
    for batch in args.batches:
        for dense, names in networks.items():
            found = bench(
                names, SIZE, backends=args.backends, batch=batch, rounds=max(5, args.rounds // (1 if batch == 1 else 4))
            )
            rows += found
            summary += ratios(found, dense)
    print("# Chains on our own kernels\n")
    packages = versions(["torch", "onnxruntime", "openvino"])
    named = ", ".join(f"{name} {version}" for name, version in packages.items())
    print(f"`python benchmarks/kernels.py`, {time.strftime('%Y-%m-%d')}. {this_machine()}; {named}.")
    print(f"One thread; load of the machine after the run: {os.getloadavg()[1]:.1f}.\n")
    print("| networks | batch | over dense at its best | at most | over dense on our kernels | at most |")
    print("|---|---:|---:|---:|---:|---:|")
    print("\n".join(summary))
    for batch in args.batches:
        for dense in networks:
            chosen = [row for row in rows if row.batch == batch and row.model in networks[dense]]
            table = bench_table(chosen)
            print(f"\n{table.title}:\n\n{markdown(table)}\n\n{' '.join(table.notes)}")
    if (os.cpu_count() or 1) > 1:
        print("\n## Two threads\n\nBatch 16 of the programs alone, milliseconds, medians; the bar is 1.7.\n")
        print("| network | one thread | two | times as fast |\n|---|---:|---:|---:|")
        for names in networks.values():
            for name, network in names.items():
                print(two_threads(name, network, args.rounds))
    print("\n## Step by step\n\nTenth percentiles of single steps, batch 1.")
    for names in networks.values():
        for name, network in names.items():
            print("\n".join(steps(name, network, args.rounds)))
    if args.out is not None:
        args.out.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
