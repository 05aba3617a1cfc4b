"""Milliseconds of the convolution papers' networks against dense ones of like MACs, on this machine's CPU.

    python benchmarks/speed.py --out benchmarks/speed.json > benchmarks/speed.md

One thread, batch 1 and 16, four back-ends, all candidates of a group interleaved in one run; every network also
densified (its chains folded back into dense convolutions), which is what the grouped form has to beat. The first row
of a group is what the ratios refer to.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

GROUPS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "20 layers, optimized separable paper": [
        ("resnet20", {}),
        ("o_resnet20", {"multiplier": 3.625}),
        ("d_resnet20", {"multiplier": 2.75}),
    ],
    "20 layers, interleaved group paper": [("regconv_w18", {}), ("igc_l4m8", {}), ("igc_l24m2", {})],
    "ResNet-50, octave paper": [("oct_resnet50", {"alpha": alpha}) for alpha in (0, 0.125, 0.25, 0.5, 0.75)],
    "50 layers on 8 frames of 224, channel-separated paper": [
        ("resnet3d_50", {}),
        ("ip_csn_50", {}),
        ("ir_csn_50", {}),
    ],
}

SIZES = {"50 layers on 8 frames of 224, channel-separated paper": (3, 8, 224, 224)}
"""Where the networks' own input is not what is timed."""


def candidates(group: list[tuple[str, dict[str, Any]]], size: tuple[int, ...]) -> dict[str, Any]:
    """The networks with their BatchNorms folded, and the dense forms of those that have chains of several stages."""
    from leanconv.build import create_model
    from leanconv.deploy import densify, fold

    nets: dict[str, Any] = {}
    for name, options in group:
        net = create_model(name, **options).eval()
        label = " ".join([name, *(f"{option}={value}" for option, value in options.items())])
        nets[label] = fold(net, size).model
        dense = densify(net, size)
        if dense.densified:
            nets[f"{label}, densified"] = fold(dense.model, size).model
    return nets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the rows here, as JSON")
    parser.add_argument("--only", default="", help="the groups whose title has this in it")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--backends", nargs="+", default=["eager", "compile", "onnxruntime", "openvino"])
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()

    import torch

    from leanconv.build import default_size
    from leanconv.deploy import bench
    from leanconv.machine import this_machine

    print(f"{this_machine()}, 1 thread, torch {torch.__version__}\n")
    rows: list[dict[str, Any]] = []
    for title, group in GROUPS.items():
        if options.only not in title:
            continue
        size = SIZES.get(title) or default_size(group[0][0])
        nets = candidates(group, size)
        for batch in options.batches:
            print(f"\n## {title}, batch {batch}\n", flush=True)
            print("| network | MACs | back-end | median ms | 10 % | 90 % | ratio to the first |")
            print("|---|---:|---|---:|---:|---:|---:|")
            found = bench(nets, size, backends=options.backends, batch=batch, threads=1, rounds=options.rounds)
            for row in found:
                rows.append({"group": title, **row.to_json()})
                times = [row.median_ms, row.low_ms, row.high_ms, row.ratio]
                cells = [row.problem or "", "", "", ""] if None in times else [f"{value:.2f}" for value in times]
                print(f"| {row.model} | {row.macs:,} | {row.backend} | {' | '.join(cells)} |")
            sys.stdout.flush()
    if options.out is not None:
        draft = options.out.with_suffix(".tmp")
        draft.write_text(json.dumps(rows, indent=2) + "\n")
        os.replace(draft, options.out)


if __name__ == "__main__":
    main()
