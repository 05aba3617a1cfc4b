"""Whether something that claims to be a model is one: the same fresh random inputs through both.

Exporters have been wrong without a word, a batch axis that looks free may be baked in, and a faster backend may round
differently; so nothing is handed to a user, and nothing is timed, before its outputs were compared with torch's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanconv.errors import ExportError, LeanconvError, need

__all__ = [
    "Difference",
    "Runner",
    "compare",
    "forward",
    "input_size",
    "one_line",
    "onnxruntime_runner",
    "openvino_runner",
    "random_input",
]

Runner = Callable[[Tensor], object]
"""Takes an input (batch, *size) on the CPU and gives the outputs: a tensor, an array, or a nest of them."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two sets of outputs are apart.

    `max_abs` is the largest absolute difference (infinite where one of them is not a number), `max_output` the largest
    absolute output of the model itself, `samples` the number of inputs that were compared.
    """

    max_abs: float
    max_output: float
    samples: int


def input_size(size: Sequence[int]) -> tuple[int, ...]:
    """`size` as integers, channels first and without the batch axis: (C, L), (C, H, W) or (C, frames, H, W).

    Raises `LeanconvError` for an axis below 1 or an empty size.

    >>> input_size([3, 32, 32])
    (3, 32, 32)
    """
    whole = tuple(int(axis) for axis in size)
    if not whole or min(whole) < 1 or whole != tuple(size):
        raise LeanconvError(
            f"size must be positive integers without the batch axis, such as (3, 224, 224), got {tuple(size)}"
        )
    return whole


def random_input(model: nn.Module, size: Sequence[int], batch: int, seed: int) -> Tensor:
    """A standard normal input (batch, *size) on the CPU in the dtype of the weights, from a generator of its own."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, *size), generator=generator).to(dtype)


def forward(model: nn.Module, x: Tensor) -> object:
    """`model(x)`; raises `LeanconvError`, with the shape in it, where the model cannot take such an input."""
    try:
        return model(x)
    except Exception as error:  # whatever other people's layers raise
        raise LeanconvError(
            f"{type(model).__name__} does not run on inputs of shape {tuple(x.shape)}: {one_line(error)}; "
            "check size, which is (channels, ...) without the batch axis"
        ) from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without terminal colours, and its name where it is not one of ours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    if not text:
        return type(error).__name__
    line = text.splitlines()[0]
    return line if isinstance(error, LeanconvError) else f"{type(error).__name__}: {line}"


def compare(
    model: nn.Module, runner: Runner, size: Sequence[int], *, batches: Sequence[int] = (1, 2, 3), seed: int = 0
) -> Difference:
    """Run `model` (on the CPU, in eval mode) and `runner` on fresh random inputs and measure how far apart they are.

    One input per entry of `batches`, each with a seed of its own. Raises `ExportError` when the two do not give the
    same number of outputs with the same shapes, or no output at all, `LeanconvError` when the
    model does not run on `size`; whatever the runner itself raises passes through.

    >>> layer = nn.Conv1d(2, 4, 3)
    >>> compare(layer, layer, (2, 8)).max_abs
    0.0
    """
    size = input_size(size)
    max_abs = max_output = 0.0
    compared = 0
    for index, batch in enumerate(batches):
        x = random_input(model, size, batch, seed + index)
        with torch.inference_mode():
            # The runner gets its own copy: it may be a module that works in place.
            expected = list(_leaves(forward(model, x.clone())))
            actual = list(_leaves(runner(x)))
        shapes = [tuple(y.shape) for y in expected], [tuple(y.shape) for y in actual]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"for an input of shape {tuple(x.shape)} the model gives outputs of shapes {shapes[0]}, "
                f"the runner gives {shapes[1]}: they are not the same network"
            )
        for y, z in zip(expected, actual, strict=True):
            if y.numel():
                compared += y.numel()
                gap = float((y - z).abs().max())
                max_abs = max(max_abs, gap if gap == gap else float("inf"))
                max_output = max(max_output, float(y.abs().max()))
    if not compared:
        raise ExportError(f"the model gives no output for inputs of size {size}, so that nothing can be compared")
    return Difference(max_abs=max_abs, max_output=max_output, samples=sum(batches))


def _leaves(output: object) -> Iterator[Tensor]:
    """The tensors of a nest of outputs in the order in which an exporter lists them, as doubles on the CPU."""
    if isinstance(output, Tensor):
        yield output.detach().cpu().double()
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
    """A runner for the ONNX file at `path` on onnxruntime's CPU backend, with `threads` threads (None: its default)."""
    try:
        import onnxruntime
    except ImportError as error:
        raise need("onnxruntime", "export", "running an ONNX file") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: warnings are about optimizations it did not find
    # Its idle threads spin by default, and would steal time from whatever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())

    def run(x: Tensor) -> object:
        return session.run(None, {name: x.numpy()})

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
    compiled = openvino.Core().compile_model(os.fspath(path), "CPU", settings)
    request = compiled.create_infer_request()

    def run(x: Tensor) -> object:
        results = request.infer([x.numpy()], share_inputs=True)
        return [results[index] for index in range(len(compiled.outputs))]

    return run
