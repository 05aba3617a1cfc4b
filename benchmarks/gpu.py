"""The papers' networks on one GPU, every way to run each, against the dense network at its own best.

    python benchmarks/gpu.py --out gpu.json                              # a GPU, about 6 minutes
    python benchmarks/gpu.py --rehearse --networks resnet20 o_resnet20   # the same code on a CPU, tiny sizes

bfloat16, channels last; inference, and training steps (forward and backward, float32 parameters under autocast). Every
network has a process of its own; all compile side by side, then the networks of a family capture their ways as CUDA
graphs and are timed in turn, round after round: medians of the rounds, with the lowest and the highest. Before a way is
timed its outputs, in training its gradients, are compared with the network's in float32. Whatever is done is in the
file at once, so that a run that is cut short loses what it had not begun.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing as mp
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

from gpu_process import work
from gpu_ways import FAMILIES, Setting, Way

BARS = {
    ("o_resnet20", "infer"): 2.0,
    ("d_resnet20", "infer"): 1.3,
    ("igc_l24m2", "infer"): 1.0,
    ("ir_csn_50", "infer"): 0.7,
    ("oct_resnet50 .5", "infer"): 0.8,
    ("o_resnet20", "train"): 3.0,
    ("d_resnet20", "train"): 1.5,
    ("igc_l24m2", "train"): 2.0,
    ("ir_csn_50", "train"): 0.9,
    ("oct_resnet50 .5", "train"): 0.9,
}
"""Ratios that the plan asks for."""


class Member:
    """One process, seen from the main one."""

    def __init__(self, family: str, name: str, setting: Setting, alone: Any) -> None:
        context = mp.get_context("spawn")
        self.family, self.name = family, name
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(family, name, setting, alone, other), daemon=False)
        self.process.start()
        other.close()
        self.ready: dict[Way, dict[str, Any]] = {}
        self.problems: list[dict[str, Any]] = []
        self.idle = self.gone = False
        self.times: dict[Way, list[float]] = {}

    def listen(self, seconds: float) -> bool:
        """Take one word of the preparation in, if one comes in time."""
        try:
            if not self.pipe.poll(seconds):
                return False
            word, way, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.gone = True
            self._problem(None, "the process ended by itself")
            return True
        if word == "ready":
            self.ready[way] = value
            print(f"{self.name}: {way.mode} {way.label} ready in {value['setup_s']:.0f} s, "
                  f"off by {value['error']:.1e} of {value['allowed']:.1e}", flush=True)  # fmt: skip
        elif word == "idle":
            self.idle = True
        else:
            self.gone = word == "broken"
            self._problem(way, "no time left" if word == "late" else value)
        return True

    def _problem(self, way: Way | None, text: Any) -> None:
        what = "" if way is None else f"{way.mode} {way.label}"
        self.problems.append({"network": self.name, "way": what, "problem": text})
        print(f"{self.name}: {what}: {text}", flush=True)

    def ask(self, *words: Any, seconds: float) -> Any:
        """One order and its answer; None where it did not come."""
        if self.gone or not self.idle:
            return None
        try:
            self.pipe.send(words)
            if not self.pipe.poll(seconds):
                self.gone = True
                self._problem(None, f"no answer to {words[0]!r} in {seconds:.0f} s")
                return None
            word, value = self.pipe.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            self.gone = True
            self._problem(None, f"the process ended during {words[0]!r}")
            return None
        if word == "error":
            self._problem(None, f"{words[0]}: {value}")
            return None
        return value

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError, BrokenPipeError):
            self.pipe.send(("quit",))
        self.process.join(1)
        if self.process.is_alive():
            self.process.kill()

    def rows(self) -> list[dict[str, Any]]:
        """One row for each way that was timed."""
        return [
            {
                "network": self.name, "family": self.family, "mode": way.mode, "way": way.label,
                "median_ms": median(times), "low_ms": min(times), "high_ms": max(times), "rounds": len(times),
                **self.ready[way],
            }
            for way, times in self.times.items() if times
        ]  # fmt: skip


def best(rows: list[dict[str, Any]], name: str, mode: str) -> dict[str, Any] | None:
    """The fastest way of a network."""
    mine = [row for row in rows if row["network"] == name and row["mode"] == mode]
    return min(mine, key=lambda row: row["median_ms"], default=None)


def table(rows: list[dict[str, Any]]) -> str:
    """The best of each network over the best of its dense network, beside what the plan asks for."""
    lines = ["| network | mode | best way | ms | spread | ratio | at most | as it was, eager ms | peak MiB |"]
    lines += ["|---|---|---|---:|---:|---:|---:|---:|---:|"]
    for family, names in FAMILIES.items():
        for mode in ("infer", "train"):
            dense = best(rows, family, mode)
            for name in names:
                row = best(rows, name, mode)
                if row is None:
                    continue
                plain = next((r for r in rows if (r["network"], r["mode"], r["way"]) == (name, mode, "eager")), None)
                ratio = "" if dense is None else f"{row['median_ms'] / dense['median_ms']:.2f}"
                spread = (row["high_ms"] - row["low_ms"]) / row["median_ms"]
                least = min((r["peak_mib"] for r in rows if r["network"] == name and r["mode"] == mode), default=0)
                lines.append(
                    f"| {name} | {mode} | {row['way']} | {row['median_ms']:.2f} | {spread:.1%} | {ratio} | "
                    f"{BARS.get((name, mode), '')} | {'' if plain is None else round(plain['median_ms'], 2)} | "
                    f"{least:.0f} |"
                )
    return "\n".join(lines)


def measure(family: str, members: list[Member], rounds: int, profile: bool, end: float) -> None:
    """Capture and time the networks of a family in turn."""
    for member in members:
        patience = min(end, time.time() + 40)  # for a way that was begun before the deadline
        while not (member.idle or member.gone) and time.time() < patience:
            member.listen(1)
        for way, problem in (member.ask("capture", seconds=60) or {}).items():
            member.problems.append({"network": member.name, "way": way, "problem": problem})
            print(f"{member.name}: {way} not captured: {problem}", flush=True)
    for _ in range(rounds):
        for member in members:
            if time.time() > end:
                return
            for way, taken in (member.ask("round", seconds=30) or {}).items():
                member.times.setdefault(way, []).append(taken)
    for member in members:
        member.ask("release", seconds=30)
    for member in members if profile else []:
        rows = member.rows()
        for mode in ("infer", "train"):
            fast = best(rows, member.name, mode)
            way = next((w for w in member.times if fast and (w.mode, w.label) == (mode, fast["way"])), None)
            if way is not None and time.time() < end:
                kernels = member.ask("profile", way, seconds=30) or []
                member.ready[way]["kernels"] = kernels


def about(rehearse: bool) -> dict[str, Any]:
    """Where and with what."""
    import torch

    from leanconv.machine import this_machine, versions

    names = [] if rehearse else [torch.cuda.get_device_name(0)]
    return {
        "machine": str(this_machine()), "gpu": names, "date": time.strftime("%Y-%m-%d"),
        "versions": {**versions(["triton", "torchvision"]), "torch": torch.__version__, "cuda": torch.version.cuda},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=360, help="stop timing after that, and write what there is")
    parser.add_argument("--setup", type=float, default=220, help="of these, at most so many for compiling")
    parser.add_argument("--networks", nargs="+", help="only these, and the dense networks they are measured against")
    parser.add_argument(
        "--ways", nargs="+", default=[], help="only these, as in the table: 'fused eager', 'train compiled'"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="also list the kernels of every best way")
    parser.add_argument(
        "--rehearse", action="store_true", help="on a CPU, tiny sizes, nothing compiled to machine code"
    )
    args = parser.parse_args()
    start = time.time()
    end = start + args.seconds
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1" if args.rehearse else "4")
    os.environ.setdefault("OMP_NUM_THREADS", "1" if args.rehearse else "2")
    setting = Setting(args.rehearse, start + args.setup, tuple(args.ways))
    chosen = {
        family: [name for name in names if not args.networks or name in args.networks]
        for family, names in FAMILIES.items()
    }
    alone = mp.get_context("spawn").Lock()
    groups = {
        family: [Member(family, name, setting, alone) for name in dict.fromkeys([family, *names])]
        for family, names in chosen.items()
        if names
    }
    members = [member for group in groups.values() for member in group]
    context = about(args.rehearse)

    def write() -> list[dict[str, Any]]:
        rows = [row for member in members for row in member.rows()]
        problems = [problem for member in members for problem in member.problems]
        left = args.out.with_suffix(".part")
        left.write_text(json.dumps({"about": context, "rows": rows, "problems": problems}, indent=1) + "\n")
        left.replace(args.out)
        return rows

    try:
        while time.time() < setting.deadline and any(not (member.idle or member.gone) for member in members):
            if not any(member.listen(0) for member in members if not (member.idle or member.gone)):
                time.sleep(0.05)
        print(f"prepared in {time.time() - start:.0f} s", flush=True)
        for family, group in groups.items():
            measure(family, group, args.rounds, args.profile, end)
            rows = write()
            for member in group:
                for row in member.rows():
                    print(
                        f"{row['mode']:6s}{row['network']:18s}{row['way']:26s}{row['median_ms']:9.3f} ms "
                        f"({row['low_ms']:.3f}-{row['high_ms']:.3f}) peak {row['peak_mib']:7.0f} MiB",
                        flush=True,
                    )
    finally:
        for member in members:
            member.close()
        rows = write()
    print(table(rows))
    print(f"all in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
