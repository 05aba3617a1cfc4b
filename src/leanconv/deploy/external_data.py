"""Where an ONNX file keeps its weights: in itself, or in files of its own folder, and nowhere else.

A tensor of a file may name any other file as its values: the password file, say, whose bytes then come out as answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leanconv.errors import ExportError, shown

__all__ = ["check_external_data"]


def check_external_data(path: Path, model: Any) -> None:
    """Raise `ExportError` where `model`, as `onnx` parsed it from `path`, takes values from outside of its folder."""
    home = path.resolve().parent
    for tensor in _tensors(model):
        if not tensor.external_data and tensor.data_location != tensor.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        inside = location and "\0" not in location and not Path(location).is_absolute()
        if not inside or not (file := (home / location).resolve()).is_relative_to(home) or not file.is_file():
            raise ExportError(
                f"{path}: its tensor {shown(tensor.name, 40)} takes its values from {shown(location)}, which is no file"
                " in the folder of the model, so it is not opened: export the model again"
            )


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of the model, in nested graphs and functions as well."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        else:
            for attribute in nodes.pop().attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
                graphs += [attribute.g] * attribute.HasField("g")
                graphs += attribute.graphs
