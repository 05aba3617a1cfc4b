"""A network whose chains and small convolutions run in the C library of the kernels, everything else in torch."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from leanconv.deploy.export import refuse_elastic
from leanconv.deploy.fold import eval_copy, fold
from leanconv.deploy.pieces import Left, Piece, pieces
from leanconv.deploy.program import explained, quiet, to_program
from leanconv.deploy.verify import compare, forward, random_inputs
from leanconv.dryrun import ModelHolder, Size, as_module, check_sizes, default_size
from leanconv.errors import ExportError, LeanconvError, NothingToRewrite
from leanconv.kernels.library import NAMES, load
from leanconv.kernels.program import Program

__all__ = ["Accelerated", "accelerate"]


@dataclass(frozen=True, kw_only=True)
class Accelerated:
    """`model` computes what the network computes, for inputs of `size` in batches of any length, on the CPU.

    `programs` are the pieces that the library runs, `left` the convolutions that torch runs, with reasons, `vectors`
    what the library uses of this CPU. `max_abs_difference` is the largest absolute difference between the outputs of
    the two models. Every function that takes a network takes this as it is; it has no story, because none leads to
    folded weights.
    """

    model: nn.Module
    programs: tuple[Program, ...]
    left: tuple[Left, ...]
    vectors: str
    max_abs_difference: float
    story: None = None


def accelerate(
    model: nn.Module | ModelHolder, size: Size | None = None, *, tolerance: float = 1e-4, seed: int = 0
) -> Accelerated:
    """The network for inference on this CPU, its chains of grouped convolutions at the speed that their MACs promise.

    Works on a CPU copy in eval mode, in float32. BatchNorms are folded where that is exact; then every piece of the
    network that is made of grouped, depthwise, pointwise and small dense convolutions, activations (ReLU, ReLU6, SiLU,
    Hardswish), additions, shuffles and average pools becomes one operator, `leanconv::run_program`, which
    `torch.compile`, `torch.export` and `measure` know. It runs on as many threads as torch is set to use, whole images
    on each. The outputs for random inputs of `size` are compared with the model's.

    Args:
        size: the shape of one input without the batch axis, (3, 224, 224), or a list of shapes. None takes what the
            model itself says. The result takes this size alone.
        tolerance: the largest difference that is accepted, as a share of the largest number of that output.
        seed: draws the random inputs.

    Raises:
        NoLibrary: where the C library was not built, with what to do.
        NothingToRewrite: where there is no piece that the library would run, with the reasons.
        ExportError: where `torch.export` cannot follow the network.
        LeanconvError: where the outputs differ, or the network does not run on `size`.

    An example, where the library was built:

        fast = lc.accelerate(lc.create_model("o_resnet20", multiplier=3.625), (3, 32, 32))
        with torch.inference_mode():
            scores = fast.model(images)                  # (B, 3, 32, 32) to (B, 10)
    """
    library = load()
    network = as_module(model)
    refuse_elastic(network, "accelerate")
    size = default_size(network) if size is None else size
    if size is None:
        raise LeanconvError(
            f"accelerate: {type(network).__name__} does not say which input it was made for: pass size, the shape of "
            "one input without the batch axis, such as size=(3, 224, 224)"
        )
    size = check_sizes(size)
    original = eval_copy(network)
    graph = _graph(fold(original, size).model, size)
    found, left = pieces(graph)
    if not found:
        raise NothingToRewrite(f"accelerate: no part of {type(network).__name__} gains by it: {_why(left)}")
    fast = _rebuilt(graph, found)
    difference = compare(original, fast, size, seed=seed)
    if difference.beyond(tolerance):
        raise LeanconvError(
            f"accelerate: outputs differ from torch's by up to {difference.max_abs:.1e}, more than {tolerance:.0e} of "
            "the largest: this is a fault of leanconv's kernels; the network as it was runs as before"
        )
    return Accelerated(
        model=fast,
        programs=tuple(piece.program for piece in found if piece.program is not None),
        left=tuple(left),
        vectors=NAMES[library.lanes],
        max_abs_difference=difference.max_abs,
    )


def _graph(model: nn.Module, size: Size) -> fx.GraphModule:
    """The functional graph of a model, its batch axis free where that can be."""
    inputs = random_inputs(model, size, 2, seed=0)
    with quiet(), torch.no_grad():
        forward(model, *inputs)
        try:
            return to_program(model, inputs).run_decompositions({}).module()  # type: ignore[no-any-return]
        except Exception as error:  # whatever other people's forward meets in the exporter
            raise ExportError(f"accelerate: {type(model).__name__} cannot be followed: {explained(error)}") from error


def _why(left: list[Left]) -> str:
    if not left:
        return "it has no convolution"
    first = f"{left[0].name}: {left[0].reason}"
    return first if len(left) == 1 else f"{first}; and {len(left) - 1} more convolutions are left out"


def _rebuilt(graph: fx.GraphModule, found: list[Piece]) -> nn.Module:
    """The graph with each piece in one call of its program; its order follows from who reads whom."""
    from leanconv.kernels.operator import ProgramModule

    root = nn.Module()
    for number, piece in enumerate(found):
        assert piece.program is not None  # what is found has one
        root.add_module(f"program_{number}", ProgramModule(piece.program))
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
        inputs = tuple(_as_maps(new, made[one], one) for one in found[number].inputs)
        call = new.call_module(f"program_{number}", inputs)
        for index, output in enumerate(found[number].outputs):
            made[output] = _as_it_was(new, new.call_function(operator.getitem, (call, index)), output)

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


def _as_maps(new: fx.Graph, node: fx.Node, was: fx.Node) -> fx.Node:
    """(B, *lead, H, W) or (B, C) as the maps (B, C, H, W) that a program takes."""
    rank = was.meta["val"].ndim
    if rank == 2:
        node = new.call_function(torch.ops.aten.unsqueeze.default, (node, -1))
        return new.call_function(torch.ops.aten.unsqueeze.default, (node, -1))
    return node if rank == 4 else new.call_function(torch.ops.aten.flatten.using_ints, (node, 1, rank - 3))


def _as_it_was(new: fx.Graph, node: fx.Node, was: fx.Node) -> fx.Node:
    """The maps that a program gives, in the shape that the network had there."""
    shape = was.meta["val"].shape
    if len(shape) == 2:
        return new.call_function(torch.ops.aten.flatten.using_ints, (node, 1))
    return node if len(shape) == 4 else new.call_function(torch.ops.aten.unflatten.int, (node, 1, list(shape[1:-2])))


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
