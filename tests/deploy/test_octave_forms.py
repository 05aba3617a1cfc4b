"""Every way to sum an octave convolution is the same function, and the one that is measured as fastest is kept."""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.build import create_model
from leanconv.data.contract import InputContract, attach, contract_of
from leanconv.deploy import bench, fold
from leanconv.deploy.forms import octave_forms
from leanconv.deploy.forms.octave_sums import SUM_FORMS, OctaveSum
from leanconv.deploy.forms.octaves import OctaveUnit, fits_octave_unit
from leanconv.errors import LeanconvError, NothingToRewrite
from leanconv.ops.octave import OctConv2d
from leanconv.ops.octave_map import OctaveMap

MODULE = importlib.import_module("leanconv.deploy.forms.octave_forms")  # the function of that name hides it


def parts(x: Tensor) -> tuple[Tensor, ...]:
    return (x.high, x.low) if isinstance(x, OctaveMap) else (x,)


def drawn(conv: OctConv2d, channels: int, low: int, height: int, width: int) -> Tensor:
    if not low:
        return torch.randn(2, channels, height, width)
    half = torch.randn(2, low, -(-height // 2), -(-width // 2))
    return half if low == channels else OctaveMap(torch.randn(2, channels - low, height, width), half)


@pytest.mark.parametrize("seed", range(12))
def test_every_way_is_the_same_function(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    kernel, stride = draw.choice([1, 3, 3, 5]) if seed > 3 else 1, draw.choice([1, 1, 2])
    conv = OctConv2d(
        draw.randint(4, 9), draw.randint(4, 9), kernel, stride, kernel // 2, bias=draw.random() < 0.7,
        alpha_in=draw.choice([0, 0.3, 0.5]), alpha_out=draw.choice([0, 0.3, 0.5]),
    ).eval()  # fmt: skip
    assert fits_octave_unit(conv)
    x = drawn(conv, conv.in_channels, conv.low_in, draw.randint(3, 11), draw.randint(3, 11))
    with torch.no_grad():
        plain: Tensor = conv(x)
        residual = draw.choice([None, torch.randn_like(plain)])
        if isinstance(plain, OctaveMap) and residual is not None:
            residual = OctaveMap(torch.randn_like(plain.high), torch.randn_like(plain.low), plain.runs)
        expected = functional.relu(plain if residual is None else plain + residual)
        ways = set()
        for form in SUM_FORMS:
            unit = OctaveUnit(copy.deepcopy(conv), relu=True, output=MODULE._output)
            for layer in unit.modules():
                if isinstance(layer, OctaveSum) and form in layer.forms:
                    ways.add(layer.run_as(form).form)
            for mine, theirs in zip(parts(unit(x, residual)), parts(expected), strict=True):
                assert mine.shape == theirs.shape
                assert (mine - theirs).abs().max() <= 1e-5 * plain.abs().max()
    assert ways >= ({"apart", "joined"} if conv.low_in and conv.low_out else {"apart"})


def test_a_network_keeps_no_sum_or_clip_of_its_own() -> None:
    """But the ReLU of the stem and those of the last stage, which is at one resolution."""
    net = fold(create_model("oct_resnet26", alpha=0.5, num_classes=10).eval(), (3, 44, 52)).model
    new = MODULE.in_sums(net)
    x = torch.randn(2, 3, 44, 52)
    with torch.no_grad():
        assert (new(x) - net(x)).abs().max() <= 1e-5 * net(x).abs().max()
    sums = [module for module in new.modules() if isinstance(module, OctaveSum)]
    assert sum(one.relu for one in sums) > 30
    assert sum("raised" in one.forms for one in sums) > 8


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = OctConv2d(3, 8, 3, padding=1, alpha_in=0, alpha_out=0.5)
        self.second = OctConv2d(8, 8, 1, alpha_in=0.5, alpha_out=0.5)
        self.last = OctConv2d(8, 4, 1, alpha_in=0.5, alpha_out=0)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        made: Tensor = self.last(functional.relu(self.second(x) + x))
        return made


@pytest.mark.parametrize(("fast", "kept"), [("raised", "each its fastest"), ("apart", "sums in order")])
def test_what_is_measured_as_fastest_is_kept(fast: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def times(networks: Mapping[str, nn.Module], size: Any, *rest: Any) -> dict[str, float]:
        asked.append((dict(networks), size))
        if "as made" in networks:
            return {"as made": 3.0} | {name: 2.0 - number for number, name in enumerate(list(networks)[1:])}
        return {name: 1.0 if name == fast else 1.1 for name in networks} | {"joined": 1.4}

    monkeypatch.setattr(MODULE, "_times", times)
    net = Two().eval()
    contract = InputContract(size=(3, 7, 9), mean=(0.5,) * 3, std=(0.25,) * 3)
    attach(net, contract)
    found = octave_forms(net, (3, 7, 9), runtime="openvino")
    assert found.kept == kept
    assert contract_of(found.model) == contract
    assert [one.count for one in found.layers] == [1, 1, 1]  # the high and the low output of `second`, `last`
    assert asked[0][1] == ((4, 7, 9), (4, 4, 5), (4, 7, 9))
    assert asked[1][1] == ((4, 4, 5), (4, 4, 5), (4, 4, 5))
    forms = [one.form for one in found.model.modules() if isinstance(one, OctaveSum) and len(one.forms) > 1]
    assert forms == [fast, "apart", fast]
    assert f"{kept}: " in str(found)
    x = torch.randn(1, 3, 7, 9)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), net(x))


def test_as_a_backend() -> None:
    pytest.importorskip("onnxruntime")
    rows = bench({"two": Two(), "dense": nn.Conv2d(3, 4, 3)}, (3, 8, 8), backends=["onnxruntime_forms"], rounds=1)
    assert rows[0].problem is None
    assert rows[0].median_ms is not None
    assert "no octave convolution" in str(rows[1].problem)


def test_refusals() -> None:
    with pytest.raises(LeanconvError, match="onnxruntime"):
        octave_forms(Two(), (3, 8, 8), runtime="onnxrun")
    with pytest.raises(NothingToRewrite, match="no octave convolution of Conv2d"):
        octave_forms(nn.Conv2d(3, 4, 3), (3, 8, 8))
