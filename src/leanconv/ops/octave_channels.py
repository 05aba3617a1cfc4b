"""Rules for functions that choose or put together channels of maps at two resolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from leanconv.ops.octave_map import MergeHere, OctaveMap
from leanconv.ops.octave_parts import Runs, join_runs

__all__ = ["cat", "index", "narrow", "parts"]


def cat(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All high parts, and all low parts; maps at full resolution join the high ones."""
    given = dict(zip(("tensors", "dim"), args, strict=False)) | kwargs
    tensors, axis = given.get("tensors"), given.get("dim", given.get("axis", 0))
    if not isinstance(tensors, (list, tuple)) or given.get("out") is not None:
        return MergeHere("it is called in an unusual way")
    maps = [value for value in tensors if isinstance(value, OctaveMap)]
    if not maps:
        return MergeHere("it is called in an unusual way")
    rank, runs = maps[0].high.ndim, maps[0].runs
    if axis == 0 and len(maps) == len(tensors) and all(x.runs == runs for x in maps):
        return OctaveMap(func([x.high for x in maps], 0), func([x.low for x in maps], 0), runs)
    if axis not in (1, 1 - rank):
        return MergeHere(f"it concatenates along axis {axis}, not along channels")
    highs = [value.high if isinstance(value, OctaveMap) else value for value in tensors]
    lows = [x.low for x in maps]
    pieces = [value.runs if isinstance(value, OctaveMap) else (value.shape[1],) for value in tensors]
    low = func(lows, 1)  # also of one: what is put together shares no memory with what it was made of
    return OctaveMap(func(highs, 1), low, join_runs(pieces))


def index(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """x[:, a:b] and x[i:j]: a row of channels, and some of the batch."""
    x, items = args
    if not isinstance(x, OctaveMap):
        return MergeHere("a map is what it is indexed by")
    items = items if isinstance(items, tuple) else (items,)
    rank = x.high.ndim
    if Ellipsis in [item for item in items if not isinstance(item, Tensor)]:
        at = items.index(Ellipsis)
        items = (*items[:at], *(slice(None),) * (rank - len(items) + 1), *items[at + 1 :])
    if not all(isinstance(item, slice) for item in items):
        return MergeHere("an index that is no slice needs the whole map")
    items = (*items, *(slice(None),) * (rank - len(items)))
    if any(item != slice(None) for item in items[2:]) or items[1].step not in (None, 1):
        return MergeHere("an index into space or with steps needs the whole map")
    start, stop, _ = items[1].indices(sum(x.runs))
    some = _channels(x, start, stop)
    if items[0] == slice(None):
        return some
    if isinstance(some, OctaveMap):
        return OctaveMap(some.high[items[0]], some.low[items[0]], some.runs)
    return some[items[0]]


def parts(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """chunk, split: rows of channels."""
    given = dict(zip(("input", "sizes", "dim"), args, strict=False)) | kwargs
    x = given.get("input", given.get("self"))
    if not isinstance(x, OctaveMap) or given.get("dim", 0) not in (1, 1 - x.high.ndim):
        return MergeHere("it does not part the channels")
    numbers = func(
        torch.empty(sum(x.runs), device="meta"), *args[1:2], **{k: v for k, v in kwargs.items() if k != "dim"}
    )
    found, start = [], 0
    for part in numbers:
        found.append(_channels(x, start, start + len(part)))
        start += len(part)
    return tuple(found)


def narrow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A row of channels."""
    given = dict(zip(("input", "dim", "start", "length"), args, strict=False)) | kwargs
    x, start, length = given.get("input"), given.get("start"), given.get("length")
    if not isinstance(x, OctaveMap) or given.get("dim") not in (1, 1 - x.high.ndim):
        return MergeHere("it does not part the channels")
    if not isinstance(start, int) or not isinstance(length, int):
        return MergeHere("where it starts is a tensor")
    start = start % sum(x.runs)
    return _channels(x, start, start + length)


def _channels(x: OctaveMap, start: int, stop: int) -> OctaveMap | Tensor:
    """The channels from `start` to `stop`: a view of the high part where all of them are high."""
    ends = [[0, 0], [0, 0]]  # of the high part, of the low part
    runs: list[Runs] = []
    at, seen = 0, [0, 0]
    for position, count in enumerate(x.runs):
        part = position % 2
        first, last = min(max(start - at, 0), count), min(max(stop - at, 0), count)
        if last > first:
            if ends[part][0] == ends[part][1]:
                ends[part][0] = seen[part] + first
            ends[part][1] = seen[part] + last
            runs.append((last - first,) if part == 0 else (0, last - first))
        at += count
        seen[part] += count
    (a, b), (c, d) = ends
    high = x.high[:, a:b]
    return high if c == d else OctaveMap(high, x.low[:, c:d], join_runs(runs))
