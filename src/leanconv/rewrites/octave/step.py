"""Octave convolution in any network: the step, and how it is carried out.

Selected convolutions emit maps at two resolutions (`ops.octave_map`), which flow through the network's own forward;
what reads them is an octave convolution, too. Only layers are replaced, in place: the network keeps its class, its
methods and whatever its forward does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import CodeType
from typing import Any, ClassVar, get_args

import torch
from torch import nn
from torch.utils import _pytree as pytree

from leanconv.errors import LeanconvError, NothingToRewrite, RewriteError
from leanconv.ops.octave import Exchange, OctConv, StrideMode
from leanconv.ops.octave_map import OctaveMap, full_map, settled
from leanconv.rewrites.changes import Applied, Change, Context, Skipped, Step
from leanconv.rewrites.guards import tied_parameters
from leanconv.rewrites.octave.chains import close_chains, open_chains
from leanconv.rewrites.octave.convs import ConvOptions, cut_conv, cut_norm, describe
from leanconv.rewrites.octave.flows import Plan, follow
from leanconv.rewrites.octave.plan import Decision, Wishes, decide
from leanconv.rewrites.select import layers_of, parse
from leanconv.rewrites.swap import swap_

__all__ = ["Octave"]


@dataclass(frozen=True, kw_only=True)
class Octave(Step):
    """Keep feature maps at two resolutions (Chen et al., ICCV 2019). Needs `size`.

    Every selected convolution emits `floor(alpha * channels)` of its output channels at half the resolution; whatever
    reads such a map is an octave convolution, too. The dense kernel is cut into the four, so no parameter is added or
    lost, and the network is the one it was up to the resolution of its low channels.

    Args:
        alpha: share of low channels, at least 0 and below 1.
        where: which convolutions may emit such maps, in the language of `leanconv.rewrites.select`; "" means all.
        alphas: other shares for some layers, pairs of a name pattern and an alpha, the last fitting one counts.
        first: whether the first convolution may emit one; in the paper's networks it does not.
        last: whether the last stage may, that is the convolutions whose output map is the smallest of the network and
            those that feed only these; in the paper's networks it does not.
        stride_mode: see `leanconv.ops.octave.OctConv`.
        downsample: see there.
        exchange: see there.
        full_stride: how selected convolutions of stride 2 go that neither read nor emit two resolutions: "strided", as
            they are, or "pool", as the authors' do in all their networks (the stem apart): pool, then convolve.

    >>> Octave(alpha=0.25, alphas=(("layer1.*", 0.5),)).alpha_of("layer1.0.conv1")
    0.5
    """

    stem: ClassVar[str] = "octave"

    alpha: float = 0.5
    where: str = ""
    alphas: tuple[tuple[str, float], ...] = ()
    first: bool = False
    last: bool = False
    stride_mode: StrideMode = "pool"
    downsample: StrideMode = "pool"
    exchange: Exchange = "both"
    full_stride: StrideMode = "strided"

    def __post_init__(self) -> None:
        given = self.alphas.items() if isinstance(self.alphas, Mapping) else self.alphas
        object.__setattr__(self, "alphas", tuple((str(pattern), float(alpha)) for pattern, alpha in given))
        for name, alpha in (("alpha", self.alpha), *self.alphas):
            if not 0 <= alpha < 1:
                raise LeanconvError(
                    f"octave: {name} must be at least 0 and below 1, got {alpha}: 1 leaves a layer without channels at "
                    "high resolution, which is a network for an input of half the size"
                )
        modes = {"stride_mode": StrideMode, "downsample": StrideMode, "exchange": Exchange, "full_stride": StrideMode}
        for name, legal in modes.items():
            value, known = getattr(self, name), get_args(legal)
            if value not in known:
                raise LeanconvError(f"octave: {name} must be one of {', '.join(known)}, got {value!r}")

    @property
    def needs_run(self) -> bool:
        """Always: it decides by the sizes of maps."""
        return True

    @property
    def selects(self) -> bool:
        """It has a `where`."""
        return True

    def alpha_of(self, *names: str) -> float:
        """The share of low channels of the layer that has these qualified names."""
        fits = [alpha for pattern, alpha in self.alphas if any(fnmatchcase(name, pattern) for name in names)]
        return fits[-1] if fits else self.alpha

    def apply(self, model: nn.Module, context: Context) -> Applied:
        """Carry out the step on `model`, in place.

        Raises:
            RewriteError: without `size`, for a network that cannot be followed, for groups that the low channels cannot
                fill.
            NothingToRewrite: if no convolution would emit two resolutions.
        """
        if context.size is None or context.order is None:
            raise RewriteError(
                "octave: pass size, such as size=(3, 224, 224): which layers are at which resolution only "
                "a forward pass can tell"
            )
        already = [name for name, module in model.named_modules() if isinstance(module, OctConv)]
        if already:
            skipped = tuple(Skipped(name, "already an octave convolution") for name in already)
            return Applied(model=model, skipped=skipped)
        _refuse_one_axis(model)
        chains = open_chains(model)
        tied = tied_parameters(model)
        wishes = Wishes(parse(self.where), self.alpha_of, self.first, self.last)
        decision = decide(model, context.size, wishes, layers_of(model, context.order), tied, context.keep)
        plan = follow(model, context.size, decision, tied, pools_full=self.full_stride == "pool")
        if not plan.convs:
            raise _nothing(self, decision)
        options = ConvOptions(self.stride_mode, self.downsample, self.exchange)
        new, changes = _replace(model, plan, options)
        if plan.ends_merged:
            new.register_forward_hook(merge_outputs)
        changes = close_chains(new, chains, changes, project=context.project)
        return Applied(
            model=new, changes=tuple(changes), skipped=decision.skipped, kept=decision.kept, flows=plan.flows
        )


def _replace(model: nn.Module, plan: Plan, options: ConvOptions) -> tuple[nn.Module, list[Change]]:
    """Put the layers of `plan` into `model`, in place."""
    own = dict(model.named_modules())
    changes: list[Change] = []
    made: dict[int, nn.Module] = {}
    for name, planned in plan.convs.items():
        conv: Any = own[name]
        octave = cut_conv(conv, planned.runs_in, planned.runs_out, options, out_groups=planned.out_groups)
        changes.append(describe(name, conv, octave))
        made[id(conv)] = octave
    for name, runs in plan.norms.items():
        made[id(own[name])] = cut_norm(own[name], runs)
    return swap_(model, lambda _, module: made.get(id(module))).model, changes


def merge_outputs(_: nn.Module, __: Any, output: Any) -> Any:
    """A forward hook: what a network hands out is at full resolution."""
    if torch.compiler.is_compiling():  # as a part of a larger network
        return _merged(output)
    merge: Any = _merged
    if "torch._dynamo" in sys.modules:
        merge = torch.compiler.disable(_merged)  # type: ignore[no-untyped-call]
    with torch._C.DisableTorchFunction():  # a hook is no part of the forward that others watch
        return merge(output)


def _run_as_it_is(code: CodeType) -> None:
    """Keep torch from compiling this hook of a compiled network by itself, which loses the gradients of maps.

    What `torch._dynamo.skip_code` does, without loading the compiler.
    """
    frames: Any = torch._C._dynamo.eval_frame
    skip, default = frames._FrameAction.SKIP, frames._FrameAction.DEFAULT
    frames.set_code_exec_strategy(code, frames._FrameExecStrategy(skip, default))


_run_as_it_is(merge_outputs.__code__)


def _merged(output: Any) -> Any:
    def merged(value: Any) -> Any:
        value = settled(value)
        return full_map(value) if isinstance(value, OctaveMap) else value

    return pytree.tree_map(merged, output)


def _refuse_one_axis(model: nn.Module) -> None:
    """An octave needs height and width."""
    kinds = {type(module) for module in model.modules()}
    if any(issubclass(kind, nn.Conv1d) for kind in kinds) and not any(
        issubclass(kind, nn.Conv2d | nn.Conv3d) for kind in kinds
    ):
        raise RewriteError(
            f"octave: {type(model).__name__} has only Conv1d, and an octave halves height and width: it takes 2D and "
            "3D convolutions"
        )


def _nothing(step: Octave, decision: Decision) -> NothingToRewrite:
    shown = "; ".join(map(str, decision.skipped[:3])) + ("; ..." if len(decision.skipped) > 3 else "")
    return NothingToRewrite(
        f"octave: no convolution would emit two resolutions with alpha={step.alpha}, where={step.where!r}: "
        f"{decision.why_none}" + (f"; selected but left alone: {shown}" if shown else "")
    )
