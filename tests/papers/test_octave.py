"""The counts of "Drop an Octave" (ICCV 2019): multiply-adds of convolutions and linear layers, per 224 x 224 image.

The paper's table 9 also counts BatchNorm, pools and additions, 0.3 to 0.9 % more, and is given beside ours; the exact
figures are those of the authors' networks counted independently.
"""

from __future__ import annotations

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from torch import nn

from leanconv.build import create_model
from leanconv.cost import measure
from leanconv.errors import RewriteError
from leanconv.ops.octave import OctConv2d
from leanconv.ops.octave_map import OctaveMap

# name -> alpha -> G multiply-adds (ours, table 9).
TABLE_9 = {
    "oct_resnet26": {0: (2.342, 2.353), 0.125: (2.087, 2.102), 0.25: (1.858, 1.871), 0.5: (1.480, 1.491),
                     0.75: (1.208, 1.216)},
    "oct_resnet50": {0: (4.089, 4.105), 0.125: (3.565, 3.587), 0.25: (3.104, 3.123), 0.5: (2.367, 2.383),
                     0.75: (1.880, 1.891)},
    "oct_se_resnet50": {0: (4.092, 4.113), 0.125: (3.568, 3.594), 0.25: (3.106, 3.130), 0.5: (2.370, 2.389),
                        0.75: (1.883, 1.896)},
    "oct_resnext50": {0: (4.230, 4.250), 0.25: (3.171, 3.196), 0.5: (2.387, 2.406), 0.75: (1.877, 1.891)},
    "oct_resnet101": {0: (7.801, 7.822), 0.125: (6.625, 6.656), 0.25: (5.598, 5.625), 0.5: (3.991, 4.012)},
    "oct_resnext101": {0: (7.970, 7.993), 0.25: (5.683, 5.719), 0.5: (4.023, 4.050)},
    "oct_resnet200": {0: (15.007, 15.044), 0.125: (12.564, 12.623), 0.25: (10.439, 10.497), 0.5: (7.144, 7.183)},
    "oct_densenet121": {0: (2.834, 2.852), 0.125: (2.398, 2.428), 0.25: (2.017, 2.044)},
}  # fmt: skip

# name, multiplier, alpha, M multiply-adds, million parameters with BatchNorm (printed: one digit).
TABLE_5 = [
    ("oct_mobilenet_v1", 0.75, 0, 325.4, 2.6),
    ("oct_mobilenet_v1", 0.75, 0.375, 211.4, 2.6),
    ("oct_mobilenet_v1", 1.0, 0, 568.7, 4.2),
    ("oct_mobilenet_v1", 1.0, 0.5, 318.2, 4.2),
    ("oct_mobilenet_v2", 1.0, 0, 313.6, 3.5),
    ("oct_mobilenet_v2", 1.0, 0.375, 254.0, 3.5),
    ("oct_mobilenet_v2", 1.125, 0.5, 292.8, 4.2),
]

# name, G multiply-adds at 224 and at 320, million weights of convolutions and linear layers, million parameters.
TABLE_7 = [
    ("oct_resnet152_deep", 10.819, 22.078, 60.07, 60.2),
    ("oct_se_resnet152_deep", 10.839, 22.111, 66.69, 66.8),
]

# name, options, G multiply-adds per clip of 8 frames: counted, printed.
TABLE_8 = [
    ("c2d_resnet50", {}, 19.49, 19.3),
    ("oct_c2d_resnet50", {"alpha": 0.1}, 17.51, 17.4),
    ("i3d_resnet50", {}, 28.41, 28.1),
    ("oct_i3d_resnet50", {"alpha": 0.1}, 25.78, 25.6),
]

TABLE_1 = {0: (1.0, 1.0), 0.125: (0.82, 0.91), 0.25: (0.67, 0.81), 0.5: (0.44, 0.63), 0.75: (0.30, 0.44),
           0.875: (0.26, 0.344), 1.0: (0.25, 0.25)}  # fmt: skip
"""alpha -> cost and memory; the paper prints 35 % at .875, where its own formula 1 - 3/4 alpha gives 34.4 %."""


def build(name: str, **options: float) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


def giga(name: str, size: tuple[int, ...] = (3, 224, 224), **options: float) -> float:
    return measure(build(name, **options), size).macs / 1e9


FAST = {"oct_resnet26", "oct_resnet50"}


def slow(name: str, *values: object) -> ParameterSet:
    """A row of a table, marked slow unless its network is small."""
    return pytest.param(name, *values, marks=() if name in FAST else pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "alpha"), [slow(name, alpha) for name, row in TABLE_9.items() for alpha in row], ids=str
)
def test_table_9(name: str, alpha: float) -> None:
    ours, printed = TABLE_9[name][alpha]
    counted = giga(name, alpha=alpha)
    assert round(counted, 3) == ours
    assert 1.002 < printed / counted < 1.014


@pytest.mark.parametrize("alpha", [0.125, 0.5])
def test_the_papers_resnets_are_preactivated_and_cost_the_same(alpha: float) -> None:
    assert giga("oct_resnet50", alpha=alpha, pre_activation=True) == giga("oct_resnet50", alpha=alpha)


@pytest.mark.parametrize(("name", "multiplier", "alpha", "mega", "params"), TABLE_5)
def test_table_5(name: str, multiplier: float, alpha: float, mega: float, params: float) -> None:
    cost = measure(build(name, multiplier=multiplier, alpha=alpha), (3, 224, 224))
    assert round(cost.macs / 1e6, 1) == mega
    assert round(cost.params / 1e6, 1) == params


@pytest.mark.slow
@pytest.mark.parametrize(("name", "at_224", "at_320", "weights", "params"), TABLE_7)
def test_table_7(name: str, at_224: float, at_320: float, weights: float, params: float) -> None:
    net = build(name)
    cost = measure(net, (3, 224, 224))
    assert round(cost.macs / 1e9, 3) == at_224
    assert round(measure(net, (3, 320, 320)).macs / 1e9, 3) == at_320
    assert cost.params / 1e6 == pytest.approx(params, abs=0.05)
    assert cost.conv_params / 1e6 == pytest.approx(weights, abs=0.06)


@pytest.mark.parametrize(("name", "options", "counted", "printed"), TABLE_8)
def test_table_8(name: str, options: dict[str, float], counted: float, printed: float) -> None:
    ours = giga(name, (3, 8, 224, 224), **options)
    assert ours == pytest.approx(printed, rel=0.03)
    assert round(ours, 2) == counted


@pytest.mark.slow
def test_table_8_with_nonlocal_blocks() -> None:
    """33.3 is printed. How the authors' blocks read pairs is not told, so 28.9 for the octave one is out of reach."""
    assert giga("i3d_resnet50", (3, 8, 224, 224), nonlocal_blocks=True) == pytest.approx(33.3, rel=0.03)
    assert giga("oct_i3d_resnet50", (3, 8, 224, 224), nonlocal_blocks=True) < 30.6


@pytest.mark.parametrize("name", [slow(name) for name in TABLE_9])
def test_parameters_do_not_depend_on_alpha(name: str) -> None:
    counts = {sum(p.numel() for p in build(name, alpha=alpha).parameters()) for alpha in TABLE_9[name]}
    assert len(counts) == 1


@pytest.mark.parametrize("name", ["oct_resnext50", "oct_resnext101"])
def test_resnext_has_no_row_at_an_eighth(name: str) -> None:
    with pytest.raises(RewriteError, match=r"layer1\.0\.conv2\.conv .*16 low channels .* 32 groups.* at least 0\.25"):
        build(name, alpha=0.125)


@pytest.mark.parametrize("alpha", TABLE_1)
def test_table_1(alpha: float) -> None:
    """The cost of one layer, and the memory of one map, against the ordinary ones."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = OctConv2d(64, 64, 3, padding=1, bias=False, alpha_in=alpha, alpha_out=alpha)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            low = torch.nn.functional.avg_pool2d(x, 2)
            full = 64 - int(64 * alpha)
            if alpha in (0, 1):
                return self.conv(low if alpha else x)
            return self.conv(OctaveMap(x[:, :full], low[:, full:]))

    layer = Layer()
    macs = measure(layer, (64, 32, 32)).macs / (64 * 64 * 9 * 32 * 32)
    assert macs == pytest.approx(1 - 0.75 * alpha * (2 - alpha))
    out = layer(torch.zeros(1, 64, 32, 32))
    parts = [out.high, out.low] if isinstance(out, OctaveMap) else [out]
    memory = sum(part.numel() for part in parts) / (64 * 32 * 32)
    cost, printed = TABLE_1[alpha]
    assert macs == pytest.approx(cost, abs=0.0051)
    assert memory == pytest.approx(printed, abs=0.0051)
