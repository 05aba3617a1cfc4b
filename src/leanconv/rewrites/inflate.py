"""Inflation: a 2D network becomes one for clips (Carreira and Zisserman, CVPR 2017), its kernels repeated in time.

    centre   W3d[:, :, t // 2] = W2d, zero elsewhere: every frame is seen alone, as the 2D network sees it
    mean     W3d[:, :, i] = W2d / t: the 2D response to a clip that stands still, away from its first and last frames

Only layers change, each at its own name, so the 2D weights can be fine-tuned on video at once. Time is never strided
by a convolution; where it shrinks is said by `pool_after`, a max pool over two frames (Wang et al., CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from leanconv.dryrun import each_shape
from leanconv.errors import LeanconvError, NothingToRewrite, RewriteError
from leanconv.ops.octave import OctConv2d, OctConv3d
from leanconv.rewrites.changes import Applied, Change, Context, Step
from leanconv.rewrites.guards import not_plain, not_replaceable, tied_parameters
from leanconv.rewrites.swap import swap_

__all__ = ["Inflate"]

Conv2d = nn.Conv2d | OctConv2d


@dataclass(frozen=True, kw_only=True)
class Inflate(Step):
    """Every 2D layer of a network in 3D; the new network takes clips (3, frames, H, W).

    Args:
        frames: length of the clips, in frames, for the rewrites that follow and for the story.
        temporal: lengths in time of some kernels, pairs of a name pattern and an odd length, the last fitting one
            counts; all others have length 1.
        mode: "centre" or "mean", see the head of this file.
        pool_after: names of `nn.Sequential`s after which time is halved by a max pool.

    >>> Inflate(temporal=(("conv1", 5), ("layer1.*.conv1", 3))).length_of("layer1.0.conv1")
    3
    """

    stem: ClassVar[str] = "inflate"

    frames: int = 8
    temporal: tuple[tuple[str, int], ...] = ()
    mode: Literal["centre", "mean"] = "centre"
    pool_after: tuple[str, ...] = ()

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
        """Carry out the step on `model`, in place.

        Raises `NothingToRewrite` without any 2D convolution, `RewriteError` for a layer that has no 3D form.
        """
        tied = tied_parameters(model)
        changes: list[Change] = []
        fitting = {pattern: False for pattern, _ in self.temporal}

        def rule(name: str, module: nn.Module) -> nn.Module | None:
            if isinstance(module, nn.Conv2d | OctConv2d):
                for pattern in fitting:
                    fitting[pattern] |= fnmatchcase(name, pattern)
                made = _conv(name, module, self, tied)
                changes.append(_change(name, module, made))
                return made
            if isinstance(module, OctConv3d | nn.Conv3d):
                raise RewriteError(f"inflate: {name} is 3D already: inflate the 2D network once")
            for kind, convert in _LAYERS.items():
                if type(module) is kind:
                    return convert(module).train(module.training)
            return None

        model = swap_(model, rule).model
        if not changes:
            raise NothingToRewrite("inflate: the model has no 2D convolution")
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
            stage.add_module("pool_time", nn.MaxPool3d((2, 1, 1), (2, 1, 1)))
        size = context.size and each_shape(context.size, lambda shape: (shape[0], self.frames, *shape[1:]))
        return Applied(model=model, changes=tuple(changes), size=size)


def _conv(name: str, conv: Conv2d, step: Inflate, tied: dict[int, tuple[str, ...]]) -> nn.Module:
    length = step.length_of(name)
    padding = conv.padding
    if padding == "valid":
        padding = (0, 0)
    settings: dict[str, Any] = {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": (length, *conv.kernel_size),
        "stride": (1, *conv.stride),
        "padding": padding if isinstance(padding, str) else (length // 2, *padding),
        "dilation": (1, *conv.dilation),
        "groups": conv.groups,
        "padding_mode": conv.padding_mode,
    }
    if isinstance(conv, OctConv2d):
        return _octave(conv, settings, length, step.mode)
    reason = not_plain(conv) or not_replaceable(conv, tied)
    if reason is not None:
        raise RewriteError(f"inflate: {name} has no 3D form: {reason}")
    weight = conv.weight
    new = nn.Conv3d(**settings, bias=conv.bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        new.weight.copy_(inflated_kernel(weight, length, step.mode))
        if conv.bias is not None and new.bias is not None:
            new.bias.copy_(conv.bias)
            new.bias.requires_grad_(conv.bias.requires_grad)
    new.weight.requires_grad_(weight.requires_grad)
    return new.train(conv.training)


def _octave(conv: OctConv2d, settings: dict[str, Any], length: int, mode: str) -> nn.Module:
    """The same four paths, each inflated."""
    some = next(conv.parameters())
    made = OctConv3d(
        **settings,
        bias=any(name.endswith("bias") for name, _ in conv.named_parameters()),
        device=some.device,
        dtype=some.dtype,
        low_in=conv.low_in,
        low_out=conv.low_out,
        stride_mode=conv.stride_mode,
        downsample=conv.downsample,
        exchange=conv.exchange,
        runs_in=conv.runs_in,
        out_groups=conv.out_groups,
        strict=conv.strict,
    )
    flat = dict(conv.named_parameters())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            old = flat[name]
            parameter.copy_(inflated_kernel(old, length, mode) if old.ndim == 4 else old)
            parameter.requires_grad_(old.requires_grad)
    return made.train(conv.training)


def inflated_kernel(weight: Tensor, length: int, mode: str) -> Tensor:
    """(O, I, h, w) to (O, I, length, h, w)."""
    if mode == "mean":
        return weight.unsqueeze(2).expand(-1, -1, length, -1, -1) / length
    kernel = weight.new_zeros(*weight.shape[:2], length, *weight.shape[2:])
    kernel[:, :, length // 2] = weight
    return kernel


def _change(name: str, before: Conv2d, after: nn.Module) -> Change:
    def describe(conv: Any) -> str:
        return f"{'x'.join(map(str, conv.kernel_size))} {conv.in_channels}->{conv.out_channels}"

    return Change(
        name=name,
        before=describe(before),
        after=f"inflate: {describe(after)}",
        weights="inflated",
        error=None,
        params_before=sum(p.numel() for p in before.parameters()),
        params_after=sum(p.numel() for p in after.parameters()),
    )


def _norm(kind: type[nn.Module]) -> Callable[[Any], nn.Module]:
    def convert(norm: Any) -> nn.Module:
        new: Any = kind(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )  # its tensors are replaced by the old ones
        new._parameters = dict(norm._parameters)
        new._buffers = dict(norm._buffers)
        return cast(nn.Module, new)

    return convert


def _one_frame(value: Any) -> tuple[Any, ...]:
    return (1, *value) if isinstance(value, tuple) else (1, value, value)


def _no_frame(value: Any) -> tuple[Any, ...]:
    return (0, *value) if isinstance(value, tuple) else (0, value, value)


def _adaptive(kind: type[nn.Module]) -> Callable[[Any], nn.Module]:
    """To one pixel means over the whole clip; to more, frame by frame."""

    def convert(pool: Any) -> nn.Module:
        size = pool.output_size
        return kind(1 if size in (1, (1, 1)) else (None, *(size if isinstance(size, tuple) else (size, size))))

    return convert


_LAYERS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.BatchNorm2d: _norm(nn.BatchNorm3d),
    nn.MaxPool2d: lambda pool: nn.MaxPool3d(
        _one_frame(pool.kernel_size),
        _one_frame(pool.stride),
        _no_frame(pool.padding),
        _one_frame(pool.dilation),
        pool.return_indices,
        pool.ceil_mode,
    ),
    nn.AvgPool2d: lambda pool: nn.AvgPool3d(
        _one_frame(pool.kernel_size),
        _one_frame(pool.stride),
        _no_frame(pool.padding),
        pool.ceil_mode,
        pool.count_include_pad,
        pool.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: _adaptive(nn.AdaptiveAvgPool3d),
    nn.AdaptiveMaxPool2d: _adaptive(nn.AdaptiveMaxPool3d),
    nn.Dropout2d: lambda drop: nn.Dropout3d(drop.p, drop.inplace),
}
