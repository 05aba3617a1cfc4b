"""The elastic leaves: ordinary layers that run on the first channels of their own weights.

    convolution   W[out][:, in]     grouped: W[out], whole groups dropped     linear   W[out][:, in]
    BatchNorm     gamma[c], beta[c]; statistics of the batch in training, of the calibrated bank in evaluation
    PReLU         a[c]

A leaf stays the object it was, with its parameters, hooks and names; only its class gains a parent in front. At width 1
the original forward runs on the original tensors. Elsewhere the original forward runs on a *view* of the leaf: an
object of the original class that shares everything but the sliced tensors and the channel counts. So subclasses keep
what they do (same-padding convolutions, standardised weights, BatchNorms with an activation inside).
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from leanconv.dryrun import running
from leanconv.elastic.coupling.find import Layer
from leanconv.elastic.coupling.modules import CONVOLUTIONS, TRANSPOSED
from leanconv.elastic.slices import Channels, Runs
from leanconv.elastic.width import Config, Dial
from leanconv.errors import NotCalibrated, RewriteError

__all__ = [
    "Axes",
    "Elastic",
    "ElasticBatchNorm",
    "ElasticConv",
    "ElasticConvTranspose",
    "ElasticInstanceNorm",
    "ElasticLinear",
    "ElasticPReLU",
    "become",
    "index_tensor",
    "make_leaf",
    "pick",
    "pick_all",
]

BANK = ("mean_", "var_")

Axes = tuple[Channels | None, ...]
"""The channels on each axis of a tensor; None is never sliced."""


class Elastic(nn.Module):
    """The parent of all elastic leaves; `kind` is the class that the leaf had and that its views have.

    `slices` names the parameters and buffers that follow the width, with the channels on their axes.
    """

    kind: ClassVar[type[nn.Module]]
    counts: ClassVar[tuple[str, str]]
    """The attributes that hold the numbers of input and output channels."""
    dial: Dial
    slices: dict[str, Axes]
    inputs: Channels
    outputs: Channels

    def adopt(self, layer: Layer) -> None:
        """Take over what the trace has found."""
        self.inputs, self.outputs = layer.inputs, layer.outputs
        self.slices = {name: self._axes(name, p) for name, p in self._parameters.items() if p is not None}

    def _axes(self, name: str, parameter: Tensor) -> Axes:
        """The channels on each axis of a parameter: by default one number per output channel."""
        return (self.outputs if parameter.numel() > 1 else None, *(None,) * (parameter.ndim - 1))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward, on the channels that the dial asks for."""
        if self.dial.whole:
            return super().forward(*args, **kwargs)
        return self.kind.forward(self.view(self.dial.width), *args, **kwargs)

    def view(self, width: float) -> nn.Module:
        """The leaf at `width`, sharing what is not sliced."""
        view: nn.Module = object.__new__(self.kind)
        vars(view).update(vars(self))
        vars(view).update(self._attributes_at(width))
        slices = self.slices
        vars(view)["_parameters"] = {
            name: pick_all(p, slices[name], width) if name in slices else p for name, p in self._parameters.items()
        }
        return view

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """An ordinary layer with tensors of its own that computes what this one does in `config`."""
        return self._own(self.view(config.width))

    def _attributes_at(self, width: float) -> dict[str, Any]:
        into, out = self.counts
        return {into: self.inputs.count(width), out: self.outputs.count(width)}

    def _own(self, view: nn.Module) -> nn.Module:
        """Cut a view loose: its tensors become copies, and nothing elastic is left."""
        for name in ("dial", "slices", "inputs", "outputs", "columns", "per_group"):
            vars(view).pop(name, None)
        for name, sliced in view._parameters.items():
            original = self._parameters[name]
            if sliced is not None and original is not None:
                view._parameters[name] = nn.Parameter(
                    sliced.detach().clone(memory_format=torch.contiguous_format), original.requires_grad
                )
        vars(view)["_buffers"] = {name: b if b is None else b.clone() for name, b in view._buffers.items()}
        vars(view)["_modules"] = dict(view._modules)
        return view

    # The class is made at run time, so copies are told how to make it again.

    def __reduce__(self) -> Any:
        return _blank, (type(self).__mro__[1], self.kind), vars(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Elastic:
        made = _blank(type(self).__mro__[1], self.kind)
        memo[id(self)] = made
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made


class ElasticConv(Elastic):
    """A convolution of ordinary, grouped or depthwise kind."""

    counts = ("in_channels", "out_channels")
    in_channels: int
    groups: int
    columns: Channels | None
    """What a group reads, where groups stay and shrink inside; None where whole groups are dropped."""
    per_group: int

    def adopt(self, layer: Layer) -> None:
        """Take over what the trace has found."""
        self.per_group = self.in_channels // self.groups
        self.columns = layer.inputs if self.groups == 1 else layer.columns
        super().adopt(layer)

    def _axes(self, name: str, parameter: Tensor) -> Axes:
        axes = super()._axes(name, parameter)
        return (self.outputs, self.columns, *axes[2:]) if name == "weight" else axes

    def _attributes_at(self, width: float) -> dict[str, Any]:
        attributes = super()._attributes_at(width)
        if self.columns is None:
            attributes["groups"] = attributes["in_channels"] // self.per_group
        return attributes


class ElasticConvTranspose(ElasticConv):
    """A transposed convolution, whose weight has its input channels first."""

    def _axes(self, name: str, parameter: Tensor) -> Axes:
        if name != "weight":
            return super()._axes(name, parameter)
        return (self.inputs, self.outputs if self.groups == 1 else None, *(None,) * (parameter.ndim - 2))


class ElasticLinear(Elastic):
    """A linear layer."""

    counts = ("in_features", "out_features")

    def _axes(self, name: str, parameter: Tensor) -> Axes:
        return (self.outputs, self.inputs) if name == "weight" else super()._axes(name, parameter)


class ElasticPReLU(Elastic):
    """A PReLU with a slope per channel."""

    counts = ("num_parameters", "num_parameters")


class ElasticInstanceNorm(Elastic):
    """An InstanceNorm, which has no statistics but those of its input."""

    counts = ("num_features", "num_features")


class ElasticBatchNorm(Elastic):
    """A BatchNorm whose affine part is shared by all widths and whose statistics belong to one configuration each.

    In training every configuration uses its own batch; only the full network at the native resolution also keeps the
    running statistics it always had. In evaluation that one uses them until it is calibrated; all others have only
    what a calibration stored, as buffers `mean_w05000_r160` and `var_w05000_r160` beside `running_mean`.
    """

    counts = ("num_features", "num_features")
    running_mean: Tensor | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward, with the statistics of the configuration in force."""
        dial = self.dial
        if dial.probing:
            return self._probed(*args, **kwargs)
        if dial.statistics is None and dial.full and (self.training or not self.has(dial.config)):
            if self.training:
                dial.blank = False
            if self.knows(dial.config):
                return super(Elastic, self).forward(*args, **kwargs)
        return self.kind.forward(self.view(dial.width), *args, **kwargs)

    def _probed(self, x: Tensor) -> Tensor:
        if x.shape[1] != (expected := self.outputs.count(self.dial.width)):
            raise RewriteError(f"expected {expected} channels, got {x.shape[1]}")
        return x

    @property
    def remembers(self) -> bool:
        """Whether evaluation needs statistics at all (`track_running_stats`)."""
        return self.running_mean is not None

    @property
    def banked(self) -> tuple[Config, ...]:
        """The calibrated configurations, from large to small."""
        found = (Config.from_tag(name[5:]) for name in self._buffers if name.startswith("mean_w"))
        return tuple(sorted(found, key=lambda c: (c.frames or 0, c.resolution, c.width), reverse=True))

    def has(self, config: Config) -> bool:
        """Whether `config` was calibrated."""
        return f"mean_{config.tag}" in self._buffers

    def store(self, config: Config, mean: Tensor, var: Tensor) -> None:
        """Keep the statistics that a calibration measured, each of the channels kept at that width."""
        self.register_buffer(f"mean_{config.tag}", mean)
        self.register_buffer(f"var_{config.tag}", var)

    def forget(self) -> None:
        """Drop everything that calibrations stored."""
        for name in [name for name in self._buffers if name.startswith(BANK)]:
            delattr(self, name)

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """An ordinary BatchNorm; with `calibrated` off, one that was never measured has mean 0 and variance 1."""
        view = super().view(config.width)
        buffers = {name: b for name, b in self._buffers.items() if not name.startswith(BANK)}
        if self.remembers:
            if calibrated or self.knows(config):
                mean, var = self._statistics(config)
            else:
                mean, var = (self.filled(config, value) for value in (0.0, 1.0))
            buffers.update(running_mean=mean, running_var=var)
        vars(view)["_buffers"] = buffers
        return self._own(view)

    def view(self, width: float) -> nn.Module:
        """The leaf at `width`; in training, and while statistics are collected, it remembers nothing itself."""
        view = super().view(width)
        dial = self.dial
        buffers: dict[str, Tensor | None] = dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"))
        if not self.remembers:
            pass
        elif dial.statistics is not None:
            buffers["running_mean"], buffers["running_var"] = dial.statistics.of(self)
            vars(view).update(training=True, momentum=dial.statistics.momentum)
            if isinstance(self, nn.SyncBatchNorm):
                # It counts its batches, always; and it must not wait for the others here, who may have fewer batches:
                # calibration brings the statistics of all processes together itself.
                buffers["num_batches_tracked"] = torch.zeros((), dtype=torch.long)
                if distributed.is_available():
                    vars(view)["process_group"] = distributed.GroupMember.NON_GROUP_MEMBER
        elif self.training:
            vars(view).update(track_running_stats=False)
        else:
            buffers["running_mean"], buffers["running_var"] = self._statistics(dial.config)
        vars(view)["_buffers"] = buffers
        return view

    def knows(self, config: Config) -> bool:
        """Whether `config` can be evaluated: it was calibrated, or it is the network as it was."""
        return not self.remembers or self.has(config) or (config == self.dial.largest and not self.dial.blank)

    def _statistics(self, config: Config) -> tuple[Tensor | None, Tensor | None]:
        if self.has(config):
            return self._buffers[f"mean_{config.tag}"], self._buffers[f"var_{config.tag}"]
        if self.knows(config):
            return self._buffers["running_mean"], self._buffers["running_var"]
        if running():  # without values, any statistics of that many channels will do
            mean, var = (self._buffers[name] for name in ("running_mean", "running_var"))
            kept = slice(self.outputs.count(config.width))
            return None if mean is None else mean[kept], None if var is None else var[kept]
        known = ", ".join(map(str, self.banked[:6])) + (", ..." if len(self.banked) > 6 else "")
        raise NotCalibrated(
            f"configuration {config} (width-resolution) has no BatchNorm statistics (calibrated: {known or 'none'}), "
            "and those of another configuration would give wrong answers: call "
            f"calibrate(net, loader, [({', '.join(f'{part:g}' for part in config)})]) first"
        )

    def filled(self, config: Config, value: float) -> Tensor:
        """A tensor with one `value` per channel that is kept in `config`."""
        assert self.running_mean is not None
        return torch.full_like(self.running_mean[: self.outputs.count(config.width)], value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The bank is a part of the state: what was calibrated before goes, what comes gets its place. Statistics of
        # the old weights would be wrong for the new ones.
        self.forget()
        for name in list(state_dict):
            if name.startswith(prefix) and name[len(prefix) :].startswith(("mean_w", "var_w")):
                tag = name[len(prefix) :].split("_", 1)[1]
                self.register_buffer(name[len(prefix) :], self.filled(Config.from_tag(tag), 0.0))
        super()._load_from_state_dict(state_dict, prefix, *args)


def pick_all(tensor: Tensor | None, axes: Axes, width: float) -> Any:
    for dim, channels in enumerate(axes):
        if channels is not None:
            tensor = _pick(tensor, dim, channels, width)
    return tensor


def _pick(tensor: Tensor | None, dim: int, channels: Channels, width: float) -> Any:
    return None if tensor is None else pick(tensor, dim, channels.runs(width))


def pick(tensor: Tensor, dim: int, runs: Runs) -> Tensor:
    """The runs along `dim`: the tensor itself, a view of neighbours, or a gather."""
    if len(runs) > 1:
        return tensor.index_select(dim, index_tensor(runs, tensor.device))
    start, length = runs[0]
    return tensor if length == tensor.shape[dim] else tensor.narrow(dim, start, length)


def index_tensor(runs: Runs, device: torch.device) -> Tensor:
    """The numbers of the runs as a tensor; remembered, because every layer behind the same concatenation asks."""
    found = _INDICES.get((runs, device))
    if found is None:
        found = torch.tensor([i for start, length in runs for i in range(start, start + length)], device=device)
        if type(found) is Tensor:  # not while the network is traced with fake tensors
            if len(_INDICES) >= 1024:
                _INDICES.clear()
            _INDICES[runs, device] = found
    return found


_INDICES: dict[tuple[Runs, torch.device], Tensor] = {}


_CLASSES: dict[tuple[Any, Any], type[Elastic]] = {}


def _leaf_class(base: type[Elastic], kind: type[nn.Module]) -> type[Elastic]:
    if (base, kind) not in _CLASSES:
        _CLASSES[base, kind] = type(f"Elastic{kind.__name__}", (base, kind), {"kind": kind})
    return _CLASSES[base, kind]


def _blank(base: type[Elastic], kind: type[nn.Module]) -> Elastic:
    blank: Elastic = object.__new__(_leaf_class(base, kind))
    return blank


def become(module: nn.Module, base: type[Elastic], dial: Dial) -> Elastic:
    """Turn an ordinary module into an elastic one, in place: its identity, parameters, hooks and names stay."""
    kind = type(module)
    module.__class__ = _leaf_class(base, kind)
    assert isinstance(module, Elastic)
    module.dial = dial
    return module


def make_leaf(module: nn.Module, layer: Layer, dial: Dial) -> None:
    """Turn an ordinary layer into an elastic one, in place."""
    bases: tuple[tuple[Any, type[Elastic]], ...] = (
        (CONVOLUTIONS, ElasticConv),
        (TRANSPOSED, ElasticConvTranspose),
        (nn.Linear, ElasticLinear),
        (_BatchNorm, ElasticBatchNorm),
        (_InstanceNorm, ElasticInstanceNorm),
        (nn.PReLU, ElasticPReLU),
    )
    base = next((base for kinds, base in bases if isinstance(module, kinds)), None)
    if base is None:
        raise RewriteError(f"{type(module).__name__} is no layer that can be made elastic")
    become(module, base, dial).adopt(layer)
