"""Printed numbers of "Interleaved Group Convolutions" (ICCV 2017)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanconv.build import create_model, default_size
from leanconv.cost import Cost, measure
from leanconv.errors import LeanconvError
from leanconv.ops.chain import ConvChain
from leanconv.ops.igc import InterleavedGroup
from leanconv.recipes.igc import IGC
from leanconv.spec import ConvSpec

# Table 1: L, M, #params, width for about 4672 and about 17536 parameters.
TABLE_1 = [
    (1, 23, 4784, 23), (2, 16, 4672, 32), (3, 13, 4680, 39), (5, 10, 4750, 50), (6, 9, 4698, 54),
    (12, 6, 4752, 72), (28, 3, 4620, 84), (40, 2, 4640, 80), (64, 1, 4672, 64),
    (1, 44, 17468, 44), (2, 31, 17422, 62), (4, 22, 17776, 88), (12, 12, 17280, 144), (14, 11, 17402, 154),
    (23, 8, 17480, 184), (28, 7, 17836, 196), (41, 5, 17630, 205), (64, 3, 17472, 192), (85, 2, 17510, 170),
    (128, 1, 17536, 128),
]  # fmt: skip

# L = 2, M = 31: the paper prints a width of 63, but L x M is 62 and only 62 gives its 17422 parameters.


@pytest.mark.parametrize(("primary", "secondary", "params", "width"), TABLE_1)
def test_table_1(primary: int, secondary: int, params: int, width: int) -> None:
    spec = ConvSpec(in_channels=width, out_channels=width, kernel_size=(3, 3), padding=(1, 1))
    plan = InterleavedGroup(primary_partitions=primary, secondary_partitions=secondary).plan(spec)
    assert primary * secondary == width
    assert plan.params == params
    assert plan.coverage == 1, "the composite kernel of an interleaved group convolution is dense"


def test_widest_block_is_where_l_is_about_nine_m() -> None:
    """Equation 15: for each budget of Table 1 the widest row is the one with L nearest to 9 M."""
    for rows in (TABLE_1[:9], TABLE_1[9:]):
        widest = max(rows, key=lambda row: row[3])
        assert widest == min(rows, key=lambda row: abs(row[0] - 9 * row[1]))


def counts(name: str, **options: object) -> Cost:
    with torch.device("meta"):
        net = create_model(name, **options)
    return measure(net, default_size(name))


def test_table_3_to_the_digit() -> None:
    nets = ("regconv_w16", "regconv_w18", "igc_l4m8", "igc_l24m2")
    exact = {name: (cost.conv_params, cost.macs) for name in nets for cost in [counts(name)]}
    assert exact == {
        "regconv_w16": (268_336, 40_551_040),
        "regconv_w18": (339_462, 51_260_112),
        "igc_l4m8": (274_784, 42_370_304),
        "igc_l24m2": (151_824, 28_755_840),
    }
    deep = counts("igc_l24m2", depth=98)
    assert (deep.conv_params, deep.macs) == (833_232, 151_439_232)


def test_summation_fusion_costs_nearly_what_regconv_w16_does() -> None:
    """Caption of table 3: the statistics are nearly the same."""
    for depth in (8, 20, 38, 62):
        fused, regular = counts("sumfusion", depth=depth), counts("regconv_w16", depth=depth)
        assert fused.conv_params == pytest.approx(regular.conv_params, rel=0.01)
        assert fused.macs == pytest.approx(regular.macs, rel=0.02)


@pytest.mark.parametrize(
    ("name", "depth", "params"),
    [("igc_l24m2", 50, 433_210), ("igc_l4m8", 50, 778_538)],
)
def test_identity_networks_keep_their_published_quirk(name: str, depth: int, params: int) -> None:
    """The first block of a stage has C_in / L secondary groups; with C_out / L there would be fewer parameters."""
    assert counts(name, depth=depth, identity=True).params == params
    with torch.device("meta"):
        net = create_model(name, depth=depth, identity=True)
    chains = [module.plan for module in net.modules() if isinstance(module, ConvChain)]
    widening = [plan for plan in chains if plan.spec.in_channels != plan.spec.out_channels]
    assert len(widening) == 2
    extra = 0
    for plan in widening:
        primary, secondary = (stage.conv for stage in plan.stages)
        assert secondary.groups == plan.spec.in_channels // primary.groups
        assert plan.coverage == 1
        extra += plan.params - InterleavedGroup(primary_partitions=primary.groups).plan(plan.spec).params
    assert round(extra / 1e6, 4) == {"igc_l24m2": 0.0069, "igc_l4m8": 0.0008}[name]


@pytest.mark.parametrize(("primary", "secondary", "params", "width"), TABLE_1)
def test_figure_3_networks(primary: int, secondary: int, params: int, width: int) -> None:
    """Eight layers at full resolution: six blocks of the weights that table 1 prints."""
    recipe = IGC[f"igc_figure3_l{primary}m{secondary}_cifar100"]()
    with torch.device("meta"):
        net = create_model(recipe.model, num_classes=100, **recipe.model_args)
    blocks = [module for module in net.modules() if isinstance(module, ConvChain)]
    assert [sum(p.numel() for p in block.parameters()) for block in blocks] == [params] * 6
    assert all(block.stride == (1, 1) for block in blocks)
    assert net.fc.in_features == primary * secondary


def test_published_settings_of_the_networks() -> None:
    """BatchNorm's eps and momentum, one of them per block, no bias but the classifier's, He-normal weights."""
    for identity, depth, momentum in ((False, 20, 0.01), (True, 20, 0.1)):
        net = create_model("igc_l4m8", identity=identity, depth=depth)
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {(norm.eps, norm.momentum) for norm in norms} == {(2e-5, momentum)}
        chains = [module for module in net.modules() if isinstance(module, ConvChain)]
        assert len(chains) == depth - 2
        assert len(norms) == depth - 1 + (2 if identity else 0)
        convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
        assert all(conv.bias is None for conv in convs)
        large = [conv for conv in convs if conv.weight.numel() > 4000]
        assert large
        for conv in large:
            fan_in = conv.weight[0].numel()
            assert float(conv.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
        if identity:
            shortcuts = [conv for conv in convs if conv.kernel_size == (1, 1) and conv.stride == (2, 2)]
            assert [conv.groups for conv in shortcuts] == [4, 4]


def test_variants_of_section_4_are_options_of_the_networks() -> None:
    """L = 4, M = 8 with a dense 1x1 behind it: 32 x 32 weights for 8 x 4 x 4; a ReLU between (footnote 4)."""
    plain, dense = (create_model("igc_l4m8", dense_secondary=dense) for dense in (False, True))
    plans = [next(m for m in net.modules() if isinstance(m, ConvChain)).plan for net in (plain, dense)]
    assert [str(plan) for plan in plans] == [
        "3x3 32->32 g4, shuffle 4; 1x1 32->32 g8, shuffle 8",
        "3x3 32->32 g4; 1x1 32->32",
    ]
    assert [plan.params for plan in plans] == [4 * 8 * 8 * 9 + 8 * 4 * 4, 4 * 8 * 8 * 9 + 32 * 32]
    assert plans[1].coverage == 1
    activated = create_model("igc_l4m8", between="relu")
    chain = next(m for m in activated.modules() if isinstance(m, ConvChain))
    assert [name for name, _ in chain.named_children()] == ["conv1", "relu1", "shuffle1", "conv2", "shuffle2"]
    assert counts("igc_l4m8", between="relu").macs == counts("igc_l4m8").macs


@pytest.mark.parametrize("name", ["igc_l24m2", "regconv_w18", "sumfusion", "igcnet"])
def test_momentum_of_batchnorm_is_an_option(name: str) -> None:
    norms = [m for m in create_model(name, momentum=0.1).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("igc_l4m8", {"momentum": 0}, "momentum of BatchNorm must be above 0"),
        ("igc_l4m8", {"depth": 21}, r"3n \+ 2 \(5, 8, 11, ...\), got 21"),
        ("igc_l4m8", {"depth": 2}, r"3n \+ 2"),
        ("regconv_w16", {"depth": 11, "identity": True}, r"6n \+ 2 \(8, 14, 20, ...\), got 11"),
        ("igcnet", {"primary_partitions": 0}, "primary_partitions must be at least 1"),
        ("igcnet", {"secondary_partitions": -2}, "secondary_partitions must be at least 1"),
        ("igcnet", {"stages": 0}, "stages must be an integer of at least 1"),
        ("igc_l4m8", {"num_classes": 0}, "num_classes must be"),
    ],
)
def test_bad_input(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(LeanconvError, match=message):
        create_model(name, **options)
