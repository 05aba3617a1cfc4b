"""Programs as nodes of an ONNX file, which onnxruntime runs by the C library of the kernels.

A node is all that a program needs: its packed weights are an initializer, its plans attributes. The library that is
registered with onnxruntime for it is always the one that is installed: never one that came with a file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import need
from leanconv.kernels.build import LIBRARY
from leanconv.kernels.library import NoLibrary, load
from leanconv.kernels.portable import DOMAIN, OPERATOR, portable
from leanconv.kernels.program import Program
from leanconv.kernels.written import write

__all__ = ["LIBRARY_NAME", "ProgramNode", "copy_library", "fill_in_plans", "register", "uses_kernels"]

LIBRARY_NAME = f"libleanconv_kernels{LIBRARY.suffix}"
"""What the library is called beside an exported file."""


class ProgramNode(nn.Module):
    """A program as a layer that `torch.onnx` writes as one node; in torch itself it gives zeros of the right shape."""

    weights: Tensor

    def __init__(self, program: Program) -> None:
        super().__init__()
        packed = portable(program)
        self.weights = nn.Parameter(torch.from_numpy(packed.weights), requires_grad=False)
        self.plans, self.key, self.sizes = packed.plans, write(program).key, program.sizes

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """One tensor for each output."""
        return list(
            torch.onnx.ops.symbolic_multi_out(
                f"{DOMAIN}::{OPERATOR}",
                (self.weights, *inputs),
                {"key": self.key},
                dtypes=[torch.float32] * len(self.sizes),
                shapes=[(inputs[0].shape[0], *size) for size in self.sizes],
                version=1,
            )
        )


def fill_in_plans(written: Any, model: nn.Module) -> None:
    """Give the nodes of an ONNX graph (of `onnx_ir`) the plans of the `ProgramNode`s of the model it was written from.

    Through a graph of torch they would go number by number.
    """
    plans = {module.key: module.plans for module in model.modules() if isinstance(module, ProgramNode)}
    if not plans:
        return
    import onnx_ir

    for node in written.graph:
        if node.domain == DOMAIN:
            key = node.attributes.pop("key").as_string()
            for lanes, plan in plans[key].items():
                node.attributes.add(onnx_ir.AttrInt64s(f"plan_{lanes}", plan.tolist()))


def uses_kernels(path: str | os.PathLike[str]) -> bool:
    """Whether an ONNX file has nodes of the kernels; a file that cannot be read has none."""
    try:
        import onnx
    except ImportError as error:
        raise need("onnx", "export", "reading an ONNX file") from error
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except Exception:  # protobuf's own; whoever runs the file says what is wrong with it
        return False
    return any(entry.domain == DOMAIN for entry in model.opset_import)


def register(options: Any, path: str | os.PathLike[str]) -> None:
    """Let a session of onnxruntime run the nodes of the file at `path`.

    Raises `NoLibrary` where the library is not here, with what to do.
    """
    try:
        library = load()
    except NoLibrary as error:
        raise NoLibrary(f"{path}: it was exported with kernels, and cannot be run here: {error}") from error
    options.register_custom_ops_library(os.fspath(library.path))


def copy_library(folder: Path) -> None:
    """The library under its name for others, in `folder`."""
    shutil.copyfile(load().path, folder / LIBRARY_NAME)
