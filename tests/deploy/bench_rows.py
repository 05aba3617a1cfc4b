"""Every (model, backend) pair is a row: measured, or with the reason why not."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leanconv.cost import measure
from leanconv.deploy import BenchRow, bench, bench_training
from leanconv.deploy import bench as _bench_function
from leanconv.errors import LeanconvError, UnknownName

module = sys.modules[_bench_function.__module__]
SIZE = (3, 16, 16)


def tiny(channels: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def test_rows_in_order_with_costs_and_latencies() -> None:
    size = (3, 64, 64)  # at 16x16 the fixed cost of a call hides the work
    models = {"small": tiny(8), "large": tiny(256)}
    rows = bench(models, size, backends=("eager", "onnxruntime", "openvino"), rounds=5, batch=2)
    assert [(row.model, row.backend) for row in rows] == [
        (name, backend) for name in models for backend in ("eager", "onnxruntime", "openvino")
    ]
    for row in rows:
        assert row.problem is None
        assert row.median_ms is not None
        assert row.low_ms is not None
        assert row.high_ms is not None
        assert 0 < row.low_ms <= row.median_ms <= row.high_ms
        assert row.max_abs_difference is not None
        assert row.max_abs_difference < 1e-5
        cost = measure(models[row.model], size)
        assert (row.macs, row.params) == (cost.macs, cost.params)
        assert (row.batch, row.threads, row.rounds) == (2, 1, 5)
    assert rows[0].ratio == 1.0
    assert rows[0].max_abs_difference == 0.0
    # 32 times the work, on the same backend and in the same run.
    assert rows[3].ratio is not None
    assert rows[3].ratio > 2
    assert json.loads(json.dumps(rows[0].to_json()))["size"] == list(size)


def test_models_and_threads_are_left_as_they_were() -> None:
    net, threads = tiny().train(), torch.get_num_threads()
    bench({"net": net}, SIZE, backends=["eager"], rounds=1, threads=2)
    assert all(part.training for part in net.modules())
    assert torch.get_num_threads() == threads


def test_a_backend_that_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = bench({"net": tiny()}, SIZE, backends=("eager", "openvino"), rounds=1)
    assert rows[0].problem is None
    assert rows[1].problem is not None
    assert "pip install 'leanconv[export]'" in rows[1].problem
    assert rows[1].median_ms is None
    assert rows[1].macs == rows[0].macs


def test_a_model_that_a_backend_cannot_take_is_reported() -> None:
    class Exotic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.svd(x).S

    rows = bench({"odd": Exotic()}, SIZE, backends=("eager", "onnxruntime"), rounds=1)
    assert rows[0].median_ms is not None
    assert rows[1].problem is not None
    assert "no operator for aten._linalg_svd" in rows[1].problem


def test_a_backend_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> Any:
        return lambda x: torch.zeros(1, 8)

    monkeypatch.setitem(module.BACKENDS, "eager", wrong)
    rows = bench({"net": tiny()}, SIZE, backends=("eager", "onnxruntime"), rounds=1)
    assert rows[0].problem is not None
    assert "outputs differ from torch's" in rows[0].problem
    assert rows[0].median_ms is None
    assert rows[1].ratio == 1.0


def test_a_model_that_does_not_run_is_an_error() -> None:
    with pytest.raises(LeanconvError, match=r"does not run on inputs of shape \(1, 5, 16, 16\)"):
        bench({"net": tiny()}, (5, 16, 16), backends=["eager"])


def test_bad_arguments() -> None:
    with pytest.raises(UnknownName, match=r"unknown backend 'onnx'.*onnxruntime"):
        bench({"net": tiny()}, SIZE, backends=["onnx"])
    with pytest.raises(LeanconvError, match="at least one model"):
        bench({}, SIZE)
    with pytest.raises(LeanconvError, match="rounds=0"):
        bench({"net": tiny()}, SIZE, rounds=0)


@pytest.mark.slow
def test_compiled_models_of_one_class_do_not_fall_back_to_eager(capfd: pytest.CaptureFixture[str]) -> None:
    """torch compiles a function at most eight times and then runs it in eager without a word."""
    from torch._dynamo.utils import counters

    counters.clear()
    models = {f"net{index}": tiny(4 + index) for index in range(10)}
    rows: list[BenchRow] = bench(models, SIZE, backends=["compile"], rounds=2)
    assert [row.problem for row in rows] == [None] * 10
    assert counters["stats"]["unique_graphs"] == 10
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch._inductor").level != logging.CRITICAL


@pytest.mark.slow
def test_compiled_steps_of_training_keep_less() -> None:
    """torch.compile joins the norm and the ReLU, and needs not both their results."""
    net = nn.Sequential(tiny(16), nn.Linear(16, 5))
    rows = bench_training({"net": net}, SIZE, backends=("eager", "compile"), rounds=2)
    assert [row.problem for row in rows] == [None, None]
    eager, compiled = (row.saved_bytes for row in rows)
    assert eager is not None
    assert compiled is not None
    assert 0 < compiled <= eager
