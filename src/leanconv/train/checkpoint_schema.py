"""What a checkpoint of a run must hold before any of it is used: a folder that came from elsewhere may say anything.

Lightning takes most of it as it is. Above all the paths: its callback deletes the file that a checkpoint calls the best
so far as soon as there is a better one, so a path may only name the two checkpoints of the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import shown
from leanconv.schema import Count, Either, Fault, Flag, ListOf, MapOf, Maybe, Number, Plain, Record, Text

__all__ = ["check_checkpoint", "check_optimizer"]


@dataclass(frozen=True)
class _Values:
    """A dense tensor with values."""

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise Fault(f"{place[-120:]} must be a tensor, got {shown(value, 60)}")


@dataclass(frozen=True)
class _Nested:
    """Dictionaries and lists of plain data and tensors, to a limited depth; keys are text or numbers."""

    deep: int = 12

    def check(self, value: Any, place: str) -> None:
        if isinstance(value, Tensor):
            _Values().check(value, place)
        elif self.deep and isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str | int):
                    raise Fault(f"{place[-120:]} has a key that is no text")
                _Nested(self.deep - 1).check(item, f"{place}.{shown(key, 40)}")
        elif self.deep and isinstance(value, list | tuple):
            for index, item in enumerate(value):
                _Nested(self.deep - 1).check(item, f"{place}[{index}]")
        elif not isinstance(value, float):  # of which some are infinite: the best score before there is one
            Plain(0).check(value, place)


_GROUP = Record({"params": ListOf(Count()), "lr": Either(_Values(), Number(0, 1e9))}, others=_Nested())
_STEPS = MapOf(Count(), longest=20)
_PROGRESS = Record({"total": _STEPS, "current": _STEPS}, {"is_last_batch": Flag()})
_FIT_LOOP = Record(
    {
        "state_dict": MapOf(Plain()),
        "epoch_progress": _PROGRESS,
        "epoch_loop.state_dict": MapOf(Count()),
        "epoch_loop.batch_progress": _PROGRESS,
        "epoch_loop.scheduler_progress": _PROGRESS,
        "epoch_loop.automatic_optimization.state_dict": MapOf(Plain()),
        "epoch_loop.automatic_optimization.optim_progress": Record(
            {"optimizer": Record({"step": _PROGRESS, "zero_grad": _PROGRESS})}
        ),
        "epoch_loop.manual_optimization.state_dict": MapOf(Plain()),
        "epoch_loop.manual_optimization.optim_step_progress": _PROGRESS,
        "epoch_loop.val_loop.state_dict": MapOf(Plain()),
        "epoch_loop.val_loop.batch_progress": _PROGRESS,
    },
    others=_Nested(),
)
_SCHEDULE = Record(
    {
        "base_lrs": ListOf(Number(0, 1e9), longest=1000, shortest=1),
        "last_epoch": Count(0, 10**12),
        "_step_count": Count(0, 10**12),
        "_last_lr": ListOf(Number(0, 1e9), longest=1000, shortest=1),
        "lr_lambdas": ListOf(Maybe(MapOf(Plain())), longest=1000, shortest=1),
    },
    others=Plain(0),
)
_CHECKPOINT = Record(
    {
        "epoch": Count(0, 10**9),
        "global_step": Count(0, 10**12),
        "pytorch-lightning_version": Text(),
        "state_dict": MapOf(_Values(), longest=10**6),
        "loops": Record({"fit_loop": _FIT_LOOP}, others=_Nested()),
        "callbacks": MapOf(_Nested()),
        "optimizer_states": ListOf(
            Record({"state": _Nested(), "param_groups": ListOf(_GROUP, longest=1000, shortest=1)}),
            longest=1,
            shortest=1,
        ),
        "lr_schedulers": ListOf(_SCHEDULE, longest=1, shortest=1),
    },
    {"averaging_state": Maybe(MapOf(_Values())), "current_model_state": Maybe(MapOf(_Values(), longest=10**6))},
    others=_Nested(),
)

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
_SCORES = ("best_model_score", "current_score", "kth_value")
_OURS = ("best.ckpt", "last.ckpt")


def check_checkpoint(content: Any) -> None:
    """Raise `Fault` unless `content` is what a run writes."""
    _CHECKPOINT.check(content, "")
    epoch, done = content["epoch"], content["loops"]["fit_loop"]["epoch_progress"]["current"]
    if wrong := sorted(name for name, count in done.items() if count > epoch + 1):
        raise Fault(f"loops.fit_loop.epoch_progress.current.{wrong[0]} is {done[wrong[0]]}, in epoch {epoch}")
    for key, state in content["callbacks"].items():
        if isinstance(state, Mapping) and "dirpath" in state:
            _check_paths(state, f"callbacks.{key.partition('{')[0]}")
    averaged = content.get("current_model_state")
    if averaged is not None:
        _check_same_shapes(averaged, content["state_dict"], "current_model_state")


def check_optimizer(content: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Raise `Fault` unless the states in `content`, which `check_checkpoint` has seen, are of these parameters."""
    [saved] = content["optimizer_states"]
    groups = saved["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    sizes = [len(group["params"]) for group in groups], [len(group["params"]) for group in optimizer.param_groups]
    if sizes[0] != sizes[1]:
        raise Fault(f"optimizer_states[0] has groups of {sizes[0][:8]} parameters, this run has {sizes[1][:8]}")
    for number, (group, own) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        place = f"optimizer_states[0].param_groups[{number}]"
        if missing := sorted(own.keys() - group.keys() - {"initial_lr"}):
            raise Fault(f"{place} has no {missing[0]}")
        for name, value in own.items():
            if name not in ("params", "lr", "initial_lr"):
                _check_like(group[name], value, f"{place}.{name}")
    [schedule] = content["lr_schedulers"]
    for name in ("base_lrs", "_last_lr", "lr_lambdas"):
        if len(schedule[name]) != len(groups):
            raise Fault(f"lr_schedulers[0].{name} has {len(schedule[name])} items, for {len(groups)} groups")
    kept = dict(zip(numbers, _stepped(optimizer), strict=True))
    for number, state in saved["state"].items():
        place = f"optimizer_states[0].state[{shown(number, 20)}]"
        if number not in kept or not isinstance(state, Mapping):
            raise Fault(f"{place} is of no parameter of this network")
        if wrong := sorted(map(str, state.keys() ^ kept[number].keys())):
            raise Fault(f"{place}: {shown(wrong[0], 40)[1:-1]} is not what this optimizer keeps, or is missing")
        for name, own in kept[number].items():
            value = state[name]
            if isinstance(own, Tensor) and not isinstance(value, Tensor):
                raise Fault(f"{place}.{name} must be a tensor, got {shown(value, 60)}")
            if isinstance(own, Tensor) and value.shape != own.shape:
                raise Fault(f"{place}.{name} has shape {tuple(value.shape)}, not {tuple(own.shape)}")


def _stepped(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What an optimizer like this one keeps for each of its parameters after a step; nothing is computed."""
    groups = [
        {**group, "params": [torch.nn.Parameter(torch.empty_like(one, device="meta")) for one in group["params"]]}
        for group in optimizer.param_groups
    ]
    trial: Any = type(optimizer)(groups, lr=1.0)  # type: ignore[call-arg]
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    trial.step()
    return [dict(trial.state[parameter]) for group in groups for parameter in group["params"]]


def _check_like(value: Any, own: Any, place: str) -> None:
    """Raise `Fault` unless `value` is of the kind of `own`, what this run's optimizer has there."""
    if isinstance(own, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(own):
            raise Fault(f"{place} must have {len(own)} items, got {shown(value, 60)}")
        for index, (item, mine) in enumerate(zip(value, own, strict=True)):
            _check_like(item, mine, f"{place}[{index}]")
    elif isinstance(own, int | float) and not isinstance(own, bool):
        Number().check(value, place)
    elif not isinstance(own, Tensor) and type(value) is not type(own):
        raise Fault(f"{place} must be like {shown(own, 40)}, got {shown(value, 60)}")


def _check_paths(state: Mapping[str, Any], place: str) -> None:
    folder = state["dirpath"]
    best = state.get("best_k_models")
    if not isinstance(folder, str) or not isinstance(best, Mapping):
        raise Fault(f"{place} does not say where its checkpoints are")
    for name, score in [*((name, state.get(name)) for name in _SCORES), *best.items()]:
        if score is not None and not isinstance(score, float) and not (isinstance(score, Tensor) and score.ndim == 0):
            raise Fault(f"{place}.{shown(name, 60)} must be a score, got {shown(score, 60)}")
    for path in (*(state.get(name, "") for name in _PATHS), *best):
        if path != "" and (not isinstance(path, str) or path not in [os.path.join(folder, name) for name in _OURS]):
            raise Fault(f"{place} names {shown(path)}, which is no checkpoint of this run")


def _check_same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor], place: str) -> None:
    wrong = sorted(one.keys() ^ other.keys()) or [name for name in one if one[name].shape != other[name].shape]
    if wrong:
        raise Fault(f"{place} is not of the same network as state_dict: {shown(wrong[0])} differs")
