"""The proof of an inflation: on a clip that stands still the new network gives what the old one gives on the image.

A kernel that reaches over time meets padding before the first and behind the last frame, where the clip does not stand
still: in the proof alone the clip goes on there. Parameters that are constant, as those of a fresh norm or a residual
branch that begins at zero, are drawn first, so that nothing is hidden behind a zero.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from leanconv.dryrun import DryRun, Sizes, arguments, duplicate, each_shape, one_line, place_of, shapes_of
from leanconv.errors import LeanconvError, RewriteError
from leanconv.modes import eval_mode
from leanconv.seeds import generator, isolated

__all__ = ["difference_on_a_still_clip"]

_SMALL = 64
_TOLERANCE = 1e-4
_OFF = "its outputs on a clip that stands still are"


def difference_on_a_still_clip(image: nn.Module, clip: nn.Module, size: Sizes | None, halvings: int) -> str | None:
    """How the two differ, in words; None where they agree. Both stay as they are.

    `size` is that of an image; where it is not known some are tried. Time is halved `halvings` times on the way.
    Raises `RewriteError` where the image network runs on none of them.
    """
    frames = 2**halvings if halvings else 3
    if any(tensor.is_meta for tensor in (*image.parameters(), *image.buffers())):
        return _without_values(image, clip, size, frames)
    old, new = map(_to_try, (image, clip))
    _let_the_clip_go_on(new)
    failed: Exception | None = None
    for shape in _sizes(image, size):
        still = _inputs(old, shape)
        wanted = _run(old, still)
        if isinstance(wanted, Exception):
            failed = wanted
            continue
        moved = pytree.tree_map(lambda x: x.unsqueeze(2).expand(-1, -1, frames, -1, -1).contiguous(), still)
        found = _run(new, moved)
        if isinstance(found, Exception):
            return f"it does not run on clips: {one_line(found)}{_in(found)}"
        problem = _gap(wanted, found)
        if problem is not None and problem.startswith(_OFF) and _gap(wanted, _run(old, still, seed=1)) is not None:
            return None  # the network is random, and no two of its outputs are equal
        return problem
    said = "its size is not known: pass size, such as size=(3, 224, 224)" if size is None else f"size is {size}"
    raise RewriteError(
        f"inflate: {type(image).__name__} does not run on images, so that nothing can be compared ({said}): "
        f"{one_line(failed) if failed else 'no size was tried'}{_in(failed)}"
    )


def _in(error: Exception | None) -> str:
    place = "" if error is None else place_of(error)
    return f", in {place}" if place else ""


def _sizes(model: nn.Module, size: Sizes | None) -> Iterator[Sizes]:
    """Sizes to try, the cheapest first."""
    if size is not None:
        yield each_shape(size, lambda shape: (shape[0], *(min(side, _SMALL) for side in shape[1:])))
        yield size
        return
    channels = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    for side in (_SMALL, 224):
        for count in dict.fromkeys((*channels[:1], 3, 1)):
            yield (count, side, side)


def _inputs(net: nn.Module, size: Sizes) -> tuple[Any, ...]:
    like = next(net.parameters())

    def values(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(2, *shape, generator=generator("still")).to(like.device)

    return arguments(net, size, values)


def _run(net: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> Any:
    """The outputs in evaluation, or the exception."""
    with isolated("still", seed), eval_mode(net), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return net(*inputs)
        except Exception as error:
            return error


def _gap(images: Any, clips: Any) -> str | None:
    """How the outputs of the clips differ from those of the images."""
    if isinstance(clips, Exception):
        return one_line(clips)
    pairs = [[leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)] for outputs in (images, clips)]
    if len(pairs[0]) != len(pairs[1]):
        return f"it gives {len(pairs[1])} outputs, and {len(pairs[0])} on the image"
    for image, clip in zip(*pairs, strict=True):
        axes = _time_axis(image.shape, clip.shape)
        if axes is None:
            return f"it gives outputs {tuple(clip.shape)}, and {tuple(image.shape)} on the image"
        wanted = image.unsqueeze(axes).expand_as(clip) if axes else image
        gap, largest = float((wanted.double() - clip.double()).abs().nan_to_num(0).max()), float(image.abs().max())
        if not bool((wanted.isfinite() == clip.isfinite()).all()) or gap > _TOLERANCE * largest:
            return f"{_OFF} {gap / max(largest, 1e-30):.1%} off those on the image"
    return None


def _time_axis(image: tuple[int, ...], clip: tuple[int, ...]) -> int | None:
    """Where the clip's output has an axis more, 0 for nowhere; None where the two do not fit."""
    if tuple(image) == tuple(clip):
        return 0
    for axis in (2, 1):
        if len(clip) == len(image) + 1 > axis and (*clip[:axis], *clip[axis + 1 :]) == tuple(image):
            return axis
    return None


def _without_values(image: nn.Module, clip: nn.Module, size: Sizes | None, frames: int) -> str | None:
    """The same by shapes, for networks without weights."""
    for shape in _sizes(image, size):
        try:
            wanted = DryRun(image, shape).run().shapes
        except LeanconvError:
            continue
        longer = each_shape(shape, lambda one: (one[0], frames, *one[1:]))
        try:
            found = DryRun(clip, longer).run().shapes
        except LeanconvError as error:
            return f"it does not run on clips: {error}"
        fits = len(wanted) == len(found) and all(
            _time_axis(one, other) is not None for one, other in zip(wanted, found, strict=True)
        )
        return None if fits else f"it gives outputs {found}, and {wanted} on images"
    return None if size is None else f"it does not run on images of {shapes_of(size)}"


def _to_try(net: nn.Module) -> nn.Module:
    """A copy in single precision, in which every vector that is constant is drawn, the same in both networks: the
    statistics, gains and biases of a fresh norm."""
    kinds = {tensor.dtype for tensor in (*net.parameters(), *net.buffers()) if tensor.is_floating_point()}
    single = kinds <= {torch.float32}
    new = duplicate(net, share_parameters=single, error=RewriteError)
    new = new if single else new.float()
    drawn: dict[int, Tensor] = {}
    for prefix, module in new.named_modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None and _is_constant(tensor):
                    values = torch.rand(tensor.shape, generator=generator("constant", prefix, key)) + 0.5
                    table[key] = drawn.setdefault(id(tensor), type(tensor)(values.to(tensor.device)))
    return new


def _is_constant(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.ndim != 1 or type(tensor) not in (nn.Parameter, Tensor):
        return False
    return tensor.numel() > 0 and bool((tensor == tensor[0]).all())


def _let_the_clip_go_on(net: nn.Module) -> None:
    """Have every kernel that reaches over time see the first frame before it and the last one behind it."""
    for module in net.modules():
        if isinstance(module, nn.Conv3d) and (reach := module.kernel_size[0] // 2):
            vars(module)["_conv_forward"] = functools.partial(_longer, module._conv_forward, reach)


def _longer(conv: Any, reach: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    y = conv(functional.pad(x, (0, 0, 0, 0, reach, reach), mode="replicate"), weight, bias)
    return y[:, :, reach : y.shape[2] - reach]
