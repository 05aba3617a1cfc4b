"""Accuracy of the convolution papers' small networks on CIFAR-10, beside the papers' figures: train, collect, tabulate.

    python benchmarks/accuracy.py run --data parquet:TRAIN,TEST --seeds 0 1 --epochs 10 --out runs/accuracy
    python benchmarks/accuracy.py table --out runs/accuracy > benchmarks/accuracy.md

`run` trains what is not yet trained and continues what was interrupted, one recipe and seed after the other; with
fewer epochs the milestones of the schedule move with them, as they are fractions of the run. The papers' rate of .1 has
no warm-up. A network 3.6 times as wide starts with losses of 10 under it and needs most of an epoch to recover, which
200 epochs hide and one does not: short runs want `--warmup .25`. `table` reads whatever is finished. Each row says its
epochs: compare rows of equal epochs only.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from pathlib import Path

RECIPES = {
    "resnet20_cifar10": 91.25,
    "o_resnet20_cifar10": 93.37,
    "d_resnet20_cifar10": 92.66,
    "regconv_w18_d20_cifar10": 92.55,
    "igc_l24m2_d20_cifar10": 92.84,
    "igc_l4m8_d20_cifar10": 92.54,
}
"""Recipe -> accuracy in percent that its paper prints (optimized separable, table 6; interleaved group, table 4)."""


def folder(out: Path, name: str, epochs: int | None, seed: int) -> Path:
    return out / f"{name}-{epochs or 'full'}-seed{seed}"


def run(options: argparse.Namespace) -> None:
    from leanconv.recipes import get_recipe, run_recipe

    for seed in options.seeds:
        for name in options.recipes:
            overrides = [f"seed={seed}", f"data.workers={options.workers}", f"accelerator={options.accelerator}"]
            overrides += [f"data.spec={options.data}"] if options.data else []
            overrides += [f"epochs={options.epochs}"] if options.epochs else []
            overrides += [f"schedule.warmup_epochs={options.warmup}"] if options.warmup else []
            place = folder(options.out, name, options.epochs, seed)
            if (place / "model").exists():
                continue
            print(f"== {place.name}", flush=True)
            recipe = get_recipe(name, overrides=overrides)
            run_recipe(recipe, place, resume=(place / "last.ckpt").exists(), latency=False)


def table(options: argparse.Namespace) -> None:
    from leanconv.build import create_model, default_size
    from leanconv.cost import measure
    from leanconv.recipes import get_recipe

    print("| recipe | epochs | seeds | test accuracy, last epoch (%) | spread | paper (%) | parameters | MACs |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    found: dict[tuple[str, int], list[float]] = {}
    for path in sorted(options.out.glob("*-seed*")):
        name = path.name.rsplit("-", 2)[0]
        if name not in RECIPES or not (path / "model").exists():
            continue
        rows = list(csv.DictReader((path / "metrics.csv").open()))
        found.setdefault((name, len(rows)), []).append(100 * float(rows[-1]["val_accuracy"]))
    if not found:
        sys.exit(f"no finished run in {options.out}: start with `run`")
    for (name, epochs), values in sorted(found.items(), key=lambda item: (item[0][1], list(RECIPES).index(item[0][0]))):
        recipe = get_recipe(name)
        cost = measure(create_model(recipe.model, **recipe.model_args), default_size(recipe.model))
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "one seed"
        print(
            f"| {name} | {epochs} | {len(values)} | {statistics.mean(values):.2f} | {spread} | {RECIPES[name]} |"
            f" {cost.params:,} | {cost.macs:,} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--data", help="instead of the recipes' own cifar10:data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, help="instead of the full 200 and 400")
    parser.add_argument("--warmup", type=float, default=0.0, help="epochs over which the rate rises to its full value")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accelerator", default="auto")
    options = parser.parse_args()
    (run if options.verb == "run" else table)(options)


if __name__ == "__main__":
    main()
