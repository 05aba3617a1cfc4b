"""The first convolution of a network over clips as one over frames: runtimes are faster at pictures than at clips.

    conv3d of (B, C, T, H, W), k_t frames high      conv2d of (B * T, k_t * C, H, W): each frame with its neighbours

The same products are added up. A ReLU and a max pool within frames behind it are taken along. onnxruntime lays out
pictures, and not clips, by the vectors of the machine: the stem of the channel-separated networks takes two thirds of
the time there. Where our kernels run, it is for stems that no program takes: next to nothing grouped, or too large.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from leanconv.dryrun.operators import bind

__all__ = ["frame_by_frame"]

_MOST_CHANNELS = 4
"""Channels of pictures: with many the copies of neighbouring frames cost more than they gain."""

_aten = torch.ops.aten


def frame_by_frame(model: nn.Module) -> None:
    """Change such convolutions in a graph of `torch.export`, in place; any other module stays as it is."""
    if not isinstance(model, fx.GraphModule):
        return
    for node in list(model.graph.nodes):
        args = _fitting(model, node)
        if args is not None:
            _replace(model, node, args)
    model.graph.eliminate_dead_code()
    model.recompile()


def _fitting(model: fx.GraphModule, node: fx.Node) -> dict[str, Any] | None:
    """The arguments of a dense convolution of clips that keeps the number of frames; None for other nodes."""
    if node.target is not _aten.conv3d.default:
        return None
    args = bind(node.target, node.args, dict(node.kwargs))
    if args["weight"].op != "get_attr" or args["groups"] != 1:
        return None
    weight = _parameter(model, args["weight"])
    for name in ("stride", "padding", "dilation"):
        args[name] = list(args[name]) * (3 if len(args[name]) == 1 else 1)
    frames = weight.shape[2]
    keeps = args["stride"][0] == args["dilation"][0] == 1 and 2 * args["padding"][0] == frames - 1
    return args | {"values": weight} if keeps and weight.shape[1] <= _MOST_CHANNELS else None


def _replace(model: fx.GraphModule, node: fx.Node, args: dict[str, Any]) -> None:
    weight, graph = args["values"], model.graph
    count, deep = node.args[0].meta["val"].shape[2], weight.shape[2]  # type: ignore[union-attr]
    name = f"{node.name}_over_frames"
    flat = weight.detach().transpose(1, 2).flatten(1, 2).contiguous()  # the frame, then its channel
    model.register_parameter(name, nn.Parameter(flat, requires_grad=False))
    after = _pool_behind(node)
    with graph.inserting_before(node):
        x = graph.call_function(_aten.transpose.int, (args["input"], 1, 2))
        if deep > 1:
            x = graph.call_function(_aten.constant_pad_nd.default, (x, [0] * 6 + [deep // 2] * 2))
            shifted = [graph.call_function(_aten.slice.Tensor, (x, 1, first, first + count)) for first in range(deep)]
            x = graph.call_function(_aten.cat.default, (shifted, 2))
        x = graph.call_function(_aten.flatten.using_ints, (x, 0, 1))
        settings = (args["stride"][1:], args["padding"][1:], args["dilation"][1:], 1)
        x = graph.call_function(_aten.conv2d.default, (x, graph.get_attr(name), args["bias"], *settings))
        for behind in after:
            if behind.target is _aten.relu.default:
                x = graph.call_function(_aten.relu.default, (x,))
            else:
                kernel, stride, padding = (list(one)[1:] for one in behind.args[1:4])  # type: ignore[arg-type]
                x = graph.call_function(_aten.max_pool2d.default, (x, kernel, stride, padding))
        x = graph.call_function(_aten.unflatten.int, (x, 0, [-1, count]))
        x = graph.call_function(_aten.transpose.int, (x, 1, 2))
    (after or [node])[-1].replace_all_uses_with(x)
    for gone in [*reversed(after), node]:
        graph.erase_node(gone)


def _pool_behind(node: fx.Node) -> list[fx.Node]:
    """A ReLU, then a max pool that looks at one frame at a time, where nobody else reads what is before them."""
    found: list[fx.Node] = []
    for target in (_aten.relu.default, _aten.max_pool3d.default):
        users = list((found or [node])[-1].users)
        if len(users) != 1 or users[0].target is not target:
            continue
        if target is _aten.max_pool3d.default and not _within_frames(users[0]):
            continue
        found.append(users[0])
    return found


def _within_frames(pool: fx.Node) -> bool:
    if len(pool.args) != 4 or pool.kwargs:
        return False
    kernel, stride, padding = (list(one) for one in pool.args[1:])  # type: ignore[arg-type]
    return all(len(one) == 3 for one in (kernel, stride, padding)) and (kernel[0], stride[0], padding[0]) == (1, 1, 0)


def _parameter(model: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    found: Any = model
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]
