"""What a rewrite does not touch: whole models that are wrapped, and single convolutions that are more than they seem.

Whoever replaces a layer answers for everything that hung on it. A hook, a parametrization or an overridden forward
would be lost silently, so such a layer stays as it was and the report says why; a wrapped model is an error that says
in which order to do things.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from leanconv.dryrun import refuse_unfollowable, refuse_wrapped
from leanconv.errors import RewriteError
from leanconv.ops.operator import ConvOperator
from leanconv.rewrites.references import refuse_captured

__all__ = [
    "PLAIN",
    "convolutions",
    "is_convolution",
    "not_plain",
    "not_plannable",
    "not_replaceable",
    "own_meaning",
    "refuse_model",
    "tied_parameters",
]

PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# A subclass that defines one of these may compute, store or load something else than its parent.
_MEANING = frozenset(
    (
        *(
            "forward",
            "_conv_forward",
            "__call__",
            "__getattr__",
            "__torch_function__",
            "weight",
            "bias",
            "train",
            "_apply",
        ),
        *("state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict"),
    )
)


def refuse_model(model: nn.Module) -> None:
    """Raise `RewriteError` where `model` or a part of it is wrapped, compiled, lazy, captured by a function or
    hooked at a gradient."""
    refuse_wrapped(model, error=RewriteError)
    refuse_unfollowable(model, error=RewriteError)
    refuse_captured(model)
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise RewriteError(
                f"{name} has a gradient hook, which a copy of the model does not take along: rewrite first, then "
                "register the hook on the new model"
            )


def is_convolution(module: nn.Module) -> bool:
    """Whether `where` should see this module: convolutions, our operators, and layers of others that are called one."""
    if isinstance(module, (_ConvNd, ConvOperator)):
        return True
    is_leaf = all(child is None for child in module._modules.values())
    return is_leaf and "conv" in type(module).__name__.lower() and hasattr(module, "weight")


def convolutions(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Every convolution once, in registration order, with all its qualified names; nothing inside one is visited."""
    names: dict[int, list[str]] = {}
    found: dict[int, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> None:
        if is_convolution(module):
            found[id(module)] = module
            names.setdefault(id(module), []).append(name)
            return
        for key, child in module._modules.items():
            if child is not None:
                visit(f"{name}.{key}" if name else key, child)

    visit("", model)
    for key, module in found.items():
        yield module, tuple(names[key])


def tied_parameters(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """Parameters (by identity) that several module objects own, with the qualified names of those owners."""
    owners: dict[int, dict[int, str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), {})[id(module)] = name
    return {key: tuple(of.values()) for key, of in owners.items() if len(of) > 1}


def not_plannable(module: nn.Module) -> str | None:
    """Why a module of this kind is never replaced, whatever its state, or None where it may be."""
    reason = not_plain(module)
    if reason is None and isinstance(module, PLAIN) and module.groups != 1:
        return f"it already has groups={module.groups}: a chain stands for a dense convolution"
    return reason


def not_plain(module: nn.Module) -> str | None:
    """Why this module may mean something else than the ordinary convolution of its settings, or None."""
    kind = type(module).__name__
    if parametrize.is_parametrized(module):
        return None  # torch changes its class; `not_replaceable` finds what it is underneath
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return f"{kind} is not a convolution we can plan (it is a transposed one)"
    own = own_meaning(module, *PLAIN)
    if own or not isinstance(module, PLAIN):
        why = f"it defines its own {own}" if own else "it may mean something else"
        return f"{kind} is not a plain nn.Conv1d/2d/3d: {why}"
    return None


def own_meaning(module: nn.Module, *kinds: type) -> str:
    """What a subclass of one of torch's `kinds` overrides of its behaviour; torchvision's Conv3DSimple, nothing."""
    for base in type(module).__mro__:
        if base in kinds or base is nn.Module:
            break
        if own := sorted(_MEANING & vars(base).keys()):
            return own[0]
    return ""


def not_replaceable(module: nn.Module, tied: dict[int, tuple[str, ...]], *, hooks: bool = True) -> str | None:
    """Why this convolution, as it is now, cannot be replaced without losing something, or None where it can.

    With `hooks=False` they are no hindrance, because the new layer takes them over.
    """
    if parametrize.is_parametrized(module):
        return "its weights are parametrized: remove the parametrization, rewrite, then apply it again"
    if not isinstance(module, PLAIN):
        return None
    return _attached(module, hooks) or _weights(module, tied)


def _attached(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, look_for_hooks: bool) -> str | None:
    """What hangs on the module and would be lost."""
    hooks = [
        kind
        for kind, table in (
            ("forward", conv._forward_hooks),
            ("forward pre-", conv._forward_pre_hooks),
            ("backward", conv._backward_hooks),
            ("backward pre-", conv._backward_pre_hooks),
            ("state-dict", conv._state_dict_hooks),
            ("state-dict", conv._load_state_dict_pre_hooks),
        )
        if table
    ]
    if hooks and (look_for_hooks or conv._parameters.keys() != {"weight", "bias"}):
        return f"has a {hooks[0]} hook (weight norm, pruning and tracing use them): remove it, rewrite, attach it again"
    if "forward" in vars(conv):
        return "its forward was replaced on the instance"
    extra = sorted({*conv._parameters, *conv._buffers, *conv._modules} - {"weight", "bias"})
    if extra:
        return f"carries more than weight and bias ({', '.join(extra)})"
    return None


def _weights(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, tied: dict[int, tuple[str, ...]]) -> str | None:
    """What is particular about the weights."""
    for label, tensor in (("weight", conv.weight), ("bias", conv.bias)):
        if tensor is None:
            continue
        if id(tensor) in tied:
            return f"its {label} is tied to that of {' and '.join(tied[id(tensor)])}: a chain has no such tensor to tie"
        if type(tensor) is not nn.Parameter:
            return f"its {label} is a {type(tensor).__name__}, not a plain parameter"
    if not conv.weight.dtype.is_floating_point or conv.weight.dtype.itemsize < 2:
        return f"its weight is of {str(conv.weight.dtype).removeprefix('torch.')}: only floating point is rewritten"
    return None
