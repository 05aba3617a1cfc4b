"""Evaluation mode ends as it began, also where the block fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanconv.modes import eval_mode


def frozen_inside() -> nn.Module:
    """A network in training mode with one norm that is kept in evaluation mode."""
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.Dropout(0.5))


def test_every_module_gets_its_own_mode_back() -> None:
    net = frozen_inside()
    with eval_mode(net) as device:
        assert not any(module.training for module in net.modules())
        assert device == torch.device("cpu")
        assert not net(torch.ones(3, 2)).requires_grad
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert torch.is_grad_enabled()


def test_a_fault_in_the_block_leaves_no_trace() -> None:
    net = frozen_inside()
    with pytest.raises(KeyError), eval_mode(net):
        raise KeyError
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert torch.is_grad_enabled()


def test_a_network_without_parameters_is_on_the_cpu() -> None:
    with eval_mode(nn.ReLU()) as device:
        assert device.type == "cpu"
