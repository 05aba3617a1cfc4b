"""What follows a convolution done on its way out: the sum with a residual and the clip at zero, for inference.

    relu(conv(x))               one unit
    relu(conv(x) + residual)    one unit; of two convolutions summed, the later one takes the other as its residual

The forward of the network is followed by `torch.fx`; parts that cannot be are searched inside. Convolutions whose
output goes elsewhere too, and every other function, stay as they were.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from leanconv.deploy.forms.chains import ChainUnit, ConvUnit, fits_unit, pays
from leanconv.deploy.forms.layers import ChannelwiseUnit, is_channelwise
from leanconv.deploy.forms.octaves import OctaveUnit, Output, fits_octave_unit
from leanconv.ops.chain import ConvChain
from leanconv.ops.octave import OctConv

__all__ = ["fused"]

_RELUS = (functional.relu, functional.relu_, torch.relu, torch.relu_)
_ADDS = (operator.add, operator.iadd, torch.add)


class _Tracer(fx.Tracer):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        chains = [part for part in model.modules() if isinstance(part, ConvChain)]
        self.whole = {id(chain) for chain in chains if fits_unit(chain)}  # while tracing, weights are proxies

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, ConvChain):
            return id(m) in self.whole
        return (
            isinstance(m, (_ConvNd, OctConv))
            or type(m).__module__.startswith("leanconv.deploy.forms")
            or super().is_leaf_module(m, module_qualified_name)
        )


def fused(
    model: nn.Module, *, multiple: int = 1, own: bool = True, octaves: Output | None = None
) -> tuple[nn.Module, int]:
    """`model` (in eval mode, its BatchNorms folded) with such units, and how many there are; `model` is used up.

    Chains, where they pay, and octave convolutions run on our own kernels with `own`; dense ones on cuDNN's. With
    `octaves`, which makes their outputs, octave convolutions alone become units.
    """
    try:
        graph = _Tracer(model).trace(model)
    except Exception:  # whatever other people's forward raises when it is fed proxies
        count = 0
        for name, child in list(model.named_children()):
            if not any(isinstance(part, _ConvNd) for part in child.modules()):
                continue
            new, more = fused(child, multiple=multiple, own=own, octaves=octaves)
            if more:
                setattr(model, name, new)
            count += more
        return model, count
    module = fx.GraphModule(model, graph)
    count = 0
    for node in list(graph.nodes):
        if node.op == "call_module":
            count += _fuse(module, node, multiple, own, octaves)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
    return module.eval(), count


def _fuse(module: fx.GraphModule, node: fx.Node, multiple: int, own: bool, octaves: Output | None) -> int:
    layer = module.get_submodule(str(node.target))
    ours = isinstance(layer, ConvChain) and fits_unit(layer)
    channelwise = is_channelwise(layer)
    dense = type(layer) in (nn.Conv2d, nn.Conv3d) and not channelwise and layer.groups == 1
    octave = fits_octave_unit(layer)
    known = octave if octaves is not None else channelwise or dense or (own and (ours or octave))
    if not known or _times(module, node) > 1:
        return 0
    end, residual = _skip(module, node), None
    relu = _is_relu(module, end)
    if relu is None and end is not None and _is_add(end) and not channelwise:
        behind = _skip(module, end)
        relu = _is_relu(module, behind)
        if relu is not None:
            mine = _before(module, node, end)
            residual = _origin(module, next((one for one in end.args if one is not mine), None))
            place = {one: number for number, one in enumerate(module.graph.nodes)}
            if not isinstance(residual, fx.Node) or place[residual] > place[node]:
                relu = residual = None
    if relu is None and dense:
        return 0
    if ours and not pays(layer):  # type: ignore[arg-type]
        whole = layer.dense_conv()  # type: ignore[operator]
        unit: nn.Module = whole if relu is None else ConvUnit(whole, relu=True)
    elif ours:
        unit = ChainUnit(layer, relu=relu is not None, multiple=multiple)  # type: ignore[arg-type]
    elif channelwise:
        unit = ChannelwiseUnit(layer, relu=relu is not None)  # type: ignore[arg-type]
    elif octave:
        unit = OctaveUnit(layer, relu=relu is not None, output=octaves)  # type: ignore[arg-type]
    else:
        unit = ConvUnit(layer, relu=True)  # type: ignore[arg-type]
    name = f"unit_{str(node.target).replace('.', '_')}"
    module.add_submodule(name, unit)
    with module.graph.inserting_before(node):
        new = module.graph.call_module(name, (node.args[0], *([] if residual is None else [residual])))
    (relu or node).replace_all_uses_with(new)
    if relu is None:
        module.graph.erase_node(node)
    else:
        _erase(module, relu, node)
    return 1


def _erase(module: fx.GraphModule, last: fx.Node, first: fx.Node) -> None:
    """Take the nodes from `last` back to `first` out: each had one reader."""
    path = [last]
    while path[-1] is not first:
        path.append(_towards(path[-1], first))
    for one in path:
        module.graph.erase_node(one)


def _towards(node: fx.Node, first: fx.Node) -> fx.Node:
    """The operand of `node` that comes from `first`."""
    for one in node.all_input_nodes:
        seen, waiting = set(), [one]
        while waiting:
            here = waiting.pop()
            if here is first:
                return one
            if here not in seen and len(here.users) == 1:
                seen.add(here)
                waiting += here.all_input_nodes
    raise AssertionError(f"no way from {first} to {node}")


def _times(module: fx.GraphModule, node: fx.Node) -> int:
    return sum(other.op == "call_module" and other.target == node.target for other in module.graph.nodes)


def _skip(module: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The one reader of `node`, past what does nothing; None where several read it."""
    while len(node.users) == 1:
        (reader,) = node.users
        if reader.op == "call_module" and isinstance(module.get_submodule(str(reader.target)), nn.Identity):
            node = reader
            continue
        return reader
    return None


def _before(module: fx.GraphModule, node: fx.Node, end: fx.Node) -> fx.Node:
    """The operand of `end` that is `node`, or a node behind it that does nothing."""
    while node not in end.all_input_nodes:
        (node,) = node.users
    return node


def _origin(module: fx.GraphModule, node: Any) -> Any:
    """`node`, or what it hands on unchanged."""
    while isinstance(node, fx.Node) and node.op == "call_module":
        if not isinstance(module.get_submodule(str(node.target)), nn.Identity):
            break
        node = node.args[0]
    return node


def _is_relu(module: fx.GraphModule, node: fx.Node | None) -> fx.Node | None:
    if node is None:
        return None
    if node.op == "call_module":
        return node if type(module.get_submodule(str(node.target))) is nn.ReLU else None
    called = node.op == "call_function" and node.target in _RELUS
    method = node.op == "call_method" and node.target in ("relu", "relu_")
    return node if called or method else None


def _is_add(node: fx.Node) -> bool:
    called: Any = node.target
    known = (node.op == "call_function" and called in _ADDS) or (node.op == "call_method" and called in ("add", "add_"))
    return known and len(node.args) == 2 and len(node.all_input_nodes) == 2 and not node.kwargs
