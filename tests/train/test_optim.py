"""Rates by hand and which parameters decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from leanconv.errors import LeanconvError
from leanconv.train.optim import OptimSettings, ScheduleSettings, make_optimizer, rate


def rates(schedule: ScheduleSettings, epochs: int = 4, steps: int = 5) -> list[float]:
    return [rate(schedule, step, steps_per_epoch=steps, epochs=epochs) for step in range(epochs * steps)]


def test_schedules_by_hand() -> None:
    assert rates(ScheduleSettings("constant")) == [1.0] * 20
    assert rates(ScheduleSettings("linear")) == pytest.approx([1 - step / 20 for step in range(20)])
    assert rates(ScheduleSettings("step", milestones=(0.5, 0.75))) == pytest.approx([1] * 10 + [0.1] * 5 + [0.01] * 5)
    cosine = [(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert rates(ScheduleSettings("cosine")) == pytest.approx(cosine)


def test_warm_up_is_linear_and_the_rest_starts_full() -> None:
    found = rates(ScheduleSettings("cosine", warmup_epochs=1))
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5] == 1.0
    assert found[-1] < 0.02
    assert rates(ScheduleSettings("constant", warmup_epochs=9)) == pytest.approx(
        [(step + 1) / 20 for step in range(20)]
    )


def test_the_paper_of_osep_drops_at_100_and_150_of_200() -> None:
    step = ScheduleSettings("step")
    at = {epoch: rate(step, 390 * epoch, steps_per_epoch=390, epochs=200) for epoch in (0, 99, 100, 149, 150, 199)}
    assert at == pytest.approx({0: 1, 99: 1, 100: 0.1, 149: 0.1, 150: 0.01, 199: 0.01})


@pytest.mark.parametrize(
    ("rule", "decayed"),
    [
        ("all", {"dense", "dense.bias", "grouped", "depthwise", "norm", "norm.bias", "linear", "linear.bias"}),
        ("weights", {"dense", "grouped", "depthwise", "linear"}),
        ("dense", {"dense", "grouped", "linear"}),  # MutualNet on ImageNet
    ],
)
def test_what_decays(rule: str, decayed: set[str]) -> None:
    model = nn.ModuleDict(
        {
            "dense": nn.Conv2d(4, 8, 3),
            "grouped": nn.Conv2d(8, 8, 3, groups=2, bias=False),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8, bias=False),
            "norm": nn.BatchNorm2d(8),
            "linear": nn.Linear(8, 1),
        }
    )
    model["frozen"] = nn.Linear(2, 2).requires_grad_(False)
    names = {id(parameter): name.removesuffix(".weight") for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(OptimSettings(weight_decay=0.5, decay=rule), model)
    found = {
        names[id(parameter)]
        for group in optimizer.param_groups
        if group["weight_decay"] == 0.5
        for parameter in group["params"]
    }
    everything = {names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}
    assert found == decayed
    assert everything == {name for name in names.values() if not name.startswith("frozen")}


def test_optimizers() -> None:
    sgd = make_optimizer(OptimSettings(lr=0.3), nn.Linear(2, 2))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.param_groups[0]["lr"]) == (0.9, True, 0.3)
    adamw = make_optimizer(OptimSettings("adamw", lr=0.01, betas=(0.8, 0.9)), nn.Linear(2, 2))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.9)


def test_refusals() -> None:
    with pytest.raises(LeanconvError, match="unknown optimizer 'adam': did you mean 'adamw'"):
        OptimSettings("adam")
    with pytest.raises(LeanconvError, match="lr must be a positive number"):
        OptimSettings(lr=0)
    with pytest.raises(LeanconvError, match="nesterov needs a momentum"):
        OptimSettings(momentum=0)
    with pytest.raises(LeanconvError, match="no trainable parameter"):
        make_optimizer(OptimSettings(), nn.ReLU())
