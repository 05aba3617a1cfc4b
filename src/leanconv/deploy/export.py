"""A model as one ONNX file whose outputs have been compared with the model's.

The file is written under a temporary name, loaded by onnxruntime, compared with torch on fresh random inputs at several
batch sizes, and only then given its name: a file that exists is a file that was verified.
"""

from __future__ import annotations

import logging
import os
import re
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from leanconv.deploy.fold import eval_copy
from leanconv.deploy.fold import fold as fold_norms
from leanconv.deploy.verify import compare, forward, one_line, onnxruntime_runner, random_inputs
from leanconv.dryrun import ModelHolder, Size, Sizes, as_module, check_sizes
from leanconv.dryrun.size import tensors_of
from leanconv.errors import ExportError, LeanconvError, need
from leanconv.files import unwritable, whole_folder

__all__ = ["ExportReport", "export", "quiet", "refuse_elastic", "to_onnx"]

_SINGLE_FILE_BYTES = 2**31 - 2**26
"""Weights up to here go into the file itself. protobuf ends at 2 GiB; the rest is left to the graph."""

_CHATTY = (
    "torch.onnx",
    "torch.export",
    "torch.fx",
    "torch._export",
    "onnxscript",
    "onnx_ir",
    "torch.utils.cpp_extension",
)


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written and how well it agrees.

    `max_abs_difference` is the largest absolute difference between the outputs of onnxruntime and of torch over all
    samples, `folded` the number of BatchNorms that went into convolutions, `bytes` the size of all `files`.
    """

    path: Path
    max_abs_difference: float
    max_abs_output: float
    tolerance: float
    samples: int
    backend: str
    opset: int
    folded: int
    dynamic_batch: bool
    size: Sizes
    seconds: float
    bytes: int
    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {**asdict(self), "path": str(self.path), "files": [str(file) for file in self.files]}


def export(
    model: nn.Module | ModelHolder,
    path: str | os.PathLike[str],
    *,
    size: Size,
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
    samples: int = 3,
    seed: int = 0,
    opset: int | None = None,
    fold: bool = True,
) -> ExportReport:
    """Write `model` to the ONNX file `path` and return how well the file agrees with the model.

    The input is called `input` and has the shape (batch, *size), with (C, L), (C, H, W) or (C, frames, H, W) as `size`;
    a network of several takes a list of sizes, and they are `input_0`, `input_1`, ... The outputs are `output` or
    `output_0`, `output_1`, ..., in the order of the dictionary, tuple or list that the model returns in evaluation. The
    model itself is not touched: a copy on the CPU in eval mode is exported, its BatchNorms folded first where that is
    exact (`fold`); the file is compared with the unfolded model. Weights above 2 GB go to `<name>.data` beside the
    file. A missing folder is made.

    Args:
        dynamic_batch: leave the batch axis free; otherwise it is 1.
        tolerance: the largest difference from torch's outputs that is accepted, as a share of the largest number of
            that output; rounding of 1e-7 is accepted too, in outputs of which it is less than a hundredth.
        samples: inputs are compared at the batch sizes 1, 2, ..., `samples` (or that many times at 1).
        seed: draws the random inputs.
        opset: ONNX operator set that the file must have; by default the one torch prefers.

    Raises:
        ExportError: if the model cannot be exported (naming the construct) or not in that opset, the file cannot be
            written, or its outputs differ by more than `tolerance`. Nothing is left behind, and a file that had the
            name before stays.
        MissingExtra: if onnx, onnxscript or onnxruntime is not installed.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> export(net, "net.onnx", size=(3, 16, 16)).max_abs_difference < 1e-4
    True
    """
    start = time.perf_counter()
    model, size, path = as_module(model), check_sizes(size), Path(path)
    if samples < 1:
        raise LeanconvError(f"samples must be at least 1, otherwise nothing is verified, got {samples}")
    if path.suffix != ".onnx":
        raise LeanconvError(f"{path}: the name of an ONNX file must end in .onnx, got {path.suffix or 'no suffix'!r}")
    refuse_elastic(model, "export")
    version = _require()
    reference = eval_copy(model)
    subject, folded = reference, 0
    if fold:
        result = fold_norms(reference, size, tolerance=tolerance, seed=seed)
        subject, folded = result.model, len(result.folded)
    with whole_folder(path.parent, lambda reason: unwritable(path, reason, error=ExportError), last=path.name) as room:
        draft = room / path.name
        opset = to_onnx(subject, draft, size=size, batch=None if dynamic_batch else 1, opset=opset)
        batches = range(1, samples + 1) if dynamic_batch else [1] * samples
        try:
            # A new name for the runner at every step: it must let go of the draft before that is renamed.
            difference = compare(reference, onnxruntime_runner(draft), size, batches=list(batches), seed=seed + 1)
        except LeanconvError:
            raise
        except Exception as error:  # onnxruntime has no public base class for its errors
            raise ExportError(
                f"{path}: onnxruntime cannot run the exported file for inputs of size {size}, batch sizes "
                f"{min(batches)} to {max(batches)}: {one_line(error)}"
            ) from error
        if beyond := difference.beyond(tolerance):
            gap, allowed, largest = beyond
            raise ExportError(
                f"{path}: the outputs of onnxruntime differ from torch's by up to {gap:.2e}, more than "
                f"the {allowed:.2e} allowed (largest output {largest:.3g}, tolerance {tolerance:g}); the "
                "file was not written. If outputs of that size may differ so much, pass a larger tolerance"
            )
        names = sorted((file.name for file in room.iterdir()), key=lambda name: name != path.name)
    files = tuple(path.with_name(name) for name in names)
    return ExportReport(
        path=path,
        max_abs_difference=difference.max_abs,
        max_abs_output=difference.max_output,
        tolerance=tolerance,
        samples=difference.samples,
        backend=f"onnxruntime {version}",
        opset=opset,
        folded=folded,
        dynamic_batch=dynamic_batch,
        size=size,
        seconds=time.perf_counter() - start,
        bytes=sum(file.stat().st_size for file in files),
        files=files,
    )


def to_onnx(model: nn.Module, path: Path, *, size: Size, batch: int | None = None, opset: int | None = None) -> int:
    """Write `model` (on the CPU, in eval mode) to `path`, unverified, and return the opset; see `export`.

    The batch axis is free, or fixed to `batch`. An `OSError` of the write passes through.
    """
    # Not 1 where the axis is free: a one may be taken for an axis to broadcast.
    inputs = random_inputs(model, size, 2 if batch is None else batch, seed=0)
    free = {0: torch.export.Dim("batch")}
    shapes = pytree.tree_map(lambda _: free, inputs) if batch is None else None
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    with quiet(), torch.no_grad():
        answer = forward(model, *pytree.tree_map(torch.clone, inputs))
        odd = next(
            (leaf for leaf in pytree.tree_leaves(answer) if not isinstance(leaf, (torch.Tensor, type(None)))), None
        )
        if odd is not None:
            raise ExportError(
                f"{type(model).__name__} cannot be exported to ONNX: it returns {type(odd).__name__} among its "
                "outputs, and a file has tensors only, in tuples, lists and dictionaries"
            )
        outputs = _names("output", answer)
        try:
            # Exported here, not inside torch.onnx: that would retry in other ways and lose where it failed.
            with redirect_stderr(StringIO()):  # a failure prints the whole graph
                program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
            onnx_program = torch.onnx.export(
                program,
                input_names=_names("input", inputs),
                output_names=outputs,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"{type(model).__name__} cannot be exported to ONNX: {_construct(error)}") from error
        if onnx_program is None:
            raise ExportError(f"{type(model).__name__} cannot be exported to ONNX: torch.onnx.export gave nothing")
        _check_contract(type(model).__name__, onnx_program.model, outputs, opset)
        onnx_program.save(path, external_data=weights > _SINGLE_FILE_BYTES)
    return int(onnx_program.model.opset_imports[""])


def _names(stem: str, tree: object) -> list[str]:
    """The names of the tensors in a nest of inputs or outputs."""
    count = len(tensors_of(tree))
    return [stem] if count == 1 else [f"{stem}_{number}" for number in range(count)]


def _check_contract(name: str, written: Any, outputs: list[str], opset: int | None) -> None:
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


def _require() -> str:
    """The version of onnxruntime; raises `MissingExtra` before any work is done."""
    import importlib

    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise need(package, "export", "export to ONNX") from error
    return str(module.__version__)


def refuse_elastic(model: nn.Module, verb: str) -> None:
    """Raise `ExportError` for an elastic network: which of its sub-networks is meant would be a guess."""
    from leanconv.elastic import ElasticNet

    if isinstance(model, ElasticNet):
        raise ExportError(
            f"{verb} takes one network, and an elastic network is many: give it net.extract(width=..., resolution=...)"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporters log and warn about themselves; the model's own warnings pass."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torch|onnx|onnxscript|onnx_ir|copyreg)(\.|$)")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _construct(error: BaseException) -> str:
    """What in the model could not be exported: the operator, or the line of its forward, and the exporter's reason."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in reversed(chain):
        if found := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(link)):
            return f"ONNX has no operator for {found[1]}; replace it by others, or export the part before it"
    if "Constraints violated" in str(chain[0]):
        return "it fixes its batch size, by a reshape or a loop over the batch; pass dynamic_batch=False"
    place = ""
    for link in chain:
        for frame in traceback.extract_tb(link.__traceback__):
            if f"{os.sep}torch{os.sep}" not in frame.filename and frame.filename != __file__ and frame.line:
                place = f"at `{frame.line}` ({Path(frame.filename).name}, line {frame.lineno}): "
    reason = one_line(chain[-1])
    if "data-dependent" in reason:
        reason = "the course of the network depends on values of its input, not only on their shape"
    return place + reason
