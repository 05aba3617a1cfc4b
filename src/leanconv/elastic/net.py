"""`make_elastic`: any convolutional network as one set of weights that runs at any width and input resolution.

    net = make_elastic(model, widths=(0.25, 1.0), resolutions=(224, 192, 160, 128))
    with net.at(width=0.5, resolution=160):
        y = net(x)                                             N(W_{0:w}, I_{R=r}) of the paper

The width is a value that all layers read (`width.Dial`), set in a scope; the resolution is a bilinear resize of the
input (align_corners=True, as in the reference implementation). Nothing is copied to change the configuration.
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
from torch._subclasses.fake_tensor import FakeTensorMode

from leanconv.elastic.extract import extract
from leanconv.elastic.layers import Elastic, ElasticBatchNorm, make_leaf
from leanconv.elastic.trace import CONVOLUTIONS, fake_input, trace
from leanconv.elastic.width import Config, Dial
from leanconv.errors import LeanconvError, RewriteError
from leanconv.rewrites.guards import refuse_model
from leanconv.rewrites.swap import duplicate
from leanconv.story import remember, story_of

__all__ = ["ElasticNet", "from_settings", "make_elastic", "resized"]

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
        channels: channels of the input.
    """

    def __init__(self, model: nn.Module, dial: Dial, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.dial = dial
        self.settings = dict(settings)
        self.widths: tuple[float, float] = tuple(settings["widths"])
        self.resolutions: tuple[int, ...] = tuple(settings["resolutions"])
        self.channels: int = settings["example_size"][0]
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(b, channels, *size) to whatever the model returns, in the configuration in force."""
        if self.training and self.dial.statistics is None:
            self.forget()  # the weights are about to change, and what was measured goes with them
        if self.dial.resolution is not None:
            x = resized(x, self.dial.resolution)
        return self.model(x, *args, **kwargs)

    @contextmanager
    def at(self, width: float | None = None, resolution: int | None = None) -> Iterator[ElasticNet]:
        """Run in another configuration within the scope; None for `width` is the largest, for `resolution` as it comes.

        An input left as it comes uses the BatchNorm statistics of the native resolution.
        Raises `LeanconvError` for a width outside `widths` and a resolution that is none of `resolutions`.
        """
        config = self.checked(self.widths[1] if width is None else width, resolution)
        before = self.dial.width, self.dial.resolution
        self.dial.width, self.dial.resolution = config.width, resolution
        try:
            yield self
        finally:
            self.dial.width, self.dial.resolution = before

    def checked(self, width: float, resolution: int | None = None) -> Config:
        """The configuration of that width and resolution, or `LeanconvError` where the network has no such."""
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
        return Config(float(width), self.dial.native if resolution is None else int(resolution))

    def configurations(self, step: float = 0.05) -> tuple[Config, ...]:
        """The paper's grid: widths from the largest down by `step`, each at every resolution.

        Raises `LeanconvError` for a step that is not positive.
        """
        if not step > 0:
            raise LeanconvError(f"step must be above 0, got {step!r}")
        low, high = self.widths
        count = int((high - low) / step + 1e-6)
        widths = [round(high - i * step, 4) for i in range(count + 1)]
        if widths[-1] > low + 1e-6:
            widths.append(low)
        return tuple(Config(width, resolution) for resolution in self.resolutions for width in widths)

    @property
    def norms(self) -> tuple[ElasticBatchNorm, ...]:
        """Every BatchNorm that needs statistics."""
        return tuple(m for m in self.model.modules() if isinstance(m, ElasticBatchNorm) and m.remembers)

    @property
    def calibrated(self) -> tuple[Config, ...]:
        """The configurations whose statistics `calibrate` measured; empty for a network without BatchNorm."""
        norms = self.norms
        return tuple(config for config in norms[0].banked if all(n.has(config) for n in norms)) if norms else ()

    def can_evaluate(self, width: float, resolution: int | None = None) -> bool:
        """Whether evaluation in that configuration has the statistics it needs."""
        config = self.checked(width, resolution)
        return all(norm.knows(config) for norm in self.norms)

    def forget(self) -> None:
        """Drop all calibrations."""
        first = next((module for module in self.model.modules() if isinstance(module, ElasticBatchNorm)), None)
        if first is not None and first.banked:  # a calibration concerns all norms or none
            for norm in self.norms:
                norm.forget()
            self.tell_calibrated()

    def reserve(self, configs: Iterable[Sequence[float]]) -> None:
        """Make room for the statistics of `configs`, which a checkpoint is about to fill."""
        for width, resolution in configs:
            config = self.checked(width, int(resolution))
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
        self, width: float | None = None, resolution: int | None = None, *, calibrated: bool = True
    ) -> nn.Module:
        """A network of plain modules with tensors of its own, equal to this one at `width` on inputs of `resolution`.

        See `leanconv.elastic.extract.extract`.
        """
        return extract(self, width, resolution, calibrated=calibrated)

    def extra_repr(self) -> str:
        """Widths and resolutions."""
        return f"widths={self.widths}, resolutions={self.resolutions}"


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


def make_elastic(
    model: nn.Module,
    widths: Sequence[float] = (0.25, 1.0),
    resolutions: Sequence[int] = PAPER_RESOLUTIONS,
    *,
    divisor: int | None = 8,
    example_size: Sequence[int] | None = None,
    keep: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
) -> ElasticNet:
    """A copy of `model` that runs at any width between `widths` and at any of `resolutions`.

    Every layer keeps the first channels of its weights, as many as the rounding law of `elastic.width` says; channels
    that meet in an add, a gate, a concatenation or a grouped convolution are sliced together, found by running the
    network once without computing. The network's input and outputs are never sliced. At width 1 it is the original.

    Args:
        model: a network of convolutions, BatchNorm, linear layers and what has no weights; left as it is.
        widths: smallest and largest share of every layer's channels; the largest must be 1.
        resolutions: sides of the square input in pixels.
        divisor: channel counts are multiples of it, of the layer's ratio times it, or full; None rounds to whole ones.
        example_size: input without the batch axis; default (input channels of the first convolution, native, native).
        keep: name patterns of layers whose outputs are never sliced, such as "conv_head" or "features.18.*".
        ratios: name pattern -> ratio in the rounding law, where the one found (`elastic.ratios`) is not wanted.

    Raises `RewriteError` where channels cannot follow the width, naming the module and operation, and `LeanconvError`
    for widths and resolutions that make no sense.

    >>> net = make_elastic(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1)), resolutions=(32, 24))
    >>> with net.at(width=0.5, resolution=24):
    ...     net(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8, 22, 22])
    """
    refuse_model(model)
    if isinstance(model, ElasticNet) or any(isinstance(module, Elastic) for module in model.modules()):
        raise RewriteError("the network is elastic already: make the original elastic with other settings instead")
    low, high = _checked_widths(widths)
    sides = _checked_resolutions(resolutions)
    if divisor is not None and (not isinstance(divisor, int) or divisor < 1):
        raise LeanconvError(f"divisor must be a whole number from 1, or None, got {divisor!r}")
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    size = _example_size(model, sides[0]) if example_size is None else tuple(int(side) for side in example_size)
    copied = duplicate(model)
    dial = Dial(native=sides[0])
    layers = trace(copied, size, divisor=divisor or 1, keep=keep, ratios=ratios)
    modules = dict(copied.named_modules())
    for name, layer in layers.items():
        make_leaf(modules[name], layer, dial)
    settings = {
        "widths": [low, high],
        "resolutions": list(sides),
        "divisor": divisor,
        "example_size": list(size),
        "keep": list(keep),
        "ratios": dict(ratios or {}),
    }
    net = ElasticNet(copied, dial, settings)
    net.training = copied.training
    _probe(net, size)
    story = story_of(model)
    if story is not None:
        remember(net, story.then("elastic", settings))
    return net


def from_settings(model: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """One step of a story told by this package, done again; the weights come later, from the checkpoint.

    The settings are those of `make_elastic`; or {"calibrated": [[width, resolution], ...]}, which makes room in an
    elastic network for these statistics; or {"extract": {"width": ..., "resolution": ...}}, which extracts from one.
    """
    if "calibrated" not in settings and "extract" not in settings:
        try:
            return make_elastic(model, **copy.deepcopy(dict(settings)))
        except TypeError as error:
            raise LeanconvError(f"the settings of an elastic network do not fit this version ({error})") from error
    if not isinstance(model, ElasticNet):
        raise LeanconvError(
            f"the story goes on with {next(iter(settings))!r}, but {type(model).__name__} is not elastic"
        )
    if "extract" in settings:
        wanted = settings["extract"]
        return model.extract(wanted["width"], int(wanted["resolution"]), calibrated=False)
    model.reserve(settings["calibrated"])
    return model


def _loaded(net: nn.Module, _: Any) -> None:
    """After loading a state dict, which brings calibrations or takes them away."""
    assert isinstance(net, ElasticNet)
    net.tell_calibrated()


def _probe(net: ElasticNet, size: Sequence[int]) -> None:
    """Run small and middling configurations without computing: code with channel counts of its own shows up here."""
    low, high = net.widths
    training = [(module, module.training) for module in net.modules()]
    net.eval()
    net.dial.probing = True
    try:
        for width, resolution in ((low, None), (round(0.4 * low + 0.6 * high, 2), None), (high, net.resolutions[-1])):
            with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), _naming(net) as stack:
                try:
                    with net.at(width, resolution):
                        net(fake_input(net, size))
                except Exception as error:
                    where = next((name for name in reversed(stack) if name), type(net.model).__name__)
                    raise RewriteError(
                        f"{where}: the network does not run at width {width:g} and resolution "
                        f"{resolution or net.resolutions[0]} ({type(error).__name__}: {str(error).splitlines()[0]}): a "
                        "forward holds channel counts or map sizes as constants; read them from the tensors, or pass "
                        "keep= with the layers that feed it, or other resolutions="
                    ) from error
    finally:
        net.dial.probing = False
        for module, mode in training:
            module.training = mode


@contextmanager
def _naming(net: ElasticNet) -> Iterator[list[str]]:
    """The names of the modules at work, innermost last; on an exception they stay as they were."""
    stack: list[str] = []
    handles = []
    for name, module in net.model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _checked_widths(widths: Sequence[float]) -> tuple[float, float]:
    values = tuple(widths) if isinstance(widths, Sequence) else ()
    if len(values) != 2 or not all(isinstance(v, (int, float)) for v in values) or not 0 < values[0] <= values[1]:
        raise LeanconvError(f"widths must be (smallest, largest) with 0 < smallest <= largest, got {widths!r}")
    if values[1] > 1:
        raise LeanconvError(
            f"widths must not exceed 1 in this version, got {widths!r}: the weights of a wider network do not exist; "
            "build the model that wide and take widths relative to it, here "
            f"({values[0] / values[1]:.4g}, 1.0)"
        )
    if values[1] < 1:
        raise LeanconvError(
            f"the largest width must be 1, got {widths!r}: the channels above it would never be used; build a narrower "
            "model instead"
        )
    return float(values[0]), float(values[1])


def _checked_resolutions(resolutions: Sequence[int]) -> tuple[int, ...]:
    values = tuple(resolutions) if isinstance(resolutions, Sequence) else ()
    if not values or not all(isinstance(v, int) and v > 0 for v in values):
        raise LeanconvError(f"resolutions must be one or more whole numbers above 0, in pixels, got {resolutions!r}")
    return tuple(sorted(set(values), reverse=True))


def _example_size(model: nn.Module, side: int) -> tuple[int, ...]:
    first = next((module for module in model.modules() if isinstance(module, CONVOLUTIONS)), None)
    if first is None:
        raise RewriteError(f"{type(model).__name__} has no convolution: there is nothing to make elastic")
    if isinstance(first, nn.Conv3d):
        raise RewriteError(
            "a network of 3D convolutions needs example_size=(channels, frames, height, width): the number of frames "
            "cannot be guessed"
        )
    return (first.in_channels, *(side,) * len(first.kernel_size))
