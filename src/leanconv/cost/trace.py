"""What a network does to one input: a single forward on fake tensors, written down operator by operator.

Fake tensors have shapes, types and lifetimes but no values, so nothing is computed and nothing of the network's size is
allocated. A dispatch mode sees every ATen operator, whoever called it (a module, a functional call, a sliced weight),
which is why nothing here knows a layer or an operator of ours by name.

The forward runs on a copy of the module tree whose parameters and buffers are fake: the weights are not copied, and the
caller's network keeps its hooks, mode, buffers and attributes, whatever its forward does to itself. Hooks that the
network has run too, on the copy: a weight normalisation needs them; one that collects outputs collects fake tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten

from leanconv.cost.recorder import Recorder
from leanconv.cost.records import ModuleRef, Trace
from leanconv.errors import LeanconvError

__all__ = ["trace"]

# Buffers this small keep their values, so that a forward may read a flag or a scale with `.item()`.
_READABLE_BUFFER_ELEMENTS = 64


def trace(model: nn.Module, size: Sequence[int], *, batch: int = 1) -> Trace:
    """Run `model` once, in eval mode, on a fake input of shape (batch, *size) and write down its operators.

    Raises `LeanconvError` when the network cannot run on that shape, reads tensor values in its forward, or cannot be
    copied.

    >>> [record.name for record in trace(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()), (2, 8)).records]
    ['aten.convolution', 'aten.relu']
    """
    shape = (_count(batch, "batch"), *(_count(n, "every entry of size") for n in size))
    if len(shape) < 2:
        raise LeanconvError("measure: size must have at least one entry, such as (3, 224, 224); got ()")
    model = _plain(model)
    what = type(model).__name__
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    twin = _fake_twin(model, fake_mode)
    recorder = Recorder(fake_mode)
    recorder.adopt(twin)
    like = next((p for p in twin.parameters() if p.is_floating_point()), None)
    device, dtype = (like.device, like.dtype) if like is not None else (None, None)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), fake_mode:
            image = torch.empty(shape, device=device, dtype=dtype)
            image_ref = recorder.see_image(image)
            with recorder:
                outcome = twin(image)
        outputs = tuple(recorder.ref(t) for t in tree_flatten(outcome)[0] if isinstance(t, Tensor))
    except (LeanconvError, Warning):  # a warning is raised only where the caller asked for it
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise LeanconvError(
            f"measure: the forward of {what} reads tensor values ({error.func}{recorder.where()}), so its cost depends "
            "on the data and cannot be counted from shapes; take the .item(), the branch or the boolean mask out of "
            "the forward, or measure a sub-module that has none"
        ) from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise LeanconvError(
            f"measure: the forward of {what} fails on an input of shape {shape}{recorder.where()}: "
            f"{type(error).__name__}: {reason}; size must be what the network takes, without the batch axis"
        ) from error
    modules = tuple(
        ModuleRef(name, type(module).__name__, sum(p.numel() for p in module.parameters()), recorder.calls[name])
        for name, module in twin.named_modules()
    )
    return Trace(tuple(recorder.records), image_ref, outputs, modules, recorder.peak_bytes)


def _count(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LeanconvError(f"measure: {what} must be a whole number of at least 1, got {value!r}")
    return value


def _plain(model: object) -> nn.Module:
    """The network inside the wrappers that change how, not what, it computes."""
    if not isinstance(model, nn.Module):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise LeanconvError(f"measure: expected an nn.Module, got {type(model).__name__}{hint}")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return _plain(model.module)
    if type(model).__module__.startswith("torch._dynamo"):  # what torch.compile(model) returns
        return _plain(model._orig_mod)
    return model


def _fake_twin(model: nn.Module, fake_mode: FakeTensorMode) -> nn.Module:
    """A copy of the module tree in eval mode whose tensors are fake: structure is copied, weights are not."""
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise LeanconvError(
                f"measure: module {name!r} is TorchScript, which hides its layers; pass the eager network"
            )
        held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in held:
            if not isinstance(tensor, Tensor) or id(tensor) in memo or isinstance(tensor, FakeTensor):
                continue
            if is_lazy(tensor):
                raise LeanconvError(
                    f"measure: module {name!r} ({type(module).__name__}) is lazy and has no weights yet; "
                    "run one batch through the network first"
                )
            memo[id(tensor)] = _fake(tensor, fake_mode)
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise LeanconvError(
            f"measure: {type(model).__name__} cannot be copied ({type(error).__name__}: {reason}), and measuring runs "
            "a copy so that your network stays untouched; detach what cannot be copied from it (open files, locks, "
            "tensors with a gradient history)"
        ) from error
    return twin.eval()


def _fake(tensor: Tensor, fake_mode: FakeTensorMode) -> Tensor:
    small = tensor.numel() <= _READABLE_BUFFER_ELEMENTS and tensor.device.type != "meta"
    if small and not isinstance(tensor, nn.Parameter):
        # A private copy: the fake tensor may change its constant in place.
        private = tensor.detach().clone()
        return fake_mode.fake_tensor_converter.from_real_tensor(fake_mode, private, make_constant=True)
    # A weight that a hook computed (old weight norm) has a gradient history, which the twin does not need.
    return fake_mode.from_tensor(tensor if tensor.is_leaf else tensor.detach())
