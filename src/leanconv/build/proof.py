"""The proof of a saved folder: what was built again from it is the network that was to be saved.

Parts, classes, order, hooks, weights, buffers, attributes, modes and `requires_grad` are compared one by one; then both
run in evaluation on the same values and their outputs are. What differs is refused by name.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanconv.build.beside import attributes, differing
from leanconv.build.values import Pairs, difference, same_tensors
from leanconv.dryrun import Sizes, arguments, duplicate, each_shape, one_line
from leanconv.errors import CheckpointError
from leanconv.modes import eval_mode
from leanconv.seeds import generator, isolated

__all__ = ["ADVICE", "prove_same"]

ADVICE = (
    "a saved model cannot hold that: put what builds this network, with the changes, into a function of a module and "
    "pass source='package.module:function'"
)
_NO_HOOKS = "no file can hold a hook: remove it before saving, and register it again on what is loaded"
_SMALL, _FEW = 64, 8


def prove_same(model: nn.Module, loaded: nn.Module, size: Sizes | None, complaint: str) -> None:
    """Raise `CheckpointError`, beginning with `complaint`, unless `loaded` is what `model` is.

    Both are run on a small input like `size`, or on one of `size` itself where they do not take the small one, or are
    not run where it is not known. `loaded` is used up.
    """

    def refuse(differences: Iterable[str], advice: str = ADVICE) -> None:
        found = [text for text, _ in zip(differences, range(4), strict=False)]
        if found:
            shown = "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
            raise CheckpointError(f"{complaint}: {shown}; {advice}")

    refuse(_parts(model, loaded))
    refuse(_hooks(model, loaded), _NO_HOOKS)
    refuse(_tensors(model, loaded))
    refuse(_flags(model, loaded))
    unequal = list(differing(model, loaded))
    # A copy, because a forward may count its calls or fill a cache.
    own = duplicate(model, share_parameters=True, error=CheckpointError)
    before = {one.path: _copied(one.built, loaded) for one in unequal}
    ran = _run_both(own, loaded, size)
    if unequal:
        # What a forward itself notes, a cache or a weight that a hook computes, is made anew when it runs.
        after = {one.path: one.built for one in differing(own, loaded)}
        pairs = Pairs(loaded, loaded)
        left = [
            one for one in unequal if one.path in after and difference(before[one.path], after[one.path], pairs) is None
        ]
        refuse(map(str, left))
    if isinstance(ran, str):
        raise CheckpointError(f"{complaint}: {ran}; {ADVICE}")


def _parts(model: nn.Module, loaded: nn.Module) -> Iterator[str]:
    """What differs in the tree of modules."""
    own, other = (dict(net.named_modules(remove_duplicate=False)) for net in (model, loaded))
    first: dict[int, str] = {}
    first_loaded: dict[int, str] = {}
    for name, module in own.items():
        built = other.get(name)
        if built is None:
            yield f"{name} ({type(module).__name__}) is not in the network that its story builds"
        elif _kind(module) != _kind(built):
            yield f"{name or 'the network'} is a {type(module).__name__}, and comes back as a {type(built).__name__}"
        elif first.setdefault(id(module), name) != first_loaded.setdefault(id(built), name):
            yield f"{name} is the same module as {first[id(module)]}, and comes back as {first_loaded[id(built)]}"
        elif isinstance(module, nn.Sequential | nn.ModuleList) and list(module._modules) != list(built._modules):
            yield f"the parts of {name or 'the network'} come back in another order"
    for name, module in other.items():
        if name not in own:
            yield f"{name} ({type(module).__name__}) was taken out of the network that its story builds"


def _kind(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__, type(module).__qualname__


_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
    "_state_dict_hooks": "state-dict hook",
    "_state_dict_pre_hooks": "state-dict pre-hook",
    "_load_state_dict_pre_hooks": "load pre-hook",
    "_load_state_dict_post_hooks": "load hook",
}


def _hooks(model: nn.Module, loaded: nn.Module) -> Iterator[str]:
    """Hooks that only one of them has, by the names of their functions."""
    others = dict(loaded.named_modules())
    for name, module in model.named_modules():
        for table, what in _HOOKS.items():
            own, built = (sorted(map(_name, vars(one)[table].values())) for one in (module, others[name]))
            if own != built:
                some = ", ".join(hook for hook in own if hook not in built) or "less than it was built with"
                yield f"{name or 'the network'} has a {what} ({some})"
    tables = ("_backward_hooks", "_post_accumulate_grad_hooks")
    for name, parameter in model.named_parameters():
        if any(getattr(parameter, table, None) for table in tables):
            yield f"{name} has a gradient hook"


def _name(hook: Any) -> str:
    hook = getattr(hook, "hook", hook)  # of load hooks, in a wrapper of torch's
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


def _tensors(model: nn.Module, loaded: nn.Module) -> Iterator[str]:
    """Parameters and buffers of other values, or shared in another way."""
    others, loose = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}, _loose(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        other = others.pop(name, None)
        if other is None:
            yield f"{name} is a tensor of its own, and comes back as another name of one"
        elif name in loose:
            continue  # told with the attributes
        elif not same_tensors(tensor, other):
            yield f"{name} comes back with other values"
    for name in others:
        yield f"{name} comes back as a tensor of its own"


def _loose(model: nn.Module) -> frozenset[str]:
    """The buffers that are in no state dict."""
    return frozenset(
        f"{prefix}.{key}" if prefix else key
        for prefix, module in model.named_modules()
        for key in module._non_persistent_buffers_set
    )


def _flags(model: nn.Module, loaded: nn.Module) -> Iterator[str]:
    others, parameters = dict(loaded.named_modules()), dict(loaded.named_parameters())
    for name, module in model.named_modules():
        if module.training != others[name].training:
            yield f"{name or 'the network'} comes back with training={others[name].training}"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != parameters[name].requires_grad:
            yield f"{name} comes back with requires_grad={not parameter.requires_grad}"


def _copied(value: Any, net: nn.Module) -> Any:
    """A deep copy that shares the modules of `net`; the value itself where it cannot be copied."""
    try:
        return copy.deepcopy(value, {id(module): module for module in net.modules()})
    except Exception:
        return value


def _move(net: nn.Module, device: torch.device) -> None:
    """The whole network, with tensors that are plain attributes."""
    net.to(device)
    for module in net.modules():
        for name, value in attributes(module).items():
            if isinstance(value, Tensor):
                vars(module)[name] = value.to(device)


def _run_both(model: nn.Module, loaded: nn.Module, size: Sizes | None) -> str | None:
    """How the outputs of the two differ in words; None where they do not, or where neither runs."""
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    _move(loaded, device)
    differ = _run_both_here(model, loaded, size)
    if differ is not None and device.type != "cpu":  # a network that keeps its device in an attribute
        _move(model, torch.device("cpu"))
        _move(loaded, torch.device("cpu"))
        differ = _run_both_here(model, loaded, size)
    return differ


def _run_both_here(model: nn.Module, loaded: nn.Module, size: Sizes | None) -> str | None:
    for shape in () if size is None else (each_shape(size, _reduced), each_shape(size, _cropped), size):
        one, other = (_run(net, shape) for net in (model, loaded))
        if isinstance(one, Exception) and isinstance(other, Exception):
            continue
        for failed, verb in (
            (one, "does not run, but the network that comes back does"),
            (other, "comes back unable to run"),
        ):
            if isinstance(failed, Exception):
                return f"on an input of {shape} it {verb}: {one_line(failed)}"
        return _compare(one, other, shape)
    return None


def _reduced(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A smaller input of the same kind: sides of at most 64, and 8 frames."""
    channels, *sides = shape
    few = [min(sides[0], _FEW)] if len(sides) == 3 else []
    return (channels, *few, *(min(side, _SMALL) for side in sides[len(few) :]))


def _cropped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same with all of its frames."""
    small = _reduced(shape)
    return (*shape[:2], *small[2:]) if len(shape) == 4 else small


def _run(net: nn.Module, size: Sizes) -> Any:
    """The outputs on values that are the same for every network of one type, with the same draws; or the exception."""
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))

    def values(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(1, *shape, generator=generator("probe")).to(like.device, like.dtype)

    on_gpu = [like.device] if like.device.type == "cuda" else []
    with isolated("probe"), torch.random.fork_rng(on_gpu), eval_mode(net), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            return net(*arguments(net, size, values))
        except Exception as error:
            return error


def _tolerance(outputs: Any) -> float:
    """Of the largest output: room for another memory layout or a GPU; another network differs by far more."""
    kinds = [
        leaf.dtype for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    return max([1e-3, *(16 * torch.finfo(kind).eps for kind in kinds)])


def _compare(one: Any, other: Any, shape: Any) -> str | None:
    leaves = pytree.tree_leaves(one), pytree.tree_leaves(other)
    if len(leaves[0]) != len(leaves[1]):
        return f"on an input of {shape} it gives {len(leaves[0])} outputs, and comes back with {len(leaves[1])}"
    for first, second in zip(*leaves, strict=True):
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            continue
        if first.shape != second.shape:
            return f"its output has shape {tuple(first.shape)}, and comes back as {tuple(second.shape)}"
        if same_tensors(first, second):
            continue
        first, second = (
            tensor.detach().cpu().to(torch.complex128 if tensor.is_complex() else torch.double)
            for tensor in (first, second)
        )
        same = (first == second) | (first.isnan() & second.isnan())
        first, second = (torch.where(same, 0, tensor) for tensor in (first, second))
        gap, largest = float((first - second).abs().max()), float(first.abs().max())
        if not gap <= _tolerance(one) * largest:
            return f"its outputs on a probe of {shape} come back changed by {gap:.2g}, the largest being {largest:.2g}"
    return None
