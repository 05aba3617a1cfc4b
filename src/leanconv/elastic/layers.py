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

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.elastic.channels import Channels
from leanconv.elastic.trace import Layer
from leanconv.elastic.width import Config, Dial
from leanconv.errors import NotCalibrated, RewriteError

__all__ = ["Elastic", "ElasticBatchNorm", "ElasticConv", "ElasticLinear", "ElasticPReLU", "make_leaf"]

BANK = ("mean_", "var_")


class Elastic(nn.Module):
    """The parent of all elastic leaves; `kind` is the class that the leaf had and that its views have."""

    kind: ClassVar[type[nn.Module]]
    counts: ClassVar[tuple[str, str]]
    """The attributes that hold the numbers of input and output channels."""
    dial: Dial
    inputs: Channels
    outputs: Channels

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward, on the channels that the dial asks for."""
        width = self.dial.width
        if width == 1.0:
            return super().forward(*args, **kwargs)
        return self.kind.forward(self.view(width), *args, **kwargs)

    def view(self, width: float) -> nn.Module:
        """The leaf at `width`, sharing what is not sliced."""
        return self._like(self._parameters_at(width), self._attributes_at(width))

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """An ordinary layer with tensors of its own that computes what this one does in `config`."""
        return self._own(self.view(config.width))

    def _parameters_at(self, width: float) -> dict[str, Tensor | None]:
        raise NotImplementedError

    def _attributes_at(self, width: float) -> dict[str, Any]:
        into, out = self.counts
        return {into: self.inputs.count(width), out: self.outputs.count(width)}

    def _like(self, parameters: dict[str, Tensor | None], attributes: dict[str, Any]) -> nn.Module:
        view: nn.Module = object.__new__(self.kind)
        vars(view).update(vars(self))
        vars(view).update(attributes, _parameters=parameters)
        return view

    def _own(self, view: nn.Module) -> nn.Module:
        """Cut a view loose: its parameters become copies, and nothing elastic is left."""
        for name in ("dial", "inputs", "outputs"):
            del vars(view)[name]
        for name, sliced in view._parameters.items():
            original = self._parameters[name]
            if sliced is not None and original is not None:
                view._parameters[name] = nn.Parameter(
                    sliced.detach().clone(memory_format=torch.contiguous_format), original.requires_grad
                )
        vars(view)["_buffers"] = {name: b if b is None else b.clone() for name, b in view._buffers.items()}
        vars(view)["_modules"] = dict(view._modules)
        return view

    def __reduce__(self) -> Any:
        # The class is made at run time, so pickle and deepcopy are told how to make it again.
        return _blank, (type(self).__mro__[1], self.kind), vars(self)


class ElasticConv(Elastic):
    """A convolution of ordinary, grouped or depthwise kind."""

    counts = ("in_channels", "out_channels")
    in_channels: int
    groups: int

    def _parameters_at(self, width: float) -> dict[str, Tensor | None]:
        weight = _pick(self._parameters["weight"], 0, self.outputs, width)
        if self.groups == 1:
            weight = _pick(weight, 1, self.inputs, width)
        return {"weight": weight, "bias": _pick(self._parameters.get("bias"), 0, self.outputs, width)}

    def _attributes_at(self, width: float) -> dict[str, Any]:
        attributes = super()._attributes_at(width)
        if self.groups > 1:
            attributes["groups"] = attributes["in_channels"] * self.groups // self.in_channels
        return attributes


class ElasticLinear(Elastic):
    """A linear layer."""

    counts = ("in_features", "out_features")

    def _parameters_at(self, width: float) -> dict[str, Tensor | None]:
        weight = _pick(_pick(self._parameters["weight"], 0, self.outputs, width), 1, self.inputs, width)
        return {"weight": weight, "bias": _pick(self._parameters.get("bias"), 0, self.outputs, width)}


class ElasticPReLU(Elastic):
    """A PReLU with a slope per channel."""

    counts = ("num_parameters", "num_parameters")

    def _parameters_at(self, width: float) -> dict[str, Tensor | None]:
        return {"weight": _pick(self._parameters["weight"], 0, self.outputs, width)}


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
        return tuple(sorted(found, key=lambda config: (config.resolution, config.width), reverse=True))

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
        view = self._like(self._parameters_at(config.width), self._attributes_at(config.width))
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
        elif self.training:
            vars(view).update(track_running_stats=False)
        else:
            buffers["running_mean"], buffers["running_var"] = self._statistics(dial.config)
        vars(view)["_buffers"] = buffers
        return view

    def knows(self, config: Config) -> bool:
        """Whether `config` can be evaluated: it was calibrated, or it is the network as it was."""
        return self.has(config) or config == (1.0, self.dial.native) or not self.remembers

    def _statistics(self, config: Config) -> tuple[Tensor | None, Tensor | None]:
        if self.has(config):
            return self._buffers[f"mean_{config.tag}"], self._buffers[f"var_{config.tag}"]
        if self.knows(config):
            return self._buffers["running_mean"], self._buffers["running_var"]
        known = ", ".join(map(str, self.banked[:6])) + (", ..." if len(self.banked) > 6 else "")
        raise NotCalibrated(
            f"configuration {config} (width-resolution) has no BatchNorm statistics (calibrated: {known or 'none'}), "
            "and those of another configuration would give wrong answers: call "
            f"calibrate(net, loader, [({config.width:g}, {config.resolution})]) first"
        )

    def filled(self, config: Config, value: float) -> Tensor:
        """A tensor with one `value` per channel that is kept in `config`."""
        assert self.running_mean is not None
        return torch.full_like(self.running_mean[: self.outputs.count(config.width)], value)

    def _parameters_at(self, width: float) -> dict[str, Tensor | None]:
        return {name: _pick(self._parameters.get(name), 0, self.outputs, width) for name in ("weight", "bias")}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The bank is a part of the state: what was calibrated before goes, what comes gets its place. Statistics of
        # the old weights would be wrong for the new ones.
        self.forget()
        for name in list(state_dict):
            if name.startswith(prefix) and name[len(prefix) :].startswith(("mean_w", "var_w")):
                tag = name[len(prefix) :].split("_", 1)[1]
                self.register_buffer(name[len(prefix) :], self.filled(Config.from_tag(tag), 0.0))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _pick(tensor: Tensor | None, dim: int, channels: Channels, width: float) -> Any:
    """The kept channels along `dim`: the tensor itself, a view of its first ones, or a gather."""
    if tensor is None:
        return None
    runs = channels.runs(width)
    if len(runs) > 1:
        return tensor.index_select(dim, _index(runs, tensor.device))
    return tensor if runs[0][1] == tensor.shape[dim] else tensor.narrow(dim, 0, runs[0][1])


def _index(runs: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    found = _INDICES.get((runs, device))
    if found is None:
        found = torch.tensor([i for start, length in runs for i in range(start, start + length)], device=device)
        if type(found) is Tensor:  # not while the network is traced with fake tensors
            if len(_INDICES) >= 1024:
                _INDICES.clear()
            _INDICES[runs, device] = found
    return found


_INDICES: dict[tuple[tuple[tuple[int, int], ...], torch.device], Tensor] = {}
"""Gather indices, the same for every layer behind the same concatenation."""


_CLASSES: dict[tuple[Any, Any], type[Elastic]] = {}


def _leaf_class(base: type[Elastic], kind: type[nn.Module]) -> type[Elastic]:
    if (base, kind) not in _CLASSES:
        _CLASSES[base, kind] = type(f"Elastic{kind.__name__}", (base, kind), {"kind": kind})
    return _CLASSES[base, kind]


def _blank(base: type[Elastic], kind: type[nn.Module]) -> Elastic:
    made = _leaf_class(base, kind)
    return made.__new__(made)


def make_leaf(module: nn.Module, layer: Layer, dial: Dial) -> None:
    """Turn an ordinary layer into an elastic one, in place: its identity, parameters, hooks and names stay."""
    bases: tuple[tuple[Any, type[Elastic]], ...] = (
        ((nn.Conv1d, nn.Conv2d, nn.Conv3d), ElasticConv),
        (nn.Linear, ElasticLinear),
        (_BatchNorm, ElasticBatchNorm),
        (nn.PReLU, ElasticPReLU),
    )
    base = next((base for kinds, base in bases if isinstance(module, kinds)), None)
    if base is None:
        raise RewriteError(f"{type(module).__name__} is no layer that can be made elastic")
    vars(module).update(dial=dial, inputs=layer.inputs, outputs=layer.outputs)
    module.__class__ = _leaf_class(base, type(module))
