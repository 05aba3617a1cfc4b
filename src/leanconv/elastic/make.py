"""`make_elastic`: any convolutional network as one set of weights that runs at any width and input resolution."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.data.contract import for_size
from leanconv.dryrun import (
    DryRun,
    ModelHolder,
    Size,
    Sizes,
    as_module,
    check_sizes,
    duplicate,
    is_detector,
    one_line,
    shapes_of,
)
from leanconv.dryrun.size import positional
from leanconv.elastic.active import ActiveConfig
from leanconv.elastic.coupling.find import find
from leanconv.elastic.coupling.modules import CONVOLUTIONS
from leanconv.elastic.detector import (
    ElasticDetector,
    detector_size,
    necks,
    put_around,
    sliced_part,
    without_prefix,
)
from leanconv.elastic.layers.chains import make_chain
from leanconv.elastic.layers.leaves import Elastic, ElasticBatchNorm, index_tensor, make_class_elastic
from leanconv.elastic.layers.others import ElasticOther, make_other
from leanconv.elastic.net import ElasticNet
from leanconv.elastic.prove import prove
from leanconv.elastic.slices import Axes, Channels
from leanconv.elastic.width import Config, Width
from leanconv.errors import LeanconvError, RewriteError
from leanconv.ops.chain import ConvChain
from leanconv.rewrites.guards import refuse_model
from leanconv.seeds import isolated
from leanconv.story import begun, remember

__all__ = ["from_settings", "make_elastic"]

PAPER_RESOLUTIONS = (224, 192, 160, 128)


def make_elastic(
    model: nn.Module | ModelHolder,
    widths: Sequence[float] = (0.25, 1.0),
    resolutions: Sequence[int] = PAPER_RESOLUTIONS,
    *,
    frames: Sequence[int] = (),
    divisor: int | None = 8,
    size: Size | None = None,
    keep: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    source: str | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> ElasticNet:
    """A copy of `model` that runs at any width between `widths` and at any of `resolutions` (and `frames`).

    Every layer keeps the first channels of its weights, as many as the rounding law of `elastic.width` says; channels
    that meet in an add, a gate, a concatenation or a grouped convolution are sliced together, found by running the
    network once without computing. Its input and outputs are never sliced. At width 1 it is the original; for widths
    above 1 more weights are drawn at the same scale.

    Of a detector of torchvision (Faster and Mask R-CNN) the body is made elastic, neck and heads are shared by all
    sub-networks, and `resolutions` are the shorter sides of its images, see `ElasticDetector`.

    Args:
        model: a network of convolutions, norms, linear layers, chains, and parameters of other modules; left as it is.
        widths: smallest and largest width, as shares of every layer's channels, 1 between or at an end of them.
        resolutions: sides of the input in pixels, the largest of them that of `size`; where the sides of the input
            differ, one of them, and the other changes in step.
        frames: for clips, how many frames a configuration may take evenly from those of the input.
        divisor: channel counts are multiples of it, of the layer's ratio times it, or full; None rounds to whole ones.
        size: input without the batch axis, or a list of several; default (input channels of the first convolution,
            native, native), for clips with the most frames behind the channels.
        keep: name patterns of layers whose outputs are never sliced, such as "conv_head" or "features.18.*".
        ratios: name pattern -> ratio in the rounding law, where the one found (`assign_ratios`) is not wanted.
        source, source_options: how `model` is built, see `leanconv.rewrite`.

    What was made is run once on random inputs before it is returned (`elastic.prove`): at width 1 it is the network
    that was given, and narrower ones run forward and backward.

    Raises `RewriteError` where channels cannot follow the width, naming the module and operation, and `LeanconvError`
    for widths, resolutions and frames that make no sense.

    >>> net = make_elastic(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1)), resolutions=(32, 24))
    >>> with net.at(width=0.5, resolution=24):
    ...     net(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8, 22, 22])
    """
    model = as_module(model, error=RewriteError)
    with isolated("make_elastic"):  # a forward may draw, also when nothing is computed
        net = _made(
            model,
            widths,
            resolutions,
            frames=frames,
            divisor=divisor,
            size=size,
            keep=keep,
            ratios=ratios,
            source=source,
            source_options=source_options,
        )
    prove(sliced_part(model), net.backbone_net() if isinstance(net, ElasticDetector) else net)
    return net


def _made(
    model: nn.Module,
    widths: Sequence[float] = (0.25, 1.0),
    resolutions: Sequence[int] = PAPER_RESOLUTIONS,
    *,
    frames: Sequence[int] = (),
    divisor: int | None = 8,
    size: Size | None = None,
    keep: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    source: str | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> ElasticNet:
    """`make_elastic` without the proof."""
    story = begun(model, source, source_options)
    refuse_model(model)
    if isinstance(model, ElasticNet) or any(isinstance(module, Elastic) for module in model.modules()):
        raise RewriteError("the network is elastic already: make the original elastic with other settings instead")
    low, high = _checked_widths(widths)
    sides = _checked_counts("resolutions", resolutions, "in pixels")
    lengths = _checked_counts("frames", frames, "of the clip") if frames != () else ()
    if divisor is not None and (not isinstance(divisor, int) or divisor < 1):
        raise LeanconvError(f"divisor must be a whole number from 1, or None, got {divisor!r}")
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    size = _checked_size(model, size, sides[0], lengths)
    if lengths and (len(size) != 4 or size[1] != lengths[0]):
        raise LeanconvError(
            f"frames are for clips of {lengths[0]} frames, the most of them: size must be (channels, "
            f"{lengths[0]}, height, width), got {size}"
        )
    copied = duplicate(model)
    part, kept = sliced_part(copied), keep
    if part is not copied:  # the backbone of a detector, whose neck is for all widths
        kept = (*without_prefix(keep), *necks(part))
    inside = dict(zip(without_prefix([*(ratios or {})]), (ratios or {}).values(), strict=True))
    found = find(part, size, divisor=divisor or 1, keep=kept, ratios=inside, widest=high)
    active = ActiveConfig(Config(high, sides[0], lengths[0] if lengths else None))
    modules = dict(part.named_modules())
    for name, layer in found.layers.items():
        make = make_chain if isinstance(modules[name], ConvChain) else make_class_elastic
        made = make(modules[name], layer, active)
        if isinstance(made, ElasticBatchNorm):
            made.elastic_training_only = name in found.training_only
    for name, other in found.others.items():
        make_other(name, modules[name], other, active)
    settings = {
        "widths": [low, high],
        "resolutions": [*sides],
        "divisor": divisor,
        "size": _listed(size),
        "keep": [*keep],
    }
    settings |= {"ratios": {**(ratios or {})}} | ({"frames": [*lengths]} if lengths else {})
    net = ElasticNet(part, active, settings, found.kept)
    net.training = copied.training
    if high > 1:
        _widen(part, active)
    _probe(net, size)
    if part is not copied:
        net = put_around(copied, active, settings, found.kept)
    remember(net, for_size(story.then("elastic", settings), size))
    net.update_story()
    return net


def from_settings(model: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """One step of a story written by this package, done again; the weights come later, from the checkpoint.

    The settings are those of `make_elastic`; or {"calibrated": [[width, resolution], ...]}, which makes room in an
    elastic network for these statistics; or {"extract": {"width": ..., "resolution": ...}}, which extracts from one.
    """
    if "calibrated" not in settings and "extract" not in settings:
        try:
            net = _made(model, **copy.deepcopy(dict(settings)))
        except TypeError as error:
            raise LeanconvError(f"the settings of an elastic network do not fit this version ({error})") from error
        net.drop_calibrations()
        return net
    if not isinstance(model, ElasticNet):
        step, kind = next(iter(settings)), type(model).__name__
        raise LeanconvError(f"the story goes on with {step!r}, but {kind} is not elastic")
    if wanted := settings.get("extract"):
        return model.extract(wanted["width"], wanted["resolution"], wanted.get("frames"), calibrated=False)
    for config in (model.checked(*given) for given in settings["calibrated"]):
        for norm in model.norms:
            norm.store(config, *norm.fresh_statistics(config))
    return model


@torch.no_grad()
def _widen(model: nn.Module, active: ActiveConfig) -> None:
    """Give every elastic tensor of `model` room for the largest width, in place; the same draw every time.

    The original is the first part. The rest of a weight is drawn from N(0, s), so that a layer of the new width scales
    its input as the old one did: s is the root of the mean square of the original, times sqrt(C_in / C_in'). A number
    per channel (gamma, bias, slope, layer scale) is the mean of the original ones, a buffer repeats them.
    """
    generator = torch.Generator().manual_seed(0)
    width, *native = active.largest
    shared: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by the old one, which must live as long as its id
    for module in model.modules():
        if not isinstance(module, Elastic):
            continue
        for name, axes in module.elastic_layer.tensors.items():
            old = module._parameters.get(name)
            if old is not None:
                if id(old) not in shared:
                    shared[id(old)] = old, nn.Parameter(_wider(old, axes, generator), old.requires_grad)
                module._parameters[name] = shared[id(old)][1]
            elif (buffer := module._buffers.get(name)) is not None:
                module._buffers[name] = _wider(buffer, axes, None)
        vars(module).update(vars(module.view(width)))  # what counts channels
        if isinstance(module, ElasticBatchNorm) and module.remembers:
            # The statistics of the network as it was become a calibrated configuration.
            module.store(Config(1.0, *native), module.get_buffer("running_mean"), module.get_buffer("running_var"))
            mean, var = module.fresh_statistics(active.largest)
            module._buffers.update(running_mean=mean, running_var=var)
            if (seen := module._buffers.get("num_batches_tracked")) is not None:
                module._buffers["num_batches_tracked"] = torch.zeros_like(seen)
            module.elastic_untrained_at_full_width = True


def _wider(old: Tensor, axes: Axes[Channels], generator: torch.Generator | None) -> Tensor:
    """The tensor at full size; `generator` None for one whose values repeat."""
    if old.is_meta:
        return old.new_empty([size if c is None else c.full for size, c in zip(old.shape, axes, strict=True)])
    per_channel = prod(old.shape[1:]) == 1
    columns = axes[1].full / old.shape[1] if len(axes) > 1 and axes[1] is not None else 1.0
    scale = float(old.float().square().mean() / columns) ** 0.5
    for axis, channels in enumerate(axes):
        if channels is None or channels.full == old.shape[axis]:
            continue
        shape = (*old.shape[:axis], channels.full, *old.shape[axis + 1 :])
        if generator is None:
            wider = old.index_select(axis, torch.arange(channels.full, device=old.device) % old.shape[axis])
        elif per_channel:
            wider = old.new_full(shape, float(old.float().mean()))
        else:
            wider = (torch.randn(shape, generator=generator) * scale).to(old)
        wider.index_copy_(axis, index_tensor(channels.runs(Width(1.0)), old.device), old.detach())
        old = wider
    return old


def _probe(net: ElasticNet, size: Sizes) -> None:
    """Run the smallest and a middling width, and the smallest input, as large as they are; keep the patches they need.

    Raises `RewriteError` naming the module where the network does not run.
    """
    dry = DryRun(net, size, error=RewriteError)
    scratch = cast("ElasticNet", dry.model)
    others = {name: module for name, module in scratch.named_modules() if isinstance(module, ElasticOther)}
    for module in others.values():
        module.elastic_needed = set()
    (low, high), shortest = net.widths, net.frames[-1] if net.frames else None
    middle = 0.4 * low + 0.6 * high
    middling = [(middle, None, None)] if others else []  # only patches need it, the proof runs one for all
    for width, resolution, frames in ((low, None, None), *middling, (high, net.resolutions[-1], shortest)):
        try:
            with scratch.at(width, resolution, frames):
                dry.run()
        except LeanconvError as error:
            cause = error.__cause__ or error
            where = dry.stack.path_of(cause).removeprefix("model").lstrip(".") or type(net.model).__name__
            clip = "" if frames is None else f", {frames} frames"
            raise RewriteError(
                f"{where}: the network does not run at width {width:g} and resolution "
                f"{resolution or net.resolutions[0]}{clip} ({one_line(cause)}): a forward holds channel counts or map "
                "sizes as constants; read them from the tensors, or pass keep= with the layers that feed it, or other "
                "resolutions="
            ) from error
    for name, module in list(net.named_modules()):
        if isinstance(module, ElasticOther):
            module.drop_unneeded_patches(others[name].elastic_needed or ())


def _checked_widths(widths: Sequence[float]) -> tuple[float, float]:
    values = tuple(widths) if isinstance(widths, Sequence) else ()
    if len(values) != 2 or not all(isinstance(v, (int, float)) for v in values) or not 0 < values[0] <= values[1]:
        raise LeanconvError(f"widths must be (smallest, largest) with 0 < smallest <= largest, got {widths!r}")
    if values[1] < 1:
        raise LeanconvError(
            f"the largest width must be at least 1, got {widths!r}: the channels above it would never be used; build a "
            "narrower model instead"
        )
    if values[0] > 1:
        raise LeanconvError(
            f"the smallest width must be at most 1, the network as it is, got {widths!r}: build a wider model instead"
        )
    return float(values[0]), float(values[1])


def _checked_counts(name: str, given: Sequence[int], what: str) -> tuple[int, ...]:
    values = tuple(given) if isinstance(given, Sequence) else ()
    if not values or not all(isinstance(v, int) and v > 0 for v in values):
        raise LeanconvError(f"{name} must be one or more whole numbers above 0, {what}, got {given!r}")
    return tuple(sorted(set(values), reverse=True))


def _listed(size: Sizes) -> list[Any]:
    """The size as a story holds it."""
    return [_listed(one) if isinstance(one, tuple) else one for one in size]


def _checked_size(model: nn.Module, size: Size | None, side: int, frames: Sequence[int]) -> Sizes:
    """The size of the input, or of several, of which the native resolution must be a side."""
    given = _default_size(model, side, frames) if size is None else check_sizes(size)
    if isinstance(given[0], tuple) and not isinstance(given[0][0], tuple) and positional(model)[1] == 1:
        given = (given,)  # a list of inputs is one argument
    shapes = shapes_of(given)
    if frames and len(shapes) > 1:
        raise LeanconvError(
            "frames= is for networks of one clip, and size has several inputs: leave the frames as they are"
        )
    if not any(side in shape[max(1, len(shape) - 2) :] for shape in shapes):
        raise LeanconvError(
            f"the first of resolutions, {side}, must be a side of the native input, got size={size}: the network is to "
            "be the one that it was there, and the others are counted from it"
        )
    return given


def _default_size(model: nn.Module, side: int, frames: Sequence[int]) -> tuple[int, ...]:
    if is_detector(model):
        return detector_size(model, side)
    first = next((module for module in model.modules() if isinstance(module, CONVOLUTIONS)), None)
    if first is None:
        raise RewriteError(f"{type(model).__name__} has no convolution: there is nothing to make elastic")
    if not isinstance(first, nn.Conv3d):
        return (first.in_channels, *(side,) * len(first.kernel_size))
    if not frames:
        raise RewriteError(
            "a network of 3D convolutions needs frames=, or size=(channels, frames, height, width): the number "
            "of frames cannot be guessed"
        )
    return (first.in_channels, frames[0], side, side)
