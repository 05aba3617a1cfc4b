"""Rules for functions that change the size of a map at two resolutions: pools, reductions over space, up-sampling."""

from __future__ import annotations

from math import prod
from typing import Any

from leanconv.ops.octave_map import MergeHere, OctaveMap
from leanconv.ops.octave_parts import interleave, match

__all__ = ["adaptive_pool", "interpolate", "pool", "reduce"]


NO_HIGH = "it has no channel at high resolution"  # and torch pools and resizes no tensor without channels


def pool(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A pool for each part; the low one rounds up and is cropped, so that it stays half of the high one."""
    rest = (
        ("dilation", "ceil_mode") if "max" in func.__name__ else ("ceil_mode", "count_include_pad", "divisor_override")
    )
    names = ("input", "kernel_size", "stride", "padding", *rest)
    given = dict(zip(names, args, strict=False)) | kwargs
    x = given.pop("input", None)
    if len(args) > len(names) or given.pop("return_indices", False) or not isinstance(x, OctaveMap):
        return MergeHere("it is called in an unusual way")
    if not x.high.shape[1]:
        return MergeHere(NO_HIGH)
    stride = given.get("stride") or given["kernel_size"]
    padding, dilation = given.get("padding", 0), given.get("dilation", 1)
    ceil_mode = bool(given.get("ceil_mode", False))
    if (why := _has_no_twin(given["kernel_size"], stride, padding, dilation, ceil_mode)) is not None:
        return MergeHere(why)
    high = func(x.high, **given)
    rounded = given if ceil_mode or _are_ones(stride) else given | {"ceil_mode": True}
    return OctaveMap(high, match(func(x.low, **rounded), high), x.runs)


def _are_ones(value: Any) -> bool:
    return all(number == 1 for number in (value if isinstance(value, (tuple, list)) else (value,)))


def _has_no_twin(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> str | None:
    """Why the low map, pooled and rounded up, would not cover half of the high one at every input size, or None."""
    given = (kernel, stride, padding, dilation)
    settings = [value[-2:] if isinstance(value, (tuple, list)) else (value,) * 2 for value in given]
    settings = [value if len(value) == 2 else value * 2 for value in settings]
    for k, s, p, d in zip(*settings, strict=True):
        if (k, s, p, d, ceil_mode) in _HAVE_TWINS:
            continue
        for size in range(d * (k - 1) + 1, d * (k - 1) + 40):
            full = _pooled(size, k, s, p, d, ceil_mode)
            if _pooled((size + 1) // 2, k, s, p, d, True) < (full + 1) // 2:
                return f"a pool with kernel {k}, stride {s} and padding {p} has no counterpart at half resolution"
    return None


_HAVE_TWINS = frozenset(
    ((2, 2, 0, 1, False), (2, 2, 0, 1, True), (3, 2, 1, 1, False), (3, 1, 1, 1, False), (1, 1, 0, 1, False))
)
"""The usual pools, which need not be looked through at every call."""


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """The output length of a pool, by torch's rule."""
    length = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (length + (stride - 1 if ceil_mode else 0)) // stride + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def adaptive_pool(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An adaptive pool to one pixel ends the map."""
    given = dict(zip(("input", "output_size"), args, strict=False)) | kwargs
    x, size = given.get("input"), given.get("output_size")
    if len(args) > 2 or given.get("return_indices") or not isinstance(x, OctaveMap):
        return MergeHere("it is called in an unusual way")
    if not x.high.shape[1]:
        return MergeHere(NO_HIGH)
    if size is None or not _are_ones(size):
        return MergeHere(f"an adaptive pool to {size} needs the whole map")
    return interleave(func(x.high, size), func(x.low, size), x.runs)


def reduce(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A mean, sum or extreme over all of space ends the map."""
    given = dict(zip(("input", "dim", "keepdim"), args, strict=False)) | kwargs
    x, axes = given.pop("input", None), given.pop("dim", given.pop("axis", None))
    if len(args) > 3 or not isinstance(x, OctaveMap):
        return MergeHere("it is called in an unusual way")
    rank = x.high.ndim
    if not isinstance(axes, (list, tuple)) or {axis % rank for axis in axes} != set(range(2, rank)):
        return MergeHere("it reduces along something else than space")
    high, low = func(x.high, axes, **given), func(x.low, axes, **given)
    if func.__name__ == "sum":  # a pixel of the low part stands for several
        low = low * (prod(x.high.shape[2:]) / prod(x.low.shape[2:]))
    return interleave(high, low, x.runs)


def interpolate(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Nearest up-sampling by a whole factor."""
    names = ("input", "size", "scale_factor", "mode", "align_corners")
    given = dict(zip(names, args, strict=False)) | kwargs
    x = given.pop("input", None)
    if not isinstance(x, OctaveMap) or len(args) > len(names):
        return MergeHere("it is called in an unusual way")
    if not x.high.shape[1]:
        return MergeHere(NO_HIGH)
    factor = _whole_factor(given.pop("size", None), given.pop("scale_factor", None), x)
    if factor is None or given.get("mode", "nearest") != "nearest":
        return MergeHere("only nearest up-sampling by a whole factor keeps two resolutions aligned")
    high, low = (func(part, scale_factor=factor, **given) for part in (x.high, x.low))
    return OctaveMap(high, match(low, high), x.runs)


def _whole_factor(size: Any, scale: Any, x: OctaveMap) -> tuple[float, ...] | None:
    """By which the sides grow, if it is a whole number for each (and 1 for time)."""
    sides = tuple(x.high.shape[2:])
    if size is not None:
        wanted = tuple(size) if isinstance(size, (tuple, list)) else (size,) * len(sides)
        if len(wanted) != len(sides) or any(new % old for new, old in zip(wanted, sides, strict=True)):
            return None
        return tuple(float(new // old) for new, old in zip(wanted, sides, strict=True))
    scales = tuple(scale) if isinstance(scale, (tuple, list)) else (scale,) * len(sides)
    if any(not isinstance(one, (int, float)) or one != int(one) or one < 1 for one in scales):
        return None
    return tuple(float(one) for one in scales)
