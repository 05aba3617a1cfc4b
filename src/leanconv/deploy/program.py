"""A network as the graph that `torch.export` makes of it, from which every format of a file is written."""

from __future__ import annotations

import logging
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from leanconv.deploy.verify import forward, one_line
from leanconv.dryrun.size import tensors_of
from leanconv.errors import ExportError

__all__ = ["explained", "names_of", "output_names", "quiet", "to_program"]

_CHATTY = (
    "torch.onnx",
    "torch.export",
    "torch.fx",
    "torch._export",
    "onnxscript",
    "onnx_ir",
    "torch.utils.cpp_extension",
)


def to_program(
    model: nn.Module, inputs: tuple[Any, ...], *, free_batch: bool = True, free_sides: bool = False
) -> torch.export.ExportedProgram:
    """The graph of `model` (on the CPU, in eval mode) for `inputs`, with a free batch axis and free last two axes.

    A batch of one must not be given for a free axis: it may be taken for an axis to broadcast. Call it within
    `quiet`. Raises whatever `torch.export` raises, see `explained`.
    """

    def free(x: torch.Tensor) -> dict[int, Any]:
        sides: Sequence[int] = range(max(2, x.ndim - 2), x.ndim) if free_sides else ()
        axes: dict[int, Any] = dict.fromkeys(sides, torch.export.Dim.DYNAMIC)
        return {0: torch.export.Dim("batch"), **axes} if free_batch else axes

    shapes = pytree.tree_map(free, inputs) if free_batch or free_sides else None
    with redirect_stderr(StringIO()):  # a failure prints the whole graph
        return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)


def output_names(model: nn.Module, inputs: tuple[Any, ...], what: str) -> list[str]:
    """The names of the outputs in a file; `ExportError` where the model returns something that no file can hold."""
    answer = forward(model, *pytree.tree_map(torch.clone, inputs))
    odd = next((leaf for leaf in pytree.tree_leaves(answer) if not isinstance(leaf, (torch.Tensor, type(None)))), None)
    if odd is not None:
        raise ExportError(
            f"{type(model).__name__} cannot be exported to {what}: it returns {type(odd).__name__} among its "
            "outputs, and a file has tensors only, in tuples, lists and dictionaries"
        )
    return names_of("output", answer)


def names_of(stem: str, tree: object) -> list[str]:
    """The names of the tensors in a nest of inputs or outputs."""
    count = len(tensors_of(tree))
    return [stem] if count == 1 else [f"{stem}_{number}" for number in range(count)]


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


def explained(error: BaseException, *, free_sides: bool = False) -> str:
    """What in the model could not be exported: the operator, or the line of its forward, and the exporter's reason."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in reversed(chain):
        if found := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(link)):
            if found[1] == "leanconv.run_program":
                return (
                    "it is accelerated, and ONNX has no operator for leanconv.run_program: export the network that it "
                    "was made from, with kernels (--kernels)"
                )
            return f"ONNX has no operator for {found[1]}; replace it by others, or export the part before it"
    if free_sides and re.search("Constraints violated|specialized|GuardOnDataDependent", str(chain[0])):
        return (
            "it fixes its size, by a reshape or by layers that are made for one; leave dynamic_size (--dynamic-size)"
            " out, and export each size that is needed"
        )
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
