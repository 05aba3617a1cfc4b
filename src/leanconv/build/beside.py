"""What a network has beside its weights and the story, and how that is kept in plain data.

    modes       qualified names of the modules whose training flag is not the network's
    frozen      parameters without gradient
    tied        parameters that are one object with another, alias -> name
    loose       tensors that are in no state dict and that the story would draw or compute otherwise
    settings    plain attributes of modules that were changed after the story: {"layer4.0.conv1": {"stride": ...}}

Only plain data is ever put back, and never where torch or the class has something of its own: whoever wrote a folder
cannot make its reader run anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from leanconv.build.values import Difference, NotPlain, Pairs, difference, from_json, to_json
from leanconv.story import STORY_KEY

__all__ = ["MISSING", "Unequal", "attributes", "differing", "gather", "restore"]

MISSING = type("Missing", (), {"__repr__": lambda _: "nothing"})()
"""The value of an attribute that is not there."""

_TORCHS_OWN = frozenset(vars(nn.Module())) | {STORY_KEY, "_compiled_call_impl", "_forward_hooks_with_kwargs"}


class Unequal(NamedTuple):
    """An attribute that a module of the network and the same one of the story have with different values."""

    module: str
    name: str
    own: Any
    built: Any
    inside: Difference

    def __str__(self) -> str:
        if self.own is MISSING:
            return f"{self.path} was taken off, and comes back"
        if self.built is MISSING:
            return f"{self.path} is {_shown(self.own)}, and does not come back"
        if isinstance(self.inside.one, Tensor) and isinstance(self.inside.other, Tensor):
            beside = f" (in no state dict, because {self.path} is a plain list or the like: make it an nn.ModuleList)"
            return f"{self.path}{self.inside.where} comes back with other values" + beside * bool(self.inside.where)
        own, other = _shown(self.inside.one), _shown(self.inside.other)
        return f"{self.path}{self.inside.where} is {own}, and comes back as {other}"

    @property
    def path(self) -> str:
        """The qualified name of the attribute."""
        return f"{self.module}.{self.name}" if self.module else self.name


def attributes(module: nn.Module) -> dict[str, Any]:
    """What `module` holds that torch keeps no account of: numbers, lists, functions, tensors beside the buffers."""
    return {name: value for name, value in vars(module).items() if name not in _TORCHS_OWN}


def differing(model: nn.Module, built: nn.Module) -> Iterator[Unequal]:
    """Every attribute and every buffer outside of the state dict that is not the same in both, module by module.

    Modules that only one of them has are passed over.
    """
    others, pairs = dict(built.named_modules()), Pairs(model, built)
    for name, module in model.named_modules():
        if (other := others.get(name)) is None:
            continue
        held = _all(module), _all(other)
        for key in dict.fromkeys((*held[0], *held[1])):
            own, made = (
                has.get(key, getattr(type(one), key, MISSING)) for has, one in zip(held, (module, other), strict=True)
            )
            if (found := difference(own, made, pairs)) is not None:
                yield Unequal(name, key, own, made, found)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def gather(model: nn.Module, built: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The record of what `model` has and `built`, the network of its story, has not; tensors go into `tensors`.

    What cannot be kept is left out: the comparison after the writing finds it.
    """
    loose: list[str] = []
    settings: dict[str, dict[str, Any]] = {}
    for unequal in differing(model, built):
        own = unequal.own
        if isinstance(own, Tensor):
            if type(own) in (Tensor, nn.Buffer) and own.layout is not None and not own.is_meta and not own.is_sparse:
                tensors[unequal.path] = own.detach().cpu().clone().contiguous()
                loose.append(unequal.path)
            continue
        try:
            settings.setdefault(unequal.module, {})[unequal.name] = to_json(own)
        except NotPlain:
            continue
    return {
        "modes": [name for name, module in model.named_modules() if module.training != model.training],
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "tied": _tied(model),
        "loose": loose,
        "settings": {name: values for name, values in settings.items() if values},
    }


def restore(model: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put back into the rebuilt `model` what `gather` has kept; a folder of an older leanconv has kept nothing.

    Raises `ValueError`, `KeyError` or `AttributeError` for a record that was not written by it.
    """
    for name, values in record.get("settings", {}).items():
        module = model.get_submodule(name)
        for key, value in values.items():
            _refuse_place(module, key)
            vars(module)[key] = from_json(value)
    for path in record.get("loose", ()):
        parent, _, key = path.rpartition(".")
        module = model.get_submodule(parent)
        if key in module._buffers:
            module._buffers[key] = tensors[path]
        else:
            _refuse_place(module, key)
            vars(module)[key] = tensors[path]
    for alias, name in record.get("tied", {}).items():
        parent, _, key = alias.rpartition(".")
        one = model.get_parameter(name)
        if model.get_parameter(alias).shape != one.shape:
            raise ValueError(f"{alias} and {name} cannot be one: their shapes differ")
        model.get_submodule(parent)._parameters[key] = one
    model.train(record["training"])
    if "modes" in record:
        others = frozenset(record["modes"])
        for name, module in model.named_modules():
            module.training = record["training"] != (name in others)
    if "frozen" in record:
        frozen = frozenset(record["frozen"])
        for name, parameter in model.named_parameters():
            if parameter.requires_grad == (name in frozen):
                parameter.requires_grad_(name not in frozen)


def _all(module: nn.Module) -> dict[str, Any]:
    """Attributes, and the buffers that are in no state dict."""
    loose = {name: module._buffers.get(name, MISSING) for name in sorted(module._non_persistent_buffers_set)}
    return {**attributes(module), **loose}


def _tied(model: nn.Module) -> dict[str, str]:
    """Parameters that are one object at several places of different modules."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            name = f"{prefix}.{key}" if prefix else key
            if parameter is not None and first.setdefault(id(parameter), name) != name:
                tied[name] = first[id(parameter)]
    return tied


def _refuse_place(module: nn.Module, key: str) -> None:
    """Raise `ValueError` where an attribute of that name would stand in for something of torch or of the class."""
    own = (*module._parameters, *module._buffers, *module._modules)
    if key in _TORCHS_OWN or key in own or callable(getattr(type(module), key, None)) or key.startswith("__"):
        raise ValueError(f"{key!r} of {type(module).__name__} is no setting")
