"""One claim of each of the five papers, under several seeds: on CIFAR-10, and on clips of UT-Interaction.

    python benchmarks/studies.py parquet:TRAIN,TEST --out runs/studies --seconds 330 --studies osep igc octave mutual
    python benchmarks/studies.py --clips video-csv:TRAIN.csv,TEST.csv --out runs/studies --epochs 24 --studies csn

With `--seconds` all runs of all studies share the machine: a probe of two short epochs of everything says how long an
epoch takes under that load, and every study gets the epochs that fit. With `--epochs` there is no probe, and
`--at-once 1` runs one network after another, as a CPU wants it. Before that, on a GPU, `--forms` times a step of the
chain networks in both forms, as chains and as the dense convolutions that they equal, and takes the faster one.
Published settings, but for the epochs, a warm-up of a quarter epoch (networks 3.6 times as wide need it in a short
run), and BatchNorm's momentum .1 in the plain networks of the interleaved group paper, whose published .01 knows
nothing after so few steps.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VERB = (sys.executable, "-c", "from leanconv.cli import main; main()", "study")
IGC = ("model_args.momentum=0.1",)
MUTUAL = ("elastic.calibration_images=1024",)
OWN = ("data.augment=cifar", "optim.weight_decay=5e-4", "optim.nesterov=true", "schedule.name=cosine")

STUDIES: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "osep": {name: (name, ()) for name in ("resnet20_cifar10", "d_resnet20_cifar10", "o_resnet20_cifar10")},
    "igc": {name: (name, IGC) for name in ("regconv_w18_d20_cifar10", "igc_l24m2_d20_cifar10")},
    "mutual": {
        "mutual": ("elastic_resnet20_cifar10", MUTUAL),
        "usnet": ("elastic_resnet20_cifar10", (*MUTUAL, "elastic.train_resolutions=[32]")),
        "own_1.0_32": ("resnet20_cifar10", OWN),
        "own_1.0_28": ("resnet20_cifar10", (*OWN, "data.resolution=28")),
        "own_0.5_32": ("resnet20_cifar10", (*OWN, "model_args.multiplier=0.5")),
    },
    "octave": {
        "resnet20": ("resnet20_cifar10", OWN),
        "oct_resnet20_alpha25": ("oct_resnet20_cifar10", ()),
        "oct_resnet20_alpha50": ("oct_resnet20_cifar10", ("rewrites=[octave:alpha=0.5]",)),
    },
    "csn": {
        "resnet3d_26": ("ip_csn_26_ut_interaction", ("model=resnet3d_26",)),
        "ip_csn_26": ("ip_csn_26_ut_interaction", ()),
    },
}
"""Study -> the name of each run, the recipe and what is changed in it; differences are from the first."""

WARMUP = 0.25
"""Epochs of warm-up in the studies of images, of which networks 3.6 times as wide need one in a short run."""

TAIL = 15.0
"""Seconds by which calibration, tables, tests and saving take longer than in the probe, where they count as startup."""


def main() -> None:
    options = _options()
    end = time.monotonic() + options.seconds
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    notes: dict[str, Any] = {"seconds": options.seconds, "seeds": options.seeds, "command": sys.argv}
    notes["forms"] = forms = _forms() if options.forms else {}
    composed = options.composed or (bool(forms) and forms["o_resnet20"]["composed"] < forms["o_resnet20"]["chain"])
    chosen = {name: STUDIES[name] for name in options.studies}
    _write(out / "notes.json", notes)

    if options.epochs:
        epochs = dict.fromkeys(chosen, options.epochs)
    else:
        epochs = _fitting(chosen, out / "probe", options, composed=composed, until=end, notes=notes)
    notes |= {"composed": composed, "epochs": epochs}
    _write(out / "notes.json", notes)
    print(json.dumps(notes), flush=True)

    long = {name: (f"epochs={count}", *options.set) for name, count in epochs.items()}
    _run(chosen, out / "runs", long, options, composed=composed, until=math.inf if options.epochs else end)
    for name in chosen:
        report = subprocess.run(
            [
                *VERB,
                "--no-run",
                "--no-latency",
                "--out",
                str(out / "runs" / name),
                "--figure",
                str(out / f"{name}.png"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        print(f"== {name}\n{report.stdout}{report.stderr}", flush=True)
    notes["wall"] = options.seconds - (end - time.monotonic())
    _write(out / "notes.json", notes)


def _fitting(
    chosen: Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]],
    probe: Path,
    options: argparse.Namespace,
    *,
    composed: bool,
    until: float,
    notes: dict[str, Any],
) -> dict[str, int]:
    """The epochs of every study that a probe says will fit."""
    begun = time.monotonic()
    short = dict.fromkeys(chosen, ("epochs=2", f"steps_per_epoch={options.steps}"))
    _run(chosen, probe, short, options, composed=composed, until=until)
    wall = time.monotonic() - begun
    seconds = {name: _epoch(probe / name, options.steps, chosen[name]) for name in chosen}
    startup = wall - max((_spent(probe / name) for name in chosen), default=0.0)
    left = until - time.monotonic() - startup - TAIL
    notes |= {"probe_wall": wall, "startup": startup, "epoch_seconds": seconds}
    return {name: min(options.most, max(1, int(0.9 * left / max(each, 0.1)))) for name, each in seconds.items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="SPEC", nargs="?", help="parquet:TRAIN,TEST or cifar10:DIR")
    parser.add_argument("--clips", metavar="SPEC", help="video-csv:TRAIN.csv,TEST.csv, for csn")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--seconds", type=float, default=330.0, help="for everything")
    parser.add_argument("--epochs", type=int, help="so many, however long they take")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of an epoch of the probe")
    parser.add_argument("--most", type=int, default=200, help="epochs, however much time there is")
    parser.add_argument("--at-once", type=int, default=100, help="runs of a study at a time")
    parser.add_argument("--studies", nargs="+", choices=sorted(STUDIES), required=True)
    parser.add_argument("--set", nargs="*", default=[], help="for the long runs: steps_per_epoch=20, ...")
    parser.add_argument("--forms", action="store_true", help="time both forms of chains first (needs a GPU)")
    parser.add_argument("--composed", action="store_true", help="train chains composed, without timing them first")
    options = parser.parse_args()
    for given, wanted in (
        (options.data, set(options.studies) - {"csn"}),
        (options.clips, {"csn"} & {*options.studies}),
    ):
        if wanted and not given:
            parser.error(f"no data for {', '.join(sorted(wanted))}: give SPEC for images, --clips for clips")
    if "csn" in options.studies and not options.epochs:
        parser.error("csn wants --epochs: the probe counts the images of CIFAR-10")
    return options


def _run(
    chosen: Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]],
    out: Path,
    changes: Mapping[str, Sequence[str]],
    options: argparse.Namespace,
    *,
    composed: bool,
    until: float,
) -> None:
    """All studies at once, each a `leanconv study`; what is not finished in time is asked to end."""
    from leanconv.recipes import get_recipe, to_yaml

    running = []
    for name, runs in chosen.items():
        files = []
        for label, (recipe, own) in runs.items():
            path = out / "recipes" / name / f"{label}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = f"data.spec={options.clips if name == 'csn' else options.data}"
            told = [f"name={label}", data, "data.validation=0"]
            told += [f"schedule.warmup_epochs={WARMUP}"] * (name != "csn")
            told += [*own, *changes[name]]
            told += ["composed=true"] * (composed and name in ("osep", "igc"))
            path.write_text(to_yaml(get_recipe(recipe, overrides=told)))
            files.append(str(path))
        words = [*VERB, *files, "--seeds", str(options.seeds), "--at-once", str(options.at_once), "--no-latency"]
        running.append(subprocess.Popen([*words, "--out", str(out / name)], stdout=subprocess.DEVNULL))
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
    for process in running:
        process.wait()


def _rows(folder: Path, label: str = "*") -> list[list[dict[str, str]]]:
    """The `metrics.csv` of every run of a study, or of those of one name."""
    return [list(csv.DictReader(path.open())) for path in sorted(folder.glob(f"{label}/seed*/metrics.csv"))]


def _epoch(folder: Path, steps: int, runs: Mapping[str, tuple[str, tuple[str, ...]]]) -> float:
    """Seconds of a whole epoch of the slowest run of the study: of the probe's second one, of which the first has what
    is done once."""
    from leanconv.recipes import get_recipe

    slowest = 0.0
    for label, (recipe, own) in runs.items():
        whole = 50_000 // get_recipe(recipe, overrides=own).data.batch_size
        seeds = [float(rows[-1]["seconds"]) for rows in _rows(folder, label) if rows]
        if seeds:  # the middle one: while the first ones train, others still decode their images
            slowest = max(slowest, statistics.median(seeds) * whole / steps)
    return slowest


def _spent(folder: Path) -> float:
    """The most seconds that a run of the study trained."""
    return max((sum(float(row["seconds"]) for row in rows) for rows in _rows(folder)), default=0.0)


def _forms(steps: int = 15, batch: int = 512) -> dict[str, dict[str, float]]:
    """Milliseconds of a training step on the GPU, alone, as chains and composed, in float32 (TF32) and bf16.

    The batch is large, so that it is the GPU that takes the time, as where many runs share it.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from leanconv.build import create_model
    from leanconv.rewrites.composed import composed_chains

    found: dict[str, dict[str, float]] = {}
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, 32, 32, device="cuda"), torch.randint(10, (batch,), device="cuda")
    networks = {"resnet20": {}, "d_resnet20": {"multiplier": 2.75}, "o_resnet20": {"multiplier": 3.625}}
    networks |= {"regconv_w18": {"depth": 20}, "igc_l24m2": {"depth": 20}}
    for name, made in networks.items():
        net = create_model(name, num_classes=10, **made).cuda().train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        for form in ("chain", "composed", "chain bf16", "composed bf16"):
            with composed_chains(net if "composed" in form else torch.nn.Identity()):
                for step in range(steps):
                    if step == steps // 3:
                        torch.cuda.synchronize()
                        start = time.perf_counter()
                    with torch.autocast("cuda", torch.bfloat16, enabled="bf16" in form):
                        loss = cross_entropy(net(images), labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                torch.cuda.synchronize()
            found.setdefault(name, {})[form] = 1000 * (time.perf_counter() - start) / (steps - steps // 3)
    return found


def _write(path: Path, notes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(notes, indent=2) + "\n")


if __name__ == "__main__":
    main()
