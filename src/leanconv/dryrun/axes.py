"""What ATen operators do to the axes of a tensor: one table for whatever is followed along them.

    effects("select", {"dim": 1, "index": 0}, (2, 8, 5), [(2, 5)])       [Effect(source=(0, 2), ordered={1})]

Cost follows the positions of the input along the axes, elastic networks the channels; each reads an `Effect` in its own
way. Operators that move what lies on an axis in a way of its own for each (views, joins, channels to pixels) have their
rules there. Shapes and arguments are plain numbers: nothing here needs a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

__all__ = [
    "ATTENTION",
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


def effects(name: str, args: Mapping[str, Any], shape: Shape, outputs: Sequence[Shape]) -> list[Effect]:
    """What the operator of that bare name does to its first input of `shape`, for each output; empty if not known.

    `args` are its arguments by name, of which only the numbers are read.
    """
    rank = _map_rank(name)
    rule = _RULES.get(name.replace(f"{rank}d", "") if rank else name)
    if rule is None and not rank:
        return []
    made = on_maps(len(shape), rank) if rule is None else rule(_Call(name, args, tuple(shape), outputs))
    return [made] * len(outputs) if isinstance(made, Effect) else made


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


_MAPS = re.compile(r"[a-z_]*(?:pool|upsample_[a-z_]*|re(?:flection|plication)_pad)([123])d")


def _map_rank(name: str) -> int:
    """How many axes at the end a pooling, padding or resampling changes, which its name says; 0 for all others."""
    found = _MAPS.match(name)
    return int(found[1]) if found else 0


class _Call(NamedTuple):
    name: str
    args: Mapping[str, Any]
    shape: tuple[int, ...]
    outputs: Sequence[Shape]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def dim(self) -> int:
        return axis_of(self.args["dim"], self.rank)

    def dims(self, name: str = "dim") -> tuple[int, ...]:
        """The axes of an argument; all where there is none."""
        given = self.args.get(name)
        given = range(self.rank) if given is None or given == () or given == [] else given
        return tuple(axis_of(dim, self.rank) for dim in ([given] if isinstance(given, int) else given))

    def without(self, gone: Iterable[int]) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.rank) if axis not in gone)

    def kept(self, along: Mapping[int, Steps | Resampling] | None = None, **sets: frozenset[int]) -> Effect:
        return Effect(tuple(range(self.rank)), along or {}, **sets)


Rule = Callable[[_Call], "Effect | list[Effect]"]


def _swapped(call: _Call) -> Effect:
    order = list(range(call.rank))
    one, other = (axis_of(call.args.get(name, dim), call.rank) for name, dim in (("dim0", 0), ("dim1", -1)))
    order[one], order[other] = order[other], order[one]
    return Effect(tuple(order))


def _unsqueezed(call: _Call) -> Effect:
    at = axis_of(call.args["dim"], call.rank + 1)
    return Effect((*range(at), None, *range(at, call.rank)))


def _selected(call: _Call) -> Effect:
    return Effect(call.without({call.dim}), ordered=frozenset({call.dim}))


def _sliced(call: _Call) -> Effect:
    if tuple(call.outputs[0]) == call.shape:
        return call.kept()
    start = first_place(call.args["start"], call.shape[call.dim])
    return call.kept({call.dim: Steps(stride=call.args["step"], padding=-start)})


def _split(call: _Call) -> list[Effect]:
    starts = accumulate((shape[call.dim] for shape in call.outputs[:-1]), initial=0)
    return [call.kept({call.dim: Steps(padding=-start)}) for start in starts]


def _rolled(call: _Call) -> Effect:
    shifts = zip(call.dims("dims"), call.args["shifts"], strict=False)
    return call.kept({dim: Steps(padding=shift) for dim, shift in shifts})


def _unfolded(call: _Call) -> Effect:
    along = {axis_of(call.args["dimension"], call.rank): Steps(call.args["size"], call.args["step"])}
    return Effect((*range(call.rank), None), along)


def _reduced(call: _Call) -> Effect:
    dims = call.dims()
    kept = len(call.outputs[0]) == call.rank
    source = tuple(None if axis in dims else axis for axis in range(call.rank)) if kept else call.without(dims)
    picked = dims if call.name in ("argmax", "argmin") else ()
    return Effect(source, mixed=frozenset(dims), ordered=frozenset(picked))


def _cumulated(call: _Call) -> Effect:
    return call.kept(mixed=frozenset({call.dim}), ordered=frozenset({call.dim}))


def _rearranged(call: _Call) -> Effect:
    """What takes places by their values, or half of them, so that the axis is another one afterwards."""
    source = tuple(None if axis == call.dim else axis for axis in range(call.rank))
    halved = {call.dim} if call.name == "glu" else ()
    return Effect(source, mixed=frozenset(halved), ordered=frozenset({call.dim}))


def _on_last(call: _Call, along: Sequence[Steps | Resampling]) -> Effect:
    return call.kept(dict(enumerate(along, call.rank - len(along))))


def _pooled(call: _Call) -> Effect:
    return _on_last(call, windows(call.args, _per_axis(call.args["kernel_size"], _map_rank(call.name))))


def _padded(call: _Call) -> Effect:
    before = call.args["pad" if "pad" in call.args else "padding"][::2]
    return _on_last(call, [Steps(padding=size) for size in before[::-1]])  # the last axis comes first


def _resampled(mode: str, call: _Call) -> Effect:
    return _on_last(call, [Resampling(mode, bool(call.args.get("align_corners")))] * _map_rank(call.name))


_GROUPS: dict[str, Rule] = {
    "alias clone contiguous detach lift_fresh _to_copy": _Call.kept,
    "permute": lambda call: Effect(call.dims("dims")),
    "transpose t": _swapped,
    "unsqueeze": _unsqueezed,
    "squeeze": lambda call: Effect(call.without({dim for dim in call.dims() if call.shape[dim] == 1})),
    "select unbind": _selected,
    "slice": _sliced,
    "split split_with_sizes unsafe_split unsafe_chunk": _split,
    "roll": _rolled,
    "flip": lambda call: call.kept(ordered=frozenset(call.dims("dims"))),
    "unfold": _unfolded,
    "sum mean amax amin max min var std var_mean std_mean prod logsumexp norm linalg_vector_norm argmax argmin median "
    "all any": _reduced,
    "_softmax _safe_softmax _log_softmax": lambda call: call.kept(mixed=frozenset({call.dim})),
    "cumsum cumprod": _cumulated,
    "glu topk sort": _rearranged,
    "avg_pool max_pool_with_indices": _pooled,
    "constant_pad_nd reflection_pad replication_pad": _padded,
    "_adaptive_avg_pool adaptive_avg_pool adaptive_max_pool": partial(_resampled, "adaptive"),
    "upsample_nearest": partial(_resampled, "nearest"),
    "_upsample_nearest_exact": partial(_resampled, "nearest_exact"),
    "upsample_linear upsample_bilinear upsample_trilinear": partial(_resampled, "linear"),
    "upsample_bicubic": partial(_resampled, "cubic"),
}
_RULES = {name: rule for names, rule in _GROUPS.items() for name in names.split()}
"""By name, those on maps without the number of their axes."""
