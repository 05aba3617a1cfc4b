"""Values of attributes: which can be written down as JSON, and whether two are the same, whatever they are.

to_json((1, 1))                      {"tuple": [1, 1]}
difference((1, 1), (2, 2), pairs)    Difference("", (1, 1), (2, 2))
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Difference", "NotPlain", "Pairs", "difference", "from_json", "same_tensors", "to_json"]

_SCALARS = (type(None), bool, int, str)
_CONTAINERS = (Mapping, list, tuple, set, frozenset)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)


class NotPlain(TypeError):
    """A value that JSON cannot hold."""


def to_json(value: Any) -> Any:
    """A number, text, None, dtype, or a list, tuple, set or dictionary of such, so that `from_json` gives it back.

    Raises `NotPlain` for anything else.

    >>> from_json(to_json({"stride": (1, 1), 3: float("inf")}))
    {'stride': (1, 1), 3: inf}
    """
    kind = type(value)
    if kind in _SCALARS or (kind is float and math.isfinite(value)):
        return value
    if kind is float:
        return {"float": str(value)}
    if kind is list:
        return [to_json(one) for one in value]
    if kind in (tuple, torch.Size, set):
        name = "set" if kind is set else "tuple"
        return {name: [to_json(one) for one in (sorted(value, key=repr) if kind is set else value)]}
    if kind is dict:
        return {"dict": [[to_json(key), to_json(one)] for key, one in value.items()]}
    if kind is torch.dtype:
        return {"dtype": str(value).removeprefix("torch.")}
    raise NotPlain(f"{kind.__name__} is neither a number nor a text nor made of them")


def from_json(data: Any) -> Any:
    """The inverse of `to_json`; raises `ValueError` for what it has not written."""
    if isinstance(data, list):
        return [from_json(one) for one in data]
    if not isinstance(data, dict):
        return data
    if len(data) == 1:
        ((kind, inside),) = data.items()
        if kind == "float":
            return float(inside)
        if kind in ("tuple", "set"):
            return (tuple if kind == "tuple" else set)(from_json(one) for one in inside)
        if kind == "dict":
            return {from_json(key): from_json(one) for key, one in inside}
        if kind == "dtype" and isinstance(dtype := getattr(torch, str(inside), None), torch.dtype):
            return dtype
    raise ValueError(f"{data!r} is no value that save has written")


class Difference(NamedTuple):
    """Where inside two values they differ, such as "[0].scale", and what is there in each."""

    where: str
    one: Any
    other: Any


class Pairs:
    """Which objects of two networks stand for each other: registered modules by name, all others as they are met."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        self._names = tuple({id(module): name for name, module in net.named_modules()} for net in (one, other))
        self._met: dict[tuple[int, int], tuple[Any, Any]] = {}  # both are kept, so that no other gets their address

    def names(self, one: nn.Module, other: nn.Module) -> tuple[str | None, str | None]:
        """Their qualified names, None for a module that is not registered in its network."""
        return self._names[0].get(id(one)), self._names[1].get(id(other))

    def met(self, one: Any, other: Any) -> bool:
        """Whether these two have been compared, or are being compared; from now on they have."""
        key = id(one), id(other)
        known = key in self._met
        self._met[key] = one, other
        return known


def difference(one: Any, other: Any, pairs: Pairs, where: str = "") -> Difference | None:
    """The first difference between two values of any kind, None where there is none.

    Tensors are compared by type, shape and values, whatever their device, functions by where they are defined and what
    they close over, objects by class and attributes.
    """
    if one is other:
        return None
    differ = Difference(where, one, other)
    sizes = (tuple, torch.Size)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return None if same_tensors(one, other) else differ
    if type(one) is not type(other) and not (type(one) in sizes and type(other) in sizes):
        both = isinstance(one, torch.device | str) and isinstance(other, torch.device | str)
        if both or _kind(one) != _kind(other):
            return differ
    if isinstance(one, (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.memory_format, np.generic)):
        return None if one == other or (one != one and other != other) else differ
    if isinstance(one, torch.device):
        return None  # what is loaded is on the CPU
    if isinstance(one, np.ndarray):
        return None if np.array_equal(one, other) else differ
    if pairs.met(one, other):
        return None
    if isinstance(one, nn.Module):
        names = pairs.names(one, other)
        if names != (None, None):
            return None if names[0] == names[1] else differ
    elif isinstance(one, _FUNCTIONS):
        return _of_functions(one, other, pairs, where) if _name(one) == _name(other) else differ
    elif not isinstance(one, _CONTAINERS) and _are_equal(one, other):
        return None
    inside = _parts(one), _parts(other)
    if not isinstance(one, (*_CONTAINERS, nn.Module)):
        inside = _without_memory(*inside)
    if list(map(repr, inside[0])) != list(map(repr, inside[1])):
        return differ
    for (key, first), second in zip(inside[0].items(), inside[1].values(), strict=True):
        if (found := difference(first, second, pairs, f"{where}{key}")) is not None:
            return found
    return None


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two objects say themselves that they are equal; one that holds a tensor may be unable to say."""
    try:
        return bool(one == other)
    except Exception:
        return False


def same_tensors(one: Tensor, other: Tensor) -> bool:
    """Whether type, shape and values agree; NaN is equal to NaN."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.is_meta or other.is_meta or one.is_sparse or other.is_sparse or one.is_quantized or other.is_quantized:
        return one.is_meta == other.is_meta and repr(one) == repr(other)
    one, other = one.detach(), other.detach().to(one.device)
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def _parts(value: Any) -> dict[str, Any]:
    """What a container or an object holds, by the way in which one would write the access."""
    if isinstance(value, Mapping):
        return {f"[{key!r}]": held for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return {f"[{place}]": held for place, held in enumerate(value)}
    if isinstance(value, (set, frozenset)):
        return {f"[{key}]": None for key in sorted(map(repr, value))}
    if isinstance(value, functools.partial):
        return {".func": value.func, ".args": value.args, ".keywords": value.keywords}
    if isinstance(value, types.MethodType):
        return {".__func__": value.__func__, ".__self__": value.__self__}
    if isinstance(value, nn.Module):
        named = {**dict(value.named_parameters()), **dict(value.named_buffers())}
        return {f".{name}": held for name, held in named.items()}
    if type(value).__module__.partition(".")[0] == "torch":  # graphs, generators, handles
        return {}
    return {f".{name}": held for name, held in getattr(value, "__dict__", {}).items()}


def _without_memory(one: dict[str, Any], other: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes of two objects; private dictionaries, which remember what was computed, without what only one of
    them has computed so far."""
    one, other = dict(one), dict(other)
    for name in one.keys() & other.keys():
        first, second = one[name], other[name]
        if name.startswith("._") and type(first) is dict and type(second) is dict:
            one[name] = {key: value for key, value in first.items() if key in second}
            other[name] = {key: second[key] for key in one[name]}
    return one, other


def _of_functions(one: Any, other: Any, pairs: Pairs, where: str) -> Difference | None:
    """Functions of one name may close over different numbers, or have different defaults."""

    def held(function: Any) -> tuple[Any, ...]:
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _is_filled(cell)]
        return (*cells, *(getattr(function, "__defaults__", None) or ()))

    found = difference(held(one), held(other), pairs, where)
    return None if found is None else Difference(where, found.one, found.other)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _name(function: Any) -> tuple[str, str]:
    return str(getattr(function, "__module__", "")), str(getattr(function, "__qualname__", repr(function)))


def _kind(value: Any) -> tuple[str, str]:
    """The class by name: one that was made at run time, or imported again, is another object."""
    return type(value).__module__, type(value).__qualname__
