"""BatchNorm folded into the convolution before it: at inference s (W x + b) + t is one convolution, (sW) x + (sb + t).

An octave convolution is up to four of them, and behind it are two norms: each part of its output is a sum of paths, all
of which are scaled, and one of which takes the shift.

torch.fx only *finds* the pairs: it shows who feeds whom and how often. The fold itself is done on a plain copy of the
model, layer by layer, so that classes, names and everything not folded stay as they were.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from leanconv.deploy.verify import compare, one_line
from leanconv.dryrun import ModelHolder, Size, as_module, duplicate
from leanconv.errors import LeanconvError
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelCrop, ChannelGather, ChannelShuffle
from leanconv.ops.octave import OctConv
from leanconv.rewrites.octave import OctNorm

__all__ = ["Folded", "Kept", "fold"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # in eval mode
_WIRES = (ChannelShuffle, ChannelGather, ChannelCrop)  # these only choose and reorder channels


class Kept(NamedTuple):
    """A BatchNorm that stays, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Folded:
    """`model` is a copy in eval mode, `folded` names the BatchNorms that are gone, `kept` the others, with reasons.

    `max_abs_difference` is the largest absolute difference between the outputs of the two models. Every function that
    takes a network takes this as it is; it has no story, because none leads to folded weights.
    """

    model: nn.Module
    folded: tuple[str, ...]
    kept: tuple[Kept, ...]
    max_abs_difference: float
    story: None = None


def fold(model: nn.Module | ModelHolder, size: Size, *, tolerance: float = 1e-4, seed: int = 0) -> Folded:
    """Fold every BatchNorm that directly follows a convolution into it; the result is for inference only.

    Works on a CPU copy in eval mode. A pair is folded where that is exact: the convolution is an ordinary one, called
    once, whose output goes nowhere else (channel shuffles between the two are followed through). Parts of a model
    that torch.fx cannot trace are searched inside. The outputs for random inputs of `size` (without the batch axis; a
    list for several inputs) are compared with the model's; if one differs by more than `Difference.beyond` allows,
    nothing is folded and every BatchNorm is kept for that reason.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    >>> fold(net, (3, 8, 8)).folded
    ('1',)
    """
    original = eval_copy(as_module(model))
    folded = copy.deepcopy(original)
    names, kept = _fold_all(folded)
    difference = compare(original, folded, size, seed=seed)
    if difference.beyond(tolerance):
        reason = f"folding would change the outputs by {difference.max_abs:.1e}: the layers are also used elsewhere"
        kept = [*(Kept(name, reason) for name in names), *kept]
        return Folded(model=original, folded=(), kept=tuple(kept), max_abs_difference=0.0)
    return Folded(model=folded, folded=tuple(names), kept=tuple(kept), max_abs_difference=difference.max_abs)


def eval_copy(model: nn.Module) -> nn.Module:
    """A deep copy of `model` on the CPU in eval mode; the caller's own keeps its mode and device.

    Raises `LeanconvError` where it cannot be copied or has no values.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise LeanconvError(
                f"{name} is on the meta device: a network without values has no outputs to compare; give it weights "
                "first (model.to_empty(device='cpu'), then load_state_dict)"
            )
    return duplicate(model).cpu().eval()


class _Tracer(fx.Tracer):
    """Stops at convolutions and norms, also at other people's subclasses of them, and at our own leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("leanconv.ops.") and not m._modules
        leaves = (_ConvNd, _BatchNorm, OctConv, OctNorm)
        return ours or isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)


class _Traced(NamedTuple):
    prefix: str
    module: nn.Module
    graph: fx.Graph


def _fold_all(model: nn.Module) -> tuple[list[str], list[Kept]]:
    kept: list[Kept] = []
    traced = list(_graphs(model, "", kept, ""))
    uses = _Uses(model, traced)
    names: list[str] = []
    for part in traced:
        for node in part.graph.nodes:
            norm = part.module.get_submodule(node.target) if node.op == "call_module" else None
            if not isinstance(norm, (_BatchNorm, OctNorm)):
                continue
            name = part.prefix + node.target
            found = [f"{name}.high", f"{name}.low"] if isinstance(norm, OctNorm) else [name]
            try:
                _fold_node(node, part, uses)
            except _Impossible as reason:
                kept += [Kept(one, str(reason)) for one in found]
            else:
                model.set_submodule(name, _remainder(norm.high if isinstance(norm, OctNorm) else norm))
                names += found
    return names, list(dict.fromkeys(kept))


def _graphs(module: nn.Module, prefix: str, kept: list[Kept], blame: str) -> Iterator[_Traced]:
    """The largest traceable parts of `module` that hold a BatchNorm; BatchNorms outside of them go to `kept`."""
    if isinstance(module, OctNorm):
        kept += [Kept(f"{prefix}{part}", blame) for part in ("high", "low")]
    elif isinstance(module, _BatchNorm):
        kept.append(Kept(prefix.removesuffix("."), blame))
    elif any(isinstance(child, _BatchNorm) for child in module.modules()):
        try:
            yield _Traced(prefix, module, _Tracer().trace(module))
        except Exception as error:  # whatever other people's forward raises when it is fed proxies
            where = prefix.removesuffix(".") or type(module).__name__
            blame = f"{where} cannot be traced by torch.fx: {one_line(error)}"
            for key, child in module.named_children():
                yield from _graphs(child, f"{prefix}{key}.", kept, blame)


class _Impossible(Exception):
    """Why a BatchNorm cannot be folded."""


class _Uses:
    """How often each module is called and registered, and each parameter owned or read, in the whole model."""

    def __init__(self, model: nn.Module, traced: list[_Traced]) -> None:
        modules = [module for _, module in model.named_modules(remove_duplicate=False)]
        self.registered = Counter(map(id, modules))
        self.owners = Counter(
            id(parameter)
            for module in dict.fromkeys(modules)
            for parameter in module._parameters.values()
            if parameter is not None
        )
        self.calls: Counter[int] = Counter()
        self.read: set[int] = set()  # parameters that some forward reads by itself
        for part in traced:
            for node in part.graph.nodes:
                if node.op == "call_module":
                    self.calls[id(part.module.get_submodule(node.target))] += 1
                elif node.op == "get_attr":
                    owner, _, attribute = node.target.rpartition(".")
                    self.read.add(id(getattr(part.module.get_submodule(owner), attribute)))

    def check(self, module: nn.Module, kind: str) -> None:
        """Raise `_Impossible` where a change of `module` would be felt anywhere but at its one call."""
        parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
        if self.calls[id(module)] > 1 or self.registered[id(module)] > 1:
            raise _Impossible(f"its {kind} is used more than once")
        if any(self.owners[id(p)] > 1 or id(p) in self.read for p in parameters):
            raise _Impossible(f"the weights of its {kind} are used elsewhere")
        if parametrize.is_parametrized(module):
            raise _Impossible(f"its {kind} computes its weights by a parametrization")
        if module._forward_hooks or module._forward_pre_hooks:
            raise _Impossible(f"its {kind} carries forward hooks")


def _fold_node(node: fx.Node, part: _Traced, uses: _Uses) -> None:
    """Fold the norm at `node` into what feeds it, or raise `_Impossible`."""
    norm = part.module.get_submodule(str(node.target))
    norms = [norm.high, norm.low] if isinstance(norm, OctNorm) else [norm]
    for one in norms:
        if type(one).forward not in _NORM_FORWARDS and not _is_timm_norm(one):
            raise _Impossible(f"{type(one).__name__} may do more than normalize")
        if not isinstance(one, _BatchNorm) or one.running_mean is None or one.running_var is None:
            raise _Impossible("it keeps no running statistics")
        uses.check(one, "BatchNorm")
    uses.check(norm, "BatchNorm")
    conv, wires = _partner(node, part, uses)
    paths: list[tuple[nn.Module | None, ...]] = [(conv,)]
    if isinstance(norm, OctNorm):
        if not isinstance(conv, OctConv) or wires:
            raise _Impossible("it norms a map at two resolutions that no single layer makes")
        paths = [(conv.conv_hh, conv.conv_lh), (conv.conv_hl, conv.conv_ll)]
    elif isinstance(conv, OctConv):
        if conv.low_out:
            raise _Impossible("it norms a map at two resolutions as one")
        paths = [(conv.conv_hh, conv.conv_lh)]
    leaves = [[_last_conv(path, uses) for path in into if path is not None] for into in paths]
    for one, into in zip(norms, leaves, strict=True):
        for position, (leaf, inner) in enumerate(into):
            _fold_pair(leaf, cast(_BatchNorm, one), [*inner, *wires], shifts=position == 0)


def _last_conv(path: nn.Module, uses: _Uses) -> tuple[_ConvNd, list[nn.Module]]:
    """The convolution that makes the output of a path, which may be a chain, and what reorders its channels behind."""
    stages = list(path) if isinstance(path, ConvChain) else [path]
    last = max(position for position, stage in enumerate(stages) if isinstance(stage, _ConvNd))
    conv = cast(_ConvNd, stages[last])
    if not all(isinstance(stage, _WIRES) for stage in stages[last + 1 :]):
        raise _Impossible("its convolution is a chain that ends in something else")
    uses.check(conv, "convolution")
    return conv, stages[last + 1 :]


def _partner(node: fx.Node, part: _Traced, uses: _Uses) -> tuple[_ConvNd | OctConv, list[nn.Module]]:
    """The convolution that feeds the BatchNorm at `node`, and the channel permutations between them, first to last."""
    wires: list[nn.Module] = []
    source = node.args[0] if node.args else next(iter(node.kwargs.values()))
    while isinstance(source, fx.Node) and source.op == "call_module":
        module = part.module.get_submodule(str(source.target))
        where = part.prefix + str(source.target)
        if isinstance(module, (_ConvNd, OctConv)):
            if isinstance(module, _ConvNd) and not _is_plain(module):
                raise _Impossible(f"{where} ({type(module).__name__}) computes its own way, not as an nn.ConvNd")
            if len(source.users) > 1:
                raise _Impossible(f"the output of {where} is also used elsewhere")
            uses.check(module, "convolution")
            return module, wires[::-1]
        if type(module) not in _TRANSPARENT and not isinstance(module, _WIRES):
            raise _Impossible(f"it follows {where} ({type(module).__name__}), not a convolution")
        if len(source.users) > 1:
            raise _Impossible(f"the output of {where} is also used elsewhere")
        if isinstance(module, _WIRES):
            wires.append(module)
        source = source.args[0]
    what = getattr(source.target, "__name__", source.target) if isinstance(source, fx.Node) else source
    raise _Impossible(f"it follows {what!s}, not a convolution")


def _fold_pair(conv: _ConvNd, norm: _BatchNorm, wires: list[nn.Module], *, shifts: bool = True) -> None:
    """Put the scale of `norm` and, if it `shifts`, its shift into the weights of `conv`, in double precision."""
    weight, bias = conv.weight, conv.bias
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)  # `_fold_node` saw to it
    order = _order(wires, len(weight), ndim=weight.ndim - 2)
    with torch.no_grad():
        norm_scale = torch.rsqrt(var.double() + norm.eps)
        if isinstance(norm.weight, Tensor):
            norm_scale = norm_scale * norm.weight.double()
        norm_shift = -mean.double() * norm_scale
        if isinstance(norm.bias, Tensor):  # torch can leave it out
            norm_shift = norm_shift + norm.bias.double()
        # Channel j of the norm is channel order[j] of the convolution; channels that are cropped away keep scale 1.
        scale, shift = torch.ones(len(weight), dtype=torch.float64), torch.zeros(len(weight), dtype=torch.float64)
        scale[order] = norm_scale
        if shifts:
            shift[order] = norm_shift
        if bias is not None:
            shift = shift + scale * bias.double()
        folded = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
        conv.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=weight.requires_grad)
        if shifts or bias is not None:
            conv.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)


def _order(wires: list[nn.Module], channels: int, *, ndim: int) -> Tensor:
    """Which channel of the convolution each channel of the norm is: channel numbers are sent through `wires`."""
    x = torch.arange(channels, dtype=torch.float64).view(1, channels, *[1] * ndim)
    with torch.no_grad():
        for wire in wires:
            x = wire(x)
    order = x.flatten().long()
    if len(set(order.tolist())) < len(order):
        raise _Impossible("a channel of its convolution reaches it more than once")
    return order


def _is_plain(conv: _ConvNd) -> bool:
    """Whether a subclass of `nn.ConvNd` computes as its parent does; timm's "same" padding is linear in W and b too."""
    from timm.layers.conv2d_same import Conv2dSame

    kind = type(conv)
    inherited = any(kind.forward is c.forward and kind._conv_forward is c._conv_forward for c in _CONVS)
    return inherited or kind is Conv2dSame


def _is_timm_norm(norm: nn.Module) -> bool:
    from timm.layers.norm_act import BatchNormAct2d

    return type(norm) is BatchNormAct2d


def _remainder(norm: nn.Module) -> nn.Module:
    """What is left of a folded norm: nothing, or for timm's BatchNorm with an activation, that activation."""
    if _is_timm_norm(norm):
        rest = [part for part in (norm.drop, norm.act) if isinstance(part, nn.Module) and type(part) is not nn.Identity]
        return rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else nn.Identity()
    return nn.Identity()
