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
from leanconv.schema import Count, Either, Fault, ListOf, MapOf, Maybe, Number, Plain, Record

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
_PROGRESS = Record({"total": _STEPS, "current": _STEPS}, others=Plain(0))
_FIT_LOOP = Record(
    {
        "state_dict": MapOf(Plain()),
        "epoch_progress": _PROGRESS,
        "epoch_loop.state_dict": MapOf(Plain()),
        "epoch_loop.batch_progress": _PROGRESS,
        "epoch_loop.scheduler_progress": _PROGRESS,
    },
    others=_Nested(),
)
_CHECKPOINT = Record(
    {
        "epoch": Count(0, 10**9),
        "global_step": Count(0, 10**12),
        "state_dict": MapOf(_Values(), longest=10**6),
        "loops": Record({"fit_loop": _FIT_LOOP}, others=_Nested()),
        "callbacks": MapOf(_Nested()),
        "optimizer_states": ListOf(
            Record({"state": _Nested(), "param_groups": ListOf(_GROUP, longest=1000, shortest=1)}),
            longest=1,
            shortest=1,
        ),
        "lr_schedulers": ListOf(MapOf(_Nested()), longest=1, shortest=1),
    },
    {"averaging_state": Maybe(MapOf(_Values())), "current_model_state": Maybe(MapOf(_Values(), longest=10**6))},
    others=_Nested(),
)

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
_OURS = ("best.ckpt", "last.ckpt")


def check_checkpoint(content: Any) -> None:
    """Raise `Fault` unless `content` is what a run writes."""
    _CHECKPOINT.check(content, "")
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
    mine: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    sizes = [len(group["params"]) for group in groups], [len(group["params"]) for group in optimizer.param_groups]
    if sizes[0] != sizes[1]:
        raise Fault(f"optimizer_states[0] has groups of {sizes[0][:8]} parameters, this run has {sizes[1][:8]}")
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        if missing := sorted(own.keys() - group.keys() - {"initial_lr"}):
            raise Fault(f"optimizer_states[0].param_groups has no {missing[0]}")
    shapes = {number: parameter.shape for number, parameter in zip(numbers, mine, strict=True)}
    for number, state in saved["state"].items():
        place = f"optimizer_states[0].state[{shown(number, 20)}]"
        if number not in shapes or not isinstance(state, Mapping):
            raise Fault(f"{place} is of no parameter of this network")
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != shapes[number]:
                raise Fault(
                    f"{place}.{shown(name, 40)[1:-1]} has shape {tuple(value.shape)}, not {tuple(shapes[number])}"
                )


def _check_paths(state: Mapping[str, Any], place: str) -> None:
    folder = state["dirpath"]
    best = state.get("best_k_models")
    if not isinstance(folder, str) or not isinstance(best, Mapping):
        raise Fault(f"{place} does not say where its checkpoints are")
    for path in (*(state.get(name, "") for name in _PATHS), *best):
        if path != "" and (not isinstance(path, str) or path not in [os.path.join(folder, name) for name in _OURS]):
            raise Fault(f"{place} names {shown(path)}, which is no checkpoint of this run")


def _check_same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor], place: str) -> None:
    wrong = sorted(one.keys() ^ other.keys()) or [name for name in one if one[name].shape != other[name].shape]
    if wrong:
        raise Fault(f"{place} is not of the same network as state_dict: {shown(wrong[0])} differs")
