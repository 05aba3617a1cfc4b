"""A step of a rewrite: what it is given, what it changes, and how that is reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Literal

from torch import nn

from leanconv.dryrun import Sizes
from leanconv.ops.operator import ConvRewrite
from leanconv.rewrites.order import Order
from leanconv.story import Story

__all__ = ["Applied", "Change", "Context", "Flow", "Kept", "Rewritten", "Skipped", "Step"]

Kept = Literal["exact", "projected", "cut", "inflated", "fresh"]


@dataclass(frozen=True)
class Change:
    """One replaced layer.

    `before` and `after` describe the layer in words, `weights` says what was kept: "exact", the new layer computes the
    same function; "projected", the nearest one it can express, with the relative `error` ||W - W'|| / ||W|| of the
    kernel; "cut", the same weights, part of them at half the resolution; "inflated",
    repeated in time; "fresh", newly drawn (`error` is None). `params_*` count all parameters, bias included. `ran` says
    whether a run in evaluation called the new layer; None where there was no run, because no size was given.
    """

    name: str
    before: str
    after: str
    weights: Kept
    error: float | None
    params_before: int
    params_after: int
    ran: bool | None = None

    def __str__(self) -> str:
        fate = f"projected, error {self.error:.3f}" if self.weights == "projected" else self.weights
        return (
            f"{self.name}: {self.before} -> {self.after} ({self.params_before:,} -> {self.params_after:,} "
            f"parameters, weights {fate}{', which does not run in evaluation' * (self.ran is False)})"
        )


@dataclass(frozen=True)
class Flow:
    """What happened to pairs at one place: they start, flow through, or merge there, and why.

    `name` is the qualified name of the module, or the module around an operation and the operation.
    """

    name: str
    kind: Literal["start", "flow", "merge"]
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class Skipped:
    """One layer that `where` selected and that stays as it was, with the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step may rely on besides its options.

    `size` is the shape of one input without the batch axis and `order` what a dry run of the model on it showed, both
    None where there is no size. `keep` names layers that stay as they are whatever the step selects (a
    replayed story has them), and without `project` new weights are drawn, because they are loaded afterwards.
    """

    size: Sizes | None = None
    order: Order | None = None
    keep: Collection[str] = ()
    project: bool = True


@dataclass(frozen=True, kw_only=True)
class Applied:
    """The outcome of one step.

    `kept` names layers that were left alone for a reason that a replay on a bare model could not see (a hook, a tied
    weight). `size` is the input that the new model takes, where the step changes it. `options` are the step's with what
    it has found out, for the story. `proven` says that it has compared the outputs itself, which need not be of the old
    shapes.
    """

    model: nn.Module
    changes: tuple[Change, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    kept: tuple[str, ...] = ()
    flows: tuple[Flow, ...] = ()
    size: Sizes | None = None
    options: Step | None = None
    proven: bool = False


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """One rewrite of a whole model: a frozen dataclass of options, named by `stem` in stories and on the command line.

    An operator that takes the place of one convolution at a time is a `leanconv.ops.operator.ConvRewrite` instead,
    and needs no `apply` of its own.
    """

    stem: ClassVar[str]

    @property
    def options(self) -> Step | ConvRewrite:
        """What holds the options of this step: the step itself."""
        return self

    @property
    def needs_run(self) -> bool:
        """Whether the step cannot be applied without a run, that is without a size."""
        return False

    @property
    def needs_order(self) -> bool:
        """Whether the choice of layers depends on what the run shows, so that the story must keep the size."""
        return self.needs_run

    @property
    def selects(self) -> bool:
        """Whether the step has a `where`, which can leave a layer out."""
        return False

    @abstractmethod
    def apply(self, model: nn.Module, context: Context) -> Applied:
        """Carry out the step on `model`, a copy that may be changed or used up."""


@dataclass(frozen=True)
class Rewritten:
    """The new `model` and what happened: every replaced layer, every layer left alone, and the story so far.

    Every function that takes a network takes this as it is. `flows` says where pairs of maps at two resolutions start,
    flow and merge (octave only); `size` is what the new network takes, where a size was given. The `story` of a network
    from outside leanconv has no `model`, unless `source` said how to build it again.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    skipped: tuple[Skipped, ...]
    story: Story | None = None
    flows: tuple[Flow, ...] = ()
    size: Sizes | None = None

    def __str__(self) -> str:
        """Two or three lines; iterate over `changes` and `skipped` for the rest."""
        before = sum(change.params_before for change in self.changes)
        after = sum(change.params_after for change in self.changes)
        lines = [f"{len(self.changes)} layers replaced"]
        if self.changes:
            lines[0] += f": {before:,} -> {after:,} parameters in them ({after / before:.1%})"
            fates = Counter(change.weights for change in self.changes)
            text = ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()))
            errors = [
                change.error for change in self.changes if change.weights == "projected" and change.error is not None
            ]
            if errors:
                text += f" (relative error {min(errors):.3f} to {max(errors):.3f}, median {median(errors):.3f})"
            lines.append(f"weights: {text}")
            idle = [change.name for change in self.changes if change.ran is False]
            if idle:
                shown = ", ".join(idle[:3]) + (", ..." if len(idle) > 3 else "")
                lines.append(f"{len(idle)} of them do not run in evaluation, before and after: {shown}")
        if self.flows:
            kinds = Counter(flow.kind for flow in self.flows)
            merges = Counter(flow.reason for flow in self.flows if flow.kind == "merge").most_common(3)
            why = f" ({'; '.join(f'{count} x {reason}' for reason, count in merges)})" if merges else ""
            lines.append(
                f"pairs start at {kinds['start']} layers, flow through {kinds['flow']} and merge at "
                f"{kinds['merge']}{why}"
            )
        if self.skipped:
            reasons = Counter(skip.reason for skip in self.skipped)
            text = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
            more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
            lines.append(f"{len(self.skipped)} left alone: {text}{more}")
        return "\n".join(lines)
