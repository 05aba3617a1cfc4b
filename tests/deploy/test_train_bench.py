"""Steps of training: what they need in memory, worked out by hand, and what cannot be trained."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from kernels_library import library
from leanconv.build import create_model
from leanconv.deploy import TrainBenchRow, bench_training
from leanconv.errors import LeanconvError, UnknownName
from leanconv.ops.osep import OptimizedSeparableConv2d

SIZE = (3, 8, 8)


def tiny(channels: int = 8, *, norm: bool = True) -> nn.Module:
    """One convolution, and a classifier of 5."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(channels)] if norm else []
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *norms, nn.ReLU(inplace=True), *head)


def loss_bytes(batch: int) -> int:
    """What cross-entropy keeps: its log-probabilities, the labels and their count."""
    return batch * 5 * 4 + batch * 8 + 4


def test_bytes_saved_for_the_backward_by_hand() -> None:
    """The input and the convolution's result for their gradients; ReLU in place keeps one map, not two."""
    batch, pixels = 4, 64
    without = batch * 4 * (3 * pixels + 8 * pixels + 8) + loss_bytes(batch)
    with_norm = without + batch * 4 * 8 * pixels + 2 * 8 * 4  # the map before the norm, means and deviations
    for norm, wanted in ((False, without), (True, with_norm)):
        (row,) = bench_training({"net": tiny(norm=norm)}, SIZE, batch=batch, rounds=1)
        assert row.saved_bytes == wanted
        assert row.peak_bytes is None


def test_rows_speeds_and_untouched_models() -> None:
    nets = {"small": tiny(8), "large": tiny(256)}
    before = {name: value.clone() for name, value in nets["small"].state_dict().items()}
    rows = bench_training(nets, (3, 32, 32), batch=4, rounds=5)
    assert [row.model for row in rows] == ["small", "large"]
    for row in rows:
        assert row.problem is None
        assert row.median_ms is not None
        assert row.per_second == pytest.approx(4000 / row.median_ms)
        assert 0 < (row.low_ms or 0) <= row.median_ms <= (row.high_ms or 0)
        assert (row.device, row.precision, row.batch, row.rounds) == ("cpu", "32-true", 4, 5)
    assert rows[0].ratio == 1.0
    assert (rows[1].ratio or 0) > 2  # 32 times the work
    assert rows[0].macs == 32 * 32 * 8 * 3 * 9 + 40
    assert json.loads(json.dumps(rows[0].to_json()))["saved_bytes"] == rows[0].saved_bytes
    assert all(torch.equal(value, before[name]) for name, value in nets["small"].state_dict().items())
    assert all(parameter.grad is None for parameter in nets["small"].parameters())


def test_the_table_says_clips_and_what_is_saved() -> None:
    from leanconv.report import train_bench_table

    net = create_model("ir_csn_26", num_classes=3, frames=4)
    row = bench_training({"net": net}, (3, 4, 32, 32), batch=2, rounds=1)[0]
    table = train_bench_table([row])
    assert [column.header for column in table.columns][4:] == ["clips/s", "ms", "low-high", "x", "saved"]
    assert any("what autograd keeps" in note for note in table.notes)


def test_half_the_bytes_in_bfloat16() -> None:
    rows = [bench_training({"net": tiny(64)}, SIZE, batch=8, rounds=1, precision=precision)[0] for precision in
            ("32-true", "bf16-mixed")]  # fmt: skip
    full, half = (row.saved_bytes or 0 for row in rows)
    assert 0.5 * full < half < 0.75 * full  # the input is kept in both, and weights are cast


class Two(nn.Module):
    """A classifier and an auxiliary one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.other, self.kind = tiny(), tiny(), kind

    def forward(self, x: Tensor) -> object:
        if self.kind == "map":
            return x * self.net[0].weight.sum()
        return {"out": self.net(x), "aux": self.other(x)} if self.training else self.net(x)


def test_auxiliary_classifiers_are_trained_too() -> None:
    (one,) = bench_training({"net": tiny()}, SIZE, batch=2, rounds=1)
    (both,) = bench_training({"net": Two("aux")}, SIZE, batch=2, rounds=1)
    shared = 2 * 4 * 3 * 64  # the input
    assert (both.saved_bytes or 0) - shared == 2 * ((one.saved_bytes or 0) - shared)


@pytest.mark.parametrize(
    ("net", "given", "told"),
    [
        (lambda: Two("map"), {}, r"class scores of shape \(8, classes\) for its loss, and Two gives \(8, 3, 8, 8\)"),
        (lambda: nn.Sequential(nn.Flatten()), {}, "has nothing to train: no parameter wants a gradient"),
        (tiny, {"size": (5, 8, 8)}, "the forward of Sequential fails on an input of shape .* to have 3 channels"),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Flatten()),
         {"batch": 1}, "a BatchNorm that sees one value a channel in a batch of 1, .* at least 2"),
        (tiny, {"rounds": 0}, "rounds of at least 1, got 1 models, 1 backends, batch=8, threads=1, rounds=0"),
        (tiny, {"device": "gpu"}, "device must be cpu, cuda or cuda:NUMBER, got 'gpu'"),
        (tiny, {"device": "cuda:99"}, "device cuda:99 is not here, torch sees . CUDA devices"),
        (lambda: create_model("detection/faster_rcnn", backbone="torchvision/resnet18"), {}, "detector, whose losses"),
        (lambda: create_model("elastic_mobilenet_v1"), {"size": (3, 32, 32)}, "elastic"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained(net: object, given: dict[str, object], told: str) -> None:
    with pytest.raises(LeanconvError, match=told):
        bench_training({"net": net()}, **{"size": SIZE, "rounds": 1, **given})  # type: ignore[operator, arg-type]


def test_unknown_names() -> None:
    with pytest.raises(UnknownName, match="unknown backend of training 'onnxruntime'"):
        bench_training({"net": tiny()}, SIZE, backends=["onnxruntime"])
    with pytest.raises(UnknownName, match="unknown precision 'fp16'"):
        bench_training({"net": tiny()}, SIZE, precision="fp16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_a_gpu_holds_weights_gradients_momentum_and_maps() -> None:
    net = tiny(64)
    row: TrainBenchRow = bench_training({"net": net}, (3, 64, 64), batch=16, rounds=3, device="cuda")[0]
    weights = 4 * sum(parameter.numel() for parameter in net.parameters())
    assert row.peak_bytes is not None
    assert row.saved_bytes is not None
    assert row.peak_bytes > row.saved_bytes + 2 * weights
    assert row.device == "cuda:0"


def test_on_the_library() -> None:
    """Less is kept there; a network without groups has none of it, and that is said."""
    library()
    chain = nn.Sequential(OptimizedSeparableConv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    dense = nn.Sequential(nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    rows = bench_training({"chain": chain, "dense": dense}, (16, 8, 8), backends=("eager", "leanconv"), rounds=1)
    kept = [row.saved_bytes for row in rows]
    assert kept[0] is not None
    assert kept[1] is not None
    assert kept[1] < kept[0]
    assert rows[3].problem is not None
    assert "no layer of Sequential trains on the library" in rows[3].problem
