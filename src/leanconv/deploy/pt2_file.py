"""PyTorch's own file, .pt2: the graph of torch.export, or what AOTInductor has compiled of it for this machine."""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanconv.deploy.metadata import KEY
from leanconv.deploy.pixels import FromPixels
from leanconv.deploy.plan import ExportPlan
from leanconv.deploy.program import explained, quiet, to_program
from leanconv.deploy.verify import Runner, forward, one_line, random_inputs
from leanconv.errors import ExportError

__all__ = ["require", "runner", "write"]


def require(plan: ExportPlan) -> str:
    """What will run the file, with its version."""
    return f"{'AOTInductor of ' if plan.compiled else ''}torch {torch.__version__}"


def write(model: nn.Module, path: Path, plan: ExportPlan, calibration: Sequence[tuple[Any, ...]] = ()) -> None:
    """Write `model` (on the CPU, in eval mode) to `path` as `plan` says, unverified."""
    inputs = random_inputs(model, plan.size, 2 if plan.dynamic_batch else 1, seed=0)
    with quiet(), torch.no_grad():
        forward(model, *inputs)  # its own faults first
        try:
            program = to_program(
                _halved(model) if plan.precision == "fp16" else model,
                inputs,
                free_batch=plan.dynamic_batch,
                free_sides=plan.dynamic_size,
            )
        except Exception as error:
            raise ExportError(
                f"{type(model).__name__} cannot be exported to .pt2: {explained(error, free_sides=plan.dynamic_size)}"
            ) from error
        text = {} if plan.text is None else {KEY: plan.text}
        if not plan.compiled:
            torch.export.save(program, path, extra_files=dict(text))
            return
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"aot_inductor.metadata": text}
            )
        except Exception as error:  # a missing compiler, a construct that Inductor does not know
            raise ExportError(
                f"{type(model).__name__} cannot be compiled by AOTInductor: {one_line(error)}; it needs a C++ "
                "compiler. Leave compiled (--compiled) out to write the graph alone"
            ) from error


def runner(path: str | os.PathLike[str]) -> Runner:
    """A runner for the file at `path`. Opening it can run code that is in it: ask before for a file of somebody else.

    Raises `ExportError` for a file that torch cannot open.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any("/data/aotinductor/" in name for name in archive.namelist())
        with quiet():
            network: Any = (
                torch._inductor.aoti_load_package(os.fspath(path))
                if compiled
                else torch.export.load(os.fspath(path)).module()
            )
    except Exception as error:  # torch's own have no common base
        raise ExportError(f"{path}: torch cannot load it: {one_line(error)}") from error

    def run(*inputs: Any) -> object:
        with torch.inference_mode(), quiet():
            return network(*inputs)

    return run


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    """A nest of tensors, the floating ones in `dtype`."""

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return pytree.tree_map(cast, tree)


def _halved(model: nn.Module) -> nn.Module:
    """A copy in half precision that is given, and gives, float32; pixels are normalised before."""
    copied = copy.deepcopy(model)
    inner = copied.network if isinstance(copied, FromPixels) else copied
    inner.half()
    inner.register_forward_pre_hook(lambda module, inputs: _cast(inputs, torch.float16))
    inner.register_forward_hook(lambda module, inputs, outputs: _cast(outputs, torch.float32))
    return copied
