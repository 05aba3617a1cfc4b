"""ONNX: written by torch.onnx, in fp16 and int8 by onnxruntime's own tools, run by onnxruntime."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv.deploy.metadata import KEY
from leanconv.deploy.plan import ExportPlan
from leanconv.deploy.program import explained, names_of, output_names, quiet, to_program
from leanconv.deploy.program_nodes import fill_in_plans
from leanconv.deploy.verify import random_inputs
from leanconv.dryrun import Sizes
from leanconv.dryrun.size import tensors_of
from leanconv.errors import ExportError, need
from leanconv.files import scratch_folder
from leanconv.kernels.library import NAMES, load

__all__ = ["require", "to_onnx", "write"]

_SINGLE_FILE_BYTES = 2**31 - 2**26
"""Weights up to here go into the file itself. protobuf ends at 2 GiB; the rest is left to the graph."""

_CALIBRATION_BATCH = 8

_IN_INT8 = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool", "Resize")
"""Operators that int8 makes cheaper. Sums, slices and padding stay: they gain nothing, and OpenVINO gives other numbers
for a residual sum of two int8 branches, and fails on a shortcut of a slice and a padding."""


def require(plan: ExportPlan) -> str:
    """What will run the file, with its version; raises `MissingExtra` before any work is done."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise need(package, "export", "export to ONNX") from error
    if plan.kernels:
        return f"onnxruntime {module.__version__} with leanconv's kernels, {NAMES[load().lanes]}"
    return f"onnxruntime {module.__version__}"


def write(model: nn.Module, path: Path, plan: ExportPlan, calibration: Sequence[tuple[Any, ...]] = ()) -> int:
    """Write `model` (on the CPU, in eval mode) to `path` as `plan` says, unverified; returns the opset.

    In int8 the ranges of activations are those that `calibration` shows: arguments of a forward, of one input each.
    """
    opset = to_onnx(
        model,
        path,
        size=plan.size,
        batch=None if plan.dynamic_batch else 1,
        opset=plan.opset,
        free_sides=plan.dynamic_size,
        text=plan.text,
    )
    if plan.precision != "fp32":
        if path.with_name(path.name + ".data").exists():
            raise ExportError(
                f"{plan.path}: its weights are beyond the 2 GB of one file, which the tools for {plan.precision} do not"
                " take: export it in fp32"
            )
        _halve(path) if plan.precision == "fp16" else _quantize(path, calibration, plan)
        _label(path, plan.text)
    return opset


def to_onnx(
    model: nn.Module,
    path: Path,
    *,
    size: Sizes,
    batch: int | None = None,
    opset: int | None = None,
    free_sides: bool = False,
    text: str | None = None,
) -> int:
    """Write `model` (on the CPU, in eval mode) to `path`, unverified, and return the opset; see `export`.

    The batch axis is free, or fixed to `batch`; `text` is what the file says about its input. An `OSError` of the write
    passes through.
    """
    # Not 1 where the axis is free: a one may be taken for an axis to broadcast.
    inputs = random_inputs(model, size, 2 if batch is None else batch, seed=0)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    with quiet(), torch.no_grad():
        outputs = output_names(model, inputs, "ONNX")
        try:
            # Exported here, not inside torch.onnx: that would retry in other ways and lose where it failed.
            program = to_program(model, inputs, free_batch=batch is None, free_sides=free_sides)
            onnx_program = torch.onnx.export(
                program,
                input_names=names_of("input", inputs),
                output_names=outputs,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"{type(model).__name__} cannot be exported to ONNX: {explained(error, free_sides=free_sides)}"
            ) from error
        if onnx_program is None:
            raise ExportError(f"{type(model).__name__} cannot be exported to ONNX: torch.onnx.export gave nothing")
        _check_names(type(model).__name__, onnx_program.model, outputs, opset)
        fill_in_plans(onnx_program.model, model)
        if text is not None:
            onnx_program.model.metadata_props[KEY] = text
        onnx_program.save(path, external_data=weights > _SINGLE_FILE_BYTES)
    return int(onnx_program.model.opset_imports[""])


def _check_names(name: str, written: Any, outputs: list[str], opset: int | None) -> None:
    """Raise `ExportError` where torch wrote another operator set than it was asked for, or other names."""
    if opset not in (None, (got := int(written.opset_imports[""]))):
        raise ExportError(
            f"{name} cannot be written in ONNX opset {opset}: torch writes it in opset {got} and cannot bring it to "
            "that one, and a file of another opset may not run where it is to; leave opset= out or ask for a newer one"
        )
    found = [value.name for value in written.graph.outputs]
    if found != outputs:
        raise ExportError(
            f"{name} cannot be exported to ONNX: its file has the outputs {found}, and the model returns "
            f"{len(outputs)} tensors: return each tensor once"
        )


def _halve(path: Path) -> None:
    """Weights and arithmetic in half precision, by onnxruntime's tool; inputs and outputs stay what they were."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _silent():
        onnx.save(convert_float_to_float16(onnx.load(str(path)), keep_io_types=True), str(path))


def _quantize(path: Path, calibration: Sequence[tuple[Any, ...]], plan: ExportPlan) -> None:
    """Static quantization to int8, by onnxruntime's tool: a scale for each channel of weights."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = names_of("input", calibration[0])
    step = _CALIBRATION_BATCH if plan.dynamic_batch else 1

    def batches() -> Iterator[dict[str, Any]]:
        for start in range(0, len(calibration), step):
            columns = zip(*(tensors_of(inputs) for inputs in calibration[start : start + step]), strict=True)
            yield {name: torch.cat(column).numpy() for name, column in zip(names, columns, strict=True)}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = batches()

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with _silent(), scratch_folder() as folder:
        prepared = folder / "prepared.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=[*_IN_INT8],
        )


def _label(path: Path, text: str | None) -> None:
    """What the file says about its input, once more: not every tool hands it on."""
    import onnx

    model = onnx.load(str(path))
    if text is not None:
        onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, str(path))


@contextmanager
def _silent() -> Iterator[None]:
    """Without the advice that onnxruntime's tools log in the name of nobody."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with quiet():
            yield
    finally:
        root.setLevel(level)
