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
import gc
import json
import multiprocessing as mp
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

FAMILIES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "resnet20": {
        "resnet20": ("resnet20", {}),
        "o_resnet20": ("o_resnet20", {"multiplier": 3.625}),
        "d_resnet20": ("d_resnet20", {"multiplier": 2.75}),
    },
    "resnet3d_50": {
        "resnet3d_50": ("resnet3d_50", {"num_classes": 400}),
        "ir_csn_50": ("ir_csn_50", {"num_classes": 400}),
        "ip_csn_50": ("ip_csn_50", {"num_classes": 400}),
    },
    "regconv_w18": {
        "regconv_w18": ("regconv_w18", {}),
        "igc_l24m2": ("igc_l24m2", {}),
        "igc_l4m8": ("igc_l4m8", {}),
    },
    "resnet50": {
        "resnet50": ("torchvision/resnet50", {}),
        "oct_resnet50 .5": ("oct_resnet50", {"alpha": 0.5}),
        "oct_resnet50 .25": ("oct_resnet50", {"alpha": 0.25}),
    },
}
"""The first of a family is the dense network that the others are measured against."""

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

BATCHES = {"resnet20": 1024, "regconv_w18": 1024, "resnet50": 128, "resnet3d_50": 16}


class Way(NamedTuple):
    """One way to run a network: `form` None is the network as it is."""

    mode: str
    form: str | None
    multiple: int
    compiled: bool

    @property
    def label(self) -> str:
        """For tables: eager, compiled, composed x8 compiled."""
        words = [] if self.form is None else [self.form] + ([f"x{self.multiple}"] if self.multiple > 1 else [])
        return " ".join([*words, "compiled" if self.compiled else "eager"])


def ways(name: str) -> list[Way]:
    """The ways of a network, what is most likely to win first."""
    chains, separated, channelwise = name.startswith(("o_", "igc")), name.startswith("d_"), "csn" in name
    octave = name.startswith("oct")
    narrow = chains or separated or name == "regconv_w18"  # channels that are no multiple of 8
    multiple = 8 if narrow else 1
    if chains:
        found = [
            Way("infer", "composed", 8, True),
            Way("infer", "fused", 8, False),
            Way("infer", "kernel", 8, False),
            Way("train", "composed", 8, True),
            Way("train", "composed", 8, False),
            Way("infer", "kernel", 8, True),
        ]
    else:
        found = [Way("infer", "stages", multiple, True), Way("infer", "fused", multiple, False)]
        # Compiled training of channelwise 3D convolutions runs ten times slower, by the gradient of their weights.
        found += [] if channelwise else [Way("train", None, 1, True)]
    if octave:
        found += [Way("infer", "kernel", 1, True)]
    if channelwise:
        found += [Way("train", "kernel", 1, True), Way("infer", "fused", 1, True), Way("train", "kernel", 1, False)]
    if separated:
        found += [Way("infer", "kernel", 8, False), Way("train", "kernel", 8, True), Way("infer", "kernel", 8, True)]
    found += [Way("infer", "fused", 1, True)] if octave else []
    found += [Way("infer", None, 1, False), Way("train", None, 1, False)]
    if narrow and not chains:
        found += [Way("train", "stages", 8, True)]
    if not (channelwise or octave):
        found += [Way("infer", "fused", multiple, True)]
    return [*found, Way("infer", None, 1, True)]


class Setting(NamedTuple):
    """What every process is told."""

    rehearse: bool
    deadline: float
    only: tuple[str, ...] = ()


def _inputs(family: str, rehearse: bool) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The size of one input, that for proofs, and the batch."""
    if family in ("resnet20", "regconv_w18"):
        return (3, 32, 32), (3, 32, 32), 4 if rehearse else BATCHES[family]
    if family == "resnet50":
        return ((3, 64, 64) if rehearse else (3, 224, 224)), (3, 64, 64), 2 if rehearse else BATCHES[family]
    return ((3, 8, 32, 32) if rehearse else (3, 8, 224, 224)), (3, 8, 64, 64), 2 if rehearse else BATCHES[family]


class Runner:
    """One network and all its ways, in one process."""

    def __init__(self, family: str, name: str, setting: Setting, alone: Any) -> None:
        import torch

        import leanconv as lc

        self.torch, self.setting, self.name, self.alone = torch, setting, name, alone
        self.device = "cpu" if setting.rehearse else "cuda"
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(1 if setting.rehearse else 2)
        self.size, self.proof, batch = _inputs(family, setting.rehearse)
        torch.manual_seed(0)
        make, options = FAMILIES[family][name]
        self.model = lc.create_model(make, **options)
        generator = torch.Generator().manual_seed(1)
        for module in self.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):  # fresh ones hide mistakes of folding
                module.running_var.uniform_(0.8, 1.25, generator=generator)
                module.running_mean.normal_(0, 0.05, generator=generator)
        self.layout = torch.channels_last if len(self.size) == 3 else torch.channels_last_3d
        x = torch.randn(batch, *self.size, generator=generator)
        self.x = x.to(self.device).contiguous(memory_format=self.layout)
        self.half = self.x.to(torch.bfloat16)
        with torch.no_grad():
            classes = self.model.eval()(torch.zeros(1, *self.proof)).flatten(1).shape[1]
        self.y = torch.randint(0, classes, (batch,), generator=generator).to(self.device)
        self.few = max(2, batch // 32)
        self.references: dict[str, Any] = {}
        self.ready: dict[Way, Callable[[], Any]] = {}
        self.graphs: dict[Way, Callable[[], Any]] = {}
        self.pool: Any = None

    # ------------------------------------------------------------------------------------------------- one way ready

    def prepare(self, way: Way) -> dict[str, Any]:
        """Build, compile, check and run one way; raises where its values are wrong."""
        torch = self.torch
        start = time.monotonic()
        model = self._formed(way)
        if not self.setting.rehearse:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        build = self._inference if way.mode == "infer" else self._training
        call = build(model, way)
        error, allowed = self._error(way, model, call)
        if not error <= allowed:
            raise ValueError(f"values differ by {error:.1e}, allowed are {allowed:.1e}")
        call()
        self._wait()
        peak = 0.0
        if not self.setting.rehearse:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            call()
            self._wait()
            peak = torch.cuda.max_memory_allocated() / 2**20
            for p in model.parameters():
                p.grad = None
        self.ready[way] = call
        return {"error": error, "allowed": allowed, "peak_mib": peak, "setup_s": time.monotonic() - start}

    def _formed(self, way: Way) -> Any:
        import copy

        from leanconv.deploy.forms import in_form

        if way.form is None:
            model = copy.deepcopy(self.model).train(way.mode == "train")
        else:
            self.model.train(way.mode == "train")
            model = in_form(
                self.model,
                way.form,
                self.proof,
                training=way.mode == "train",
                multiple=way.multiple,  # type: ignore[arg-type]
            )
        dtype = self.torch.bfloat16 if way.mode == "infer" else self.torch.float32
        return model.to(self.device, dtype).to(memory_format=self.layout)

    def _compiled(self, model: Any, way: Way) -> Any:
        if not way.compiled:
            return model
        return self.torch.compile(model, backend="aot_eager" if self.setting.rehearse else "inductor")

    def _inference(self, model: Any, way: Way) -> Callable[[], Any]:
        run = self._compiled(model, way)

        def call() -> Any:
            with self.torch.inference_mode():
                return run(self.half)

        return call

    def _training(self, model: Any, way: Way) -> Callable[[], Any]:
        run, parameters = self._compiled(model, way), list(model.parameters())

        def call() -> Any:
            for p in parameters:
                p.grad = None
            with self.torch.autocast(self.device, self.torch.bfloat16):
                scores = run(self.x)
            loss = self.torch.nn.functional.cross_entropy(scores.float().flatten(1), self.y)
            loss.backward()
            return loss

        return call

    def _error(self, way: Way, model: Any, call: Callable[[], Any]) -> tuple[float, float]:
        """How far the values of a way are from the network's own in float32, and how far they may be.

        That is three times as far as the network as it is, run in bfloat16, and a little.
        """
        if way.mode not in self.references:
            with self.alone:  # float32 takes twice the memory
                self._refer(way)
        exact, usual = self.references[way.mode]
        if way.mode == "infer":
            return _apart(call().float(), exact), 3 * usual + 0.01
        # A deep network without shortcuts carries rounding far: what bfloat16 loses says how far.
        if way.form is not None and (off := self._off_in_float32(model)) > (bound := max(1e-3, usual / 50)):
            return off, bound
        call()
        return _apart(self._gradients(model), exact), 3 * usual + 0.02

    def _off_in_float32(self, model: Any) -> float:
        """How far the gradients of a form are from the network's, a few samples, without bfloat16 and TF32.

        The gradients of a deep network in bfloat16 are too far from exact ones to show that a form is right.
        """
        torch = self.torch
        few = slice(0, self.few)

        def gradients(network: Any) -> Any:
            for p in network.parameters():
                p.grad = None
            torch.nn.functional.cross_entropy(network(self.x[few]).flatten(1), self.y[few]).backward()
            return self._gradients(network)

        fast = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = False
        try:
            if "few" not in self.references:
                self.references["few"] = gradients(self._formed(Way("train", None, 1, False)))
            return _apart(gradients(model), self.references["few"])
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = fast

    def _refer(self, way: Way) -> None:
        """What the network as it is computes in float32, and how far it is from that in bfloat16."""
        torch, plain_way = self.torch, Way(way.mode, None, 1, False)
        torch.backends.cudnn.benchmark = False  # trying every algorithm takes longer than running one
        plain = self._formed(plain_way)
        if way.mode == "infer":
            base = self._inference(plain, plain_way)().float()
            with torch.inference_mode():
                exact = plain.float()(self.x)
        else:
            state = {name: value.clone() for name, value in plain.state_dict().items()}
            self._training(plain, plain_way)()
            base = self._gradients(plain)
            plain.load_state_dict(state)
            for p in plain.parameters():
                p.grad = None
            torch.nn.functional.cross_entropy(plain(self.x).flatten(1), self.y).backward()
            exact = self._gradients(plain)
        self.references[way.mode] = exact, _apart(base, exact)
        torch.backends.cudnn.benchmark = True
        del plain
        gc.collect()
        if not self.setting.rehearse:
            torch.cuda.empty_cache()

    def _gradients(self, model: Any) -> Any:
        return self.torch.cat([p.grad.detach().float().flatten() for p in model.parameters()])

    def _wait(self) -> None:
        if not self.setting.rehearse:
            self.torch.cuda.synchronize()

    # ------------------------------------------------------------------------------------------------------- timing

    def capture(self) -> dict[str, str]:
        """Every ready way as a CUDA graph; what failed, with the reason."""
        failed = {}
        if not self.setting.rehearse:
            self.pool = self.torch.cuda.graph_pool_handle()
        for way, call in self.ready.items():
            try:
                self.graphs[way] = call if self.setting.rehearse else self._graph(call)
            except Exception as error:  # a way that cannot be captured is not timed, the others are
                failed[f"{way.mode} {way.label}"] = f"{type(error).__name__}: {str(error)[:300]}"
                self._wait()
        return failed

    def _graph(self, call: Callable[[], Any]) -> Callable[[], Any]:
        torch = self.torch
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):  # one after the other, so they may share memory
            call()
        graph.replay()
        torch.cuda.synchronize()
        return graph.replay

    def round(self) -> dict[Way, float]:
        """Milliseconds of each way, once."""
        return {way: self._sample(replay) for way, replay in self.graphs.items()}

    def _sample(self, replay: Callable[[], Any]) -> float:
        if self.setting.rehearse:
            start = time.perf_counter()
            replay()
            return (time.perf_counter() - start) * 1e3
        torch = self.torch
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        replay()
        begin.record()
        for _ in range(2):
            replay()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 2

    def release(self) -> None:
        """Give the memory of the graphs back."""
        self.graphs.clear()
        gc.collect()
        if not self.setting.rehearse:
            self.torch.cuda.empty_cache()

    def profile(self, way: Way) -> list[tuple[str, int, float]]:
        """The kernels of one call: name, how often, milliseconds in all; the longest first."""
        torch = self.torch
        if self.setting.rehearse:
            return []
        from torch.profiler import ProfilerActivity, profile

        self.ready[way]()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            self.ready[way]()
            torch.cuda.synchronize()
        rows = [(row.key[:90], row.count, row.self_device_time_total / 1e3) for row in seen.key_averages()]
        return sorted(rows, key=lambda row: -row[2])[:18]


def _apart(found: Any, exact: Any) -> float:
    """||found - exact|| / ||exact||; infinite where a number is missing."""
    error = float((found - exact).norm() / exact.norm())
    return error if error == error else float("inf")


def work(family: str, name: str, setting: Setting, alone: Any, pipe: Any) -> None:
    """The life of one process: prepare all ways, then do what it is told."""
    try:
        runner = Runner(family, name, setting, alone)
        for way in ways(name):
            if setting.only and not {way.label, f"{way.mode} {way.label}"} & {*setting.only}:
                continue
            if time.time() > setting.deadline:
                pipe.send(("late", way, None))
                continue
            try:
                pipe.send(("ready", way, _patient(runner, way)))
            except Exception as error:  # this way fails, the others go on
                last = traceback.format_exc().strip().splitlines()
                pipe.send(
                    ("failed", way, f"{type(error).__name__}: {str(error)[:600]} | {' | '.join(last[-7:])[:900]}")
                )
            gc.collect()
        pipe.send(("idle", None, None))
        while True:
            word, *given = pipe.recv()
            if word == "quit":
                return
            try:
                pipe.send((word, getattr(runner, word)(*given)))
            except Exception as error:
                pipe.send(("error", f"{type(error).__name__}: {str(error)[:600]}"))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:
        pipe.send(("broken", None, f"{type(error).__name__}: {str(error)[:900]}"))


def _patient(runner: Runner, way: Way) -> dict[str, Any]:
    """Prepare a way, again where the other processes had the memory of the GPU."""
    for patience in (2, 5, 10):
        try:
            return runner.prepare(way)
        except runner.torch.OutOfMemoryError:
            gc.collect()
            runner.torch.cuda.empty_cache()
            time.sleep(patience)
    return runner.prepare(way)


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
