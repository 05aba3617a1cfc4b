"""Copies of a model: a plain one to change, and one whose tensors have shapes but no values.

Whatever runs or changes a model here does so on a copy: a forward may count its calls, remember tensors, or add modules
to itself, and the caller's network keeps its hooks, mode, buffers and attributes.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from leanconv.dryrun.failures import one_line
from leanconv.dryrun.wrappers import refuse_unfollowable
from leanconv.errors import LeanconvError

__all__ = ["duplicate", "fake_copy"]

# Buffers this small keep their values, so that a forward may read a flag or a scale with `.item()`.
_READABLE_ELEMENTS = 64

_GRAPHLESS, _PLAIN = ("_parameters", "_modules"), (bool, int, float, str, type(None))


def duplicate(
    model: nn.Module,
    *,
    share_tensors: bool = False,
    share_parameters: bool = False,
    error: type[LeanconvError] = LeanconvError,
) -> nn.Module:
    """A deep copy of `model`; with `share_tensors` its parameters and buffers are the very same objects (no memory),
    with `share_parameters` only its parameters, so that its forward may be run: it may write to buffers.

    Hook-based weight norm, spectral norm and pruning keep the computed weight as a plain attribute with a graph behind
    it, others a list of features, which torch refuses to copy: such tensors are copied by value.
    Raises `error` where the model holds something else that cannot be copied.

    >>> net = nn.Linear(2, 2)
    >>> duplicate(net).weight is net.weight, duplicate(net, share_tensors=True).weight is net.weight
    (False, True)
    """
    memo: dict[int, Any] = {}
    if share_tensors or share_parameters:
        shared = (*model.parameters(), *(model.buffers() if share_tensors else ()))
        memo.update((id(tensor), tensor) for tensor in shared)
    for module in model.modules():
        # Parameters have no graph behind them, and most attributes hold no tensor: only the rest is walked, for speed.
        held = [value for name, value in vars(module).items() if name not in _GRAPHLESS and type(value) not in _PLAIN]
        for value in pytree.tree_leaves([value for value in held if not isinstance(value, (dict, list)) or value]):
            if isinstance(value, Tensor) and value.grad_fn is not None and id(value) not in memo:
                memo[id(value)] = value.detach().clone()
    return _copied(model, memo, error)


def fake_copy(model: nn.Module, mode: FakeTensorMode, *, error: type[LeanconvError] = LeanconvError) -> nn.Module:
    """A copy of `model` whose tensors are fake ones of `mode`: the structure is copied, the weights are not.

    Hooks that the network has come along: a weight normalisation needs them; one that collects outputs collects fake
    tensors. Weights may be on any device, "meta" included.
    Raises `error` for TorchScript, sharded and lazy modules, and where the model cannot be copied.
    """
    refuse_unfollowable(model, error=error)
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(tensor, Tensor) and not isinstance(tensor, FakeTensor) and id(tensor) not in memo:
                memo[id(tensor)] = _fake(tensor, mode)
    return _copied(model, memo, error)


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    small = tensor.numel() <= _READABLE_ELEMENTS and tensor.device.type != "meta"
    if small and not isinstance(tensor, nn.Parameter):
        # A private copy: the fake tensor may change its constant in place.
        private = tensor.detach().clone()
        return mode.fake_tensor_converter.from_real_tensor(mode, private, make_constant=True)
    # A weight that a hook computed (old weight norm) has a gradient history, which the copy does not need.
    return mode.from_tensor(tensor if tensor.is_leaf else tensor.detach())


def _copied(model: nn.Module, memo: dict[int, Any], kind: type[LeanconvError]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise kind(
            f"{type(model).__name__} cannot be copied ({one_line(error)}), and only copies are run and changed, so "
            "that your network stays as it is: do this before attaching what cannot be copied (open files, locks, "
            "computed tensors)"
        ) from error
