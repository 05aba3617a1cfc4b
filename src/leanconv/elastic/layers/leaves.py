"""The elastic leaves: ordinary modules that run on the first channels of their own tensors.

    convolution   W[out][:, in]     grouped: W[out], whole groups dropped     linear   W[out][:, in]
    BatchNorm     gamma[c], beta[c]; statistics of the batch in training, of the calibrated bank in evaluation
    PReLU         a[c]

A leaf stays the object it was, with its parameters, hooks and names; only its class gains a parent in front. At the
largest width the original forward runs on the original tensors. Elsewhere it runs on a *view* of the leaf: an object of
the original class that shares everything but the sliced tensors and the channel counts. So subclasses keep what they do
(same-padding convolutions, standardised weights, BatchNorms with an activation inside).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.dryrun import running
from leanconv.elastic.active import ActiveConfig
from leanconv.elastic.slices import Axes, Channels, Layer, OtherLayer, Runs, cached
from leanconv.elastic.width import Config, Width
from leanconv.errors import NotCalibrated


class MadeClass(nn.Module):
    """A module whose class is made at run time of a parent of ours and `kind`, the class that it had."""

    kind: ClassVar[type[nn.Module]]
    prefix: ClassVar[str]

    # How copies make the class again.

    def __reduce__(self) -> Any:
        return _empty, (type(self).__mro__[1], self.kind), vars(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = made = _empty(type(self).__mro__[1], self.kind)
        if (layer := vars(self).get("elastic_layer")) is not None:
            memo[id(layer)] = layer  # plain data that nobody changes
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made


_CLASSES: dict[tuple[type[MadeClass], type[nn.Module]], Any] = {}


def made_class(base: type[MadeClass], kind: type[nn.Module]) -> Any:
    """The class with `base` in front of `kind`."""
    if (base, kind) not in _CLASSES:
        _CLASSES[base, kind] = type(f"{base.prefix}{kind.__name__}", (base, kind), {"kind": kind})
    return _CLASSES[base, kind]


def _empty(base: type[MadeClass], kind: type[nn.Module]) -> Any:
    return object.__new__(made_class(base, kind))


class Elastic(MadeClass):
    """The parent of all elastic modules; what it adds is under names that no module of somebody else's has."""

    prefix = "Elastic"
    elastic_config: ActiveConfig
    elastic_layer: Layer[Channels] | OtherLayer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward, on the channels of the configuration in force."""
        scope = self.elastic_config.scope
        if scope.whole:
            return super().forward(*args, **kwargs)
        return self.kind.forward(self.view(scope.width), *args, **kwargs)

    def view(self, width: Width) -> nn.Module:
        """The module at `width`, sharing what is not sliced."""
        view: nn.Module = object.__new__(self.kind)
        vars(view).update(vars(self))
        for name, counts in self.elastic_layer.attributes.items():  # numbers, and tuples with one
            wanted, value = counts.at(width), vars(self)[name]
            found = [wanted.get(place, number) for place, number in enumerate(counts.numbers)]
            vars(view)[name] = found[0] if isinstance(value, int) else type(value)(found)
        tensors = self.elastic_layer.tensors
        for held in ("_parameters", "_buffers"):
            vars(view)[held] = {
                name: pick_all(tensor, tensors[name], width) if name in tensors and tensor is not None else tensor
                for name, tensor in vars(self)[held].items()
            }
        if isinstance(self.elastic_layer, Layer) and self.elastic_layer.pieces:
            runs = tuple((before.count(width), part.count(width)) for before, part in self.elastic_layer.pieces)
            vars(view)["_buffers"]["index"] = index_tensor(runs, self.get_buffer("index").device)
        return view

    def cuts(self, width: Width) -> dict[str, tuple[Runs | None, ...]]:
        """Of every tensor that follows the width what is kept on each axis, None where that is all."""
        return {
            name: tuple(None if channels is None else channels.runs(width) for channels in axes)
            for name, axes in self.elastic_layer.tensors.items()
        }

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """An ordinary module that computes what this one does in `config`; it may share tensors with this one."""
        return self.view(config.width)


class ElasticBatchNorm(Elastic):
    """A BatchNorm whose affine part is shared by all widths and whose statistics belong to one configuration each.

    In training every configuration uses its own batch; only the largest also keeps the running statistics it always
    had. In evaluation that one uses them until it is calibrated; all others have only what a calibration stored, as
    buffers `mean_w05000_r160` and `var_w05000_r160` beside `running_mean`.
    """

    elastic_layer: Layer[Channels]
    running_mean: Tensor | None
    elastic_training_only: bool = False
    """Whether it runs in training and not in evaluation, as in a second head, so that nobody needs its statistics."""
    elastic_untrained_at_full_width: bool = False
    """Whether the weights were widened and never trained since: running statistics are not those of images."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward, with the statistics of the configuration in force."""
        config = self.elastic_config.config
        if config == self.elastic_config.largest and (self.training or not self.has(config)):
            if self.training:
                self.elastic_untrained_at_full_width = False
            if self.can_evaluate(config):
                return super(Elastic, self).forward(*args, **kwargs)
        view = self.view(config.width)
        if self.training:
            vars(view).update(track_running_stats=False, _buffers=dict.fromkeys(self._buffers))
        elif self.remembers:
            use_statistics(view, *self.statistics(config))
        return self.kind.forward(view, *args, **kwargs)

    @property
    def remembers(self) -> bool:
        """Whether evaluation needs statistics at all (`track_running_stats`)."""
        return self.running_mean is not None

    @property
    def measured(self) -> bool:
        """Whether every configuration needs statistics of its own."""
        return self.remembers and not self.elastic_training_only

    @property
    def calibrated(self) -> tuple[Config, ...]:
        """The calibrated configurations, from large to small."""
        found = (Config.from_tag(name[5:]) for name in self._buffers if name.startswith("mean_w"))
        return tuple(sorted(found, key=lambda c: (c.frames or 0, c.resolution, c.width), reverse=True))

    def has(self, config: Config) -> bool:
        """Whether `config` was calibrated."""
        return f"mean_{config.tag}" in self._buffers

    def can_evaluate(self, config: Config) -> bool:
        """Whether `config` was calibrated, or is the network as it was."""
        native = config == self.elastic_config.largest and not self.elastic_untrained_at_full_width
        return not self.remembers or native or self.has(config)

    def store(self, config: Config, mean: Tensor, var: Tensor) -> None:
        """Keep the statistics that a calibration measured, each of the channels kept at that width."""
        self.register_buffer(f"mean_{config.tag}", mean)
        self.register_buffer(f"var_{config.tag}", var)

    def drop_calibrations(self) -> None:
        """Drop everything that calibrations stored."""
        for config in self.calibrated:
            del self._buffers[f"mean_{config.tag}"], self._buffers[f"var_{config.tag}"]

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """An ordinary BatchNorm; with `calibrated` off, one that was never measured has mean 0 and variance 1."""
        view = self.view(config.width)
        if self.remembers:
            measured = (calibrated and self.measured) or self.can_evaluate(config)
            use_statistics(view, *(self.statistics(config) if measured else self.fresh_statistics(config)))
            view._buffers["num_batches_tracked"] = self._buffers["num_batches_tracked"]
        return view

    def statistics(self, config: Config) -> Sequence[Tensor]:
        """Mean and variance of `config`. Raises `NotCalibrated` where there are none."""
        if self.has(config):
            names = f"mean_{config.tag}", f"var_{config.tag}"
        elif self.can_evaluate(config) or running():  # in a dry run there are no values, and any will do
            names = "running_mean", "running_var"
        else:
            known = ", ".join(map(str, self.calibrated[:6])) + (", ..." if len(self.calibrated) > 6 else "")
            raise NotCalibrated(
                f"configuration {config} (width-resolution) has no BatchNorm statistics (calibrated: "
                f"{known or 'none'}), and those of another configuration would give wrong answers: call "
                f"calibrate(net, loader, [{tuple(config)}]) first"
            )
        kept = self.elastic_layer.outputs.count(config.width)
        return [self.get_buffer(name).narrow(0, 0, kept) for name in names]

    def fresh_statistics(self, config: Config) -> tuple[Tensor, Tensor]:
        """Mean 0 and variance 1 for every channel that is kept in `config`."""
        assert self.running_mean is not None
        kept = self.elastic_layer.outputs.count(config.width)
        return self.running_mean.new_zeros(kept), self.running_mean.new_ones(kept)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The bank is a part of the state: what was calibrated before goes, what comes gets its place. Statistics of
        # the old weights would be wrong for the new ones.
        self.drop_calibrations()
        for name in state_dict:
            if name.startswith(f"{prefix}mean_w"):
                config = Config.from_tag(name.removeprefix(f"{prefix}mean_"))
                self.store(config, *self.fresh_statistics(config))
        super()._load_from_state_dict(state_dict, prefix, *args)


def use_statistics(view: nn.Module, mean: Tensor, var: Tensor) -> None:
    """Give the view of a BatchNorm these statistics and no others."""
    vars(view)["_buffers"] = {"running_mean": mean, "running_var": var, "num_batches_tracked": None}


def pick_all(tensor: Tensor, axes: Axes[Channels], width: Width) -> Tensor:
    """The kept channels along every axis."""
    for dim, channels in enumerate(axes):
        if channels is not None:
            tensor = pick(tensor, dim, channels.runs(width))
    return tensor


def pick(tensor: Tensor, dim: int, runs: Runs) -> Tensor:
    """The runs along `dim`: the tensor itself, a view of neighbours, or a gather."""
    if len(runs) > 1:
        return tensor.index_select(dim, index_tensor(runs, tensor.device))
    start, length = runs[0]
    return tensor if length == tensor.shape[dim] else tensor.narrow(dim, start, length)


_INDICES: dict[tuple[Runs, torch.device], Tensor] = {}


def index_tensor(runs: Runs, device: torch.device) -> Tensor:
    """The numbers of the runs as a tensor; remembered, because every layer behind the same concatenation asks."""
    index = cached(_INDICES, (runs, device), lambda: torch.tensor(numbers(runs), device=device))
    if type(index) is not Tensor:  # a fake one, of a dry run
        _INDICES.pop((runs, device), None)
    return index


def numbers(runs: Runs) -> tuple[int, ...]:
    """The channels of the runs, one by one."""
    return tuple(i for start, length in runs for i in range(start, start + length))


def make_class_elastic(
    module: nn.Module, layer: Layer[Channels] | OtherLayer, active: ActiveConfig, base: type[Elastic] | None = None
) -> Elastic:
    """Turn an ordinary module into an elastic one, in place: its identity, parameters, hooks and names stay."""
    base = base or (ElasticBatchNorm if isinstance(module, _BatchNorm) else Elastic)
    module.__class__ = made_class(base, type(module))
    assert isinstance(module, Elastic)
    vars(module).update(elastic_config=active, elastic_layer=layer)
    return module
