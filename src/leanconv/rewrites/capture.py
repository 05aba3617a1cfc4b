"""A model as a torch.fx graph with the shapes of its values, good for training and for evaluation.

What fx cannot follow is kept whole: a module whose forward branches on tensors, or does something else in training than
in evaluation (drop path), becomes one opaque call, the innermost such module first. Only where the model's own forward
is the culprit is there nothing to keep whole, and the model is refused, naming the line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from leanconv.dryrun import one_line, place_of
from leanconv.errors import RewriteError

__all__ = ["Captured", "capture"]

_ATTEMPTS = 300


@dataclass(frozen=True)
class Captured:
    """The `graph` of `root`, whose nodes carry the shape of their value in `meta["shape"]` (None: not a tensor).

    `opaque` are the modules that were kept whole, with the reason.
    """

    root: nn.Module
    graph: fx.Graph
    opaque: dict[str, str]


class _Culprit(Exception):
    """Tracing failed inside the module `name`."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


class _Tracer(fx.Tracer):
    """Plain layers, and what `opaque` names, are leaves; what every call of a module recorded is kept in `calls`."""

    def __init__(self, leaves: tuple[type, ...], opaque: set[str], wrapped: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(autowrap_functions=wrapped, param_shapes_constant=True)
        self._leaves = (_BatchNorm, _ConvNd, *leaves)
        self._opaque = opaque
        self._running: list[str] = []
        self.calls: dict[tuple[str, int], tuple[object, ...]] = {}
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, self._leaves)
            or module_qualified_name in self._opaque
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        key = (name, self.num_calls.get(name, 0))
        first = len(self.graph.nodes)
        self._running.append(name)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or name
            raise
        self._running.pop()
        if not self.is_leaf_module(m, name):
            self.calls[key] = tuple(map(_signature, list(self.graph.nodes)[first:]))
        return result


def _signature(node: fx.Node) -> object:
    """What a node does, without the nodes it reads: equal in training and evaluation where nothing depends on them."""
    if node.target is functional.dropout:
        return node.target
    told = str(fx.node.map_aggregate((node.args, node.kwargs), lambda a: "node" if isinstance(a, fx.Node) else a))
    return node.op, str(node.target) if node.op != "call_function" else node.target, told


def capture(model: nn.Module, size: Sequence[int], *, leaves: tuple[type, ...] = ()) -> Captured:
    """Trace `model`, which becomes the captured root, and find the shapes of all values for one input of `size`.

    Args:
        leaves: our own operators, which are never looked into.

    Raises `RewriteError` where the forward of the model itself cannot be traced, with the construct, file and line.
    """
    modes = [(module, module.training) for module in model.modules()]
    opaque: dict[str, str] = {}
    special, wrapped = _timm_leaves()
    try:
        for _ in range(_ATTEMPTS):
            try:
                graph, training = _trace(model.train(), (*leaves, *special), set(opaque), wrapped)
                _, evaluation = _trace(model.eval(), (*leaves, *special), set(opaque), wrapped)
                _same(training, evaluation)
                break
            except _Culprit as culprit:
                if not culprit.name:
                    raise RewriteError(f"{type(model).__name__} cannot be traced: {culprit}") from culprit.__cause__
                _keep_whole(model, culprit, opaque)
        else:
            raise RewriteError(f"{type(model).__name__} cannot be traced: more than {_ATTEMPTS} of its parts cannot")
        _dropout_as_modules(model, graph, modes)
        _find_shapes(model, graph, tuple(size))
    finally:
        for module, mode in modes:
            module.training = mode
    return Captured(model, graph, opaque)


def _timm_leaves() -> tuple[tuple[type, ...], tuple[Callable[..., Any], ...]]:
    """What timm itself says cannot be traced; nothing where timm is not loaded, for then no model is timm's."""
    if "timm.models" not in sys.modules:
        return (), ()
    from timm.models import _features_fx as timm_fx

    told: Any = timm_fx  # its functions are not annotated
    return tuple(told.get_notrace_modules()), tuple(told.get_notrace_functions())


def _trace(
    model: nn.Module, leaves: tuple[type, ...], opaque: set[str], wrapped: tuple[Callable[..., Any], ...]
) -> tuple[fx.Graph, dict[tuple[str, int], tuple[object, ...]]]:
    tracer = _Tracer(leaves, opaque, wrapped)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise _Culprit(tracer.failed_in or "", _blame(error)) from error
    tracer.calls[("", 0)] = tuple(map(_signature, graph.nodes))
    return graph, tracer.calls


def _blame(error: Exception) -> str:
    place, message = place_of(error), one_line(error)
    return f"{place} ({message})" if place else message


def _same(training: dict[tuple[str, int], tuple[object, ...]], evaluation: dict[tuple[str, int], Any]) -> None:
    """Raise `_Culprit` for the innermost module that records something else in training than in evaluation."""
    differ = [name for name, index in training if training[name, index] != evaluation.get((name, index))]
    inner = [name for name in differ if not any(o != name and (o.startswith(f"{name}.") or not name) for o in differ)]
    if differ:
        raise _Culprit(inner[0], "its forward does something else in training than in evaluation")


def _keep_whole(model: nn.Module, culprit: _Culprit, opaque: dict[str, str]) -> None:
    """Make the culprit a leaf, and with it every module of its class, if there is no convolution inside."""
    guilty = model.get_submodule(culprit.name)
    opaque[culprit.name] = str(culprit)
    if any(isinstance(part, _ConvNd) for part in guilty.modules()):
        return
    for name, module in model.named_modules():
        if type(module) is type(guilty) and not any(isinstance(part, _ConvNd) for part in module.modules()):
            opaque[name] = str(culprit)


def _dropout_as_modules(model: nn.Module, graph: fx.Graph, modes: list[tuple[nn.Module, bool]]) -> None:
    """functional.dropout(training=self.training) has the mode of tracing written into it: make it follow the mode."""
    names = {node: node for node in graph.nodes if node.target is functional.dropout}
    for number, node in enumerate(names):
        call = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False)) | node.kwargs
        if not call.get("training", True):
            continue  # somebody asked for none, in either mode
        name = f"functional_dropout_{number}"
        layer = nn.Dropout(call.get("p", 0.5), bool(call.get("inplace", False)))
        model.add_module(name, layer)
        modes.append((layer, next(mode for module, mode in modes if module is model)))
        with graph.inserting_before(node):
            new = graph.call_module(name, (call["input"],))
        node.replace_all_uses_with(new)
        graph.erase_node(node)


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        return value


def _find_shapes(model: nn.Module, graph: fx.Graph, size: tuple[int, ...]) -> None:
    """Run the graph on a fake batch of two, in eval mode; nothing is computed."""
    model.eval()
    inputs = [node for node in graph.nodes if node.op == "placeholder" and not node.args]
    if len(inputs) != 1:
        told = ", ".join(str(node.target) for node in inputs)
        raise RewriteError(f"{type(model).__name__} takes {len(inputs)} inputs ({told}): only one can be traced")
    like = next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), torch.empty(0))
    # A model on the meta device needs no fake tensors, and they do not mix with it.
    fake = nullcontext() if like.is_meta else FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.no_grad():
        try:
            _Shapes(model, graph=graph).run(torch.zeros(2, *size, dtype=like.dtype, device=like.device))
        except Exception as error:
            message = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RewriteError(
                f"{type(model).__name__} does not run on one input of shape {size} ({message}): pass the size "
                "it was made for"
            ) from error
