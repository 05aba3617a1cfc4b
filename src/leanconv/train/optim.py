"""Optimizers and learning-rate schedules as data; the rate of a step is a pure function of its number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanconv.errors import LeanconvError, unknown

__all__ = ["OptimSettings", "ScheduleSettings", "make_optimizer", "rate"]

_OPTIMIZERS = ("sgd", "adamw")
_DECAYS = ("all", "weights", "dense")
_SCHEDULES = ("constant", "step", "cosine", "linear", "exponential")


@dataclass(frozen=True)
class OptimSettings:
    """An optimizer: `name` is sgd or adamw.

    `decay` says what `weight_decay` acts on: `all` parameters; `weights` of convolutions and linear layers only (no
    biases, no normalisation); `dense`, the same without depthwise convolutions, as MutualNet's ImageNet runs.
    `body` is the factor on the rate of everything but the classifier, for finetuning trained weights.
    `momentum` and `nesterov` are SGD's, `betas` AdamW's.
    """

    name: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 1e-4
    decay: str = "all"
    momentum: float = 0.9
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    body: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in _OPTIMIZERS:
            raise unknown("optimizer", self.name, _OPTIMIZERS)
        if self.decay not in _DECAYS:
            raise unknown("weight decay rule (optim.decay)", self.decay, _DECAYS)
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise LeanconvError(f"optim.lr must be a positive number, got {self.lr}")
        if not 0 <= self.body <= 1:
            raise LeanconvError(f"optim.body is a factor from 0 to 1 on the rate, got {self.body}")
        if not self.weight_decay >= 0:
            raise LeanconvError(f"optim.weight_decay must not be negative, got {self.weight_decay}")
        if not 0 <= self.momentum < 1:
            raise LeanconvError(f"optim.momentum must be in [0, 1), got {self.momentum}")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise LeanconvError("optim.nesterov needs a momentum above 0: set optim.nesterov=false as well")


@dataclass(frozen=True)
class ScheduleSettings:
    """A schedule: `name` is constant, step, cosine (to 0), linear (to 0) or exponential; all are updated at every
    optimizer step.

    The rate rises linearly from 0 over the first `warmup_epochs`; `step` multiplies it by `gamma` at each of the
    `milestones`, which are fractions of the whole run (.5 and .75 are epochs 100 and 150 of 200); `exponential`
    multiplies it by `gamma` after every `every` epochs.
    """

    name: str = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    every: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in _SCHEDULES:
            raise unknown("schedule", self.name, _SCHEDULES)
        if not self.warmup_epochs >= 0:
            raise LeanconvError(f"schedule.warmup_epochs must not be negative, got {self.warmup_epochs}")
        if not self.every > 0:
            raise LeanconvError(f"schedule.every must be a number of epochs above 0, got {self.every}")
        if any(not 0 < place < 1 for place in self.milestones):
            raise LeanconvError(
                f"schedule.milestones are fractions of the run, between 0 and 1, got {list(self.milestones)}"
            )


def rate(schedule: ScheduleSettings, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """The factor on the learning rate for optimizer step `step` (from 0).

    >>> cosine = ScheduleSettings("cosine")
    >>> [round(rate(cosine, step, steps_per_epoch=1, epochs=4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    total = steps_per_epoch * epochs
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), total)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "step":
        return schedule.gamma ** sum(step >= round(place * total) for place in schedule.milestones)
    if schedule.name == "exponential":
        return schedule.gamma ** int(step / steps_per_epoch / schedule.every + 1e-9)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return (1 + math.cos(math.pi * done)) / 2 if schedule.name == "cosine" else 1 - done


def make_optimizer(settings: OptimSettings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of `model`, grouped by what their weight decay and their rate are."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise LeanconvError("the model has no trainable parameter (requires_grad is False everywhere)")
    head = {id(parameter) for parameter in _classifier(model).parameters()} if settings.body != 1 else set()
    grouped: dict[tuple[bool, float], list[Tensor]] = {}
    for parameter in parameters:
        factor = 1.0 if not head or id(parameter) in head else settings.body
        grouped.setdefault((not _decays(settings.decay, parameter), factor), []).append(parameter)
    groups = [
        {
            "params": grouped[exempt, factor],
            "weight_decay": settings.weight_decay * (not exempt),
            "lr": settings.lr * factor,
        }
        for exempt, factor in sorted(grouped, key=lambda key: (key[0], -key[1]))
    ]
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.betas[0], settings.betas[1]))
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)


def _decays(rule: str, parameter: Tensor) -> bool:
    """Whether `parameter` decays. Told by shape, so wrapped layers count as well.

    A weight has at least two axes; a convolution's (out, in/groups, ...) is depthwise when its second axis is 1 and it
    has a kernel.
    """
    weight = parameter.ndim >= 2
    depthwise = parameter.ndim >= 3 and parameter.shape[1] == 1
    return rule == "all" or (weight and not (rule == "dense" and depthwise))


def _classifier(model: nn.Module) -> nn.Module:
    """The layer that gives the scores: the last linear one; in a network without, the last convolution."""
    for kind in (nn.Linear, nn.modules.conv._ConvNd):
        layers = [module for module in model.modules() if isinstance(module, kind)]
        if layers:
            return layers[-1]
    raise LeanconvError("optim.body: the network has neither a linear layer nor a convolution: set it to 1")
