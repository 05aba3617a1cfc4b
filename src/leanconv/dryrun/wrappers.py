"""Which objects are a model, which wrap one, and which cannot be looked into."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.nn.parameter import is_lazy

from leanconv.errors import LeanconvError

__all__ = ["ModelHolder", "as_module", "refuse_unfollowable", "refuse_wrapped", "unwrapped"]

_AGAIN = "pass model.module, then wrap the new model again"
_WRAPPERS = {
    "DistributedDataParallel": _AGAIN,
    "DataParallel": _AGAIN,
    "FullyShardedDataParallel": "do this before the model is sharded, then shard the new one",
    "FSDPModule": "do this before fully_shard, then shard the new one",
    "OptimizedModule": "do this before torch.compile (here: pass model._orig_mod), then compile the new one",
    "ScriptModule": "do this before torch.jit.script or torch.jit.trace, which hide its layers",
}
_UNFOLLOWABLE = frozenset(("FullyShardedDataParallel", "FSDPModule", "ScriptModule"))


@runtime_checkable
class ModelHolder(Protocol):
    """What a function of leanconv returns around a model, such as `Rewritten`; the others take it as it is."""

    @property
    def model(self) -> nn.Module:
        """The model."""

    @property
    def story(self) -> Any:
        """How it came to be, or None."""


def as_module(model: object, *, error: type[LeanconvError] = LeanconvError) -> nn.Module:
    """The module that `model` is, or that the result of another function holds; raises `error` for anything else.

    >>> as_module(nn.ReLU())
    ReLU()
    """
    if not isinstance(model, nn.Module) and isinstance(model, ModelHolder):
        model = model.model
    if isinstance(model, nn.Module):
        return model
    held = isinstance(getattr(model, "model", None), nn.Module)
    hint = "; pass its .model" if held else ": build or load the model first"
    raise error(f"expected an nn.Module, got {type(model).__name__}{hint}")


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers that change how, not what, it computes: data parallel ones and torch.compile's.

    >>> unwrapped(nn.DataParallel(nn.ReLU()))
    ReLU()
    """
    inside = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}
    while (kind := _wrapper(model)) in inside:
        model = getattr(model, inside[kind])
    return model


def refuse_wrapped(model: nn.Module, *, error: type[LeanconvError] = LeanconvError) -> None:
    """Raise `error` where the model or a part of it is wrapped, for whoever is to change a copy of it."""
    _refuse(model, frozenset(_WRAPPERS), error)


def refuse_unfollowable(model: nn.Module, *, error: type[LeanconvError] = LeanconvError) -> None:
    """Raise `error` where a dry run cannot look into a part of the model, or the part has no weights yet."""
    _refuse(model, _UNFOLLOWABLE, error)
    for name, module in model.named_modules():
        if any(is_lazy(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())):
            raise error(
                f"module {name!r} ({type(module).__name__}) is lazy and has no weights yet: run one batch through the "
                "network first"
            )


def _refuse(model: nn.Module, kinds: frozenset[str], error: type[LeanconvError]) -> None:
    for name, module in model.named_modules():
        kind = _wrapper(module)
        if kind in kinds:
            where = f"{name}: " if name else ""
            raise error(f"{where}the model is wrapped in {kind}: {_WRAPPERS[kind]}")


def _wrapper(module: nn.Module) -> str:
    """The wrapper that `module` is, "" for none; by name, because FSDP's package must not be imported for this."""
    for base in type(module).__mro__:
        if base.__module__.startswith("torch.") and base.__name__ in _WRAPPERS:
            return base.__name__
    return ""
