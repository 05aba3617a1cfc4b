"""A network's graph with its pieces in programs: each piece one call of a layer that runs its program."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from leanconv.deploy.pieces import Left, Piece, pieces
from leanconv.deploy.program import explained, quiet, to_program
from leanconv.deploy.verify import forward, random_inputs
from leanconv.dryrun import Size
from leanconv.errors import ExportError, NothingToRewrite
from leanconv.kernels.program import Buffer, Program

__all__ = ["InPrograms", "in_programs"]


class InPrograms(NamedTuple):
    """`model` computes what the network computes; `programs` are its pieces, `left` the convolutions outside them."""

    model: nn.Module
    programs: tuple[Program, ...]
    left: tuple[Left, ...]


def in_programs(model: nn.Module, size: Size, layer: Callable[[Program], nn.Module], verb: str) -> InPrograms:
    """`model`, folded, on the CPU and in eval mode, with every piece that is worth it in one call of `layer(program)`.

    A layer takes maps (B, C, H, W), one for each input of its program, and returns a list of those it gives.

    Raises `NothingToRewrite` where there is no such piece, with the reasons, and `ExportError` where `torch.export`
    cannot follow the network; both name `verb`.
    """
    graph = _graph(model, size, verb)
    found, left = pieces(graph)
    if not found:
        raise NothingToRewrite(f"{verb}: no part of {type(model).__name__} gains by it: {_why(left)}")
    programs = tuple(piece.program for piece in found if piece.program is not None)
    return InPrograms(_rebuilt(graph, found, [layer(program) for program in programs]), programs, tuple(left))


def _graph(model: nn.Module, size: Size, verb: str) -> fx.GraphModule:
    """The functional graph of a model, its batch axis free where that can be."""
    inputs = random_inputs(model, size, 2, seed=0)
    with quiet(), torch.no_grad():
        forward(model, *inputs)
        try:
            graph = to_program(model, inputs).run_decompositions({}).module()
        except Exception as error:  # whatever other people's forward meets in the exporter
            raise ExportError(f"{verb}: {type(model).__name__} cannot be followed: {explained(error)}") from error
    return _norms_alone(graph)


def _norms_alone(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with norms that give what they compute in evaluation alone, no statistics of training beside it."""
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        x, weight, bias, mean, var, momentum, eps = node.args
        if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
            continue
        for user in list(node.users):
            with graph.graph.inserting_before(user):
                norm = graph.graph.call_function(
                    aten.batch_norm.default, (x, weight, bias, mean, var, False, momentum, eps, False)
                )
            norm.meta = user.meta
            user.replace_all_uses_with(norm)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _why(left: list[Left]) -> str:
    if not left:
        return "it has no convolution"
    first = f"{left[0].name}: {left[0].reason}"
    return first if len(left) == 1 else f"{first}; and {len(left) - 1} more convolutions are left out"


def _rebuilt(graph: fx.GraphModule, found: list[Piece], layers: list[nn.Module]) -> nn.Module:
    """The graph with each piece in one call of its layer; its order follows from who reads whom."""
    root = nn.Module()
    for number, layer in enumerate(layers):
        root.add_module(f"program_{number}", layer)
    number_of = {node: number for number, piece in enumerate(found) for node in piece.nodes}
    new = fx.Graph()
    plain = _takes_and_gives_tensors(graph)
    if not plain:
        new._codegen = graph.graph._codegen
    made: dict[fx.Node, fx.Node] = {}

    def make(node: fx.Node) -> None:
        number = number_of.get(node)
        for source in node.all_input_nodes if number is None else found[number].inputs:
            if source not in made:
                make(source)
        if number is None:
            made[node] = new.node_copy(node, made.__getitem__)
            if node.op == "get_attr":
                _share(graph, root, str(node.target))
            return
        program = found[number].program
        assert program is not None  # pieces without one are not kept
        inputs = tuple(
            _as_maps(new, made[one], one, program.buffers[buffer], found[number].axes)
            for one, buffer in zip(found[number].inputs, program.inputs, strict=True)
        )
        call = new.call_module(f"program_{number}", inputs)
        for index, output in enumerate(found[number].outputs):
            made[output] = _as_it_was(
                new,
                new.call_function(operator.getitem, (call, index)),
                output,
                program.sizes[index],
                found[number].axes,
            )

    for node in graph.graph.nodes:
        if node.op in ("placeholder", "output"):
            make(node)
        if node.op == "output" and plain:
            made[node].args = (made[node].args[0][0],)  # type: ignore[index]
    new.lint()
    return fx.GraphModule(root, new, type(graph).__name__).eval()


def _takes_and_gives_tensors(graph: fx.GraphModule) -> bool:
    """Whether the forward takes tensors one by one and gives one: no nest to be taken apart and put together then."""
    codegen: Any = graph.graph._codegen
    info = getattr(codegen, "pytree_info", None)
    if info is None:
        return False
    args, kwargs = pytree.tree_unflatten([0] * info.in_spec.num_leaves, info.in_spec)
    return not kwargs and all(one == 0 for one in args) and info.out_spec.is_leaf()


def _as_maps(new: fx.Graph, node: fx.Node, was: fx.Node, like: Buffer, axes: int) -> fx.Node:
    """(B, *lead, H, W) or (B, C) as the maps (B, C, H, W) that a program takes.

    Clips are given as (B, C, T * H, W), and lines, of networks that convolve over one axis, as (B, C, 1, L).
    """
    rank = was.meta["val"].ndim
    if rank == 2:
        node = new.call_function(torch.ops.aten.unsqueeze.default, (node, -1))
        return new.call_function(torch.ops.aten.unsqueeze.default, (node, -1))
    if axes == 1:
        node = new.call_function(torch.ops.aten.unsqueeze.default, (node, -2))
        rank += 1
    elif was.meta["val"].shape[-2] != like.height:  # clips
        node = new.call_function(torch.ops.aten.flatten.using_ints, (node, rank - 3, rank - 2))
        rank -= 1
    return node if rank == 4 else new.call_function(torch.ops.aten.flatten.using_ints, (node, 1, rank - 3))


def _as_it_was(new: fx.Graph, node: fx.Node, was: fx.Node, like: Buffer, axes: int) -> fx.Node:
    """The maps that a program gives, in the shape that the network had there."""
    shape = list(was.meta["val"].shape)
    if len(shape) == 2:
        return new.call_function(torch.ops.aten.flatten.using_ints, (node, 1))
    if axes == 1:
        node = new.call_function(torch.ops.aten.squeeze.dim, (node, -2))
        return node if len(shape) == 3 else new.call_function(torch.ops.aten.unflatten.int, (node, 1, shape[1:-1]))
    if shape[-2] != like.height:  # clips
        node = new.call_function(torch.ops.aten.unflatten.int, (node, 2, shape[-3:-1]))
        return node if len(shape) == 5 else new.call_function(torch.ops.aten.unflatten.int, (node, 1, shape[1:-3]))
    return node if len(shape) == 4 else new.call_function(torch.ops.aten.unflatten.int, (node, 1, shape[1:-2]))


def _share(graph: nn.Module, root: nn.Module, name: str) -> None:
    """Give `root` the parameter, buffer or constant `name` of `graph`."""
    owner, into = graph, root
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
        if not hasattr(into, part):
            into.add_module(part, nn.Module())
        into = getattr(into, part)
    value = getattr(owner, last)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        into.register_buffer(last, value)
    else:
        setattr(into, last, value)
