"""The process that `gpu.py` gives every network: its ways prepared, checked, captured as CUDA graphs and timed."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from typing import Any

from gpu_ways import FAMILIES, Setting, Way, inputs_of, ways

__all__ = ["Runner", "work"]


class Runner:
    """One network and all its ways, in one process."""

    def __init__(self, family: str, name: str, setting: Setting, alone: Any) -> None:
        import torch

        import leanconv as lc

        self.torch, self.setting, self.name, self.alone = torch, setting, name, alone
        self.device = "cpu" if setting.rehearse else "cuda"
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(1 if setting.rehearse else 2)
        self.size, self.proof, batch = inputs_of(family, setting.rehearse)
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
