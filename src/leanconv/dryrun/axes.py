"""What ATen operators do to the axes of a tensor: one table for whatever is followed along them.

    effects("select", {"dim": 1, "index": 0}, (2, 8, 5), [(2, 5)])       [Effect(source=(0, 2), ordered={1})]

Cost follows the positions of the input along the axes, elastic networks the channels; each reads an `Effect` in its own
way. Operators that move what lies on an axis in a way of its own for each (views, joins, channels to pixels) have their
rules there. Shapes and arguments are plain numbers: nothing here needs a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

__all__ = [
    "ATTENTION",
    "FUSED_ATTENTION",
    "PRODUCTS",
    "Effect",
    "Resampling",
    "Steps",
    "axis_of",
    "effects",
    "first_place",
    "on_maps",
    "windows",
]

Shape = Sequence[int]


class Steps(NamedTuple):
    """Place i of the output is made of the places i * stride - padding + k * dilation of the input, k < kernel."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1


class Resampling(NamedTuple):
    """Places of the output are those of the input at the same share of the axis, found as `mode` says.

    The modes: adaptive (a mean over all that fall into one), nearest, nearest_exact, linear, cubic.
    """

    mode: str
    align_corners: bool = False


@dataclass(frozen=True)
class Effect:
    """How the axes of one output come from those of the first input.

    `source` has for each axis of the output the axis of the input that it goes along, None where there is none, and
    `along` how, if not place by place. Every element of the output sees all of the axes `mixed`. On the axes `ordered`
    the result hangs on which place is which: some are picked out, or their order matters.
    """

    source: tuple[int | None, ...]
    along: Mapping[int, Steps | Resampling] = field(default_factory=dict)
    mixed: frozenset[int] = frozenset()
    ordered: frozenset[int] = frozenset()


PRODUCTS: Mapping[str, Mapping[str, str]] = {
    "mm": {"self": "ij", "mat2": "jk"},
    "bmm": {"self": "ij", "mat2": "jk"},
    "addmm": {"mat1": "ij", "mat2": "jk", "self": "ik"},
    "baddbmm": {"batch1": "ij", "batch2": "jk", "self": "ik"},
}
"""Letters for the last two axes of each argument; those of the output are i and k, and an argument ik is added."""

ATTENTION: Mapping[str, str] = {"query": "ij", "key": "lj", "value": "lk"}
"""The same of scaled dot-product attention."""

FUSED_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)
"""Its operators, by kernel, for queries, keys and values of (N, heads, length, width)."""


def effects(name: str, args: Mapping[str, Any], shape: Shape, outputs: Sequence[Shape]) -> list[Effect]:
    """What the operator of that bare name does to its first input of `shape`, for each output; empty if not known.

    `args` are its arguments by name, of which only the numbers are read.
    """
    made = _effect(name, args, tuple(shape), outputs)
    return made if isinstance(made, list) else [made] * len(outputs) if made else []


def _effect(
    name: str, args: Mapping[str, Any], shape: tuple[int, ...], outputs: Sequence[Shape]
) -> Effect | list[Effect] | None:
    rank = len(shape)
    same = tuple(range(rank))
    dims = _dims(args, rank)
    dim, over = next(iter(dims), 0), frozenset(dims)
    left = tuple(axis for axis in same if axis not in over)
    replaced = tuple(None if axis in over else axis for axis in same)
    along: Sequence[Steps | Resampling]
    maps = _map_axes(name)
    match name.replace(f"{maps}d", "") if maps else name:
        case "alias" | "clone" | "contiguous" | "detach" | "lift_fresh" | "_to_copy":
            return Effect(same)
        case "permute":
            return Effect(dims)
        case "transpose" | "t":
            one, other = (axis_of(args.get(key, end), rank) for key, end in (("dim0", 0), ("dim1", -1)))
            return Effect(tuple({one: other, other: one}.get(axis, axis) for axis in same))
        case "unsqueeze":
            at = axis_of(args["dim"], rank + 1)
            return Effect((*same[:at], None, *same[at:]))
        case "squeeze":
            return Effect(tuple(axis for axis in same if axis in left or shape[axis] != 1))
        case "select" | "unbind":
            return Effect(left, ordered=over)
        case "slice":
            steps = Steps(stride=args["step"], padding=-first_place(args["start"], shape[dim]))
            return Effect(same, {} if tuple(outputs[0]) == shape else {dim: steps})
        case "split" | "split_with_sizes" | "unsafe_split" | "unsafe_chunk":
            starts = accumulate((output[dim] for output in outputs[:-1]), initial=0)
            return [Effect(same, {dim: Steps(padding=-start)}) for start in starts]
        case "roll":
            return Effect(same, {axis: Steps(padding=by) for axis, by in zip(dims, args["shifts"], strict=False)})
        case "flip":
            return Effect(same, ordered=over)
        case "unfold":
            return Effect((*same, None), {dim: Steps(args["size"], args["step"])})
        case reduction if reduction in _REDUCTIONS:
            picked = over if name in ("argmax", "argmin") else frozenset[int]()
            return Effect(replaced if len(outputs[0]) == rank else left, mixed=over, ordered=picked)
        case "_softmax" | "_safe_softmax" | "_log_softmax":
            return Effect(same, mixed=over)
        case "cumsum" | "cumprod":
            return Effect(same, mixed=over, ordered=over)
        case "glu":
            return Effect(replaced, mixed=over, ordered=over)
        case "topk" | "sort":
            return Effect(replaced, ordered=over)
        case "avg_pool" | "max_pool_with_indices":
            along = windows(args, _per_axis(args["kernel_size"], maps))
        case "constant_pad_nd" | "reflection_pad" | "replication_pad":
            before = args["pad" if "pad" in args else "padding"][::2]
            along = [Steps(padding=size) for size in before[::-1]]  # the last axis comes first
        case resampling if resampling in _MODES:
            along = [Resampling(_MODES[resampling], bool(args.get("align_corners")))] * maps
        case _:
            return on_maps(rank, maps) if maps else None
    return Effect(same, dict(enumerate(along, rank - len(along))))


_REDUCTIONS = {
    *("sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "logsumexp", "norm"),
    *("linalg_vector_norm", "argmax", "argmin", "median", "all", "any"),
}
_MODES = {
    **dict.fromkeys(("_adaptive_avg_pool", "adaptive_avg_pool", "adaptive_max_pool"), "adaptive"),
    "upsample_nearest": "nearest",
    "_upsample_nearest_exact": "nearest_exact",
    **dict.fromkeys(("upsample_linear", "upsample_bilinear", "upsample_trilinear"), "linear"),
    "upsample_bicubic": "cubic",
}
_MAPS = re.compile(r"[a-z_]*(?:pool|upsample_[a-z_]*|re(?:flection|plication)_pad)([123])d")


def _map_axes(name: str) -> int:
    """How many axes at the end a pooling, padding or resampling changes, which its name says; 0 for all others."""
    found = _MAPS.match(name)
    return int(found[1]) if found else 0


def _dims(args: Mapping[str, Any], rank: int) -> tuple[int, ...]:
    """The axes that an operator is given; all where there are none."""
    given = next((args[name] for name in ("dim", "dims", "dimension") if name in args), None)
    given = [given] if isinstance(given, int) else list(given or range(rank))
    return tuple(axis_of(dim, rank) for dim in given)


def on_maps(rank: int, axes: int) -> Effect:
    """The effect on tensors of so many axes of what changes the last `axes`, nobody says how."""
    return Effect(tuple(range(rank)), ordered=frozenset(range(rank - axes, rank)))


def axis_of(dim: int, rank: int) -> int:
    """An axis counted from the front."""
    return dim % max(rank, 1)


def first_place(start: int | None, size: int) -> int:
    """The first place that a slice from `start` takes."""
    return range(size)[start:].start


def windows(args: Mapping[str, Any], kernel: Sequence[int]) -> list[Steps]:
    """The steps of a convolution or a pooling with that kernel on each of its axes."""
    given = (_per_axis(args.get(name), len(kernel)) for name in ("stride", "padding", "dilation"))
    strides, paddings, dilations = given
    return [
        Steps(size, strides[i] if strides else size, paddings[i] if paddings else 0, dilations[i] if dilations else 1)
        for i, size in enumerate(kernel)
    ]


def _per_axis(value: int | Sequence[int] | None, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value or ())
    return values * axes if len(values) == 1 else values
