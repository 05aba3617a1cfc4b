"""Steps as JSON and as command-line text: every operator comes back equal, every mistake is named."""

from __future__ import annotations

import json

import pytest

from leanconv.errors import LeanconvError, PlanError, UnknownName
from leanconv.ops import OPERATORS
from leanconv.ops.drop_in import ChainRewrite
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import Grouped
from leanconv.rewrites import from_json, parse_step, to_json


@pytest.mark.parametrize("stem", sorted(OPERATORS))
def test_every_operator_survives_json_and_text(stem):
    more = {"between": "bn"} if issubclass(OPERATORS[stem], ChainRewrite) else {}
    step = OPERATORS[stem](where="layer[34].* kernel>1", init="fresh", **more)
    assert from_json(json.loads(json.dumps(to_json(step)))) == step
    text = "".join(f",{name}={value}" for name, value in more.items())
    assert parse_step(f"{stem}:where=layer[34].* kernel>1,init=fresh{text}") == step
    assert parse_step(stem) == OPERATORS[stem]()
    assert to_json(step)["stem"] == stem


def test_values_are_typed():
    step = parse_step("osep:overlap=2,num_separated=3,spatial=true,stage_groups=(2,none,4),width=linear")
    assert step == OptimizedSeparable(
        overlap=2.0, num_separated=3, spatial=True, stage_groups=(2, None, 4), width="linear"
    )
    assert type(step.overlap) is float
    assert parse_step("osep:num_separated=2,stage_groups=32x2") == OptimizedSeparable(stage_groups=(32, 2))
    assert parse_step("osep:stage_groups=none").stage_groups is None
    assert parse_step("igc:primary_partitions=8") == OPERATORS["igc"](primary_partitions=8)
    assert parse_step("igc:primary_partitions=none") == OPERATORS["igc"]()
    assert from_json(json.loads(json.dumps(to_json(step)))) == step


def test_where_may_hold_equals_signs_and_spaces():
    step = parse_step("osep:overlap=1,where=groups=1 stage>=3 !layer[1,2].*")
    assert step.where == "groups=1 stage>=3 !layer[1,2].*"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("ozep", UnknownName, r"unknown rewrite 'ozep': did you mean 'osep'\?"),
        (
            "osep:overlab=1",
            UnknownName,
            r"unknown option of rewrite 'osep' 'overlab': did you mean 'overlap'.*its options are where",
        ),
        ("osep:overlap=much", LeanconvError, "rewrite 'osep': option overlap takes a number, got 'much'"),
        ("osep:num_separated=2.5", LeanconvError, "option num_separated takes a whole number, got '2.5'"),
        ("osep:spatial=maybe", LeanconvError, "option spatial takes true or false, got 'maybe'"),
        ("osep:width=wide", LeanconvError, "option width takes one of normal, linear, bottleneck, .*, got 'wide'"),
        ("osep:init=old", LeanconvError, "option init takes one of project, fresh, got 'old'"),
        ("igc:primary_partitions=few", LeanconvError, "primary_partitions takes a whole number or none, got 'few'"),
        ("osep:overlap", LeanconvError, "expected option=value, got 'overlap'; write osep:option=value"),
        ("osep:overlap=1,,spatial=no", LeanconvError, "expected option=value, got ''"),
        ("osep:overlap=1,overlap=2", LeanconvError, "option overlap is given twice"),
        ("osep:overlap=0", LeanconvError, "overlap must be above 0"),
    ],
)
def test_a_wrong_text_is_named(text, error, message):
    with pytest.raises(error, match=message) as caught:
        parse_step(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"overlap": 1.0}, "needs the key 'stem'"),
        ({"stem": "osep", "overlap": "1"}, "option overlap takes a number, got '1'"),
        ({"stem": "osep", "num_separated": True}, "option num_separated takes a whole number, got True"),
        ({"stem": "osep", "num_separated": 2.0}, "option num_separated takes a whole number, got 2.0"),
        (
            {"stem": "osep", "stage_groups": 3},
            "option stage_groups takes a list whose entries are each a whole number or none or none, got 3",
        ),
        ({"stem": "osep", "width": "wide"}, "option width takes one of"),
    ],
)
def test_wrong_json_is_named(data, message):
    with pytest.raises(LeanconvError, match=message):
        from_json(data)


def test_json_integers_are_numbers():
    assert from_json({"stem": "osep", "overlap": 2}) == OptimizedSeparable(overlap=2.0)


def test_planners_check_what_types_cannot():
    from leanconv.spec import ConvSpec

    with pytest.raises(PlanError, match="must divide"):
        Grouped(groups=3).plan(ConvSpec(in_channels=4, out_channels=4, kernel_size=(3, 3)))
