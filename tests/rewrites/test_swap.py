"""`swap`: replacements land at every place, nothing is looked into twice, the input stays as it was."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from leanconv.errors import RewriteError
from leanconv.rewrites import swap


def relu_to_silu(_name: str, module: nn.Module) -> nn.Module | None:
    return nn.SiLU() if isinstance(module, nn.ReLU) else None


class Twice(nn.Module):
    """One activation under two names, and the same block at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU()
        self.second = self.first
        self.left = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.right = self.left
        self.nothing = None
        self.register_module("gone", None)


def test_a_shared_module_is_replaced_once_and_shared_again():
    net = Twice()
    asked: list[str] = []

    def rule(name: str, module: nn.Module) -> nn.Module | None:
        asked.append(name)
        return relu_to_silu(name, module)

    new, replaced = swap(net, rule)
    assert replaced == ("first", "second", "left.1", "right.1")
    assert new.first is new.second
    assert new.left is new.right
    assert isinstance(new.left[1], nn.SiLU)
    assert len(asked) == len(set(asked)) == 5  # the root, first, left, left.0, left.1: once per object
    assert isinstance(net.first, nn.ReLU)
    assert net.left[0].weight is not new.left[0].weight


def test_neither_the_old_nor_the_new_module_is_looked_into():
    net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
    asked: list[str] = []

    def wrap(name: str, module: nn.Module) -> nn.Module | None:
        asked.append(name)
        return nn.Sequential(module, nn.ReLU()) if name == "0" else None

    new, replaced = swap(net, wrap)
    assert asked == ["", "0", "1"]
    assert replaced == ("0",)
    assert isinstance(new[0][0], nn.Sequential)


def test_the_same_module_as_answer_means_leave_it_and_stop():
    net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
    new, replaced = swap(net, lambda name, m: m if name == "0" else relu_to_silu(name, m))
    assert replaced == ("1",)
    assert isinstance(new[0][0], nn.ReLU)


def test_the_root_itself_can_be_replaced():
    new, replaced = swap(nn.ReLU(), relu_to_silu)
    assert isinstance(new, nn.SiLU)
    assert replaced == ("",)


def test_order_and_names_of_the_children_stay():
    net = nn.Sequential()
    for name in ("b", "a", "c"):
        net.add_module(name, nn.ReLU())
    new, _ = swap(net, lambda name, m: nn.SiLU() if name == "a" else None)
    assert [name for name, _ in new.named_children()] == ["b", "a", "c"]


def test_old_weight_norm_survives_the_copy():
    with pytest.warns(FutureWarning, match="weight_norm"):
        conv = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    net = nn.Sequential(conv, nn.ReLU())
    new, _ = swap(net, relu_to_silu)
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(new[0](x), net[0](x))


def test_a_model_that_cannot_be_copied_is_refused():
    net = nn.Sequential(nn.ReLU())
    net.lock = threading.Lock()
    with pytest.raises(RewriteError, match=r"Sequential cannot be copied \(TypeError: .*before attaching"):
        swap(net, relu_to_silu)
