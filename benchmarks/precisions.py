r"""fp32, fp16 and int8 of trained networks: size, accuracy with its interval, milliseconds in pairs.

    python benchmarks/precisions.py dense=hers octave=runs/lean --data folder:PHOTOS/test \
        --calibrate folder:PHOTOS/val --out exported > benchmarks/precisions.md

Every network is exported once for each runtime and precision (what is in --out already is taken as it is), int8
calibrated on the pictures of --calibrate, none of which is tested on. Accuracy is that of the file, on all pictures of
--data, and its difference from torch's is of pairs. Then all files are timed in one process on one thread, interleaved
(--rounds), and each round's time is divided by that of the first network in fp32 on the same runtime. --no-timing
leaves the milliseconds out, for a machine that is not idle.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "fp16", "int8")
SUFFIXES = {".onnx": "onnxruntime", ".xml": "openvino"}


def exported(network: Any, path: Path, precision: str, calibrate: Any) -> Path:
    import leanconv as lc

    if not path.exists():
        lc.export(network, path, precision=precision, data=calibrate if precision == "int8" else None)
    return path


def answers(ask: Any, loader: Any) -> list[bool]:
    """Whether each item is recognized."""
    return [right for inputs, labels in loader for right in (ask(inputs).argmax(1) == labels).tolist()]


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    from leanconv.build import load
    from leanconv.cost import measure
    from leanconv.cost.latency import compare_latency
    from leanconv.data import contract_of, open_inputs
    from leanconv.deploy import onnxruntime_runner, openvino_runner
    from leanconv.intervals import paired_difference, wilson
    from leanconv.train.runfolder import saved_model

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    runners: dict[str, dict[str, Any]] = {backend: {} for backend in SUFFIXES.values()}
    for name, folder in (text.split("=", 1) for text in options.models):
        network = load(saved_model(folder)).eval()
        contract = contract_of(network)
        assert contract is not None, f"{folder} has no input contract: import or train it with one"
        tests, calibrate = (
            list(open_inputs(spec, contract, batch_size=32, testing=True).eval_loader())
            for spec in (options.data, options.calibrate)
        )
        with torch.inference_mode():
            own = answers(network, tests)
        macs, one = measure(network, contract.size).macs, tests[0][0][:1].clone()
        for suffix, backend in SUFFIXES.items():
            for precision in PRECISIONS:
                path = exported(network, options.out / f"{name}-{precision}{suffix}", precision, calibrate)
                runner = (onnxruntime_runner if suffix == ".onnx" else openvino_runner)(path, threads=1)
                right = answers(lambda inputs, runner=runner: torch.as_tensor(runner(inputs)[0]), tests)
                alone = [sum(a and not b for a, b in zip(x, y, strict=True)) for x, y in ((right, own), (own, right))]
                rows.append(
                    {
                        "network": name,
                        "backend": backend,
                        "precision": precision,
                        "macs": macs,
                        "bytes": sum(file.stat().st_size for file in (path, path.with_suffix(".bin")) if file.exists()),
                        "right": sum(right),
                        "count": len(right),
                        "interval": wilson(sum(right), len(right)),
                        "lost": paired_difference(*alone, len(right)),
                    }
                )  # fmt: skip
                runners[backend][f"{name}-{precision}"] = lambda runner=runner, one=one: runner(one)
    if options.timing:
        for backend, candidates in runners.items():
            for key, latency in compare_latency(candidates, rounds=options.rounds, threads=1).items():
                for row in rows:
                    if (row["backend"], f"{row['network']}-{row['precision']}") == (backend, key):
                        row["latency"] = latency
    return rows


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    from leanconv.machine import this_machine, versions

    here, found = this_machine(), versions(("torch", "onnxruntime", "openvino"))
    print("# fp32, fp16 and int8 of a trained ResNet-18 and of its octave form\n")
    print("Written by `benchmarks/precisions.py`; how the networks were trained: [path.md](path.md).\n")
    print("```bash\npython benchmarks/precisions.py dense=hers octave=runs/lean --data folder:PHOTOS/test \\")
    print("    --calibrate folder:PHOTOS/val --out exported > benchmarks/precisions.md\n```\n")
    print(f"{date.today()}, {here.cpu}, {here.vectors}, {here.cores} cores, one thread, Python {here.python}, ", end="")
    print(", ".join(f"{name} {version}" for name, version in found.items()) + ".\n")
    print("| network | runtime | precision | MACs | MB | top-1 [%] | 95 % | from torch, in pairs [points] | ms | x |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        low, high = row["interval"]
        lost, latency = row["lost"], row.get("latency")
        ms = ratio = "-"
        if latency is not None:
            ms = f"{latency.median_ms:.2f} ({latency.low_ms:.2f}-{latency.high_ms:.2f})"
            ratio = f"{latency.ratio:.2f} ({latency.ratio_low:.2f}-{latency.ratio_high:.2f})"
        pair = f"{100 * lost.value:+.2f} ({100 * lost.interval[0]:+.2f} to {100 * lost.interval[1]:+.2f})"
        print(
            f"| {row['network']} | {row['backend']} | {row['precision']} | {row['macs'] / 1e6:.1f} M |"
            f" {row['bytes'] / 1e6:.2f} | {100 * row['right'] / row['count']:.2f} | {100 * low:.1f}-{100 * high:.1f} |"
            f" {pair} | {ms} | {ratio} |"
        )
    print(f"\nOn {rows[0]['count']} pictures; the difference is that from the same network in torch, on the same")
    print("pictures, with its 95 % interval. ms: median and middle 80 % of the rounds, one picture; x: of the")
    print(f"first network in fp32 on the same runtime, round by round ({options.rounds} rounds).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="saved models or runs, the reference first")
    parser.add_argument("--data", required=True, help="labelled pictures to test on")
    parser.add_argument("--calibrate", required=True, help="pictures to calibrate int8 on, others than those")
    parser.add_argument("--out", type=Path, required=True, help="where the files are kept")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--no-timing", dest="timing", action="store_false")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    table(measured(options), options)


if __name__ == "__main__":
    main()
