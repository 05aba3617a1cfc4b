"""Milliseconds of the papers' convolution networks against dense ones of like MACs, on this machine's CPU.

    python benchmarks/speed.py --out benchmarks/speed.json > benchmarks/speed.md

makes the whole page again: one thread, every network on every back-end that there is, those with leanconv's own kernels
beside the others, all candidates of a group and batch interleaved in one run, their outputs held against torch's first.
The first network of a group is the dense one, which the ratios refer to. With --densified also the chains folded back
into dense convolutions, which is what the grouped form has to beat.

On an idle machine it takes an hour or more, most of it torch.compile. Every table goes to stderr and is kept when it is
made, here in `benchmarks/speed.json.part`: the same command goes on where it was stopped, and `speed.json` is written
when all are there. `--only octave --backends onnxruntime openvino` is quicker. What octave networks take in all ways:

    python benchmarks/speed.py --only octave --networks alpha=0.25 alpha=0.5 --rounds 30 \\
        --backends compile onnxruntime openvino onnxruntime_forms openvino_forms

With --processor-time on a machine that is not idle: provisional figures.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from kept_tables import KeptTables, sources

if TYPE_CHECKING:
    from leanconv.deploy import BenchRow

WITH_OCTAVES = "ResNet-50, octave paper"

GROUPS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "20 layers, optimized separable paper": [
        ("resnet20", {}),
        ("o_resnet20", {"multiplier": 3.625}),
        ("d_resnet20", {"multiplier": 2.75}),
    ],
    "20 layers, interleaved group paper": [("regconv_w18", {}), ("igc_l4m8", {}), ("igc_l24m2", {})],
    WITH_OCTAVES: [("oct_resnet50", {"alpha": alpha}) for alpha in (0, 0.125, 0.25, 0.5, 0.75)],
    "50 layers on 8 frames of 224, channel-separated paper": [
        ("resnet3d_50", {}),
        ("ip_csn_50", {}),
        ("ir_csn_50", {}),
    ],
}

SIZES = {"50 layers on 8 frames of 224, channel-separated paper": (3, 8, 224, 224)}
"""Where the networks' own input is not what is timed."""

LARGE_BATCHES = ("20 layers", WITH_OCTAVES)
"""What the titles begin with of groups that are timed at other batches than 1 as well: the others take seconds."""

KERNELS = ("leanconv", "onnxruntime_kernels")
"""The back-ends that run leanconv's own kernels."""

FORMS = ("onnxruntime_forms", "openvino_forms")
"""The runtimes as they come, on octave convolutions in the equal way that is fastest there; on `WITH_OCTAVES` alone."""

INTRODUCTION = """\
# Speed of the papers' networks on a CPU

    python benchmarks/speed.py {arguments}> benchmarks/speed.md

{date}, {machine}, one thread.
{versions}. BatchNorms folded. All rows of a table were timed
interleaved in one run of {rounds} rounds, and their outputs compared with eager torch first; ratios are medians over
the rounds. This page is written by that command.
"""

BEST = """
## Each at its best

What a network takes at its best, over the dense network at its best on the runtimes as they come: on those runtimes,
and with leanconv's kernels (`leanconv`: in torch, by `lc.accelerate`; `onnxruntime_kernels`: in a file of
`leanconv export --kernels`). Medians over medians. MACs are over the dense network's as well.

| network | batch | MACs | runtimes as they come | with our kernels |
|---|---:|---:|---:|---:|"""


def candidates(
    group: list[tuple[str, dict[str, Any]]], size: tuple[int, ...], densified: bool, wanted: Sequence[str] = ("",)
) -> dict[str, Any]:
    """The networks with their BatchNorms folded, and `densified` ones of those that have chains of several stages.

    The first of the group, and those with one of `wanted` in their names.
    """
    from leanconv.build import create_model
    from leanconv.deploy import densify, fold

    nets: dict[str, Any] = {}
    for name, options in group:
        label = " ".join([name, *(f"{option}={value}" for option, value in options.items())])
        if nets and not any(one in label for one in wanted):
            continue
        net = create_model(name, **options).eval()
        nets[label] = fold(net, size).model
        if not densified:
            continue
        dense = densify(net, size)
        if dense.densified:
            nets[f"{label}, densified"] = fold(dense.model, size).model
    return nets


def bests(rows: Sequence[BenchRow]) -> Iterator[str]:
    """The lines of the table `BEST` for the rows of one group and batch."""
    timed = [row for row in rows if row.median_ms is not None]
    dense = rows[0].model
    plain = min(row.median_ms for row in timed if row.model == dense and row.backend not in KERNELS)
    for name in dict.fromkeys(row.model for row in timed):
        cells = []
        for ours in (False, True):
            mine = [row for row in timed if row.model == name and (row.backend in KERNELS) == ours]
            best = min(mine, key=lambda row: row.median_ms, default=None)
            cells.append("" if best is None else f"{best.median_ms / plain:.2f} ({best.backend})")
        macs = next(row.macs for row in timed if row.model == name) / rows[0].macs
        yield f"| {name} | {rows[0].batch} | {macs:.2f} | {' | '.join(cells)} |"


def table(rows: Sequence[BenchRow]) -> Iterator[str]:
    """Every network on every back-end."""
    yield "| network | MACs | back-end | median ms | 10 % | 90 % | ratio to the first |"
    yield "|---|---:|---|---:|---:|---:|---:|"
    for row in rows:
        times = [row.median_ms, row.low_ms, row.high_ms, row.ratio]
        cells = [row.problem or "", "", "", ""] if None in times else [f"{value:.2f}" for value in times]
        yield f"| {row.model} | {row.macs:,} | {row.backend} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the rows here, as JSON; until all are made beside it")
    parser.add_argument("--only", default="", help="the groups whose title has this in it")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument(
        "--backends", nargs="+", default=["eager", "compile", "onnxruntime", "openvino", *FORMS, *KERNELS]
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument(
        "--networks", nargs="+", default=[""], help="the first of a group, and those with one of these in their names"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="for a machine that does other work: provisional figures"
    )
    parser.add_argument("--densified", action="store_true", help="chains folded back into dense convolutions, too")
    options = parser.parse_args()

    from leanconv.build import default_size
    from leanconv.deploy import BenchRow, bench
    from leanconv.machine import this_machine, versions

    found = {
        name: version
        for name, version in versions(["torch", "onnxruntime", "openvino", "leanconv"]).items()
        if version is not None
    }
    made = [f"{name} {version}" for name, version in found.items()]
    arguments = f"{shlex.join(sys.argv[1:])} " if sys.argv[1:] else ""
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    conditions = {"machine": str(this_machine()), "versions": found, "leanconv's sources": sources(), **settings}
    kept = KeptTables(options.out, conditions)
    head = {"arguments": arguments, "date": kept.date, "machine": conditions["machine"]}
    page = [INTRODUCTION.format(**head, versions=", ".join(made), rounds=options.rounds)]
    rows: list[dict[str, Any]] = []
    best, tables = [BEST], []
    for title, group in GROUPS.items():
        if options.only not in title:
            continue
        size = SIZES.get(title) or default_size(group[0][0])
        nets: dict[str, Any] = {}
        backends = [one for one in options.backends if one not in FORMS or title == WITH_OCTAVES]
        clock = process_time if options.processor_time else perf_counter
        for batch in options.batches if title.startswith(LARGE_BATCHES) else options.batches[:1]:
            name = f"{title}, batch {batch}"
            print(f"{name}{': kept' if name in kept.tables else ''}", file=sys.stderr, flush=True)
            if name not in kept.tables:
                nets = nets or candidates(group, size, options.densified, options.networks)
                new = bench(nets, size, backends=backends, batch=batch, threads=1, rounds=options.rounds, clock=clock)
                kept.keep(name, [row.to_json() for row in new])
            timed = [BenchRow(**{**row, "size": tuple(row["size"])}) for row in kept.tables[name]]
            rows += [{"group": title, **row.to_json()} for row in timed]
            print("\n".join(table(timed)), file=sys.stderr, flush=True)
            best += bests(timed)
            tables += [f"\n## {name}\n", *table(timed)]
    print("\n".join(page + best + tables))
    kept.finish(rows)


if __name__ == "__main__":
    main()
