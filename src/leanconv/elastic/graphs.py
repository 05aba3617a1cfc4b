"""Captured graphs: their constant slices of channels become modules, so that a cut graph is still a graph.

A rewrite that needed `torch.fx` (octave) leaves a GraphModule whose slices are numbers in the graph itself. Exporters
read that graph and not its forward, so the numbers must be replaced there: as `ChannelGather`s they are layers.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from leanconv.ops.channels import ChannelGather
from leanconv.rewrites.layout import take_slice

__all__ = ["slices_as_layers"]


def slices_as_layers(model: nn.Module) -> None:
    """Replace the slices of channels in the captured graphs of `model`, in place; what they compute stays the same."""
    for module in list(model.modules()):
        if isinstance(module, fx.GraphModule):
            _replace(module)


def _replace(module: fx.GraphModule) -> None:
    like = next(iter(module.parameters()), None)
    changed = 0
    for node in list(module.graph.nodes):
        bounds = _bounds(node)
        if bounds is None:
            continue
        name = f"channel_slice_{changed}"
        gather = ChannelGather(tuple(range(*bounds)), device=None if like is None else like.device)
        module.add_module(name, gather.train(module.training))
        with module.graph.inserting_before(node):
            new = module.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
        changed += 1
    if changed:
        module.recompile()


def _bounds(node: fx.Node) -> tuple[int, int] | None:
    """Start and stop of a slice of channels; None for every other node."""
    index: Any = node.args[1] if node.op == "call_function" and node.target is take_slice else ()
    if len(index) != 2 or index[0] != slice(None) or index[1].step is not None:
        return None
    return index[1].start, index[1].stop
