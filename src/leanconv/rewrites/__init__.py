"""Changing somebody's model: `rewrite(model, *steps)` puts cheaper operators where convolutions were.

A rewrite never mutates its input, is never silent (a step that would change nothing is an error that lists the nearest
misses; what is not understood stays as it was and is reported with the reason) and is idempotent: operators that are
already ours are left alone. `where` selects the layers, see `leanconv.rewrites.select`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from leanconv.data.contract import for_size
from leanconv.dryrun import (
    ModelHolder,
    Size,
    Sizes,
    as_module,
    body_name,
    check_sizes,
    default_size,
    detector_in,
    duplicate,
    is_detector,
    refuse_one_stage,
)
from leanconv.errors import NothingToRewrite, RewriteError
from leanconv.ops.operator import ConvRewrite
from leanconv.rewrites.changes import Applied, Change, Context, Flow, Rewritten, Skipped, Step
from leanconv.rewrites.detectors import body_size, named_in_detector, outside, within_body
from leanconv.rewrites.guards import refuse_model
from leanconv.rewrites.inflate import Inflate
from leanconv.rewrites.octave import Octave
from leanconv.rewrites.operators import Everywhere
from leanconv.rewrites.order import check_still_runs, order_of
from leanconv.rewrites.steps import STEPS, from_json, parse_step, to_json
from leanconv.rewrites.swap import Swapped, swap
from leanconv.story import STORY_KEY, Story, begun, remember, story_of

__all__ = [
    "rewrite",
    "replay",
    "Rewritten",
    "Change",
    "Flow",
    "Skipped",
    "Step",
    "Octave",
    "Inflate",
    "swap",
    "Swapped",
    "to_json",
    "from_json",
    "parse_step",
]


def rewrite(
    model: nn.Module | ModelHolder,
    *steps: ConvRewrite | Step,
    size: Size | None = None,
    optimizer: object | None = None,
    source: str | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> Rewritten:
    """A copy of `model` in which the convolutions that each step selects are replaced, one step after the other.

    Of a detector of torchvision (Faster, Mask and Keypoint R-CNN) the body is rewritten and all else stays, see
    `leanconv.rewrites.detectors`; `size` is the image that it is given.

    Args:
        model: any tree of modules, 1D, 2D or 3D, in any mode, dtype and on any device, all of which the new layers
            take over, as they do requires_grad and the qualified names; or what an earlier `rewrite` returned.
        steps: the rewrites, for example `leanconv.OptimizedSeparable(overlap=1.0)`.
        size: shape of one input without the batch axis, such as (3, 224, 224), or a list of shapes for a network of
            several inputs, see `measure`. With it the network is run on
            fake tensors before and after: `where` may speak of `stage`, order means order of execution, and a
            network that would no longer run is refused. Without it nothing is run, except where a step needs it and
            the model itself says its size, as timm's networks do.
        optimizer: only to be refused; an optimizer made for `model` holds the parameters of `model`, not of the copy.
        source: how `model` is built, so that `save` and `load` can build it again: "package.module:function" (or a
            class), or a name that `create_model` takes. Not needed for what `create_model` made.
        source_options: the keywords of `source`.

    Raises:
        NothingToRewrite: if a step would change no layer; the message lists the nearest misses. A model whose
            matching layers are already our operators is not an error, its `changes` are empty.
        RewriteError: if the model is wrapped (DDP, FSDP, torch.compile, ...), not initialised or not runnable, or if
            a step can plan none of its layers.

    >>> from leanconv.ops.separable import DepthSeparable
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> new = rewrite(net, DepthSeparable(init="fresh"))
    >>> print(new.changes[0])
    2: 3x3 8->8 -> depth_separable: 3x3 8->8 g8; 1x1 8->8 (584 -> 144 parameters, weights fresh)
    """
    _refuse_call(steps, optimizer)
    model = as_module(model, error=RewriteError)
    refuse_model(model)
    refuse_one_stage(model, "rewrite", error=RewriteError)
    if detector_in(model) is not None and not is_detector(model):
        raise RewriteError(
            "rewrite: this detector is elastic already: rewrite the one that it was, then make it elastic"
        )
    if is_detector(model):
        return _rewrite_body(model, steps, size, begun(model, source, source_options))
    whole = [_whole(step) for step in steps]
    if size is None and any(step.needs_run for step in whole):
        size = default_size(model)
    size = None if size is None else check_sizes(size, axes=(1, 3))
    story = begun(model, source, source_options)
    new = duplicate(model, error=RewriteError)
    order = None if size is None else order_of(new, size)
    changes: list[Change] = []
    skipped: list[Skipped] = []
    flows: list[Flow] = []
    for step in whole:
        applied = step.apply(new, Context(size=size, order=order))
        new = applied.model
        skipped += applied.skipped
        flows += applied.flows
        if not applied.changes:
            continue
        story = story.then(step.options.stem, _settings(step, size, applied))
        if size is None or order is None:
            changes += applied.changes
            continue
        size = applied.size or size
        changed = [change.name for change in applied.changes]
        order = check_still_runs(new, size, order, changed, selects=step.selects, same_shapes=not applied.proven)
        changes += [replace(change, ran=order.ran(change.name)) for change in applied.changes]
        story = for_size(story, size) if applied.size else story
    remember(new, story)
    return Rewritten(new, tuple(changes), tuple(skipped), story, tuple(flows), size)


def _rewrite_body(
    detector: nn.Module, steps: tuple[ConvRewrite | Step, ...], size: Size | None, story: Story
) -> Rewritten:
    """As `rewrite`, of the body of a detector."""
    taken = [within_body(detector, step) for step in steps]
    if size is None and any(_whole(step).needs_run for step in taken):
        size = default_size(detector)
    size = None if size is None else check_sizes(size)
    new, name = duplicate(detector, error=RewriteError), body_name(detector)
    body = new.get_submodule(name)
    known = story_of(body)
    try:
        done = rewrite(body, *taken, size=body_size(detector, size))
    except NothingToRewrite as error:
        raise outside(detector, steps, error) from error
    for stem, settings in (done.story or Story()).steps[len(known.steps) if known else 0 :]:
        story = story.then(stem, settings)
    vars(done.model).pop(STORY_KEY, None)  # the detector has it
    new.set_submodule(name, done.model)
    remember(new, story)
    return named_in_detector(detector, new, replace(done, story=story), size)


def replay(model: nn.Module, steps: Iterable[tuple[str, Mapping[str, Any]]]) -> nn.Module:
    """The structure that the `steps` of a story made of `model`, with fresh weights in the new layers.

    For loading: no weight is fitted, because all of them are read from a file afterwards. Everything else is decided
    exactly as it was when the story was written, from the settings in it. `model` stays as it was; where it has a
    story, the new model's story has these steps at its end.

    Raises `UnknownName` for a step that is no rewrite, and whatever `rewrite` raises.
    """
    refuse_model(model)
    story = story_of(model)
    new = duplicate(model, error=RewriteError)
    steps = list(steps)
    if is_detector(model):
        name = body_name(model)
        new.set_submodule(name, replay(new.get_submodule(name), steps))
        if story is not None:
            remember(new, replace(story, steps=(*story.steps, *((stem, dict(given)) for stem, given in steps))))
        return new
    for stem, settings in steps:
        options = dict(settings)
        size = options.pop("size", None)
        keep = options.pop("keep", ())
        step = from_json({**options, "stem": stem})
        size = None if size is None else check_sizes(size, axes=(1, 3))
        order = None if size is None else order_of(new, size)
        new = _whole(step).apply(new, Context(size=size, order=order, keep=keep, project=False)).model
        if story is not None:
            story = story.then(stem, settings)
    if story is not None:
        remember(new, story)
    return new


def _whole(step: ConvRewrite | Step) -> Step:
    """An operator is applied to every convolution that it selects; a step says itself what it does."""
    return Everywhere(operator=step) if isinstance(step, ConvRewrite) else step


def _settings(step: Step, size: Sizes | None, applied: Applied) -> dict[str, Any]:
    """What the story must hold besides the options: the size that gave the order, the layers that were left alone."""
    settings = to_json(applied.options or step.options)
    del settings["stem"]
    if size is not None and step.needs_order:
        settings["size"] = list(size)
    if applied.kept:
        settings["keep"] = list(applied.kept)
    return settings


def _refuse_call(steps: tuple[object, ...], optimizer: object | None) -> None:
    if optimizer is not None:
        raise RewriteError(
            f"a rewrite returns a copy of the model, and this {type(optimizer).__name__} holds the parameters of the "
            "old one, so it would never train the new layers: build the optimizer after rewriting, "
            "new = rewrite(model, ...); optimizer = SGD(new.model.parameters(), ...)"
        )
    if not steps:
        raise RewriteError(f"no rewrite was asked for: pass one or more of {', '.join(STEPS)}")
    for step in steps:
        if not isinstance(step, ConvRewrite | Step):
            raise _no_step(step)


def _no_step(step: object) -> RewriteError:
    if isinstance(step, type) and issubclass(step, ConvRewrite | Step):
        return RewriteError(f"{step.__name__} is a class, a step is one of its instances: pass {step.__name__}()")
    hint = f"parse_step({step!r}) makes one of a text" if isinstance(step, str) else "see leanconv.rewrites.steps.STEPS"
    return RewriteError(f"{type(step).__name__} is no rewrite step: {hint}")
