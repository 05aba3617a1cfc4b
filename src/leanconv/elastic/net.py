"""`ElasticNet`: one set of weights that runs at any width and input resolution; made by `make_elastic`.

The width is a value that all layers read (`active.ActiveConfig`), set in a scope; what resolution and frames make of an
input is in `inputs`. Nothing is copied to change the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.data.contract import for_size
from leanconv.dryrun import Sizes, as_written, check_sizes, duplicate
from leanconv.elastic.active import ActiveConfig, Scope
from leanconv.elastic.backward import begin_forward, begin_scope, end_scope, recall_in_backward
from leanconv.elastic.inputs import Inputs
from leanconv.elastic.layers.leaves import Elastic, ElasticBatchNorm
from leanconv.elastic.width import Config, Width
from leanconv.errors import LeanconvError, NotCalibrated
from leanconv.ops.chain import ConvChain
from leanconv.story import Story, remember, story_of

__all__ = ["ElasticNet"]


class ElasticNet(nn.Module):
    """A network whose layers follow the configuration in force, N(W_{0:w}, I_{R=r}) of the paper.

    Outside `at` it is the full network on the input as it is. In evaluation every configuration needs BatchNorm
    statistics of its own (`calibrate`), or it raises `NotCalibrated`; the largest has those of the original model.

    Attributes:
        model: the network, whose leaves are elastic; its parameters have their original names.
        widths: the smallest and the largest width.
        resolutions: sides of the input in pixels, descending; the first is the native one. Where the sides of the
            native input differ, the side that is the native resolution; the other changes in step.
        frames: of the clip, descending, the first native; empty for images and where the frames are as they come.
        kept: layers that have all their channels at every width, with the reason.
        of_caller: in a replica of DataParallel's, the scope of whoever called it.
    """

    of_caller: Scope | None = None

    def __init__(
        self, model: nn.Module, active: ActiveConfig, settings: Mapping[str, Any], kept: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.active = active
        self.settings = dict(settings)
        self.widths: tuple[float, float] = tuple(settings["widths"])
        self.resolutions: tuple[int, ...] = tuple(settings["resolutions"])
        self.frames: tuple[int, ...] = tuple(settings.get("frames", ()))
        self.kept = dict(kept or {})
        # In evaluation torch runs these at once, from the weights of the layers inside and past their forwards.
        self._fusing = any(isinstance(m, (nn.MultiheadAttention, nn.TransformerEncoderLayer)) for m in model.modules())
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(b, channels, *size) to whatever the model returns, in the configuration in force."""
        begin_forward(self.active)
        scope = self.active.scope
        if self.of_caller is not None and scope is self.active.full:
            return self._forward_as_caller(self.of_caller, x, *args, **kwargs)
        if self.training:
            self._begin_training()
        with as_written() if self._fusing and not scope.whole else nullcontext():
            outputs = self.model(*self.fitted((x, *args), *scope.input), **kwargs)
        recall_in_backward(self.active, outputs)
        return outputs

    def fitted(self, inputs: tuple[Any, ...], resolution: int | None, frames: int | None) -> tuple[Any, ...]:
        """The arguments of a forward brought to a resolution and a number of frames, as they are where these are None.

        A subclass whose network resizes its inputs itself gives them as they are.
        """
        return self.inputs.fitted(inputs, resolution, frames)

    def _forward_as_caller(self, scope: Scope, *args: Any, **kwargs: Any) -> Any:
        """The forward in the scope of whoever called DataParallel, in a thread that has none."""
        entered = self.active.enter(scope.config, *scope.input)
        try:
            return self(*args, **kwargs)
        finally:
            self.active.leave(entered)

    def _replicate_for_data_parallel(self) -> ElasticNet:
        """What DataParallel runs in a thread of its own: in the configuration that is in force here."""
        replica: ElasticNet = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        scope = self.active.scope
        vars(replica)["of_caller"] = None if scope is self.active.full else scope
        return replica

    def _begin_training(self) -> None:
        """Drop what calibrations measured: weights are about to change. Frozen norms keep theirs, and need them."""
        config, norms = self.active.config, self.norms
        if any(norm.training for norm in norms):
            self.drop_calibrations()
        frozen = next((norm for norm in norms if not norm.training and not norm.can_evaluate(config)), None)
        if frozen is not None:
            name = next(name for name, module in self.model.named_modules() if module is frozen)
            raise NotCalibrated(
                f"{name}: this norm is frozen (in evaluation mode while the network trains), and {config!r} has no "
                "statistics to freeze: calibrate what is to be trained and freeze every norm of the network, or let it "
                "train"
            )

    @contextmanager
    def at(
        self, width: float | None = None, resolution: int | None = None, frames: int | None = None
    ) -> Iterator[ElasticNet]:
        """Run in another configuration within the scope; None for `width` is the largest, for the others as it comes.

        The scope belongs to the thread and the task that enters it (see `elastic.active`). An input left as it comes
        uses the BatchNorm statistics of the native resolution and frames.
        Raises `LeanconvError` for a configuration that this network does not have.
        """
        config = self.checked(width, resolution, frames)
        scope = self.active.enter(config, resolution, frames)
        recalled = begin_scope(self.active, scope)
        try:
            yield self
        finally:
            end_scope(self.active, recalled)
            self.active.leave(scope)

    def checked(self, width: float | None = None, resolution: int | None = None, frames: int | None = None) -> Config:
        """That configuration, the largest where it is None, or `LeanconvError` where the network has no such."""
        low, high = self.widths
        width = high if width is None else width
        if not isinstance(width, (int, float)) or not low <= width <= high:
            raise LeanconvError(
                f"width must be between {low:g} and {high:g}, the range this network was made for, got {width!r}: its "
                "layers were never meant to run there; make it elastic with other widths="
            )
        if isinstance(width, Width) and width.drawn and not low <= width.drawn[0] <= width.drawn[1] <= high:
            raise LeanconvError(f"{width!r} reaches beyond the widths {low:g} to {high:g} of this network")
        if frames is not None and not self.frames:
            raise LeanconvError(f"this network's frames are not elastic, got {frames=!r}: make it elastic with frames=")
        for name, value, known in (("resolution", resolution, self.resolutions), ("frames", frames, self.frames)):
            if value is not None and value not in known:
                raise LeanconvError(
                    f"{name} must be one of {', '.join(map(str, known))}, those this network was made for, got "
                    f"{value!r}; make it elastic with others"
                )
        native = self.active.largest
        return Config(width, native.resolution if resolution is None else resolution, frames or native.frames)

    def configurations(self, step: float = 0.05) -> tuple[Config, ...]:
        """The paper's grid: widths from the largest down by `step`, each at every resolution and number of frames.

        Raises `LeanconvError` for a step that is not positive.
        """
        if not step > 0:
            raise LeanconvError(f"step must be above 0, got {step!r}")
        low, high = self.widths
        between = (round(high - i * step, 4) for i in range(1, int((high - low) / step) + 1))
        widths = list(dict.fromkeys((high, *(width for width in between if width > low + 1e-4), low)))
        return tuple(
            Config(width, resolution, frames)
            for frames in self.frames or (None,)
            for resolution in self.resolutions
            for width in widths
        )

    @property
    def default_input_size(self) -> Sizes:
        """The input in the native configuration, or the inputs, without the batch axis."""
        return check_sizes(self.settings["size"])

    @property
    def inputs(self) -> Inputs:
        """The inputs of this network in every configuration."""
        return Inputs(self.default_input_size, self.resolutions[0])

    @property
    def norms(self) -> tuple[ElasticBatchNorm, ...]:
        """Every BatchNorm that needs statistics for each configuration."""
        return tuple(m for m in self.model.modules() if isinstance(m, ElasticBatchNorm) and m.measured)

    @property
    def calibrated(self) -> tuple[Config, ...]:
        """The configurations whose statistics `calibrate` measured; empty for a network without BatchNorm."""
        norms = self.norms
        return tuple(config for config in norms[0].calibrated if all(n.has(config) for n in norms)) if norms else ()

    def can_evaluate(self, width: float, resolution: int | None = None, frames: int | None = None) -> bool:
        """Whether evaluation in that configuration has the statistics it needs."""
        config = self.checked(width, resolution, frames)
        return all(norm.can_evaluate(config) for norm in self.norms)

    def drop_calibrations(self) -> None:
        """Drop all statistics that `calibrate` measured."""
        norms = (m for m in self.model.modules() if isinstance(m, ElasticBatchNorm) and m.measured)
        first = next(norms, None)
        if first is not None and first.calibrated:  # a calibration concerns all norms or none
            for norm in self.norms:
                norm.drop_calibrations()
            self.update_story()

    def update_story(self) -> None:
        """Bring the last step of the story, the calibrated configurations, up to date."""
        story = story_of(self) or Story()
        story = replace(story, steps=tuple(step for step in story.steps if "calibrated" not in step[1]))
        if self.calibrated:
            configs = [[float(width), *others] for width, *others in self.calibrated]
            story = story.then("elastic", {"calibrated": configs})
        remember(self, story)

    def extract(
        self,
        width: float | None = None,
        resolution: int | None = None,
        frames: int | None = None,
        *,
        calibrated: bool = True,
    ) -> nn.Module:
        """The network at `width` (None: the largest) built of plain modules that own their tensors.

        For export, folding and honest timing. `resolution` and `frames` (None: the native ones) pick the BatchNorm
        statistics; the result resizes nothing, and its input contract is for that size. With `calibrated=False` a
        configuration that was never measured gets mean 0 and variance 1: good for counting and timing, not for answers.
        The training mode is kept. A module whose own code holds channel counts keeps its class under a parent that
        replaces them.

        Raises `NotCalibrated` where statistics are missing, `LeanconvError` for a configuration the network does not
        have.

        >>> from leanconv.elastic import make_elastic
        >>> net = make_elastic(nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 1)), resolutions=(32,))
        >>> net.extract(width=0.5)
        Sequential(
          (0): Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1))
          (1): Conv2d(16, 8, kernel_size=(1, 1), stride=(1, 1))
        )
        """
        config = self.checked(width, resolution, frames)
        static = duplicate(self.model, share_tensors=True)
        owned: dict[Any, nn.Parameter] = {}  # a weight that two layers share is one in the end, too
        for module in reversed(list(static.modules())):  # children before their parents
            whole = dict(module._parameters)
            cuts = module.cuts(config.width) if isinstance(module, Elastic) else {}
            if isinstance(module, Elastic):
                with torch.enable_grad():  # a slice then requires gradients if the whole does
                    plain = module.plain(config, calibrated=calibrated)
                held = {name: value for name, value in vars(plain).items() if not name.startswith("elastic_")}
                vars(module).clear()
                vars(module).update(held)
                module.__class__ = type(plain)  # type: ignore[assignment]
                if "forward" in held:  # chosen when the module was made
                    vars(module)["forward"] = getattr(module, held["forward"].__name__)
            elif isinstance(module, ConvChain) and not module.fits_plan:
                module.__class__ = nn.Sequential  # type: ignore[assignment]  # its plan is that of the full network
                for name in vars(module).keys() - vars(nn.Sequential()).keys():
                    del vars(module)[name]
            for name, p in module._parameters.items():
                if p is not None:
                    old = whole.get(name)
                    key = (id(p), None) if old is None or p.shape == old.shape else (id(old), cuts.get(name))
                    if key not in owned:
                        owned[key] = nn.Parameter(p.detach().clone(), p.requires_grad)
                    module._parameters[name] = owned[key]
            for name, b in module._buffers.items():
                module._buffers[name] = b if b is None else b.clone()
        settings = {"width": float(config.width), "resolution": config.resolution}
        settings |= {} if config.frames is None else {"frames": config.frames}
        story = (story_of(self) or Story()).then("elastic", {"extract": settings})
        remember(static, for_size(story, self.inputs.at(config)))
        return static

    def extra_repr(self) -> str:
        """Widths, resolutions and frames."""
        frames = f", frames={self.frames}" if self.frames else ""
        return f"widths={self.widths}, resolutions={self.resolutions}{frames}"


def _loaded(net: nn.Module, _: Any) -> None:
    """After loading a state dict, which brings calibrations or takes them away."""
    assert isinstance(net, ElasticNet)
    for norm in net.norms:
        seen = norm._buffers.get("num_batches_tracked")
        norm.elastic_untrained_at_full_width = net.widths[1] > 1 and seen is not None and not int(seen)
    net.update_story()
