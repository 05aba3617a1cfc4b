"""What models take on this machine's CPU, on every backend that is here: equal MACs are not equal time.

All pairs of a model and a backend are measured in one run, interleaved, so that a machine that slows down in the middle
slows all of them down; every backend is first shown to compute what the model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from leanconv.cost import measure
from leanconv.cost.latency import compare_latency, torch_threads
from leanconv.deploy.accelerate import accelerate
from leanconv.deploy.export import refuse_elastic
from leanconv.deploy.fold import eval_copy, fold
from leanconv.deploy.forms.octave_forms import octave_forms
from leanconv.deploy.frame_by_frame import frame_by_frame
from leanconv.deploy.in_programs import in_programs
from leanconv.deploy.onnx_file import to_onnx
from leanconv.deploy.program import quiet
from leanconv.deploy.program_nodes import ProgramNode
from leanconv.deploy.timed_row import TimedRow, refuse_nothing
from leanconv.deploy.verify import (
    Difference,
    Runner,
    compare,
    forward,
    one_line,
    onnxruntime_runner,
    openvino_runner,
    random_inputs,
)
from leanconv.dryrun import ModelHolder, Size, Sizes, as_module, check_sizes
from leanconv.errors import unknown
from leanconv.files import scratch_folder

__all__ = ["BACKENDS", "BenchRow", "bench", "prepared"]

Build = Callable[[nn.Module, Path, Sizes, int, int], Runner]


@dataclass(frozen=True, kw_only=True)
class BenchRow(TimedRow):
    """One model on one backend, as `TimedRow`; `max_abs_difference` is that of the outputs from torch's own."""

    max_abs_difference: float | None = None


def bench(
    models: Mapping[str, nn.Module | ModelHolder],
    size: Size,
    *,
    backends: Sequence[str] = ("eager", "compile", "onnxruntime", "openvino"),
    batch: int = 1,
    threads: int = 1,
    rounds: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
    clock: Callable[[], float] = perf_counter,
) -> list[BenchRow]:
    """Measure every model on every backend, in eval mode on the CPU with `threads` threads; one row for each pair.

    `size` is (C, L), (C, H, W) or (C, frames, H, W), without the batch axis, or a list of such. The models stay
    untouched. Outputs that are further from torch's than `tolerance` times the largest of them disqualify a backend.
    BatchNorms are not folded: to see what that gives, pass `fold(model, size)` as one more model. `clock` gives
    seconds; with `time.process_time` the processor's time counts, on a machine that does other work as well.

    Raises:
        UnknownName: for a backend that is not in `BACKENDS`.
        LeanconvError: if there is nothing to measure, or a model does not run on `size`.

    >>> [row.backend for row in bench({"net": nn.Conv1d(2, 4, 3)}, (2, 16), backends=["eager"])]
    ['eager']
    """
    size = check_sizes(size)
    for name in backends:
        if name not in BACKENDS:
            raise unknown("backend", name, BACKENDS)
    refuse_nothing("bench", models, backends, batch=batch, threads=threads, rounds=rounds)
    rows: list[BenchRow] = []
    candidates: dict[str, Callable[[], object]] = {}
    with torch_threads(threads), scratch_folder() as folder:
        for number, (label, given) in enumerate(models.items()):
            model = as_module(given)
            refuse_elastic(model, "bench")
            subject = eval_copy(model)
            inputs = random_inputs(subject, size, batch, seed)
            forward(subject, *inputs)
            cost = measure(subject, size)
            for name in dict.fromkeys(backends):
                onnx = folder / f"{number}.onnx"
                runner, difference, problem = prepared(subject, name, onnx, size, batch, threads, tolerance, seed + 1)
                if runner is not None:
                    candidates[f"{len(rows)}"] = partial(runner, *inputs)
                rows.append(
                    BenchRow(
                        model=label,
                        backend=name,
                        size=size,
                        batch=batch,
                        threads=threads,
                        macs=cost.macs,
                        params=cost.params,
                        share_not_counted=cost.share_not_counted,
                        max_abs_difference=None if difference is None else difference.max_abs,
                        problem=problem,
                    )
                )
        if not candidates:
            return rows
        latencies = compare_latency(candidates, rounds=rounds, threads=threads, clock=clock)
    for index, latency in latencies.items():
        rows[int(index)] = rows[int(index)].timed(latency)
    return rows


def prepared(
    model: nn.Module,
    backend: str,
    path: Path,
    size: Sizes,
    batch: int,
    threads: int,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> tuple[Runner | None, Difference | None, str | None]:
    """What runs `model` (on the CPU, in eval mode) on a backend, how far its outputs are from torch's, and a problem.

    There is no runner where there is a problem. `path` is where an ONNX file is made or found.
    """
    try:
        runner = BACKENDS[backend](model, path, size, batch, threads)
        difference = compare(model, runner, size, batches=(batch,), seed=seed)
    except Exception as error:  # each backend has its own; a table without it would hide it
        return None, None, one_line(error)
    if difference.beyond(tolerance):
        return None, difference, f"outputs differ from torch's by up to {difference.max_abs:.1e}"
    return runner, difference, None


def _eager(model: Callable[..., object]) -> Runner:
    def run(*inputs: Any) -> object:
        with torch.inference_mode():
            return model(*inputs)

    return run


def _compiled(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    import torch._dynamo.config as dynamo

    runner = _eager(torch.compile(model, dynamic=False))
    # Models of one class share one budget of compilations, and torch goes back to eager without a word when it is
    # used up: raise instead, and allow for many models.
    with quiet(), dynamo.patch(fail_on_recompile_limit_hit=True, recompile_limit=256):
        runner(*inputs)
    return runner


def _exported(model: nn.Module, path: Path, size: Sizes, batch: int) -> Path:
    """The ONNX file for backends that read one, made once per model."""
    if not path.exists():
        to_onnx(model, path, size=size, batch=batch)
    return path


def _exported_in_forms(model: nn.Module, path: Path, size: Sizes, batch: int, threads: int, runtime: str) -> Path:
    """The same with octave convolutions in the way that is fastest on `runtime`."""
    found = octave_forms(model, size, runtime=runtime, batch=batch, threads=threads)
    return _exported(found.model, path.with_suffix(f".{runtime}.onnx"), size, batch)


def _exported_with_kernels(model: nn.Module, path: Path, size: Sizes, batch: int) -> Path:
    """The same with the programs of the kernels as nodes."""
    found = in_programs(fold(model, size).model, size, ProgramNode, "onnxruntime_kernels")
    frame_by_frame(found.model)
    return _exported(found.model, path, size, batch)


BACKENDS: dict[str, Build] = {
    "eager": lambda model, path, size, batch, threads: _eager(model),
    "compile": lambda model, path, size, batch, threads: _compiled(model, random_inputs(model, size, batch, 0)),
    "onnxruntime": lambda model, path, size, batch, threads: onnxruntime_runner(
        _exported(model, path, size, batch), threads=threads
    ),
    "openvino": lambda model, path, size, batch, threads: openvino_runner(
        _exported(model, path, size, batch), threads=threads
    ),
    "onnxruntime_forms": lambda model, path, size, batch, threads: onnxruntime_runner(
        _exported_in_forms(model, path, size, batch, threads, "onnxruntime"), threads=threads
    ),
    "openvino_forms": lambda model, path, size, batch, threads: openvino_runner(
        _exported_in_forms(model, path, size, batch, threads, "openvino"), threads=threads
    ),
    "onnxruntime_kernels": lambda model, path, size, batch, threads: onnxruntime_runner(
        _exported_with_kernels(model, path.with_suffix(".kernels.onnx"), size, batch), threads=threads
    ),
    "leanconv": lambda model, path, size, batch, threads: _eager(accelerate(model, size).model),
}
"""What `bench` can run a model on: each makes a runner from (model, ONNX file to make, size, batch, threads)."""
