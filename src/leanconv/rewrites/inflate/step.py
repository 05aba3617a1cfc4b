"""Inflation: a 2D network becomes one for clips (Carreira and Zisserman, CVPR 2017), its kernels repeated in time.

    centre   W3d[:, :, t // 2] = W2d, zero elsewhere: every frame is seen alone, as the 2D network sees it
    mean     W3d[:, :, i] = W2d / t: the 2D response to a clip that stands still, away from its first and last frames

Only layers change, each at its own name, so the 2D weights can be fine-tuned on video at once. Time is never strided
by a convolution; where it shrinks is said by `pool_after`, a max pool over two frames (Wang et al., CVPR 2018).

Whether the forward of a network means the same on a clip nobody can tell from its layers: the new network is compared
with the old one on a clip that stands still (`proof`). If it does not run, or gives something else, because its forward
speaks of the two axes of an image, that forward is run on frames (`frames`); if that fails, too, it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from torch import nn

from leanconv.dryrun import default_size, duplicate, each_shape
from leanconv.errors import LeanconvError, NothingToRewrite, RewriteError
from leanconv.ops.octave import OctConv2d, OctConv3d
from leanconv.rewrites.changes import Applied, Change, Context, Skipped, Step
from leanconv.rewrites.guards import not_plain, not_replaceable, tied_parameters
from leanconv.rewrites.inflate.frames import Clip, FrameConv3d, FramePool, run_on_frames
from leanconv.rewrites.inflate.layers import Conv2d, converted, inflated_conv, inflated_octave
from leanconv.rewrites.inflate.proof import difference_on_a_still_clip
from leanconv.rewrites.swap import swap_

__all__ = ["Inflate"]


@dataclass(frozen=True, kw_only=True)
class Inflate(Step):
    """Every 2D layer of a network in 3D; the new network takes clips (3, frames, H, W).

    Args:
        frames: length of the clips, in frames, for the rewrites that follow and for the story.
        temporal: lengths in time of some kernels, pairs of a name pattern and an odd length, the last fitting one
            counts; all others have length 1.
        mode: "centre" or "mean", see the head of this file.
        pool_after: names of `nn.Sequential`s after which time is halved by a max pool.
        by_frame: whether the forward runs on frames, as `leanconv.rewrites.inflate.frames` says. None: only where it
            must, because on clips it does not give what it gives on images; the story keeps what was found.

    >>> Inflate(temporal=(("conv1", 5), ("layer1.*.conv1", 3))).length_of("layer1.0.conv1")
    3
    """

    stem: ClassVar[str] = "inflate"

    frames: int = 8
    temporal: tuple[tuple[str, int], ...] = ()
    mode: Literal["centre", "mean"] = "centre"
    pool_after: tuple[str, ...] = ()
    by_frame: bool | None = None

    def __post_init__(self) -> None:
        given = self.temporal.items() if isinstance(self.temporal, Mapping) else self.temporal
        object.__setattr__(self, "temporal", tuple((str(pattern), int(length)) for pattern, length in given))
        object.__setattr__(self, "pool_after", tuple(self.pool_after))
        if self.frames < 1:
            raise LeanconvError(f"inflate: frames must be at least 1, got {self.frames}")
        if self.mode not in ("centre", "mean"):
            raise LeanconvError(f"inflate: mode must be one of centre, mean, got {self.mode!r}")
        for pattern, length in self.temporal:
            if length < 1 or length % 2 == 0:
                raise LeanconvError(
                    f"inflate: the kernel of {pattern} would have length {length} in time: it must be odd, so that the "
                    "clip keeps its length"
                )

    def length_of(self, name: str) -> int:
        """The length in time of the kernel of the layer called `name`."""
        fits = [length for pattern, length in self.temporal if fnmatchcase(name, pattern)]
        return fits[-1] if fits else 1

    def apply(self, model: nn.Module, context: Context) -> Applied:
        """Carry out the step on `model`, or on a copy of it.

        Raises `NothingToRewrite` without any 2D convolution, `RewriteError` for what has no 3D form, and where the new
        network would not give on a clip that stands still what `model` gives on the image.
        """
        if not any(isinstance(module, nn.Conv2d | OctConv2d) for module in model.modules()):
            self._refuse_clips(model)
            raise NothingToRewrite("inflate: the model has no 2D convolution")
        if not context.project:  # it was proven when its story was written
            return self._made(model, context, by_frame=bool(self.by_frame))
        size = context.size or default_size(model)
        why: list[str] = []
        for by_frame in (False, True) if self.by_frame is None else (self.by_frame,):
            try:
                done = self._made(duplicate(model, error=RewriteError), context, by_frame=by_frame)
            except _NoForm as error:
                why.append(str(error))
                continue
            problem = difference_on_a_still_clip(model, done.model, size, len(self.pool_after))
            if problem is None:
                return done
            why.append(problem)
        reasons = f"as a network of clips, {why[0]}" if not self.by_frame else f"frame by frame, {why[0]}"
        reasons += f"; frame by frame, {why[1]}" if len(why) > 1 and why[1] != why[0] else ""
        raise RewriteError(f"inflate: {type(model).__name__} has no 3D form: {reasons}")

    def _made(self, model: nn.Module, context: Context, *, by_frame: bool) -> Applied:
        """`model` inflated, in place; its forward run on clips, or on frames."""
        self._refuse_clips(model)
        tied = tied_parameters(model)
        changes: list[Change] = []
        skipped: list[Skipped] = []
        fitting = {pattern: False for pattern, _ in self.temporal}
        clip = Clip()

        def rule(name: str, module: nn.Module) -> nn.Module | None:
            if not isinstance(module, nn.Conv2d | OctConv2d):
                return None if by_frame else converted(module)
            for pattern in fitting:
                fitting[pattern] |= fnmatchcase(name, pattern)
            length = self.length_of(name)
            reason = _no_form(module, tied, by_frame)
            if reason is not None:
                if not by_frame or length > 1:
                    raise _NoForm(f"{name} has none: {reason}")
                skipped.append(Skipped(name, f"it sees every frame by itself, in 2D: {reason}"))
                return None
            if isinstance(module, OctConv2d):
                made = inflated_octave(module, length, self.mode)
            elif by_frame:
                made = inflated_conv(module, length, self.mode, FrameConv3d)
                made.clip = clip  # type: ignore[assignment]
            else:
                made = inflated_conv(module, length, self.mode)
            changes.append(_change(name, module, made, by_frame))
            return made

        model = swap_(model, rule).model
        unused = [pattern for pattern, used in fitting.items() if not used]
        if unused:
            raise RewriteError(f"inflate: no convolution is called {unused[0]!r} (a pattern of temporal)")
        for name in self.pool_after:
            try:
                stage = model.get_submodule(name)
            except AttributeError:
                raise RewriteError(f"inflate: pool_after: there is no module called {name!r}") from None
            if not isinstance(stage, nn.Sequential):
                raise RewriteError(
                    f"inflate: pool_after: {name} is a {type(stage).__name__}, and only an nn.Sequential can be given "
                    "one more layer at its end (inflate before Octave)"
                )
            stage.add_module("pool_time", FramePool(clip) if by_frame else nn.MaxPool3d((2, 1, 1), (2, 1, 1)))
        if by_frame:
            if not changes:
                raise NothingToRewrite(f"inflate: no 2D convolution can be replaced: {skipped[0]}")
            run_on_frames(model, clip)
        return Applied(
            model=model,
            changes=tuple(changes),
            skipped=tuple(skipped),
            size=context.size and each_shape(context.size, lambda shape: (shape[0], self.frames, *shape[1:])),
            options=replace(self, by_frame=by_frame),
            proven=True,
        )

    def _refuse_clips(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            if isinstance(module, OctConv3d | nn.Conv3d):
                raise RewriteError(f"inflate: {name} is 3D already: inflate the 2D network once")


class _NoForm(RewriteError):
    """A layer that a network of clips cannot have; frame by frame it may stay as it is."""


def _no_form(conv: Conv2d, tied: dict[int, tuple[str, ...]], by_frame: bool) -> str | None:
    """Why a 2D convolution is not inflated, or None."""
    if isinstance(conv, OctConv2d):
        return "its maps at two resolutions are no batch of frames" if by_frame else None
    return not_plain(conv) or not_replaceable(conv, tied, hooks=False)


def _change(name: str, before: Conv2d, after: nn.Module, by_frame: bool) -> Change:
    def describe(conv: Any) -> str:
        return f"{'x'.join(map(str, conv.kernel_size))} {conv.in_channels}->{conv.out_channels}"

    return Change(
        name=name,
        before=describe(before),
        after=f"inflate: {describe(after)}{' on frames' * by_frame}",
        weights="inflated",
        error=None,
        params_before=sum(p.numel() for p in before.parameters()),
        params_after=sum(p.numel() for p in after.parameters()),
    )
