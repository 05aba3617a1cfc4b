"""Drop path and the auxiliary classifier: what the loss is made of, and how the share of dropped paths rises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanconv.errors import LeanconvError
from leanconv.nets.darts import Darts, _drop_path
from leanconv.train import ClassifyWithTower, OptimSettings, ScheduleSettings
from leanconv.train.optim import rate


def small(*, auxiliary: bool = True) -> Darts:
    return Darts(4, cells=3, auxiliary=auxiliary)


def test_loss_is_the_main_one_and_a_share_of_the_auxiliary() -> None:
    objective = ClassifyWithTower(small(), auxiliary=0.4)
    losses = objective(torch.randn(4, 3, 32, 32), torch.arange(4), step=0)
    torch.testing.assert_close(losses["loss"], losses["main"] + 0.4 * losses["auxiliary"])
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_share_of_dropped_paths_rises_and_evaluation_drops_none() -> None:
    net = small()
    objective = ClassifyWithTower(net, drop_path=0.2, total_steps=100)
    x, y = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)
    shares = []
    for step in (0, 50, 100):
        objective(x, y, step=step)
        shares.append(net.drop_path)
    assert shares == [0.0, 0.1, 0.2]
    net.eval()
    assert torch.equal(objective.predict(x), objective.predict(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_dropped_images_are_zero_and_the_others_scaled() -> None:
    kept = _drop_path(torch.ones(1000, 2, 1, 1), 0.25)
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert 0.68 < float((kept[:, 0] > 0).float().mean()) < 0.82
    assert torch.equal(kept[:, 0], kept[:, 1])


def test_networks_without_the_parts_are_refused() -> None:
    with pytest.raises(LeanconvError, match="Linear has no paths to drop"):
        ClassifyWithTower(nn.Linear(3, 3))
    with pytest.raises(LeanconvError, match=r"model_args\.auxiliary=true"):
        ClassifyWithTower(small(auxiliary=False))
    ClassifyWithTower(small(auxiliary=False), auxiliary=0.0, drop_path=0.1)
    with pytest.raises(LeanconvError, match="no auxiliary classifier"):
        small(auxiliary=False).forward_all(torch.zeros(1, 3, 32, 32))


def test_exponential_schedule() -> None:
    """Table 5's MobileNet: times .973 every .8 epochs."""
    schedule = ScheduleSettings("exponential", gamma=0.973, every=0.8)
    factors = [rate(schedule, step, steps_per_epoch=10, epochs=4) for step in range(40)]
    assert factors == pytest.approx([0.973 ** (step // 8) for step in range(40)])
    with pytest.raises(LeanconvError, match=r"schedule\.every"):
        ScheduleSettings("exponential", every=0)
    assert OptimSettings().name == "sgd"
