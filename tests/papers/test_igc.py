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
from leanconv.ops.igc_theory import igc_params
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


# Table 3: depth, then millions of parameters and 1e8 MACs of regconv_w16, regconv_w18, igc_l4m8, igc_l24m2.
TABLE_3_NETS = ("regconv_w16", "regconv_w18", "igc_l4m8", "igc_l24m2")
TABLE_3 = [
    (8, ("0.075", "0.095", "0.078", "0.047"), ("0.122", "0.154", "0.131", "0.099")),
    (20, ("0.27", "0.34", "0.27", "0.15"), ("0.406", "0.513", "0.424", "0.288")),
    (38, ("0.56", "0.71", "0.57", "0.31"), ("0.830", "1.05", "0.862", "0.571")),
    (62, ("0.95", "1.20", "0.96", "0.52"), ("1.40", "1.77", "1.45", "0.948")),
    (98, ("1.53", "1.93", "1.56", "0.83"), ("2.25", "2.84", "2.32", "1.51")),
]


@pytest.mark.parametrize(("depth", "millions", "macs"), TABLE_3)
def test_table_3(depth: int, millions: tuple[str, ...], macs: tuple[str, ...]) -> None:
    """Forty numbers; the parameters printed are those of convolutions and the classifier, without BatchNorm."""
    for name, params_printed, macs_printed in zip(TABLE_3_NETS, millions, macs, strict=True):
        cost = counts(name, depth=depth)
        assert f"{cost.conv_params / 1e6:.{len(params_printed) - 2}f}" == params_printed, name
        assert f"{cost.macs / 1e8:.{len(macs_printed) - 2}f}" == macs_printed, name


def test_table_3_to_the_digit() -> None:
    exact = {name: (cost.conv_params, cost.macs) for name in TABLE_3_NETS for cost in [counts(name)]}
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


@pytest.mark.parametrize(
    ("name", "stem", "params", "printed"),
    [("igc_l16m32", 17.463, 17.667584, "17.7"), ("igc_l450m2", 18.913, 19.2735, "19.3"),
     ("igc_l32m26", 23.724, 24.05728, "24.1")],
)  # fmt: skip
def test_table_7(name: str, stem: float, params: float, printed: str) -> None:
    """The parameters printed belong to the CIFAR-100 classifier."""
    cost = counts(name, num_classes=100)
    assert cost.conv_params / 1e6 == params
    assert f"{params:.1f}" == printed
    classifier = cost.by_module()["fc"].params
    assert round((cost.conv_params - classifier) / 1e6, 3) == stem


TABLE_6 = [
    # name, all parameters, MACs, printed 1e9; the parameters are the released symbols', the printed fit no convention
    ("regconv_resnet18_w64", 11_689_512, 1_814_073_344, "1.8"),
    ("regconv_resnet18_w69", 13_542_457, 2_098_611_264, "2.1"),
    ("igc_resnet18_l4m32", 12_251_240, 1_944_641_536, "1.9"),
    ("igc_resnet18_l16m16", 13_528_296, 2_265_989_120, "2.3"),
    ("igc_resnet18_l100m2", 8_637_900, 1_264_780_800, "1.3"),
]


@pytest.mark.parametrize(("name", "params", "macs", "printed"), TABLE_6)
def test_table_6(name: str, params: int, macs: int, printed: str) -> None:
    """L16M16 is printed as 2.2, cut off."""
    cost = counts(name)
    assert (cost.params, cost.macs) == (params, macs)
    assert f"{macs / 1e9:.1f}" == printed


def test_l100m2_prints_its_convolutions_and_classifier() -> None:
    """8.61, the one parameter count of table 6 that fits."""
    assert f"{counts('igc_resnet18_l100m2').conv_params / 1e6:.2f}" == "8.61"


@pytest.mark.parametrize(("primary", "secondary"), [(row[0], row[1]) for row in TABLE_1[:9]])
def test_figure_3_networks(primary: int, secondary: int) -> None:
    """Eight layers at full resolution: six blocks of about 4672 parameters."""
    net = create_model(
        "igcnet", primary_partitions=primary, secondary_partitions=secondary, depth=8, stages=1, num_classes=100
    )
    blocks = [module for module in net.modules() if isinstance(module, ConvChain)]
    assert [block.plan.params for block in blocks] == [igc_params(primary, secondary)] * 6
    assert all(block.stride == (1, 1) for block in blocks)


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
