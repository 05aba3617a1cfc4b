"""What training takes: images (clips) per second of a whole step, and the memory that one step needs.

A step is what a training loop does with a batch that is there already: forward in training mode, cross-entropy against
random labels, backward, SGD with momentum. All models are measured in one run, interleaved, as `bench` does.

Two figures of memory, which are not the same and are not called the same:

    saved for backward   what autograd keeps from the forward until the backward, each memory once, without parameters
                         and buffers; on every device. What an autograd function keeps by itself it does not see.
    peak                 on a GPU alone, where torch says it: the most that was allocated at once during a step, with
                         the model's weights, gradients, momentum, its batch and what kernels work with
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.cost import measure
from leanconv.cost.latency import compare_latency, torch_threads
from leanconv.deploy.export import refuse_elastic
from leanconv.deploy.forms.trained import train_by_kernels_
from leanconv.deploy.kept import kept_bytes
from leanconv.deploy.program import quiet
from leanconv.deploy.timed_row import TimedRow, refuse_nothing
from leanconv.deploy.verify import forward, one_line, random_inputs
from leanconv.dryrun import ModelHolder, Size, Sizes, as_module, check_sizes, duplicate, is_detector
from leanconv.dryrun.size import tensors_of
from leanconv.errors import LeanconvError, unknown
from leanconv.kernels.library import load

__all__ = ["PRECISIONS", "TRAIN_BACKENDS", "TrainBenchRow", "bench_training"]

TRAIN_BACKENDS = ("eager", "compile", "leanconv")
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}
"""As in recipes; bf16-mixed is torch's autocast."""


@dataclass(frozen=True, kw_only=True)
class TrainBenchRow(TimedRow):
    """Training steps of one model, as `TimedRow`: a call is a step of `batch` inputs, `macs` those of one forward.

    `per_second` are the inputs of a step of median length. For `saved_bytes` and `peak_bytes` see the head of this
    file; `peak_bytes` is None on a CPU.
    """

    device: str
    precision: str
    per_second: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None


def bench_training(
    models: Mapping[str, nn.Module | ModelHolder],
    size: Size,
    *,
    backends: Sequence[str] = ("eager",),
    batch: int = 8,
    device: str = "cpu",
    precision: str = "32-true",
    threads: int = 1,
    rounds: int = 20,
    seed: int = 0,
) -> list[TrainBenchRow]:
    """Measure a training step of every model, on copies; one row for each pair of a model and a backend.

    `size` is (C, L), (C, H, W) or (C, frames, H, W), without the batch axis, or a list of such. Networks give class
    scores (batch, classes); auxiliary classifiers that they give beside in training have a loss of their own each.

    Args:
        backends: "eager", "compile" (torch.compile), and "leanconv", our own C library where a layer trains on it.
        device: "cpu", "cuda" or "cuda:1".
        precision: "32-true" or "bf16-mixed".
        threads: of torch on a CPU.

    Raises:
        UnknownName: for a backend or a precision that is not one of these.
        LeanconvError: if there is nothing to measure, no such device, or a model cannot be trained on `size`.

    >>> net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(56, 3))
    >>> row, = bench_training({"net": net}, (2, 16), batch=2, rounds=1)
    >>> row.saved_bytes  # of 2 inputs: 2 x 16 numbers, ReLU's 4 x 14, which the linear layer reads; the loss keeps 44
    748
    """
    size = check_sizes(size)
    for name in backends:
        if name not in TRAIN_BACKENDS:
            raise unknown("backend of training", name, TRAIN_BACKENDS)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    refuse_nothing("a benchmark of training", models, backends, batch=batch, threads=threads, rounds=rounds)
    where = _device(device)
    rows: list[TrainBenchRow] = []
    steps: dict[str, Callable[[], object]] = {}
    # What waits for a GPU waits for the current one.
    with torch_threads(threads), torch.cuda.device(where) if where.type == "cuda" else nullcontext():
        for label, given in models.items():
            model = as_module(given)
            refuse_elastic(model, "bench")
            if is_detector(model):
                raise LeanconvError(
                    f"a benchmark of training has random labels, and {type(model).__name__} is a detector, whose "
                    "losses need objects: measure its body, or time a run of train"
                )
            cost = measure(model, size)
            for backend in dict.fromkeys(backends):
                step, needs, problem = _prepared(model, size, backend, batch, where, precision, seed)
                if step is not None:
                    steps[f"{len(rows)}"] = step
                rows.append(
                    TrainBenchRow(
                        model=label,
                        backend=backend,
                        device=str(where),
                        precision=precision,
                        size=size,
                        batch=batch,
                        threads=threads,
                        macs=cost.macs,
                        params=cost.params,
                        saved_bytes=needs[0],
                        peak_bytes=needs[1],
                        share_not_counted=cost.share_not_counted,
                        problem=problem,
                    )
                )
        if not steps:
            return rows
        try:
            times = compare_latency(steps, rounds=rounds, threads=threads)
        except torch.OutOfMemoryError as error:
            raise LeanconvError(
                f"{len(steps)} models do not fit on {where} together, though each does alone: measure fewer at once, "
                f"or a batch below {batch}"
            ) from error
    for index, one in times.items():
        rows[int(index)] = replace(rows[int(index)].timed(one), per_second=1000 * batch / one.median_ms)
    return rows


def _device(name: str) -> torch.device:
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise LeanconvError(f"device must be cpu, cuda or cuda:NUMBER, got {name!r}")
    if kind == "cpu":
        return torch.device("cpu")
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= here:
        raise LeanconvError(f"device {name} is not here, torch sees {here} CUDA devices: take another, or cpu")
    return torch.device("cuda", int(number or 0))


def _prepared(
    model: nn.Module, size: Sizes, backend: str, batch: int, device: torch.device, precision: str, seed: int
) -> tuple[_Step | None, tuple[int | None, int | None], str | None]:
    """A step of a copy on `device`, what it needs (bytes saved, bytes at most) and a problem; then there is no step."""
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    step: _Step | None = None
    try:
        step = _Step(model, size, backend, batch, device, precision, seed)
        step()  # what is made once: momentum, compiled code, the choice of kernels
        saved = _saved(step)
        if not on_gpu:
            return step, (saved, None), None
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return step, (saved, torch.cuda.max_memory_allocated(device) - before), None
    except torch.OutOfMemoryError:
        return None, (None, None), f"a step of {batch} does not fit on {device}: take a smaller batch"
    except LeanconvError:
        raise
    except Exception as error:
        if backend == "eager":
            raise LeanconvError(f"{type(model).__name__} cannot be trained for a step: {one_line(error)}") from error
        return None, (None, None), one_line(error)


class _Step:
    """One step of training, as often as it is called, on one batch of noise."""

    def __init__(
        self, model: nn.Module, size: Sizes, backend: str, batch: int, device: torch.device, precision: str, seed: int
    ) -> None:
        copied = duplicate(model)
        inputs = random_inputs(copied, size, batch, seed)
        self.net = copied.train().to(device)
        self.inputs = torch.utils._pytree.tree_map(lambda x: x.to(device), inputs)
        if backend == "leanconv":
            self._take_library(precision, device)
        self.parameters = [one for one in self.net.parameters() if one.requires_grad]
        if not self.parameters:
            raise LeanconvError(f"{type(model).__name__} has nothing to train: no parameter wants a gradient")
        self.optimizer = torch.optim.SGD(self.parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)
        self._dtype, self._kind = PRECISIONS[precision], device.type
        self.labels = [self._labels(one, batch, device, seed) for one in self._probe(batch)]
        self.run: Callable[..., Any] = self.net
        if backend == "compile":
            # Past the limit torch goes back to eager without a word: raise instead, and allow for many models.
            import torch._dynamo.config as dynamo

            self.run = torch.compile(self.net, dynamic=False)
            with quiet(), dynamo.patch(fail_on_recompile_limit_hit=True, recompile_limit=256):
                self()

    def _take_library(self, precision: str, device: torch.device) -> None:
        load()  # or the error that says what is missing
        if precision != "32-true" or device.type != "cpu":
            raise ValueError(f"the library trains in float32 on a CPU, not in {precision} on {device}")
        if not train_by_kernels_(self.net):
            raise ValueError(f"no layer of {type(self.net).__name__} trains on the library")

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def loss(self) -> Tensor:
        """The sum of the cross-entropies of all scores."""
        with self._cast():
            scores = _scores(self.run(*self.inputs))
            losses = [functional.cross_entropy(one, two) for one, two in zip(scores, self.labels, strict=True)]
        return torch.stack(losses).sum()

    def _cast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._dtype is None else torch.autocast(self._kind, self._dtype)

    def _probe(self, batch: int) -> list[Tensor]:
        """The scores, once, with the errors of a wrong size or a network that gives none."""
        try:
            with torch.no_grad(), self._cast():
                out = forward(self.net, *self.inputs)
        except LeanconvError as error:
            if "more than 1 value per channel" in str(error):
                raise LeanconvError(
                    f"{type(self.net).__name__} has a BatchNorm that sees one value a channel in a batch of {batch}, "
                    "of which no variance can be taken: a larger batch, at least 2"
                ) from error
            raise
        scores = _scores(out)
        if not scores or any(one.ndim != 2 or len(one) != batch for one in scores):
            given = ", ".join(str(tuple(one.shape)) for one in scores) or "no tensor"
            raise LeanconvError(
                f"a step of training needs class scores of shape ({batch}, classes) for its loss, and "
                f"{type(self.net).__name__} gives {given}"
            )
        return scores

    @staticmethod
    def _labels(scores: Tensor, batch: int, device: torch.device, seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        return torch.randint(0, scores.shape[1], (batch,), generator=draw).to(device)


def _scores(out: object) -> list[Tensor]:
    return [one for one in tensors_of(out) if one.is_floating_point()]


def _saved(step: _Step) -> int:
    total = kept_bytes(step.net, step.loss)
    step.optimizer.zero_grad(set_to_none=True)
    return total
