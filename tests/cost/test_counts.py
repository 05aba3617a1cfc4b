"""Parameters, multiply-adds, interactions and activation bytes against numbers worked out by hand."""

from __future__ import annotations

import json
from math import comb

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import measure


def test_resnet50_has_the_published_counts() -> None:
    timm = pytest.importorskip("timm")
    cost = measure(timm.create_model("resnet50"), (3, 224, 224))
    assert cost.params == 25_557_032
    assert cost.macs == 4_089_184_256
    # 25,557,032 less 2 x 26,560 BN affine parameters and 1,000 biases.
    assert cost.conv_params == 25_557_032 - 2 * 26_560 - 1_000
    assert cost.by_operator() == {"aten.convolution": 4_087_136_256, "aten.addmm": 2048 * 1000}
    assert cost.receptive_field == (427, 427)


# (layer, size of one image, MACs, conv_params, interactions), all from C_out * C_in/g * K * positions and eq. 3.
BY_HAND = [
    (nn.Conv1d(4, 6, 3, padding=1), (4, 10), 10 * 6 * 4 * 3, 6 * 4 * 3, 6 * 6),
    (nn.Conv2d(4, 6, 3), (4, 9, 8), 7 * 6 * 6 * 4 * 9, 6 * 4 * 9, 6 * 6),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 9, 8), 5 * 4 * 6 * 4 * 9, 6 * 4 * 9, 6 * 6),
    (nn.Conv2d(4, 6, 3, dilation=2), (4, 9, 8), 5 * 4 * 6 * 4 * 9, 6 * 4 * 9, 6 * 6),
    (nn.Conv2d(8, 12, (1, 5), groups=4), (8, 3, 7), 3 * 3 * 12 * 2 * 5, 12 * 2 * 5, 12 * 1),
    (nn.Conv2d(8, 8, 3, groups=8, padding=1), (8, 5, 5), 25 * 8 * 9, 8 * 9, 0),
    (nn.Conv3d(4, 8, (3, 1, 1), padding=(1, 0, 0)), (4, 6, 5, 5), 150 * 8 * 4 * 3, 8 * 4 * 3, 8 * 6),
    (nn.Conv3d(6, 6, 3, groups=2), (6, 4, 4, 5), 12 * 6 * 3 * 27, 6 * 3 * 27, 6 * 3),
    # Transposed: every input position meets C_out/g * K weights. C_out * binom(C_in/g, 2) pairs all the same.
    (nn.ConvTranspose1d(4, 6, 4, stride=2), (4, 7), 7 * 4 * 6 * 4, 4 * 6 * 4, 6 * 6),
    (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 25 * 4 * 6 * 4, 4 * 6 * 4, 6 * 6),
    (nn.ConvTranspose2d(8, 4, 3, groups=2), (8, 5, 5), 25 * 8 * 2 * 9, 8 * 2 * 9, 4 * 6),
    (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 3, 3), 27 * 2 * 3 * 8, 2 * 3 * 8, 3),
    (nn.Linear(10, 7), (10,), 70, 70, 0),
    (nn.Linear(10, 7), (5, 3, 10), 15 * 70, 70, 0),
    (nn.Linear(10, 7, bias=False), (5, 10), 5 * 70, 70, 0),
]


@pytest.mark.parametrize(
    ("layer", "size", "macs", "conv_params", "interactions"), BY_HAND, ids=[str(row[0]) for row in BY_HAND]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_layers_by_hand(
    layer: nn.Module, size: tuple[int, ...], macs: int, conv_params: int, interactions: int, batch: int
) -> None:
    cost = measure(layer, size, batch=batch)
    assert (cost.macs, cost.conv_params, cost.interactions) == (macs, conv_params, interactions)
    assert cost.params == sum(p.numel() for p in layer.parameters())
    assert cost.not_counted.keys() <= {"aten.add"}  # a bias that torch adds on its own


def bottleneck3d(mode: str) -> nn.Module:
    """The CSN bottleneck: 256 -> 64 -> 64 -> 256 channels, 3x3x3 dense, depthwise (ir) or 1x1x1 + depthwise."""
    middle: list[nn.Module] = {
        "plain": [nn.Conv3d(64, 64, 3, padding=1, bias=False)],
        "ir": [nn.Conv3d(64, 64, 3, padding=1, groups=64, bias=False)],
        "ip": [
            nn.Conv3d(64, 64, 1, bias=False),
            nn.BatchNorm3d(64),
            nn.Conv3d(64, 64, 3, padding=1, groups=64, bias=False),
        ],
    }[mode]

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv3d(256, 64, 1, bias=False),
                nn.BatchNorm3d(64),
                nn.ReLU(inplace=True),
                *middle,
                nn.BatchNorm3d(64),
                nn.ReLU(inplace=True),
                nn.Conv3d(64, 256, 1, bias=False),
                nn.BatchNorm3d(256),
            )

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + self.body(x))

    return Residual()


@pytest.mark.parametrize(
    ("mode", "middle_weights", "middle_interactions"),
    [
        ("plain", 64 * 64 * 27, 64 * comb(64, 2)),
        ("ir", 64 * 27, 0),
        ("ip", 64 * 64 + 64 * 27, 64 * comb(64, 2)),
    ],
)
def test_interactions_of_a_resnet3d_bottleneck(mode: str, middle_weights: int, middle_interactions: int) -> None:
    """CSN: the preserved block keeps all pairs of the dense one, the reduced block loses those of the 3x3x3."""
    cost = measure(bottleneck3d(mode), (256, 4, 8, 8))
    assert cost.interactions == 64 * comb(256, 2) + middle_interactions + 256 * comb(64, 2)
    assert cost.conv_params == 2 * 256 * 64 + middle_weights
    assert cost.macs == cost.conv_params * 4 * 8 * 8
    assert cost.receptive_field == (3, 3, 3)


class SlicedConv(nn.Module):
    """Runs with the first channels only, as elastic networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.conv.weight[:6, :4], padding=1)
        return F.linear(y.mean((2, 3)), self.head.weight[:, :6], self.head.bias)


def test_sliced_weights_count_as_they_ran() -> None:
    cost = measure(SlicedConv(), (4, 10, 10))
    assert cost.params == 8 * 8 * 9 + 8 * 5 + 5
    assert cost.conv_params == 6 * 4 * 9 + 6 * 5
    assert cost.macs == 100 * 6 * 4 * 9 + 6 * 5
    assert cost.interactions == 6 * comb(4, 2)


class Standardized(nn.Module):
    """A weight computed from a parameter, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), padding=1)
        return x


def test_computed_and_shared_weights_are_counted_once() -> None:
    cost = measure(Standardized(), (4, 6, 6))
    assert cost.conv_params == cost.params == 4 * 4 * 9
    assert cost.macs == 2 * 36 * 4 * 4 * 9
    assert cost.not_counted == {"aten.mean": 2, "aten.sub": 2}

    conv = nn.Conv2d(4, 4, 3, padding=1)
    tied = nn.Sequential(conv, nn.ReLU(), conv)
    cost = measure(tied, (4, 6, 6))
    assert (cost.params, cost.conv_params, cost.macs) == (4 * 4 * 9 + 4, 4 * 4 * 9, 2 * 36 * 4 * 4 * 9)
    assert cost.by_module()["0"].calls == 2


class Attention(nn.Module):
    """Two linear layers and two products of features."""

    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).chunk(2, -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ x


def test_products_of_features_are_listed_not_counted() -> None:
    cost = measure(Attention(), (5, 8))
    assert cost.macs == 5 * 8 * 16
    assert cost.not_counted["aten.bmm"] == 2
    assert cost.not_counted["aten._softmax"] == 1

    class Fused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    fused = measure(Fused(), (2, 5, 8))
    assert fused.macs == 0
    assert any("attention" in name for name in fused.not_counted) or fused.not_counted["aten.bmm"] == 2


class Functional(nn.Module):
    """Products without nn.Linear: einsum, a grouped product, a fixed matrix, all in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 4))
        self.grouped = nn.Parameter(torch.randn(2, 3, 5))
        self.register_buffer("fixed", torch.randn(5, 7))

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bchw,oc->bohw", x, self.w).mean((2, 3))  # positions * 6 * 4
        y = torch.bmm(y.view(-1, 2, 3).transpose(0, 1), self.grouped)  # 2 * 3 * 5
        return F.linear(y @ self.fixed, self.fixed)  # 2 * 5 * 7, twice


def test_functional_products_are_seen() -> None:
    cost = measure(Functional(), (4, 3, 3))
    assert cost.macs == 9 * 6 * 4 + 2 * 3 * 5 + 2 * (2 * 5 * 7)
    assert cost.conv_params == 6 * 4 + 2 * 3 * 5  # the fixed matrix is no parameter


def test_fixed_kernels_cost_but_are_no_weights() -> None:
    class Blur(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", torch.ones(4, 1, 3, 3) / 9)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.kernel, groups=4, padding=1)

    cost = measure(Blur(), (4, 5, 5))
    assert (cost.macs, cost.conv_params, cost.params) == (25 * 4 * 9, 0, 0)


def test_activation_bytes_leave_out_views_and_in_place_results() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 16, 10))
    assert measure(net, (3, 4, 4)).activation_bytes == 4 * (8 * 16 + 10)
    assert measure(net.half(), (3, 4, 4)).activation_bytes == 2 * (8 * 16 + 10)


def test_modules_add_up() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.Flatten(), nn.Linear(8 * 36, 10))
    cost = measure(net, (3, 8, 8))
    modules = cost.by_module()
    assert list(modules) == ["", "0", "0.0", "0.1", "1", "2"]
    assert modules[""].macs == cost.macs == modules["0.0"].macs + modules["2"].macs
    assert modules["0"].macs == modules["0.0"].own_macs == 36 * 8 * 3 * 9
    assert modules["0"].own_macs == modules["0.1"].macs == 0
    assert modules["0"].params == 8 * 27 + 8 + 16
    assert modules["0"].activation_bytes == 2 * 4 * 8 * 36
    assert sum(module.own_macs for module in modules.values()) == cost.macs == sum(cost.by_operator().values())
    assert modules["2"].type == "Linear"


def test_compare_and_json() -> None:
    thin, wide = (measure(nn.Conv2d(4, c, 3, padding=1), (4, 8, 8)) for c in (4, 8))
    ratios = thin.compare(wide)
    assert (ratios.params, ratios.macs, ratios.interactions) == (0.5, 0.5, 0.5)
    assert measure(nn.Conv2d(4, 4, 3, groups=4), (4, 8, 8)).compare(thin).interactions == 0.0
    assert thin.compare(measure(nn.ReLU(), (4, 8, 8))).macs is None
    plain = thin.to_json(modules=True)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["macs"] == thin.macs
    assert plain["modules"][0]["params"] == thin.params
    assert "modules" not in thin.to_json()
    assert json.loads(json.dumps(ratios.to_json()))["macs"] == 0.5


@pytest.mark.parametrize("batch", [2, 5])
def test_counts_are_per_image_whatever_the_batch(batch: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.Flatten())
    one, many = measure(net, (3, 9, 9)), measure(net, (3, 9, 9), batch=batch)
    for name in ("params", "conv_params", "macs", "interactions", "activation_bytes", "peak_activation_bytes"):
        assert getattr(one, name) == getattr(many, name), name
    assert many.batch == batch


class DynamicKernels(nn.Module):
    """Every image is convolved with its own kernel: the batch is folded into the groups."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernels = x.mean((2, 3)).view(b * c, 1, 1, 1).expand(b * c, c, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=1, groups=b).view(b, c, h, w)


def test_kernels_made_from_the_image() -> None:
    for batch in (1, 4):
        cost = measure(DynamicKernels(), (3, 6, 6), batch=batch)
        assert (cost.macs, cost.interactions, cost.conv_params) == (36 * 3 * 3 * 9, 3 * comb(3, 2), 0)
