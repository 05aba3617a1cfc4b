"""The numbers that the optimized-separable-convolution paper prints: tables 3, 5, 6 and 7.

Parameters include BatchNorm's affine ones; MACs (the paper's "FLOPs") are those of convolutions and the linear layer.
Full-precision counts were derived from the published rules; each rounds to what the paper prints, with two exceptions
that are noted where they stand.
"""

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


TABLE_6 = [
    # name, multiplier, params, MACs, printed millions, printed billions
    ("resnet20", 1, 269_722, 40_551_040, "0.270", "0.04055"),
    ("resnet32", 1, 464_154, 68_862_592, "0.464", "0.06886"),
    ("resnet56", 1, 853_018, 125_485_696, "0.853", "0.12549"),  # printed 0.12548, cut off
    ("resnet110", 1, 1_727_962, 252_887_680, "1.728", "0.25289"),
    ("o_resnet20", 3.625, 221_014, 40_704_400, "0.221", "0.04070"),
    ("o_resnet32", 3.75, 367_270, 67_263_840, "0.367", "0.06726"),
    ("o_resnet56", 3.875, 681_668, 125_740_464, "0.682", "0.12574"),
    ("o_resnet110", 3.875, 1_336_724, 247_631_280, "1.337", "0.24763"),
    ("d_resnet32", 2.75, 428_834, 65_653_984, "0.429", "0.06565"),
    ("d_resnet56", 2.75, 786_114, 118_910_176, "0.786", "0.1189"),
    ("d_resnet110", 2.75, 1_589_994, 238_736_608, "1.590", "0.2387"),
]


def decimals(printed: str) -> int:
    return len(printed.partition(".")[2])


@pytest.mark.parametrize(("name", "multiplier", "params", "macs", "millions", "billions"), TABLE_6)
def test_table_6(name: str, multiplier: float, params: int, macs: int, millions: str, billions: str) -> None:
    assert counts(name, multiplier=multiplier) == (params, macs)
    assert f"{params / 1e6:.{decimals(millions)}f}" == millions
    assert f"{macs / 1e9:.{decimals(billions)}f}" == billions


def test_o_resnet110_without_multiplier_has_0_180_million_parameters() -> None:
    assert counts("o_resnet110")[0] == 180_145


def test_d_resnet20_has_the_printed_parameters_at_2_75_and_not_the_printed_flops() -> None:
    """Table 6 prints multiplier 2.72, 0.250 M and 0.0400 G. No multiplier gives both: 2.75 fits the first alone."""
    assert counts("d_resnet20", multiplier=2.75) == (250_194, 39_025_888)
    assert counts("d_resnet20", multiplier=2.72) == (245_193, 38_526_348)


TABLE_7 = [
    ("resnet20", 1, 4.5814, 0.1622, "4.58", "0.162"),
    ("resnet32", 1, 7.6816, 0.2754, "7.68", "0.275"),
    ("resnet56", 1, 13.8819, 0.5019, "13.88", "0.502"),
    ("resnet110", 1, 27.8326, 1.0115, "27.83", "1.012"),
    ("o_resnet20", 5.375, 5.1296, 0.1604, "5.13", "0.160"),
    ("o_resnet32", 5.75, 7.7796, 0.2782, "7.78", "0.278"),
    ("o_resnet56", 6.0, 12.5486, 0.4971, "12.55", "0.497"),
    ("o_resnet110", 6.25, 23.7868, 1.0275, "23.79", "1.027"),
]


@pytest.mark.parametrize(("name", "multiplier", "millions", "billions", "params", "flops"), TABLE_7)
def test_table_7(name: str, multiplier: float, millions: float, billions: float, params: str, flops: str) -> None:
    counted = counts(f"{name}_imagenet40", multiplier=multiplier)
    assert (round(counted[0] / 1e6, 4), round(counted[1] / 1e9, 4)) == (millions, billions)
    assert (f"{counted[0] / 1e6:.2f}", f"{counted[1] / 1e9:.3f}") == (params, flops)


DARTS = [
    # name, params, MACs, printed millions and billions (tables 3 and 5; the last two are cut off)
    ("darts_cifar", 3_349_342, 528_359_040, "3.35", "0.528"),
    ("darts_imagenet", 4_718_752, 529_911_552, "4.72", "0.530"),
    ("o_darts_cifar", 3_255_484, 572_702_016, "3.25", "0.572"),
    ("o_darts_imagenet", 4_508_852, 555_428_216, "4.50", "0.554"),
]


@pytest.mark.parametrize(("name", "params", "macs", "millions", "billions"), DARTS)
def test_tables_3_and_5_darts(name: str, params: int, macs: int, millions: str, billions: str) -> None:
    assert counts(name) == (params, macs)
    step = 0.01 if name.startswith("o_") else 0.005
    assert 0 <= abs(params / 1e6 - float(millions)) < step
    assert 0 <= abs(macs / 1e9 - float(billions)) < 0.0015


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
    """Table 2: gamma = 1/4 and 1/16 lose the receptive field, and the plan says how much of it is left."""
    for overlap in (1 / 4, 1 / 16):
        coverages = [chain.plan.coverage for chain in chains("o_resnet20", multiplier=3.625, overlap=overlap)]
        assert all(0 < coverage < 1 for coverage in coverages)
        assert sum(coverages) / len(coverages) == pytest.approx(overlap, rel=0.6)


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


def test_table_5_mobilenet() -> None:
    """Soft: the paper prints no multiplier for o-MobileNet; 2.125 comes within half a percent of 3.00 M and 0.564 G."""
    params, macs = counts("o_mobilenet_v1")
    assert params == pytest.approx(3.00e6, rel=0.005)
    assert macs == pytest.approx(0.564e9, rel=0.005)
    assert counts("mobilenet_v1") == (4_231_976, 568_740_352)  # printed 4.20 M and 0.575 G, from the older paper
