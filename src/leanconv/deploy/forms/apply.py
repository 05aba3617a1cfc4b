"""A network in another form; equal outputs are proved by comparing them."""

from __future__ import annotations

import copy
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from leanconv.deploy.accelerate import accelerate
from leanconv.deploy.densify import densify
from leanconv.deploy.export import refuse_elastic
from leanconv.deploy.fold import fold
from leanconv.deploy.forms.fuse import fused
from leanconv.deploy.forms.layers import CHANNELWISE, PADDED, is_channelwise, materialized
from leanconv.deploy.forms.trained import train_by_kernels_
from leanconv.deploy.verify import compare, random_inputs
from leanconv.dryrun import ModelHolder, Size, as_module, check_sizes, duplicate
from leanconv.errors import LeanconvError, NothingToRewrite, unknown
from leanconv.kernels.library import load
from leanconv.ops.chain import ConvChain
from leanconv.rewrites.swap import swap_

__all__ = ["FORMS", "Form", "in_form", "retype"]

Form = Literal["stages", "composed", "merged", "kernel", "fused", "library"]
FORMS: tuple[str, ...] = get_args(Form)


def in_form(
    model: nn.Module | ModelHolder,
    form: Form,
    size: Size,
    *,
    training: bool = False,
    multiple: int = 1,
    share: bool = False,
    tolerance: float = 1e-3,
) -> nn.Module:
    """A copy of `model` that computes in `form`, for inputs of `size` (without the batch axis).

    For inference (`training=False`) the result is in eval mode, BatchNorms folded and dense kernels composed once; in
    the form "library", which is what `accelerate` makes, it takes inputs of `size` alone and has no gradient. For
    training it keeps mode, parameters, buffers and their names.

    Args:
        form: one of `FORMS`.
        multiple: fill channel counts up to a multiple of it; 8 suits the matrix units of GPUs in half precision.
        share: give the copy the very parameters and buffers of `model`, so that training one trains the other.
        tolerance: the largest difference of outputs that is accepted, as a share of the largest of them.

    Raises:
        NothingToRewrite: where no layer can run in that form, or gains by it.
        NoLibrary: for "library", where the C library is not here.
        ExportError: for "library" in inference, where `torch.export` cannot follow the network.
        LeanconvError: for a form that does not exist, an elastic network, "library" with a `multiple` or for inference
            elsewhere than on a CPU in float32, or where the outputs differ: a network that cuts, joins or counts its
            channels cannot have them filled up.

    >>> from leanconv.build import create_model
    >>> net = create_model("o_resnet20")
    >>> fast = in_form(net, "composed", (3, 32, 32), training=True, multiple=8)
    >>> list(fast.state_dict()) == list(net.state_dict())
    True
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    network = as_module(model)
    refuse_elastic(network, f"run in the form {form!r}")
    size = check_sizes(size)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    if training and form == "fused":
        raise LeanconvError("the form 'fused' is for inference: norms stand between a convolution and its clip at zero")
    if form == "library" and multiple > 1:
        raise LeanconvError("the form 'library' fills no channels up, its kernels take any number: leave multiple=1")
    if form == "library" and not training:
        _refuse_elsewhere(network)
        return accelerate(network, size, tolerance=tolerance).model
    if training:
        new = duplicate(network, share_tensors=share)
        changed = retype(new, form, multiple)
    else:
        folded = fold(network, size).model
        if form in ("composed", "fused"):
            dense = densify(folded)
            new, changed = dense.model, len(dense.densified)
        else:
            new = folded
            changed = retype(new, "stages" if form == "kernel" else form, 1)
        if form in ("kernel", "fused"):
            new, units = fused(new, multiple=multiple, own=form == "kernel")
            changed += units
        if multiple > 1:
            try:
                _fill(new, size, multiple)
            except (RuntimeError, ValueError) as error:
                raise _counts(network, form, multiple, error) from error
    if form != "stages" and not changed:
        raise NothingToRewrite(f"no layer of {type(network).__name__} runs in the form {form!r}")
    _prove(network, new, size, form, multiple, tolerance)
    return new.to(device)


def retype(model: nn.Module, form: Form, multiple: int) -> int:
    """Let the layers of `model` run in `form`, in place; how many do."""
    if form == "library":
        load()  # or the error that says what is missing
        return len(train_by_kernels_(model))
    changed = 0
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, ConvChain) and form in ("composed", "merged"):
            if form == "merged" or (module.is_linear and all(conv.bias is None for conv in module.convs[:-1])):
                module.run_as(form, multiple=multiple, padded=multiple > 1)
                changed += module.form == form
                inside |= {id(part) for part in module.modules()}
        elif form == "kernel" and is_channelwise(module) and type(module) in CHANNELWISE:
            module.__class__ = CHANNELWISE[type(module)]
            changed += 1
    if multiple > 1:
        for module in model.modules():
            if id(module) not in inside and type(module) in PADDED:
                module.__class__ = PADDED[type(module)]
                cast(Any, module).multiple = multiple
    return changed


def _refuse_elsewhere(model: nn.Module) -> None:
    """The library computes on CPUs in float32, and nobody who asks for its speed wants numbers converted both ways."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype is not torch.float32):
            raise LeanconvError(
                f"the form 'library' computes on a CPU in float32: {name} of {type(model).__name__} is "
                f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
            )


def _fill(model: nn.Module, size: Size, multiple: int) -> None:
    """Fill the channels of a network for inference up, for good; units of chains are filled up already."""
    for module in model.modules():
        if type(module) in PADDED:
            module.__class__ = PADDED[type(module)]
            cast(Any, module).multiple = multiple
    features: dict[int, int] = {}

    def rule(name: str, module: nn.Module) -> nn.Module | None:
        new = materialized(module, features.get(id(module)))
        return None if new is module else new

    swap_(model, rule)  # convolutions; what they give says how many features a linear layer is given
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        features[id(module)] = given[0].shape[-1]

    hooks = [module.register_forward_pre_hook(note) for module in linear]
    with torch.no_grad():
        model(*random_inputs(model, size, 2, seed=0))
    for hook in hooks:
        hook.remove()
    swap_(model, rule)


def _prove(old: nn.Module, new: nn.Module, size: Size, form: str, multiple: int, tolerance: float) -> None:
    try:
        difference = compare(_on_cpu(old), _on_cpu(new), size)
    except (RuntimeError, ValueError) as error:
        raise _counts(old, form, multiple, error) from error
    if difference.beyond(tolerance):
        raise LeanconvError(
            f"in the form {form!r} with channels filled up to a multiple of {multiple} the outputs of "
            f"{type(old).__name__} differ by {difference.max_abs:.1e}: it cuts or joins channels; leave multiple=1"
        )


def _counts(model: nn.Module, form: str, multiple: int, error: Exception) -> LeanconvError:
    return LeanconvError(
        f"{type(model).__name__} does not run in the form {form!r} with channels filled up to a multiple of "
        f"{multiple}: some layer counts its channels ({error}); leave multiple=1"
    )


def _on_cpu(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().eval()
