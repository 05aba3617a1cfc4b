"""What every operator promises, chain or not: it is everywhere where the others are, with nothing written for it."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from leanconv.build import load, save
from leanconv.cli import app
from leanconv.cost import measure
from leanconv.deploy import compare, densify, fold
from leanconv.elastic import make_elastic
from leanconv.errors import PlanError, RewriteError
from leanconv.ops import OPERATORS, conv_maker
from leanconv.ops.operator import CONVS, ConvOperator
from leanconv.rewrites import from_json, rewrite, to_json
from leanconv.rewrites.operators import kernel_weights
from leanconv.spec import ConvSpec
from operators import ROWS, Row, network

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
FIRST = {stem: next(row for row in ROWS if row.rewrite.stem == stem) for stem in OPERATORS}
every_operator = pytest.mark.parametrize("row", FIRST.values(), ids=FIRST.keys())


def images(spec: ConvSpec, size: int = 9) -> Tensor:
    return torch.randn(2, spec.in_channels, *(size,) * spec.ndim, dtype=torch.float64)


def dense(spec: ConvSpec) -> Any:
    """The ordinary convolution that an operator for `spec` stands for."""
    settings = {"stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "bias": spec.bias}
    kind: Any = CONVS[spec.ndim]
    return kind(
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        **settings,
        padding_mode=spec.padding_mode,
        dtype=torch.float64,
    )


def test_every_operator_has_a_row() -> None:
    assert {type(row.rewrite) for row in ROWS} == set(OPERATORS.values())


@every_row
def test_counts_are_those_of_the_definition(row: Row) -> None:
    assert kernel_weights(row.rewrite.build(row.spec)) == row.params


@every_row
def test_interface_of_a_convolution(row: Row) -> None:
    made, conv = row.rewrite.build(row.spec, dtype=torch.float64), dense(row.spec)
    assert isinstance(made, ConvOperator)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode"):
        assert getattr(made, name) == getattr(conv, name), name
    x = images(row.spec)
    assert made(x).shape == conv(x).shape
    assert made.describe()
    assert "\n" not in made.describe()


@every_row
def test_every_weight_is_trained(row: Row) -> None:
    made = row.rewrite.build(row.spec, dtype=torch.float64)
    made(images(row.spec)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@every_row
def test_device_dtype_and_copies(row: Row) -> None:
    made = row.rewrite.build(row.spec, device="meta", dtype=torch.float16)
    assert all(p.is_meta and p.dtype == torch.float16 for p in made.parameters())
    net = row.rewrite.build(row.spec, dtype=torch.float64).eval()
    x = images(row.spec)
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    other = row.rewrite.build(row.spec, dtype=torch.float64).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


@every_operator
def test_a_fit_is_reported_or_refused(row: Row) -> None:
    made, conv = row.rewrite.build(row.spec, dtype=torch.float64), dense(row.spec)
    if type(row.rewrite)().init == "project" and "relu" not in getattr(made, "between", ""):
        assert 0 <= made.project_(conv.weight, conv.bias) <= 1
    else:
        with pytest.raises(PlanError, match="use init='fresh'"):
            made.project_(conv.weight, conv.bias)


@every_operator
def test_from_rewrite_to_a_saved_elastic_network(row: Row, tmp_path: Path) -> None:
    """Cost, elastic width, extraction, saving and loading, on a network that has one layer of the row."""
    step = replace(row.rewrite, where="1", init="fresh")
    assert from_json(json.loads(json.dumps(to_json(step)))) == step
    size = (3, *(12,) * row.spec.ndim)
    new = rewrite(network(row.name), step, size=size, source="operators:network", source_options={"name": row.name})
    assert [change.name for change in new.changes] == ["1"]
    cost = measure(new, size)
    assert cost.by_module()["1"].macs > 0
    x = torch.randn(2, *size)
    loaded = load(save(new, tmp_path / "static"), trust_code=True)
    assert torch.equal(loaded.eval()(x), new.model.eval()(x))
    frames = {"frames": (12,)} if row.spec.ndim == 3 else {}
    refused = ""
    try:
        net = make_elastic(new, widths=(0.5, 1.0), resolutions=(12,), divisor=1, **frames)
    except RewriteError as error:
        refused = str(error)
    if refused:
        assert re.search(r"\b1\b", refused)  # by the name of the layer
        return
    again = load(save(net, tmp_path / "elastic"), trust_code=True)
    for width in (0.5, 1.0):
        static = net.extract(width=width, calibrated=False).eval()
        with net.at(width=width):
            net.train()
            slim = net(x)
        assert slim.shape == (2, 4)
        torch.testing.assert_close(static.train()(x), slim)
        densify(static, size)  # compares: what is still a chain has the plan that it says
    assert list(again.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("stem", OPERATORS)
def test_a_norm_behind_it_is_folded_or_kept_with_a_reason(stem: str) -> None:
    net = nn.Sequential(conv_maker(OPERATORS[stem]())(16, 16, 3, padding=1), nn.BatchNorm2d(16)).eval()
    result = fold(net, (16, 9, 9))
    assert ("1" in result.folded) != ("1" in dict(result.kept))
    assert compare(net, result.model, (16, 9, 9), seed=5).max_abs < 1e-5


@pytest.mark.parametrize("stem", OPERATORS)
def test_the_command_line_has_it(stem: str) -> None:
    def macs(*more: str) -> int:
        done = CliRunner().invoke(app, ["measure", "resnet20", *more, "--json"])
        assert done.exit_code == 0, done.output
        return int(json.loads(done.stdout)[-1]["macs"])

    assert macs("--rewrite", f"{stem}:init=fresh,where=layer1.*.conv1") < macs()


def test_a_convolution_that_has_groups_stays_ordinary() -> None:
    for operator in OPERATORS.values():
        assert isinstance(conv_maker(operator())(16, 16, 3, groups=16), nn.Conv2d)
