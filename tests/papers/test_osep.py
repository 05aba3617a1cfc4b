"""What the optimized separable convolution paper says of its networks beside their counts (those: manifest.toml)."""

from __future__ import annotations

import pytest
import torch

from leanconv.build import create_model, default_size, list_models
from leanconv.cost import measure
from leanconv.errors import LeanconvError
from leanconv.ops.chain import ConvChain


def counts(name: str, **options: float) -> tuple[int, int]:
    with torch.device("meta"):
        net = create_model(name, **options)
    cost = measure(net, default_size(name))
    return cost.params, cost.macs


def test_d_resnet20_has_the_printed_parameters_at_2_75_and_not_the_printed_flops() -> None:
    """Table 6 prints multiplier 2.72, 0.250 M and 0.0400 G. No multiplier gives both: 2.75 fits the first alone."""
    assert counts("d_resnet20", multiplier=2.75) == (250_194, 39_025_888)
    assert counts("d_resnet20", multiplier=2.72) == (245_193, 38_526_348)


def test_darts_counts_leave_the_auxiliary_tower_out() -> None:
    assert counts("darts_cifar", auxiliary=True)[1] == 528_359_040  # it takes no part in a forward pass
    assert counts("darts_cifar", auxiliary=True)[0] > 3_349_342


def chains(name: str, **options: float) -> list[ConvChain]:
    with torch.device("meta"):
        net = create_model(name, **options)
    return [module for module in net.modules() if isinstance(module, ConvChain)]


MULTIPLIERS = {f"o_resnet{depth}": value for depth, value in ((20, 3.625), (32, 3.75), (56, 3.875), (110, 3.875))}
MULTIPLIERS |= {f"o_resnet{d}_imagenet40": m for d, m in ((20, 5.375), (32, 5.75), (56, 6.0), (110, 6.25))}
MULTIPLIERS |= {name.replace("o_", "so_", 1): value for name, value in MULTIPLIERS.items()}


@pytest.mark.parametrize("name", [name for name in list_models() if name.startswith(("o_", "so_"))])
@pytest.mark.parametrize("overlap", [1.0, 4.0])
def test_every_output_sees_every_input(name: str, overlap: float) -> None:
    """The volumetric receptive field, on the composed mask of every layer, at the paper's width and unmultiplied."""
    options = [{}] if name not in MULTIPLIERS else [{}, {"multiplier": MULTIPLIERS[name]}]
    for option in options:
        plans = {chain.plan for chain in chains(name, overlap=overlap, **option)}
        assert plans
        assert {plan.coverage for plan in plans} == {1.0}


def test_shortfall_below_an_overlap_of_one() -> None:
    """Table 2: gamma = 1/4 and 1/16 lose the receptive field, and the plan says how much of it is left.

    In the first stage of 58 channels 29 and 5 groups leave 2 x 12 inputs to an output, and 58 and 15 leave 1 x 4.
    """
    for overlap, groups, first in ((1 / 4, [29, 5], 24 / 58), (1 / 16, [58, 15], 4 / 58)):
        plans = [chain.plan for chain in chains("o_resnet20", multiplier=3.625, overlap=overlap)]
        assert [stage.conv.groups for stage in plans[0].stages] == groups
        assert plans[0].coverage == pytest.approx(first)
        for plan in plans:
            assert overlap < plan.overlap < 1
            assert 0.99 * plan.overlap < plan.coverage <= plan.overlap * (1 + 1e-9)


@pytest.mark.parametrize("overlap", [1 / 64, 16.0, 64.0, 1e9])
def test_the_whole_sweep_of_table_2_can_be_built(overlap: float) -> None:
    params, _ = counts("o_resnet20", overlap=overlap)
    assert params <= 269_722 + 16 * 32 + 32 * 64  # the conventional network with shortcuts of option B


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("o_resnet20", {"multiplier": 0.01}, r"round\(0.16\) = 0 channels"),
        ("resnet20", {"multiplier": -1}, "multiplier must be a number above 0"),
        ("o_resnet20", {"overlap": 0}, "overlap must be above 0"),
        ("darts_cifar", {"cells": 2}, "cells must be at least 3"),
        ("darts_cifar", {"channels": -4}, "channels must be an integer of at least 1"),
    ],
)
def test_bad_input(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(LeanconvError, match=message):
        create_model(name, **options)
