"""`make_elastic`: any convolutional network as one set of weights that runs at any width and input resolution.

    net = make_elastic(model, widths=(0.25, 1.0), resolutions=(224, 192, 160, 128))
    with net.at(width=0.5, resolution=160):
        y = net(x)                                             N(W_{0:w}, I_{R=r}) of the paper

The width is a value that all layers read (`width.Dial`), set in a scope; the resolution is a bilinear resize of the
input (align_corners=True, as in the reference implementation); frames, for clips, are taken evenly from those of the
input, as the journal version of the paper does. Nothing is copied to change the configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.dryrun import as_module, duplicate
from leanconv.elastic.coupling.find import trace
from leanconv.elastic.coupling.modules import CONVOLUTIONS
from leanconv.elastic.extract import extract
from leanconv.elastic.layers.chains import make_chain, make_gather
from leanconv.elastic.layers.leaves import Elastic, ElasticBatchNorm, make_leaf
from leanconv.elastic.layers.others import make_beside
from leanconv.elastic.probe import probe
from leanconv.elastic.widen import widen
from leanconv.elastic.width import Config, Dial, LayerWidths
from leanconv.errors import LeanconvError, RewriteError
from leanconv.ops.chain import ConvChain
from leanconv.rewrites.guards import refuse_model
from leanconv.story import remember, story_of

__all__ = ["ElasticNet", "from_settings", "make_elastic", "resized", "sampled"]

PAPER_RESOLUTIONS = (224, 192, 160, 128)


class ElasticNet(nn.Module):
    """A network whose layers follow a dial; made by `make_elastic`.

    Outside `at` it is the full network on the input as it is. In evaluation every configuration needs its own
    BatchNorm statistics (`calibrate`), or it raises `NotCalibrated`; the full network at the native resolution, the
    largest, has those of the original model from the start.

    Attributes:
        model: the network, whose leaves are elastic; its parameters have their original names.
        widths: the smallest and the largest width.
        resolutions: sides of the square input in pixels, descending; the first is the native one.
        frames: of the clip, descending, the first native; empty for images and where the frames are as they come.
        kept: layers that have all their channels at every width, with the reason.
        channels: channels of the input.
    """

    def __init__(
        self, model: nn.Module, dial: Dial, settings: Mapping[str, Any], kept: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.dial = dial
        self.settings = dict(settings)
        self.widths: tuple[float, float] = tuple(settings["widths"])
        self.resolutions: tuple[int, ...] = tuple(settings["resolutions"])
        self.frames: tuple[int, ...] = tuple(settings.get("frames", ()))
        self.kept = dict(kept or {})
        self.channels: int = settings["size"][0]
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(b, channels, *size) to whatever the model returns, in the configuration in force."""
        if self.training and self.dial.statistics is None:
            self.forget()  # the weights are about to change, and what was measured goes with them
        if self.dial.frames is not None:
            x = sampled(x, self.dial.frames)
        if self.dial.resolution is not None:
            x = resized(x, self.dial.resolution)
        return self.model(x, *args, **kwargs)

    @contextmanager
    def at(
        self, width: float | None = None, resolution: int | None = None, frames: int | None = None
    ) -> Iterator[ElasticNet]:
        """Run in another configuration within the scope; None for `width` is the largest, for the others as it comes.

        An input left as it comes uses the BatchNorm statistics of the native resolution and frames.
        Raises `LeanconvError` for a width outside `widths` and a resolution or frames that are none of this network's.
        """
        config = self.checked(self.widths[1] if width is None else width, resolution, frames)
        dial = self.dial
        before = dial.width, dial.resolution, dial.frames
        dial.width, dial.resolution, dial.frames = config.width, resolution, frames
        try:
            yield self
        finally:
            dial.width, dial.resolution, dial.frames = before

    def checked(self, width: float, resolution: int | None = None, frames: int | None = None) -> Config:
        """That configuration, native where it is None, or `LeanconvError` where the network has no such."""
        low, high = self.widths
        if not isinstance(width, (int, float)) or not low <= width <= high:
            raise LeanconvError(
                f"width must be between {low:g} and {high:g}, the range this network was made for, got {width!r}: its "
                "layers were never meant to run there; make it elastic with other widths="
            )
        if resolution is not None and resolution not in self.resolutions:
            raise LeanconvError(
                f"resolution must be one of {', '.join(map(str, self.resolutions))}, those this network was made for, "
                f"got {resolution!r}; make it elastic with other resolutions="
            )
        if frames is not None and frames not in self.frames:
            known = ", ".join(map(str, self.frames))
            raise LeanconvError(
                f"frames must be one of {known}, those this network was made for, got {frames!r}"
                if known
                else f"this network's frames are not elastic, got frames={frames!r}: make it elastic with frames="
            )
        if isinstance(width, LayerWidths) and not low <= width.low <= width.high <= high:
            raise LeanconvError(f"{width!r} reaches beyond the widths {low:g} to {high:g} of this network")
        dial = self.dial
        return Config(
            width if isinstance(width, LayerWidths) else float(width),
            dial.native if resolution is None else int(resolution),
            dial.native_frames if frames is None else int(frames),
        )

    def configurations(self, step: float = 0.05) -> tuple[Config, ...]:
        """The paper's grid: widths from the largest down by `step`, each at every resolution and number of frames.

        Raises `LeanconvError` for a step that is not positive.
        """
        if not step > 0:
            raise LeanconvError(f"step must be above 0, got {step!r}")
        low, high = self.widths
        count = int((high - low) / step + 1e-6)
        widths = [round(high - i * step, 4) for i in range(count + 1)]
        if widths[-1] > low + 1e-6:
            widths.append(low)
        return tuple(
            Config(width, resolution, frames)
            for frames in self.frames or (None,)
            for resolution in self.resolutions
            for width in widths
        )

    @property
    def default_input_size(self) -> tuple[int, ...]:
        """One input in the native configuration, without the batch axis."""
        return tuple(self.settings["size"])

    @property
    def norms(self) -> tuple[ElasticBatchNorm, ...]:
        """Every BatchNorm that needs statistics."""
        return tuple(m for m in self.model.modules() if isinstance(m, ElasticBatchNorm) and m.remembers)

    @property
    def calibrated(self) -> tuple[Config, ...]:
        """The configurations whose statistics `calibrate` measured; empty for a network without BatchNorm."""
        norms = self.norms
        return tuple(config for config in norms[0].banked if all(n.has(config) for n in norms)) if norms else ()

    def can_evaluate(self, width: float, resolution: int | None = None, frames: int | None = None) -> bool:
        """Whether evaluation in that configuration has the statistics it needs."""
        config = self.checked(width, resolution, frames)
        return all(norm.knows(config) for norm in self.norms)

    def forget(self) -> None:
        """Drop all calibrations."""
        first = next((module for module in self.model.modules() if isinstance(module, ElasticBatchNorm)), None)
        if first is not None and first.banked:  # a calibration concerns all norms or none
            for norm in self.norms:
                norm.forget()
            self.tell_calibrated()

    def reserve(self, configs: Iterable[Sequence[Any]]) -> None:
        """Make room for the statistics of `configs`, which a checkpoint is about to fill."""
        for given in configs:
            config = self.checked(*given)
            for norm in self.norms:
                norm.store(config, norm.filled(config, 0.0), norm.filled(config, 1.0))

    def tell_calibrated(self) -> None:
        """Bring the last step of the story, the calibrated configurations, up to date."""
        story = story_of(self)
        if story is None:
            return
        steps = tuple(step for step in story.steps if "calibrated" not in step[1])
        story = replace(story, steps=steps)
        if self.calibrated:
            story = story.then("elastic", {"calibrated": [list(config) for config in self.calibrated]})
        remember(self, story)

    def extract(
        self,
        width: float | None = None,
        resolution: int | None = None,
        frames: int | None = None,
        *,
        calibrated: bool = True,
    ) -> nn.Module:
        """A network of plain modules with tensors of its own, equal to this one in that configuration.

        See `leanconv.elastic.extract.extract`.
        """
        return extract(self, width, resolution, frames, calibrated=calibrated)

    def extra_repr(self) -> str:
        """Widths, resolutions and frames."""
        frames = f", frames={self.frames}" if self.frames else ""
        return f"widths={self.widths}, resolutions={self.resolutions}{frames}"


def resized(x: Tensor, resolution: int) -> Tensor:
    """The last one or two axes of (b, c, [frames,] [h,] w) bilinearly resized to `resolution`, corners aligned."""
    spatial = min(x.ndim - 2, 2)
    size = (resolution,) * spatial
    if tuple(x.shape[-spatial:]) == size:
        return x
    mode = "linear" if spatial == 1 else "bilinear"
    if x.ndim == 5:  # a clip: every frame by itself
        batch, channels, frames = x.shape[:3]
        flat = x.transpose(1, 2).reshape(batch * frames, channels, *x.shape[3:])
        small = F.interpolate(flat, size, mode=mode, align_corners=True)
        return small.reshape(batch, frames, channels, *size).transpose(1, 2)
    return F.interpolate(x, size, mode=mode, align_corners=True)


def sampled(x: Tensor, frames: int) -> Tensor:
    """`frames` of the T frames of (b, c, T, h, w): frame floor(i T / frames) for i = 0, 1, ...

    Raises `LeanconvError` for an input without frames, or with fewer.
    """
    if x.ndim != 5 or x.shape[2] < frames:
        raise LeanconvError(
            f"{frames} frames are to be taken from an input of shape {tuple(x.shape)}: expected (batch, channels, T, "
            f"height, width) with T of at least {frames}"
        )
    total = x.shape[2]
    if total % frames == 0:
        return x if total == frames else x[:, :, :: total // frames]
    places = torch.arange(frames, device=x.device) * total // frames
    return x.index_select(2, places)


def make_elastic(
    model: nn.Module,
    widths: Sequence[float] = (0.25, 1.0),
    resolutions: Sequence[int] = PAPER_RESOLUTIONS,
    *,
    frames: Sequence[int] = (),
    divisor: int | None = 8,
    size: Sequence[int] | None = None,
    keep: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
) -> ElasticNet:
    """A copy of `model` that runs at any width between `widths` and at any of `resolutions` (and `frames`).

    Every layer keeps the first channels of its weights, as many as the rounding law of `elastic.width` says; channels
    that meet in an add, a gate, a concatenation or a grouped convolution are sliced together, found by running the
    network once without computing. The network's input and outputs are never sliced. At width 1 it is the original.

    Above width 1 the layers are allocated at the largest width and the original weights are their first part; the
    others are drawn at the same scale.

    Args:
        model: a network of convolutions, norms, linear layers, chains, and parameters beside them; left as it is.
        widths: smallest and largest width, as shares of every layer's channels, 1 between or at an end of them.
        resolutions: sides of the square input in pixels.
        frames: for clips, how many frames a configuration may take evenly from those of the input.
        divisor: channel counts are multiples of it, of the layer's ratio times it, or full; None rounds to whole ones.
        size: input without the batch axis; default (input channels of the first convolution, native, native),
            for clips with the most frames behind the channels.
        keep: name patterns of layers whose outputs are never sliced, such as "conv_head" or "features.18.*".
        ratios: name pattern -> ratio in the rounding law, where the one found (`elastic.ratios`) is not wanted.

    Raises `RewriteError` where channels cannot follow the width, naming the module and operation, and `LeanconvError`
    for widths, resolutions and frames that make no sense.

    >>> net = make_elastic(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1)), resolutions=(32, 24))
    >>> with net.at(width=0.5, resolution=24):
    ...     net(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8, 22, 22])
    """
    model = as_module(model, error=RewriteError)
    refuse_model(model)
    if isinstance(model, ElasticNet) or any(isinstance(module, Elastic) for module in model.modules()):
        raise RewriteError("the network is elastic already: make the original elastic with other settings instead")
    low, high = _checked_widths(widths)
    sides = _checked_counts("resolutions", resolutions, "in pixels")
    lengths = _checked_counts("frames", frames, "of the clip") if frames != () else ()
    if divisor is not None and (not isinstance(divisor, int) or divisor < 1):
        raise LeanconvError(f"divisor must be a whole number from 1, or None, got {divisor!r}")
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    given = size is not None
    size = tuple(int(side) for side in size or ()) if given else _default_size(model, sides[0], lengths)
    if lengths and (len(size) != 4 or size[1] != lengths[0]):
        raise LeanconvError(
            f"frames are for clips of {lengths[0]} frames, the most of them: size must be (channels, "
            f"{lengths[0]}, height, width), got {size}"
        )
    copied = duplicate(model)
    dial = Dial(native=sides[0], native_frames=lengths[0] if lengths else None, widest=high, width=high)
    found = trace(copied, size, divisor=divisor or 1, keep=keep, ratios=ratios, widest=high)
    modules = dict(copied.named_modules())
    for name, layer in found.layers.items():
        if isinstance(modules[name], ConvChain):
            make_chain(modules[name], layer, dial)
        elif layer.pieces:
            make_gather(modules[name], layer, dial)
        else:
            make_leaf(modules[name], layer, dial)
    for name, beside in found.beside.items():
        make_beside(name, modules[name], beside, dial)
    settings: dict[str, Any] = {
        "widths": [low, high],
        "resolutions": list(sides),
        "divisor": divisor,
        "size": list(size),
        "keep": list(keep),
        "ratios": dict(ratios or {}),
    }
    if lengths:
        settings["frames"] = list(lengths)
    net = ElasticNet(copied, dial, settings, found.kept)
    net.training = copied.training
    if high > 1:
        widen(net)
    probe(net, size)
    story = story_of(model)
    if story is not None:
        remember(net, story.then("elastic", settings))
        net.tell_calibrated()
    return net


def from_settings(model: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """One step of a story told by this package, done again; the weights come later, from the checkpoint.

    The settings are those of `make_elastic`; or {"calibrated": [[width, resolution], ...]}, which makes room in an
    elastic network for these statistics; or {"extract": {"width": ..., "resolution": ...}}, which extracts from one.
    """
    if "calibrated" not in settings and "extract" not in settings:
        try:
            net = make_elastic(model, **copy.deepcopy(dict(settings)))
            net.forget()
            return net
        except TypeError as error:
            raise LeanconvError(f"the settings of an elastic network do not fit this version ({error})") from error
    if not isinstance(model, ElasticNet):
        raise LeanconvError(
            f"the story goes on with {next(iter(settings))!r}, but {type(model).__name__} is not elastic"
        )
    if "extract" in settings:
        wanted = settings["extract"]
        return model.extract(wanted["width"], wanted["resolution"], wanted.get("frames"), calibrated=False)
    model.reserve(settings["calibrated"])
    return model


def _loaded(net: nn.Module, _: Any) -> None:
    """After loading a state dict, which brings calibrations or takes them away."""
    assert isinstance(net, ElasticNet)
    seen = [norm._buffers.get("num_batches_tracked") for norm in net.norms]
    net.dial.blank = net.dial.widest > 1 and any(count is not None and not int(count) for count in seen)
    net.tell_calibrated()


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


def _default_size(model: nn.Module, side: int, frames: Sequence[int]) -> tuple[int, ...]:
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
