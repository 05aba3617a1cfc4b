"""Every place of a network that holds a layer, also outside of the module tree: lists, dictionaries, attributes.

A forward may call its layers from a plain list, through an alias, or through a bound method. After layers were replaced
all these places must hold the new ones; where one cannot be changed, the rewrite is refused by name.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import nn

from leanconv.errors import RewriteError

__all__ = ["refuse_captured", "replace_references"]

_TREE = frozenset(("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"))
_FOREIGN = frozenset(("torch", "numpy", "logging", "threading", "builtins"))


def replace_references(root: nn.Module, answers: Mapping[int, nn.Module], gone: Mapping[int, str]) -> None:
    """Put the new layers wherever the modules of `root` hold an old one, in place.

    `answers` has the new layer for every old one, by identity, and `gone` the qualified names of all modules that are
    no longer in the tree. Raises `RewriteError`, naming the place, where one of them remains.
    """
    search = _Search(root, answers, gone)
    for name, module in list(root.named_modules()):
        search.attributes(module, name or type(root).__name__)


def refuse_captured(model: nn.Module) -> None:
    """Raise `RewriteError` where a function or a weak reference that a module holds has captured a layer.

    A copy of the model has the same one, which leads to the layer of the original.
    """
    names = {id(module): name or type(model).__name__ for name, module in model.named_modules()}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in _TREE:
                continue
            for held in (
                value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else (value,)
            ):
                for inside in _captured(held, ()):
                    if id(inside) in names:
                        raise RewriteError(
                            f"{name or type(model).__name__}.{key} has captured the layer {names[id(inside)]} "
                            f"({type(held).__name__}): a copy of the network would go on calling the layer of the "
                            "original; make it a method, or let it take the layer as an argument"
                        )


def _captured(value: Any, seen: tuple[Any, ...]) -> Iterator[nn.Module]:
    """The modules that a plain function closes over, has as a default or gets from a function that it closes over; the
    one that a weak reference leads to."""
    if isinstance(value, weakref.ref) and isinstance(target := value(), nn.Module):
        yield target
    if not isinstance(value, types.FunctionType) or value in seen:
        return
    cells: list[Any] = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    for cell in value.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    for held in cells:
        for one in held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else (held,):
            if isinstance(one, nn.Module):
                yield one
            elif isinstance(one, types.MethodType) and isinstance(one.__self__, nn.Module):
                yield one.__self__
            else:
                yield from _captured(one, (*seen, value))


class _Search:
    """One walk through everything that the modules hold."""

    def __init__(self, root: nn.Module, answers: Mapping[int, nn.Module], gone: Mapping[int, str]) -> None:
        self.answers, self.gone = answers, gone
        self.registered = {id(module) for module in root.modules()}
        self.seen: dict[int, Any] = {}  # kept alive, so that no other object gets their address

    def attributes(self, holder: Any, where: str) -> None:
        """Look at what an object holds, and put new layers there."""
        held = vars(holder)
        for key, value in list(held.items()):
            if isinstance(holder, nn.Module) and key in _TREE:
                continue
            new = self.mended(value, f"{where}.{key}")
            if new is not value:
                held[key] = new

    def mended(self, value: Any, where: str) -> Any:
        """`value`, or what is to stand in its place; containers are changed in place."""
        if isinstance(value, nn.Module):
            return self._module(value, where)
        if isinstance(value, (str, bytes, int, float, type(None), type, types.FunctionType, types.BuiltinFunctionType)):
            return value
        if id(value) in self.seen:
            return self.seen[id(value)][1]
        self.seen[id(value)] = value, value
        new = self._inside(value, where)
        self.seen[id(value)] = value, new
        return new

    def _module(self, module: nn.Module, where: str) -> nn.Module:
        if id(module) in self.answers:
            return self.answers[id(module)]
        if id(module) in self.gone:
            raise self._refusal(where, module)
        if id(module) not in self.registered and id(module) not in self.seen:  # held beside the tree
            self.seen[id(module)] = module, module
            for key, child in module._modules.items():
                module._modules[key] = child if child is None else self._module(child, f"{where}.{key}")
            self.attributes(module, where)
        return module

    def _inside(self, value: Any, where: str) -> Any:
        if isinstance(value, (list, deque)):
            for place, held in enumerate(value):
                if (new := self.mended(held, f"{where}[{place}]")) is not held:
                    value[place] = new
        elif isinstance(value, MutableMapping):
            return self._mapping(value, where)
        elif isinstance(value, (tuple, set, frozenset)):
            made = [self.mended(held, f"{where}[{place}]") for place, held in enumerate(value)]
            if any(new is not held for new, held in zip(made, value, strict=True)):
                return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
        elif isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            func, args, keywords = (
                self.mended(part, f"{where}.{what}") for part, what in zip(parts, _PARTIAL, strict=True)
            )
            if func is not parts[0] or args is not parts[1]:
                return type(value)(func, *args, **keywords)
        elif isinstance(value, types.MethodType):
            owner = self.mended(value.__self__, where) if value.__name__ in _CALLS else value.__self__
            if id(owner) in self.gone:
                raise self._refusal(f"{where}, its method {value.__name__}", owner)
            if owner is not value.__self__:
                return getattr(owner, value.__name__)
        elif type(value).__module__.partition(".")[0] not in _FOREIGN and hasattr(value, "__dict__"):
            self.attributes(value, where)
        return value

    def _mapping(self, value: MutableMapping[Any, Any], where: str) -> Any:
        keys = [self.mended(key, f"a key of {where}") if isinstance(key, nn.Module) else key for key in value]
        if any(new is not key for new, key in zip(keys, value, strict=True)):
            held = list(value.values())
            value.clear()
            value.update(zip(keys, held, strict=True))
        for key, held in list(value.items()):
            if (new := self.mended(held, f"{where}[{key!r}]")) is not held:
                value[key] = new
        return value

    def _refusal(self, where: str, module: Any) -> RewriteError:
        return RewriteError(
            f"{where} holds {self.gone[id(module)]}, which is replaced, and cannot be made to hold the new layer: the "
            "network would go on calling the old one; take it off, or leave that layer alone"
        )


_CALLS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
_PARTIAL = ("func", "args", "keywords")
