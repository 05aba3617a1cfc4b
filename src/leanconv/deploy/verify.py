"""Whether something that claims to be a model is one: the same fresh random inputs through both.

Exporters have been wrong without a word, a batch axis that looks free may be baked in, and a faster backend may round
differently; so nothing is handed to a user, and nothing is timed, before its outputs were compared with torch's.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanconv.deploy.pixels import FromPixels
from leanconv.deploy.program_nodes import register, uses_kernels
from leanconv.dryrun import Size, arguments, check_sizes
from leanconv.dryrun.size import tensors_of
from leanconv.errors import ExportError, LeanconvError, need
from leanconv.seeds import isolated

__all__ = [
    "Difference",
    "Runner",
    "as_exact",
    "compare",
    "forward",
    "one_line",
    "onnxruntime_runner",
    "openvino_runner",
    "random_inputs",
]

Runner = Callable[..., object]
"""Takes the inputs of a model, batches on the CPU, and gives the outputs: a tensor, an array, or a nest of them."""

ROUNDING = 1e-7
"""What float32 leaves of numbers around 1 that cancel: an output that is small by cancelling may differ by so much."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two sets of outputs are apart.

    `outputs` has for each output the largest absolute difference and the largest absolute number of the model's own.
    Equal infinities and two NaNs at the same place are equal; where only one is finite or a number, the difference is
    infinite. `samples` is the number of inputs that were compared.
    """

    outputs: tuple[tuple[float, float], ...]
    samples: int

    @property
    def max_abs(self) -> float:
        """The largest absolute difference."""
        return max(gap for gap, _ in self.outputs)

    @property
    def max_output(self) -> float:
        """The largest absolute output, of the finite ones."""
        return max(size for _, size in self.outputs)

    def beyond(self, tolerance: float) -> tuple[float, float, float] | None:
        """Difference, allowed difference and size of the first output that differs by more than `tolerance` allows.

        That is `tolerance` times the largest number of that output, or `ROUNDING` where it is small, but never more
        than a hundredth of it. None where all agree.

        >>> Difference(outputs=((2e-4, 500.0), (1e-9, 1e-5)), samples=1).beyond(1e-4)
        >>> Difference(outputs=((2e-4, 500.0), (1e-5, 1e-5)), samples=1).beyond(1e-4)
        (1e-05, 1e-07, 1e-05)
        """
        for gap, size in self.outputs:
            allowed = max(tolerance * size, min(ROUNDING, 0.01 * size))
            if not gap <= allowed:
                return gap, allowed, size
        return None


def random_inputs(model: nn.Module, size: Size, batch: int, seed: int) -> tuple[Any, ...]:
    """The arguments of a forward: standard normal batches on the CPU in the type of the weights, by a seed of its own.

    `size` is the shape of one input without the batch axis, or a list of several. For a network that is given pixels
    they are pixels, every value from 0 to 255 as likely.
    """
    draw = torch.Generator().manual_seed(seed)
    if isinstance(model, FromPixels):
        return (torch.randint(0, 256, (batch, *size), dtype=torch.uint8, generator=draw),)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return arguments(
        model, check_sizes(size), lambda shape: torch.randn((batch, *shape), generator=draw, device="cpu").to(dtype)
    )


def shapes_in(inputs: tuple[Any, ...]) -> str:
    """The shapes of the inputs, for messages."""
    return " and ".join(str(tuple(x.shape)) for x in tensors_of(inputs))


def forward(model: nn.Module, *inputs: Any) -> object:
    """`model(*inputs)`; raises `LeanconvError`, with the shapes in it, where the model cannot take such inputs."""
    try:
        return model(*inputs)
    except Exception as error:  # whatever other people's layers raise
        raise LeanconvError(
            f"{type(model).__name__} does not run on inputs of shape {shapes_in(inputs)}: {one_line(error)}; "
            "check size, which is (channels, ...) without the batch axis, or a list of such for several inputs"
        ) from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without terminal colours, and its name where it is not one of ours.

    What OpenVINO says begins with places in its own sources, which say nothing.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    if not text:
        return type(error).__name__
    lines = text.splitlines()
    line = next((line for line in lines if not line.startswith("Exception from src/")), lines[0])
    return line if isinstance(error, LeanconvError) else f"{type(error).__name__}: {line}"


def compare(
    model: nn.Module,
    runner: Runner,
    size: Size,
    *,
    batches: Sequence[int] = (1, 2, 3),
    seed: int = 0,
    inputs: Sequence[tuple[Any, ...]] = (),
) -> Difference:
    """Run `model` (on the CPU, in eval mode) and `runner` on fresh random inputs and measure how far apart they are.

    One batch per entry of `batches`, each with a seed of its own; or `inputs`, arguments of a forward for each batch.
    Raises `ExportError` when the two do not give the
    same number of outputs with the same shapes, or no finite number at all, `LeanconvError` when the
    model does not run on `size`; whatever the runner itself raises passes through.

    >>> layer = nn.Conv1d(2, 4, 3)
    >>> compare(layer, layer, (2, 8)).max_abs
    0.0
    """
    size = check_sizes(size)
    found: list[tuple[float, float]] = []
    numbers = 0
    drawn = inputs or [random_inputs(model, size, batch, seed + index) for index, batch in enumerate(batches)]
    for index, given in enumerate(drawn):
        with torch.inference_mode():
            # The runner gets its own copy: it may be a module that works in place. A network that draws draws the same.
            with isolated(seed, index):
                expected = list(_leaves(forward(model, *pytree.tree_map(Tensor.clone, given))))
            with isolated(seed, index):
                actual = list(_leaves(runner(*given)))
        shapes = [tuple(y.shape) for y in expected], [tuple(y.shape) for y in actual]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"for inputs of shape {shapes_in(given)} the model gives outputs of shapes {shapes[0]}, "
                f"the runner gives {shapes[1]}: they are not the same network"
            )
        here = [(_gap(y, z), _largest(y)) for y, z in zip(expected, actual, strict=True)]
        numbers += sum(int(y.isfinite().sum()) for y in expected)
        before = found or [(0.0, 0.0)] * len(here)
        found = [(max(a, c), max(b, d)) for (a, b), (c, d) in zip(before, here, strict=True)]
    if not numbers:
        raise ExportError(
            f"the model gives no output or no finite number for inputs of size {size}, so that nothing can be compared"
        )
    return Difference(outputs=tuple(found), samples=sum(len(tensors_of(given)[0]) for given in drawn))


def as_exact(model: nn.Module, runner: Runner, size: Size, *, seed: int) -> bool:
    """Whether `runner` is at most four times as far from `model` in float64 as the model in float32 is.

    A network that blows rounding up, as untrained ones do, differs from itself when its sums are added in another
    order: how far two results in float32 are apart then says nothing about either.
    """
    exact = copy.deepcopy(model).double()
    drawn = [random_inputs(exact, size, batch, seed + batch) for batch in (1, 2)]

    def rounded(of: Runner) -> Runner:
        return lambda *inputs: of(*pytree.tree_map(_in_float32, inputs))

    own, other = (compare(exact, rounded(of), size, seed=seed, inputs=drawn) for of in (model, runner))
    pairs = zip(own.outputs, other.outputs, strict=True)
    return all(0 < mine < inf and theirs <= 4 * mine for (mine, _), (theirs, _) in pairs)


def _in_float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _gap(y: Tensor, z: Tensor) -> float:
    """The largest difference; none between equal infinities and between two NaNs."""
    differ = ~((y == z) | (y.isnan() & z.isnan()))
    gaps = (y - z)[differ].abs()
    return float(gaps.nan_to_num(nan=inf, posinf=inf).max()) if len(gaps) else 0.0


def _largest(y: Tensor) -> float:
    finite = y[y.isfinite()].abs()
    return float(finite.max()) if len(finite) else 0.0


def _leaves(output: object) -> Iterator[Tensor]:
    """The tensors of a nest of outputs in the order in which an exporter lists them, as doubles on the CPU."""
    if isinstance(output, Tensor):
        real = torch.view_as_real(output) if output.is_complex() else output
        yield real.detach().cpu().double()
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _leaves(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _leaves(value)
    elif output is not None:
        try:
            yield torch.as_tensor(output).double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ExportError(
                f"outputs must be tensors, or lists, tuples and dictionaries of them, got {type(output).__name__}"
            ) from error


def onnxruntime_runner(path: str | os.PathLike[str], *, threads: int | None = None) -> Runner:
    """A runner for the ONNX file at `path` on onnxruntime's CPU backend, with `threads` threads (None: its default).

    Nodes of leanconv's kernels are run by the library that is installed here.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise need("onnxruntime", "export", "running an ONNX file") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it logs as an error it raises, too
    # Its idle threads spin by default, and would steal time from whatever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if uses_kernels(path):
        register(options, path)
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no common base
        raise ExportError(f"{path}: onnxruntime cannot load it: {one_line(error)}") from error
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Any) -> object:
        return session.run(None, {name: x.numpy() for name, x in zip(names, tensors_of(inputs), strict=True)})

    return run


def openvino_runner(path: str | os.PathLike[str], *, threads: int | None = None) -> Runner:
    """A runner for the ONNX file at `path` on OpenVINO's CPU backend, in float32 (its own default may be bfloat16)."""
    try:
        import openvino
    except ImportError as error:
        raise need("openvino", "export", "running a model on OpenVINO") from error
    settings: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(os.fspath(path), "CPU", settings)
    except Exception as error:
        raise ExportError(f"{path}: OpenVINO cannot load it: {one_line(error)}") from error
    request = compiled.create_infer_request()

    def run(*inputs: Any) -> object:
        results = request.infer([x.numpy() for x in tensors_of(inputs)], share_inputs=True)
        return [results[index] for index in range(len(compiled.outputs))]

    return run
