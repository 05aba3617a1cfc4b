"""The pieces of a network's graph that programs can run: as large as possible, each with one way in and one way out.

A node joins the piece of one of its operands unless a path from that piece to it leads through something outside: the
piece would have to run before and after it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from leanconv.deploy.lowering import RULES, Builder, Map, Unfit
from leanconv.dryrun.operators import bind
from leanconv.errors import PlanError
from leanconv.kernels.blocks import lies_in_blocks, share_by_tiles
from leanconv.kernels.fuse import fused
from leanconv.kernels.program import Program

__all__ = ["Left", "Piece", "is_convolution", "pieces"]


_AS_WELL = "no grouped convolution is next to it, and dense ones run as well elsewhere"
_CIRCLE = "its piece and another would wait for each other"
_OF_IMAGE = "leanconv depends on the image"
"""Under which the meta of a node says so."""
_LEAST_SHARE = 0.3
"""Of the multiply-adds of a piece of dense convolutions: those of 3 x 3 must save what its ends cost, and more."""


class Left(NamedTuple):
    """A convolution that no program runs: the module that called it, and why."""

    name: str
    reason: str


@dataclass(eq=False)
class Piece:
    """Nodes in the order of the graph; `inputs` are nodes outside that they read, `outputs` those read outside.

    The inputs and outputs of `program` are the piece's, in their order, with all channels in one axis. `axes` are those
    that the network convolves over.
    """

    axes: int
    nodes: list[fx.Node] = field(default_factory=list)
    program: Program | None = None

    @property
    def inputs(self) -> list[fx.Node]:
        inside = set(self.nodes)
        read = (source for node in self.nodes for source in node.all_input_nodes)
        return [node for node in dict.fromkeys(read) if node not in inside and _is_image(node)]

    @property
    def outputs(self) -> list[fx.Node]:
        inside = set(self.nodes)
        return [node for node in self.nodes if any(user not in inside for user in node.users)]

    @property
    def convolutions(self) -> list[fx.Node]:
        return [node for node in self.nodes if is_convolution(node)]


def pieces(module: fx.GraphModule) -> tuple[list[Piece], list[Left]]:
    """The pieces of a graph that are worth a program, and the convolutions outside of all of them.

    First those in blocks, with convolutions of any size: one that is the whole network, which is as fast as any, or one
    with many 3 x 3 or with depthwise convolutions, which are faster. Of what is left a piece is worth it that has a
    grouped convolution in it, or all convolutions of the network.
    """
    for node in module.graph.nodes:
        node.meta[_OF_IMAGE] = node.op == "placeholder" or any(one.meta[_OF_IMAGE] for one in node.all_input_nodes)
    axes = _axes(module)
    kept, reasons = list[Piece](), dict[fx.Node, str]()
    for any_size in (True, False) if axes == 2 else (False,):
        found, why = _pieces(module, axes, any_size=any_size, without={node for piece in kept for node in piece.nodes})
        kept, reasons = kept + found, reasons | why
    kept, circular = _without_circles(module, kept)
    reasons |= dict.fromkeys((node for piece in circular for node in piece.nodes), _CIRCLE)
    inside = {node for piece in kept for node in piece.nodes}
    outside = [node for node in module.graph.nodes if is_convolution(node) and node not in inside]
    return kept, [Left(_module_of(node), reasons[node]) for node in outside]


def _pieces(
    module: fx.GraphModule, axes: int, *, any_size: bool, without: set[fx.Node]
) -> tuple[list[Piece], dict[fx.Node, str]]:
    """Those of nodes other than `without`, in blocks or not; and why nodes are in none."""
    found: dict[fx.Node, Piece] = {}
    passed: dict[fx.Node, set[Piece]] = {}  # pieces from which a path leads here that has left them
    reasons: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        operands = node.all_input_nodes
        through = set().union(*(passed[one] for one in operands)) if operands else set()
        try:
            if node in without:
                raise Unfit("it is in another piece")
            _lower_one(module, node, Builder(axes, any_size=any_size))
        except Unfit as reason:
            reasons[node] = str(reason)
            passed[node] = through | {found[one] for one in operands if one in found}
            continue
        near = dict.fromkeys(found[one] for one in operands if one in found and found[one] not in through)
        mine, *others = near or [Piece(axes)]
        for other in others:
            _join(mine, other, found, passed)
        mine.nodes.append(node)
        found[node] = mine
        passed[node] = through | {found[one] for one in operands if one in found and found[one] is not mine}
    place = {node: index for index, node in enumerate(module.graph.nodes)}
    convolutions = sum(map(is_convolution, place))
    kept = []
    for piece in dict.fromkeys(found.values()):
        piece.nodes.sort(key=place.__getitem__)
        _trim(piece)
        inside = piece.convolutions
        some, dense = len(inside) < convolutions, all(_groups(node) == 1 for node in inside)
        if not inside:
            continue
        if some and dense and not any_size:
            reasons |= dict.fromkeys(inside, _AS_WELL)
            continue
        try:
            piece.program = fused(_lowered(module, piece, Builder(axes, any_size=any_size)))
        except (Unfit, PlanError) as reason:
            reasons |= dict.fromkeys(inside, f"its neighbours and it make no program: {reason}")
            continue
        few = some and dense and share_by_tiles(piece.program) < _LEAST_SHARE
        if any_size and (few or not lies_in_blocks(piece.program)):
            reasons |= dict.fromkeys(inside, _AS_WELL)
            continue
        kept.append(piece)
    return kept, reasons


def _without_circles(module: fx.GraphModule, found: list[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Pieces none of which waits for itself by way of others, and those that did, the smaller of two."""
    kept, gone = list(found), list[Piece]()
    while True:
        unit = {node: piece for piece in kept for node in piece.nodes}
        waits = dict[Piece | fx.Node, set[Piece | fx.Node]]()
        for node in module.graph.nodes:
            mine = unit.get(node, node)
            waits.setdefault(mine, set()).update({unit.get(one, one) for one in node.all_input_nodes} - {mine})
        try:
            TopologicalSorter(waits).prepare()
        except CycleError as circle:
            smallest = min((one for one in circle.args[1] if isinstance(one, Piece)), key=lambda one: len(one.nodes))
            kept.remove(smallest)
            gone.append(smallest)
        else:
            return kept, gone


def _join(mine: Piece, other: Piece, found: dict[fx.Node, Piece], passed: dict[fx.Node, set[Piece]]) -> None:
    """Two pieces that meet become one where no path leads from one to the other."""
    if any(other in passed[node] for node in mine.nodes) or any(mine in passed[node] for node in other.nodes):
        return
    mine.nodes += other.nodes
    found |= dict.fromkeys(other.nodes, mine)
    for pieces_before in passed.values():
        if other in pieces_before:
            pieces_before.remove(other)
            pieces_before.add(mine)


def _axes(module: fx.GraphModule) -> int:
    """Over how many axes a network convolves, at most: that says which tensors are maps, lines or clips."""
    weights = (bind(node.target, node.args, dict(node.kwargs)) for node in module.graph.nodes if is_convolution(node))
    ranks = [getattr(args["weight"].meta.get("val"), "ndim", 0) for args in weights]
    return max(1, max(ranks) - 2) if ranks else 2


def _lowered(module: fx.GraphModule, piece: Piece, build: Builder) -> Program:
    made: dict[fx.Node, Map | list[Map]] = {node: build.input(_shape(node)) for node in piece.inputs}
    for node in piece.nodes:
        made[node] = _lower(module, node, build, made)
    outputs = [one for node in piece.outputs if isinstance(one := made[node], Map)]
    return build.program(outputs)


def is_convolution(node: fx.Node) -> bool:
    """Whether a node is a convolution of any kind."""
    return node.op == "call_function" and _name(node).startswith("conv")


def _trim(piece: Piece) -> None:
    """Give lists of tensors at the ends of a piece back, with what is made of them: only tensors cross its border."""
    while True:
        odd = next((node for node in reversed(piece.outputs) if not isinstance(node.meta["val"], Tensor)), None)
        if odd is None:
            return
        inside = set(piece.nodes)
        gone, waiting = set(), [odd]
        while waiting:
            node = waiting.pop()
            gone.add(node)
            waiting += [user for user in node.users if user in inside and user not in gone]
        piece.nodes = [node for node in piece.nodes if node not in gone]


def _lower_one(module: fx.GraphModule, node: fx.Node, build: Builder) -> None:
    """Raise `Unfit` where a node alone cannot be steps."""
    if node.op != "call_function":
        raise Unfit("it computes nothing")
    made = {source: _input(build, source) for source in node.all_input_nodes if _is_image(source)}
    if not made:
        raise Unfit("it does not depend on the image")
    tensors = [value for one in (node, *made) if isinstance(value := one.meta.get("val"), Tensor) and value.ndim]
    if len({str(value.shape[0]) for value in tensors}) > 1:  # as text: to compare what is free would bind it
        raise Unfit("it changes the length of the batch, or takes two of different lengths")
    result = _lower(module, node, build, made)
    if isinstance(result, Map):
        try:
            build.program([result])
        except PlanError as error:
            raise Unfit(str(error)) from error


def _input(build: Builder, node: fx.Node) -> Map | list[Map]:
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return [build.input(_sides(one)) for one in value]
    return build.input(_shape(node))


def _lower(
    module: fx.GraphModule, node: fx.Node, build: Builder, made: dict[fx.Node, Map] | dict[fx.Node, Map | list[Map]]
) -> Map | list[Map]:
    rule = RULES.get(_name(node))
    if rule is None:
        raise Unfit(f"{node.target} has no step")
    value = node.meta.get("val")
    for one in value if isinstance(value, (tuple, list)) else (value,):
        if not isinstance(one, Tensor) or one.dtype is not torch.float32:
            raise Unfit("it is not in float32")

    def given(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            if argument in made:
                return made[argument]
            return _constant(module, argument) if argument.op == "get_attr" else argument
        return [given(one) for one in argument] if isinstance(argument, (list, tuple)) else argument

    if node.target is operator.getitem:
        bound = dict(zip(("self", "index"), node.args, strict=True))
    else:
        bound = bind(node.target, node.args, dict(node.kwargs))
    shape = _sides(value) if isinstance(value, Tensor) else ()
    return rule(build, {name: given(argument) for name, argument in bound.items()}, shape)


def _name(node: fx.Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None and getattr(node.target, "namespace", "") == "aten" else ""


def _is_image(node: fx.Node) -> bool:
    """Whether a node gives tensors of the image, not weights, what is made of weights alone, or numbers."""
    return bool(node.meta.get(_OF_IMAGE)) and isinstance(node.meta.get("val"), (Tensor, tuple, list))


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype is not torch.float32:
        raise Unfit("its input is no float32 tensor")
    return _sides(value)


def _sides(value: Tensor) -> tuple[int, ...]:
    if value.ndim == 0:
        raise Unfit("it is a single number")
    return tuple(value.shape[1:])


def _constant(module: fx.GraphModule, node: fx.Node) -> Tensor:
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _groups(node: fx.Node) -> int:
    return int(bind(node.target, node.args, dict(node.kwargs))["groups"])


def _module_of(node: fx.Node) -> str:
    """The name of the module that called an operator."""
    stack: Iterable[Sequence[str]] = (node.meta.get("nn_module_stack") or {}).values()
    names = [name for name, *_ in stack]
    return names[-1] if names and names[-1] else node.name
