"""Detectors in a rewrite: the body is rewritten as the network that it is, neck and heads stay as they are.

Nothing follows the whole of a detector, which chooses boxes by values; its body is a network like others, and gives
maps of the same shapes afterwards, as every rewrite sees to. `where` speaks of the layers of the body, by the names
that they have in it ("layer3.*") or in the detector ("backbone.body.layer3.*").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from leanconv.dryrun import Sizes, body_name, seen_as
from leanconv.errors import NothingToRewrite, RewriteError, shown
from leanconv.ops.operator import ConvRewrite
from leanconv.rewrites.changes import Change, Flow, Rewritten, Skipped, Step
from leanconv.rewrites.inflate import Inflate
from leanconv.rewrites.select import layers_of, parse

__all__ = ["body_size", "named_in_detector", "outside", "within_body"]


def within_body(detector: nn.Module, step: ConvRewrite | Step) -> Any:
    """The step as it is to be carried out on the body. Raises `RewriteError` for one that a body cannot take."""
    if isinstance(step, Inflate):
        raise RewriteError("inflate: a detector is given images, and this makes a network for clips: leave it out")
    where, prefix = getattr(step, "where", ""), f"{body_name(detector)}."
    if prefix not in where:
        return step
    step_with_where: Any = step
    return replace(step_with_where, where=where.replace(prefix, ""))


def body_size(detector: nn.Module, size: Sizes | None) -> Sizes | None:
    """What the body is given for an image of `size`."""
    return None if size is None else seen_as(detector, tuple(size))


def outside(detector: nn.Module, steps: Sequence[ConvRewrite | Step], error: NothingToRewrite) -> RewriteError:
    """What to say where a step found nothing in the body: that it named the neck or the heads, if it did."""
    prefix = f"{body_name(detector)}."
    for step in steps:
        where = getattr(step, "where", "")
        try:
            meant = [layer.name for layer in filter(parse(where), layers_of(detector, None))]
        except Exception:  # it speaks of what only a run can tell
            continue
        if "*" not in where.split() and any("." in term and not term.startswith("!") for term in where.split()):
            named = [name for name in meant if not name.startswith(prefix)]
            if named and len(named) == len(meant):
                return RewriteError(
                    f"{step.stem}: where={shown(where)} means {named[0]}, which is not in the body"
                    f" ({prefix.removesuffix('.')}) of this detector: its neck and heads stay as they are; name layers"
                    " of the body"
                )
    return error


def named_in_detector(detector: nn.Module, new: nn.Module, done: Rewritten, size: Sizes | None) -> Rewritten:
    """What happened to the body, told with the names that its layers have in the detector, and the detector with it."""
    prefix = f"{body_name(detector)}."

    def named(items: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(replace(item, name=prefix + item.name) for item in items)

    changes: tuple[Change, ...] = named(done.changes)
    skipped: tuple[Skipped, ...] = named(done.skipped)
    flows: tuple[Flow, ...] = named(done.flows)
    return Rewritten(new, changes, skipped, done.story, flows, size)
