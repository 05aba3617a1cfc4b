"""Octave convolution in any network: selected convolutions emit (high, low) pairs, and pairs flow on by the rules here.

`Octave` is the step, `apply_octave` carries it out: decide the share of low channels of every convolution
(`octave_plan`), then one pass of `layout` with the rules of `octave_rules`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, get_args

from torch import nn

from leanconv.errors import LeanconvError, NothingToRewrite, RewriteError
from leanconv.ops.chain import ConvChain
from leanconv.ops.octave import Exchange, OctConv, StrideMode, merge
from leanconv.rewrites.capture import capture
from leanconv.rewrites.chains import Applied
from leanconv.rewrites.changes import Skipped
from leanconv.rewrites.guards import tied_parameters
from leanconv.rewrites.layout import Layout, Rules
from leanconv.rewrites.octave_chains import close_chains, open_chains
from leanconv.rewrites.octave_convs import ConvRule
from leanconv.rewrites.octave_plan import Decision, decide
from leanconv.rewrites.octave_rules import rule_tables
from leanconv.rewrites.order import Order

__all__ = ["Octave", "apply_octave"]


@dataclass(frozen=True, kw_only=True)
class Octave:
    """Keep feature maps at two resolutions (Chen et al., ICCV 2019). Needs `size`.

    Every selected convolution emits `floor(alpha * channels)` of its output channels at half the resolution; whatever
    reads a pair is an octave convolution, too. The dense kernel is cut into the four, so no parameter is added or
    lost, and the network is the one it was up to the resolution of its low channels.

    Args:
        alpha: share of low channels, at least 0 and below 1.
        where: which convolutions may emit pairs, in the language of `leanconv.rewrites.select`; "" means all.
        alphas: other shares for some layers, pairs of a name pattern and an alpha, the last fitting one counts.
        first: whether the first convolution may emit a pair; in the paper's networks it does not.
        last: whether the last stage may, that is the convolutions whose output map is the smallest of the network and
            those that feed only these; in the paper's networks it does not.
        stride_mode, downsample, exchange: see `leanconv.ops.octave.OctConv`.

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

    def __post_init__(self) -> None:
        given = self.alphas.items() if isinstance(self.alphas, Mapping) else self.alphas
        object.__setattr__(self, "alphas", tuple((str(pattern), float(alpha)) for pattern, alpha in given))
        for name, alpha in (("alpha", self.alpha), *self.alphas):
            if not 0 <= alpha < 1:
                raise LeanconvError(
                    f"octave: {name} must be at least 0 and below 1, got {alpha}: 1 leaves a layer without channels at "
                    "high resolution, which is a network for an input of half the size"
                )
        for name, legal in (("stride_mode", StrideMode), ("downsample", StrideMode), ("exchange", Exchange)):
            value, known = getattr(self, name), get_args(legal)
            if value not in known:
                raise LeanconvError(f"octave: {name} must be one of {', '.join(known)}, got {value!r}")

    def alpha_of(self, *names: str) -> float:
        """The share of low channels of the layer that has these qualified names."""
        fits = [alpha for pattern, alpha in self.alphas if any(fnmatchcase(name, pattern) for name in names)]
        return fits[-1] if fits else self.alpha


def apply_octave(
    model: nn.Module,
    step: Octave,
    *,
    size: tuple[int, ...] | None,
    order: Order | None,
    keep: Collection[str] = (),
    project: bool = True,
) -> Applied:
    """Carry out `step` on `model`, which is used up: the result is an fx GraphModule with modules of the old one.

    Raises:
        RewriteError: without `size`, for an untraceable model, for groups that the low channels cannot fill.
        NothingToRewrite: if no convolution would emit a pair.
    """
    if size is None or order is None:
        raise RewriteError(
            "octave: pass size, such as size=(3, 224, 224): which layers are at which resolution only "
            "a forward pass can tell"
        )
    already = [name for name, module in model.named_modules() if isinstance(module, OctConv)]
    if already:
        skipped = tuple(Skipped(name, "already an octave convolution") for name in already)
        return Applied(model, (), skipped, (), ())
    _refuse_one_axis(model)
    chains = open_chains(model)
    captured = capture(model, size, leaves=(ConvChain, OctConv))
    decision = decide(captured, step, order, tied_parameters(model), keep)
    modules, functions, methods = rule_tables()
    conv = ConvRule(step, decision)
    modules |= {nn.Conv2d: conv, nn.Conv3d: conv}
    rules = Rules(modules, functions, methods, starters=(nn.Conv2d, nn.Conv3d), merge=merge)
    layout = Layout(captured, rules)
    new = layout.run()
    if not conv.changes:
        raise _nothing(step, decision, decision.skipped)
    changes = close_chains(new, chains, conv.changes, project=project)
    return Applied(new, tuple(changes), decision.skipped, decision.kept, tuple(layout.flows))


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


def _nothing(step: Octave, decision: Decision, skipped: tuple[Skipped, ...]) -> NothingToRewrite:
    told = "; ".join(map(str, skipped[:3])) + ("; ..." if len(skipped) > 3 else "")
    return NothingToRewrite(
        f"octave: no convolution would emit a pair with alpha={step.alpha}, where={step.where!r}: {decision.why_none}"
        + (f"; selected but left alone: {told}" if told else "")
    )
