"""The map at two resolutions: to whatever is done with it, it is the map it stands for."""

from __future__ import annotations

import copy
import operator
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from leanconv.ops.octave import OctConv2d
from leanconv.ops.octave_map import RULES, OctaveMap, merge, settled, split
from leanconv.ops.octave_parts import _repeat, channels_of, double, halve, join_runs, take
from leanconv.ops.octave_rules import POINTWISE

RUNS = [(5, 3), (2, 2, 2, 2), (4, 1, 1, 2), (0, 3, 5), (0, 8)]


def positive(runs: tuple[int, ...] = (5, 3), size: tuple[int, ...] = (6, 7), batch: int = 2) -> OctaveMap:
    """A map with values between 0.1 and 0.9, for which every function is defined."""
    torch.manual_seed(1)
    x = split(torch.rand(batch, sum(runs), *size, dtype=torch.float64) * 0.8 + 0.1, runs)
    return OctaveMap(x.high.clone(), x.low.clone(), runs)


def whole(x: Any) -> Any:
    """The map that is stood for, also where it has become full; anything else as it is."""
    x = settled(x)
    return merge(x) if isinstance(x, OctaveMap) else x


def same(x: Any, wanted: Any) -> None:
    """Equal but for the last bit, which depends on where in memory a number lies."""
    torch.testing.assert_close(whole(x), wanted, rtol=1e-14, atol=0, equal_nan=True)


# ------------------------------------------------------------------------------------------------------ its channels


@pytest.mark.parametrize("runs", RUNS, ids=str)
def test_split_undoes_merge_whatever_channels_are_low(runs: tuple[int, ...]) -> None:
    x = positive(runs)
    assert merge(x).shape == x.shape == (2, 8, 6, 7)
    again = split(merge(x), runs)
    assert torch.equal(again.high, x.high)
    assert torch.equal(again.low, x.low)
    high, low = channels_of(runs)
    assert torch.equal(merge(x)[:, list(high)], x.high)
    assert torch.equal(merge(x)[:, list(low), ::2, ::2], x.low)
    assert torch.equal(torch.cat(take(torch.arange(8), runs, 0)), torch.tensor([*high, *low]))


def test_runs_of_a_concatenation() -> None:
    assert join_runs([(4, 4), (4, 4)]) == (4, 4, 4, 4)
    assert join_runs([(3,), (4, 4), (0, 2)]) == (7, 6)
    assert join_runs([(0, 2), (3,)]) == (0, 2, 3)


MADE_ANEW: dict[str, Callable[[Any], Any]] = {
    "cat with a full map": lambda x: torch.cat([x, torch.ones(2, 3, 6, 7, dtype=x.dtype)], 1),
    "cat behind a full map": lambda x: torch.cat([torch.ones(2, 3, 6, 7, dtype=x.dtype), x], 1),
    "cat of itself": lambda x: torch.cat([x, x], 1),
    "cat of one": lambda x: torch.cat([x], 1),
    "cat of parts": lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),
    "cat of one part": lambda x: torch.cat([x[:, 2:]], 1),
    "cat of a batch": lambda x: torch.cat([x], 0),
    "max pool": lambda x: functional.max_pool2d(x, 3, 1, 1),
    "average pool": lambda x: functional.avg_pool2d(x, 1),
    "max to one pixel": lambda x: functional.adaptive_max_pool2d(x, 1),
    "mean to one pixel": lambda x: functional.adaptive_avg_pool2d(x, 1),
    "up-sampling": lambda x: functional.interpolate(x, scale_factor=1.0),
    "adding nothing": lambda x: x + 0,
    "clone": lambda x: x.clone(),
    "relu": torch.relu,
}


@pytest.mark.parametrize("name", MADE_ANEW)
@pytest.mark.parametrize("runs", RUNS, ids=str)
def test_what_is_made_anew_can_be_changed_alone(name: str, runs: tuple[int, ...]) -> None:
    """A change in place of a result must not reach what it was made of."""
    x = positive(runs)
    before = merge(x).clone()
    made, plain = MADE_ANEW[name](x), MADE_ANEW[name](before)
    made.mul_(3).add_(1)
    plain.mul_(3).add_(1)
    torch.testing.assert_close(merge(x), before, rtol=0, atol=0)
    if "pool" not in name and "pixel" not in name:  # those of the low part are of its own pixels
        same(made, plain)


def test_parts_chosen_without_gradients_are_put_together_for_changes_with() -> None:
    x = positive()
    with torch.no_grad():
        y = torch.cat([x[:, 4:], torch.relu(x[:, :4])], 1)
    same(y.mul_(2), torch.cat([merge(x)[:, 4:], merge(x)[:, :4]], 1) * 2)


# ------------------------------------------------------------------------------------------------- pointwise functions

HALF = 0.5
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("addcdiv", "addcmul", "lerp", "where"), ("like", "like")),
    **dict.fromkeys(("clamp", "clip"), (0.3, 0.6)),
    **dict.fromkeys(("clamp_max", "clamp_min", "pow", "float_power", "hardshrink", "softshrink"), (HALF,)),
    "masked_fill": ("mask", 0.25),
    "mvlgamma": (1,),
    "threshold": (HALF, 0.1),
    "prelu": (torch.full((8,), 0.3, dtype=torch.float64),),
}
"""Function -> what it is called with behind the map; a binary one with such a map, others with nothing."""
BINARY_NAMES = """
    add arctan2 atan2 copysign div divide eq floor_divide fmax fmin fmod ge greater greater_equal gt heaviside hypot
    igamma igammac ldexp le less less_equal logaddexp logaddexp2 logical_and logical_or logical_xor lt maximum minimum
    mul multiply ne nextafter not_equal remainder rsub sub subtract true_divide xlogy
"""
BINARY = frozenset(BINARY_NAMES.split())
WHOLE_NUMBERS = {name for name in POINTWISE.split() if name.startswith("bitwise")} | {"gcd", "lcm"}


def call_of(name: str, x: Any) -> tuple[Any, ...]:
    """The arguments of a function in terms of `x`, a map or what it stands for."""
    if name in WHOLE_NUMBERS:
        x = (x * 40).long()
        return (x,) if name == "bitwise_not" else (x, x // 3)
    like = x * x
    given = ARGUMENTS.get(name, ("like",) if name in BINARY else ())
    named = {"like": like, "mask": x > HALF}
    values = tuple(named.get(value, value) if isinstance(value, str) else value for value in given)
    return (x > HALF, x, *values[:1]) if name == "where" else (x, *values)


@pytest.mark.parametrize("name", POINTWISE.split())
def test_a_pointwise_function_is_exact(name: str) -> None:
    x = positive()
    function = next(getattr(home, name) for home in (torch, torch.special, functional) if hasattr(home, name))
    got = function(*call_of(name, x))
    assert isinstance(got, OctaveMap)
    same(got, function(*call_of(name, merge(x))))
    if hasattr(Tensor, name) and name != "where":
        same(getattr(Tensor, name)(*call_of(name, x)), function(*call_of(name, merge(x))))


NOT_POINTWISE_HERE = {
    "frexp": "two results",
    "max": "of one tensor it is a reduction",
    "min": "of one tensor it is a reduction",
    "polygamma": "the map is its second argument, and nobody's activation",
    **dict.fromkeys(("conj_physical", "conj_physical_"), "maps are real"),
    "equal": "its answer is one for the whole map",
}


def test_no_pointwise_function_of_torch_is_forgotten() -> None:
    """Those that torch tags as pointwise."""
    missing = set()
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        overloads = [getattr(packet, one) for one in packet.overloads()] if hasattr(packet, "overloads") else []
        function = getattr(torch, name, None)
        if name.startswith("_") or not callable(function) or not any(torch.Tag.pointwise in o.tags for o in overloads):
            continue
        if function not in RULES and name not in NOT_POINTWISE_HERE:
            missing.add(name)
    assert not missing


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y, "/": lambda x, y: x / y,
    "//": lambda x, y: x // y, "%": lambda x, y: x % y, "**": lambda x, y: x**y, "==": lambda x, y: x == y,
    "!=": lambda x, y: x != y, "<": lambda x, y: x < y, ">": lambda x, y: x > y, "<=": lambda x, y: x <= y,
    ">=": lambda x, y: x >= y, "&": lambda x, y: (x > 0.4) & (y > 0.2), "|": lambda x, y: (x > 0.4) | (y > 0.2),
    "^": lambda x, y: (x > 0.4) ^ (y > 0.2), "~": lambda x, y: ~(x > y), "u-": lambda x, y: -x,
    "abs": lambda x, y: abs(-x),
}  # fmt: skip


@pytest.mark.parametrize("sign", OPERATORS)
def test_operators_with_a_map_a_number_a_gate_and_a_full_map(sign: str) -> None:
    x, function = positive(), OPERATORS[sign]
    y = positive() * 0.7
    scale, gate, image = torch.rand(8, 1, 1), torch.rand(2, 8, 1, 1), torch.rand(2, 1, 1, 1)
    for other in (scale, gate, image):
        assert isinstance(function(x, other.double()), OctaveMap)
        same(function(x, other.double()), function(merge(x), other.double()))
        same(function(other.double(), x), function(other.double(), merge(x)))
    assert isinstance(function(x, y), OctaveMap)
    same(function(x, y), function(merge(x), merge(y)))
    full = torch.rand(2, 8, 6, 7, dtype=torch.float64)
    same(function(x, full), function(merge(x), full))
    same(function(full, x), function(full, merge(x)))
    if sign not in ("&", "|", "^"):
        same(function(x, 0.5), function(merge(x), 0.5))
        if sign not in ("u-", "abs", "~"):
            same(function(0.5, x), function(0.5, merge(x)))


def test_maps_whose_low_channels_differ_are_merged() -> None:
    x, y = positive((5, 3)), positive((4, 4))
    assert not isinstance(x + y, OctaveMap)
    same(x + y, merge(x) + merge(y))


# ------------------------------------------------------------------------------------------------------------ in place

IN_PLACE_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **{name: values for name, values in ARGUMENTS.items() if name != "where"},
    **dict.fromkeys(BINARY, ("like",)),
    "copy": ("like",),
    "fill": (0.25,),
    "masked_scatter": ("mask", "like"),
    "index_add": (1, torch.tensor([0, 6]), "two"),
    "index_copy": (1, torch.tensor([0, 6]), "two"),
    "index_reduce": (1, torch.tensor([0, 6]), "two", "prod"),
    "index_fill": (1, torch.tensor([0, 6]), 0.5),
    "index_put": ((torch.tensor([0, 1]), torch.tensor([6, 0])), torch.tensor(0.5, dtype=torch.float64)),
    "scatter": (1, torch.full((2, 1, 6, 7), 6), 0.5),
    "scatter_add": (1, torch.full((2, 8, 6, 7), 6), "like"),
    "scatter_reduce": (1, torch.full((2, 8, 6, 7), 6), "like", "sum"),
    "put": (torch.tensor([0, 100]), torch.tensor([0.5, 0.25], dtype=torch.float64)),
    "renorm": (2, 1, 0.5),
    **dict.fromkeys(("cumsum", "cumprod"), (1,)),
    **dict.fromkeys(("swapaxes", "swapdims", "transpose"), (2, 3)),
    "squeeze": (),
    "unsqueeze": (0,),
    "requires_grad": (False,),
    "apply": (lambda value: value * 2,),
    "map": ("like", lambda one, other: one + other),
    "map2": ("like", "like", lambda one, two, three: one + two * three),
    **dict.fromkeys(("bernoulli", "random", "exponential", "log_normal", "normal", "uniform", "cauchy"), ()),
    "geometric": (0.5,),
    "resize_as": ("like",),
    "share_memory": (),
}
DRAWN = {"bernoulli", "random", "exponential", "log_normal", "normal", "uniform", "cauchy", "geometric"}
NO_IN_PLACE = {
    **dict.fromkeys(("addbmm", "addmm", "addmv", "addr", "baddbmm"), "they are for matrices and vectors"),
    **dict.fromkeys(("t", "fill_diagonal"), "they are for matrices"),
    **dict.fromkeys(
        ("resize", "set", "as_strided", "resize_as_sparse", "sparse_resize", "sparse_resize_and_clear"),
        "they change where the memory is",
    ),
    "conj_physical": "maps are real",
    "polygamma": "its number comes first",
}


def in_place_names() -> list[str]:
    """Every method of a tensor whose name says that it is done in place."""
    names = [name[:-1] for name in dir(Tensor) if name.endswith("_") and not name.startswith("_") and name[-2] != "_"]
    return [name for name in names if name not in NO_IN_PLACE]


def in_place_call(name: str, x: Any) -> tuple[Any, ...]:
    like = x * x
    values = {"like": like, "mask": x > HALF, "two": like[:, :2]}
    return tuple(values.get(v, v) if isinstance(v, str) else v for v in IN_PLACE_ARGUMENTS.get(name, ()))


@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
@pytest.mark.parametrize("runs", [(5, 3), (2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("name", in_place_names())
def test_every_operation_in_place_is_seen_under_every_name(name: str, runs: tuple[int, ...]) -> None:
    x = positive(runs)
    if name in WHOLE_NUMBERS:
        x, plain = (x * 40).long(), (merge(x) * 40).long()
        arguments, wanted = ((x // 3,), (plain // 3,)) if name != "bitwise_not" else ((), ())
    else:
        plain = merge(x).clone()
        arguments, wanted = in_place_call(name, x), in_place_call(name, plain)
    if name == "masked_scatter":  # reads its source one by one, in the order of memory
        arguments = tuple(whole(value) for value in arguments)
    kept, inner = x, [x]
    torch.manual_seed(0)
    result = getattr(x, f"{name}_")(*arguments)
    torch.manual_seed(0)
    getattr(plain, f"{name}_")(*wanted)
    assert result is x
    assert kept.shape == plain.shape
    assert kept.dtype == plain.dtype
    if name not in DRAWN:
        same(kept, plain)
        same(torch.softmax(inner[0].double(), 1), torch.softmax(plain.double(), 1))
    elif name != "random":
        assert len(whole(kept).unique()) > 1
        same(kept, whole(inner[0]))
    kept += 1  # and it goes on being one map
    same(inner[0], whole(x))


FUNCTIONS_IN_PLACE = [
    name for home in (torch, functional) for name in dir(home)
    if name.endswith("_") and not name.startswith("_") and getattr(home, name) in RULES
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS_IN_PLACE)))
def test_functions_in_place(name: str) -> None:
    function: Any = getattr(torch, name, None) or getattr(functional, name)
    x = positive() if name[:-1] not in WHOLE_NUMBERS else (positive() * 40).long()
    plain = merge(x).clone()

    def arguments(of: Any) -> tuple[Any, ...]:
        if "dropout" in name:
            return (0.0, True)
        return (of // 3,) if name[:-1] in WHOLE_NUMBERS else in_place_call(name[:-1], of)

    torch.manual_seed(0)
    assert function(x, *arguments(x)) is x
    torch.manual_seed(0)
    function(plain, *arguments(plain))
    same(x, plain)


ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU),
)


@pytest.mark.parametrize("layer", ACTIVATIONS)
def test_activations_in_place(layer: Any) -> None:
    x = positive() - 0.5
    plain, kept = merge(x).clone(), x
    assert layer(inplace=True)(x) is x
    same(kept, layer()(plain))


IN_PLACE_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+=": operator.iadd, "-=": operator.isub, "*=": operator.imul, "/=": operator.itruediv, "//=": operator.ifloordiv,
    "%=": operator.imod, "**=": operator.ipow,
}  # fmt: skip


@pytest.mark.parametrize("sign", IN_PLACE_OPERATORS)
@pytest.mark.parametrize("with_", ["number", "map", "gate", "full map", "a map with other low channels"])
def test_operators_in_place(sign: str, with_: str) -> None:
    x, function = positive(), IN_PLACE_OPERATORS[sign]
    others: dict[str, Any] = {
        "number": 0.5, "map": x * x, "gate": torch.rand(2, 8, 1, 1, dtype=torch.float64),
        "full map": torch.rand(2, 8, 6, 7, dtype=torch.float64), "a map with other low channels": positive((4, 4)),
    }  # fmt: skip
    other, plain, kept = others[with_], merge(x).clone(), x
    assert function(x, other) is x
    function(plain, whole(other))
    same(kept, plain)
    assert (len(kept.runs) == 1) == (with_ in ("full map", "a map with other low channels")), "nothing was lost"


def test_a_plain_map_takes_in_one_at_two_resolutions() -> None:
    x, full = positive(), torch.rand(2, 8, 6, 7, dtype=torch.float64)
    kept, wanted = full, full + merge(x)
    full += x
    assert torch.equal(kept, wanted)


ASSIGNMENTS: dict[str, Callable[[Any], Any]] = {
    "channels": lambda x: x.__setitem__((slice(None), slice(2, 7)), 0.5),
    "a pixel": lambda x: x.__setitem__((..., 0, 0), 0.5),
    "a mask": lambda x: x.__setitem__(x > HALF, 0.0),
    "a channel in place": lambda x: x[:, 3].mul_(2),
    "high channels in place": lambda x: x[:, :3].mul_(2),
    "low channels in place": lambda x: x[:, 5:].mul_(2),
    "both in place": lambda x: x[:, 4:7].mul_(2),
    "half of the images": lambda x: x[:1].mul_(2),
    "a chunk": lambda x: x.chunk(2, 1)[1].mul_(2),
    "through a view": lambda x: x.view(2, 4, 2, 6, 7)[:, 1].mul_(2),
    "through flatten": lambda x: x.flatten(2).add_(1),
    "through a transposition": lambda x: x.transpose(1, 2).add_(1),
    "through detach": lambda x: x.detach().add_(1),
    "through data": lambda x: x.data.add_(1),
    "with out=": lambda x: torch.cumsum(x.clone(), 1, out=x),
    "a sum with out=": lambda x: torch.add(x, 1, out=x),
    "as data": lambda x: setattr(x, "data", x * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_assignments_and_views_in_place(name: str) -> None:
    for grad in (False, True):
        x = positive()
        plain, kept = merge(x).clone(), x
        with torch.set_grad_enabled(grad):
            ASSIGNMENTS[name](x)
            ASSIGNMENTS[name](plain)
            same(kept, plain)
            same(torch.softmax(kept, 1), torch.softmax(plain, 1))


def test_a_view_sees_what_is_done_to_the_map() -> None:
    x = positive() - 0.5
    view, plain = x.flatten(2), merge(x).clone()
    torch.relu_(x)
    assert torch.equal(view, plain.relu().flatten(2))
    same(x, plain.relu())
    first, second = (y := positive()).split((5, 3), 1)
    y.mul_(2)
    same(first, whole(y)[:, :5])
    same(second, whole(y)[:, 5:])


# ----------------------------------------------------------------------------------------------------- sizes, channels

SIZED: dict[str, Callable[[Any], Any]] = {
    "max pool": lambda x: functional.max_pool2d(x, 3, 2, 1),
    "average pool": lambda x: functional.avg_pool2d(x, 2),
    "pool of one": lambda x: functional.max_pool2d(x, 1),
    "as it is": lambda x: functional.interpolate(x, scale_factor=1),
    "max to one pixel": lambda x: functional.adaptive_max_pool2d(x, 1),
    "mean to one pixel": lambda x: functional.adaptive_avg_pool2d(x, 1),
    "up-sampling": lambda x: functional.interpolate(x, scale_factor=2),
    "up-sampling to a size": lambda x: functional.interpolate(x, size=(18, 21)),
    "mean": lambda x: x.mean((2, 3)),
    "mean, kept": lambda x: x.mean([-2, -1], keepdim=True),
    "sum": lambda x: x.sum((2, 3)),
    "largest": lambda x: x.amax((2, 3)),
    "pooled to one": lambda x: functional.adaptive_avg_pool2d(x, 1),
    "largest to one": lambda x: functional.adaptive_max_pool2d(x, (1, 1)),
    "flattened": lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1),
    "chunk": lambda x: torch.cat(x.chunk(3, 1)[::-1], 1),
    "split": lambda x: torch.cat(torch.split(x, [1, 5, 2], dim=1)[::-1], 1),
    "equal split": lambda x: torch.cat(x.split(3, 1)[::-1], 1),
    "tensor split": lambda x: torch.cat(torch.tensor_split(x, 3, dim=1), 1),
    "narrow": lambda x: torch.narrow(x, 1, 2, 5),
    "slice": lambda x: x[:, 2:-1],
    "slice of images": lambda x: x[1:, ..., :, :],
    "both": lambda x: x[-1:, 3:8],
    "batch": lambda x: torch.cat([x, x], 0),
    "expanded": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    "norm": lambda x: functional.batch_norm(x, torch.arange(8.0, dtype=x.dtype), torch.ones(8, dtype=x.dtype)),
    "instance norm": lambda x: functional.instance_norm(x, weight=torch.arange(8.0, dtype=x.dtype)),
    "prelu": lambda x: functional.prelu(x - 0.5, torch.arange(8.0, dtype=x.dtype)),
}


@pytest.mark.parametrize("runs", RUNS[:4], ids=str)
@pytest.mark.parametrize("name", SIZED)
def test_what_is_constant_in_space_stays_what_it_was(name: str, runs: tuple[int, ...]) -> None:
    """Pools and norms of parts are others than of the merged map, but not where resolution means nothing."""
    torch.manual_seed(0)
    plain = torch.rand(2, 8, 1, 1, dtype=torch.float64).expand(2, 8, 9, 7).contiguous()
    if name == "instance norm":
        plain = plain * 0 + 0.5  # whose variance is nothing
    got, wanted = SIZED[name](split(plain, runs)), SIZED[name](plain)
    torch.testing.assert_close(whole(got), wanted)
    if (name, runs) != ("both", (0, 3, 5)):  # of which all are high
        assert isinstance(settled(got), OctaveMap) == (wanted.ndim == 4 and wanted.shape[-1] > 1)


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_time_is_never_at_two_resolutions(frames: int) -> None:
    plain = torch.rand(2, 8, frames, 1, 1).expand(2, 8, frames, 7, 9)
    x = split(plain, (5, 3))
    for function in (
        lambda x: functional.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
        lambda x: functional.max_pool3d(x, 3, 2, 1),
        lambda x: functional.avg_pool3d(x, (1, 2, 2)),
        lambda x: functional.max_pool3d(x, (min(2, frames), 1, 1)),
        lambda x: functional.interpolate(x, scale_factor=(1, 2, 2)),
    ):
        got = function(x)
        assert isinstance(got, OctaveMap)
        assert got.low.shape[2] == got.high.shape[2] == function(plain).shape[2]
        if function(plain).std(-1).max() == 0:
            torch.testing.assert_close(merge(got), function(plain))


def test_statistics_are_measured_by_each_part_and_kept_where_they_were() -> None:
    for runs in ((5, 3), (2, 2, 2, 2)):
        x = positive(runs)
        mean, var = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
        functional.batch_norm(x, mean, var, training=True, momentum=1.0)
        high, low = channels_of(runs)
        torch.testing.assert_close(mean[list(high)], x.high.mean((0, 2, 3)))
        wanted = x.low if len(runs) == 2 else merge(x)[:, list(low)]
        torch.testing.assert_close(mean[list(low)], wanted.mean((0, 2, 3)))


def _plain_relu(x: Tensor) -> Tensor:
    return torch.relu(x - 0.5) * 2


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still in use
    _SCRIPTED: Any = torch.jit.script(_plain_relu)


WITHOUT_A_RULE: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda x: torch.softmax(x, 1),
    "matmul": lambda x: x @ x.transpose(2, 3),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "flatten": lambda x: x.flatten(1),
    "stack": lambda x: torch.stack([x, x]),
    "pad": lambda x: functional.pad(x, (1, 1)),
    "group norm": lambda x: functional.group_norm(x, 4),
    "convolution": lambda x: functional.conv2d(x, torch.ones(4, 8, 3, 3, dtype=x.dtype)),
    "cumsum": lambda x: x.cumsum(1),
    "one channel": lambda x: x[:, 3],
    "a pixel": lambda x: x[..., 2, 3],
    "every other": lambda x: x[:, ::2],
    "gather": lambda x: x.index_select(1, torch.tensor([7, 0])),
    "mean of channels": lambda x: x.mean(1, keepdim=True),
    "mean of all": lambda x: x.mean(),
    "largest channel": lambda x: x.max(1)[0],
    "norm": lambda x: functional.normalize(x, dim=1),
    "smooth": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "smaller": lambda x: functional.interpolate(x, size=(3, 4)),
    "pooled to two": lambda x: functional.adaptive_avg_pool2d(x, 2),
    "largest with place": lambda x: functional.max_pool2d(x, 2, return_indices=True)[1],
    "list": lambda x: torch.tensor(x.tolist()),
    "iteration": lambda x: torch.cat(list(x), 0),
    "repr": lambda x: repr(x),
    "copy": lambda x: copy.deepcopy(x),
    "array": lambda x: torch.from_numpy(x.numpy()),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "item": lambda x: x[0, 0, 0, 0].item(),
    "TorchScript": lambda x: _SCRIPTED(x),
    "operator": lambda x: torch.ops.aten.flip(x, [1]),
}


@pytest.mark.parametrize("runs", RUNS, ids=str)
@pytest.mark.parametrize("name", WITHOUT_A_RULE)
def test_anything_else_meets_the_merged_map(name: str, runs: tuple[int, ...]) -> None:
    x, function = positive(runs), WITHOUT_A_RULE[name]
    got, wanted = function(x), function(merge(x))
    if isinstance(wanted, Tensor):
        same(got, wanted)
    else:
        assert got == wanted


# ------------------------------------------------------------------------------------------------------------ questions

QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "shape": lambda x: x.shape,
    "a side": lambda x: x.shape[-1],
    "size": lambda x: (x.size(), x.size(1), x.size(-1)),
    "axes": lambda x: (x.ndim, x.dim(), len(x), x.numel(), x.nelement()),
    "type": lambda x: (
        x.dtype,
        x.type(),
        x.is_floating_point(),
        x.is_complex(),
        x.element_size(),
        x.itemsize,
        x.nbytes,
    ),
    "device": lambda x: (x.device, x.is_cuda, x.is_cpu, x.is_meta, x.get_device(), x.layout),
    "kind": lambda x: (isinstance(x, Tensor), torch.is_tensor(x), x is None, x.is_sparse, x.is_quantized, x.is_nested),
    "memory": lambda x: (x.is_contiguous(), x.stride(), x.storage_offset()),
    "gradient": lambda x: (x.requires_grad, x.is_leaf, x.grad_fn is None, x.grad),
    "new": lambda x: (
        x.new_zeros(2).dtype,
        x.new_ones(2, 3).shape,
        x.new_tensor([1.0]).device,
        x.new_full((1,), 2).item(),
    ),
    "alike": lambda x: (torch.zeros_like(x).shape, torch.empty_like(x).dtype, torch.ones_like(x).sum().item()),
    "truth": lambda x: (bool((x > 0).all()), torch.isfinite(x).all().item(), bool((x > 0.5).any())),
    "attributes": lambda x: (hasattr(x, "shape"), hasattr(x, "weight"), callable(x.to)),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_are_answered_as_for_the_map_it_stands_for(name: str) -> None:
    for runs in RUNS:
        x = positive(runs)
        assert QUESTIONS[name](x) == QUESTIONS[name](merge(x).contiguous())


def test_where_its_memory_is_and_how_it_lies() -> None:
    x = positive()
    assert x.data_ptr() == x.data_ptr() == x.detach().data_ptr() != (x * 1).data_ptr()
    last = x.to(memory_format=torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    assert last.contiguous().is_contiguous()
    assert x.contiguous() is x
    assert x.float().dtype == x.to(torch.float32).dtype == x.type_as(torch.ones(1)).dtype == torch.float32
    assert isinstance(x.half(), OctaveMap)
    same(x.float(), merge(x).float())


# ------------------------------------------------------------------------------------------------------------ gradients


def leaves(runs: tuple[int, ...] = (5, 3)) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    x = positive(runs, (5, 7))
    return x.high.requires_grad_(), x.low.requires_grad_(), runs


GRADIENTS: dict[str, Callable[[Any], Any]] = {
    "rules": lambda x: ((x * x).relu() + functional.max_pool2d(x, 3, 1, 1)).mean((2, 3)).pow(2).sum(),
    "merging": lambda x: torch.softmax(x, 1).pow(3).sum(),
    "in place": lambda x: (x * 2).mul_(x).add_(1).pow(3).sum(),
    "in place without a rule": lambda x: (x * 2).masked_fill_(x < 0.5, 0).cumsum_(1).pow(3).sum(),
    "through a view": lambda x: (y := x * 2, y.flatten(2).mul_(3), y.pow(3).sum())[2],
}


@pytest.mark.parametrize("runs", RUNS[:3], ids=str)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_right(name: str, runs: tuple[int, ...]) -> None:
    high, low, _ = leaves(runs)
    assert torch.autograd.gradcheck(lambda h, l: GRADIENTS[name](OctaveMap(h, l, runs)), (high, low))


class Square(torch.autograd.Function):
    """Somebody's own pointwise function, which never asks the class of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class Mixed(torch.autograd.Function):
    """One that needs the whole map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.cumsum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.flip(1).cumsum(1).flip(1)


OUTSIDE: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "own function": (Square.apply, lambda x: x * x),
    "own function of the whole": (Mixed.apply, lambda x: x.cumsum(1)),
    "checkpoint": (lambda x: checkpoint(torch.square, x, use_reentrant=False), torch.square),
    "checkpoint, the old way": (lambda x: checkpoint(torch.square, x, use_reentrant=True), torch.square),
    "checkpoint of a merge": (
        lambda x: checkpoint(lambda x: x.cumsum(1), x, use_reentrant=True),
        lambda x: x.cumsum(1),
    ),
    "TorchScript": (_SCRIPTED, _plain_relu),
    "identity": (lambda x: torch.utils.checkpoint.checkpoint(lambda x: x, x, use_reentrant=True) * 3, lambda x: x * 3),
}


@pytest.mark.parametrize("runs", RUNS[:3], ids=str)
@pytest.mark.parametrize("name", OUTSIDE)
def test_gradients_pass_through_what_does_not_ask_the_class(name: str, runs: tuple[int, ...]) -> None:
    found = []
    for function in OUTSIDE[name]:
        high, low, _ = leaves(runs)
        y = function(OctaveMap(high * 1, low * 1, runs))
        (torch.relu(y).pow(2).sum() + y.sum()).backward()
        found.append((high.grad, low.grad))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda x: x.sub_(0.5).relu_(),
    "in place with a full map": lambda x: x.mul_(torch.arange(35.0, dtype=x.dtype).reshape(5, 7).expand(2, 8, 5, 7)),
    "in place without a rule": lambda x: x.cumsum_(1),
    "through a view": lambda x: (x.flatten(2).mul_(3), x.shape),
    "through a part": lambda x: (x[:, :2].mul_(3), x.shape),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "name", ["own function", "own function of the whole", "checkpoint, the old way", "TorchScript"]
)
def test_what_does_not_ask_the_class_sees_what_was_changed_before(name: str, change: str) -> None:
    found = []
    for function in OUTSIDE[name]:
        high, low, runs = leaves()
        x = OctaveMap(high * 1, low * 1, runs)
        CHANGES[change](x)
        function(x).pow(2).sum().backward()
        found.append((high.grad, low.grad))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_map_that_was_kept_for_its_gradient_must_not_change() -> None:
    """As torch has it: no wrong gradient without a word."""
    high, low, runs = leaves()
    x = OctaveMap(high * 1, low * 1, runs)
    y = Square.apply(x)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_leaf_goes_through_a_function_that_does_not_ask_the_class() -> None:
    x = positive().detach().requires_grad_()
    plain = merge(positive()).requires_grad_()
    for one in (x, plain):
        assert one.is_leaf
        assert one.grad_fn is None
        Square.apply(one).softmax(1).pow(2).sum().backward()
    torch.testing.assert_close(x.grad[:, :5], plain.grad[:, :5])


def test_hooks_and_kept_gradients_are_those_of_the_whole_map() -> None:
    high, low, runs = leaves()
    x = OctaveMap(high * 1, low * 1, runs)
    seen: list[Tensor] = []
    x.register_hook(seen.append)
    assert not x.retains_grad
    x.retain_grad()
    assert x.retains_grad
    y = OctaveMap(high * 1, low * 1, runs)
    y.register_hook(lambda gradient: gradient * 0)
    weight = torch.rand(2, 8, 5, 7, dtype=torch.float64)
    ((x * weight).sum() + (y * weight).sum()).backward()
    wanted = merge(split(weight, runs))  # pixels that the low part stands for by one have one gradient
    torch.testing.assert_close(seen[0], wanted)
    torch.testing.assert_close(x.grad, wanted)
    torch.testing.assert_close(high.grad, weight[:, :5])


def test_backward_hooks_of_modules() -> None:
    net = nn.Sequential(
        OctConv2d(3, 8, 3, padding=1, alpha_in=0), nn.ReLU(), OctConv2d(8, 4, 3, padding=1, alpha_out=0)
    )
    x = torch.randn(2, 3, 6, 6)
    net(x).pow(2).sum().backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    seen: list[Any] = []
    for part in net:
        part.register_full_backward_hook(lambda _, given, made: seen.append((given[0], made[0])))
    net(x.requires_grad_()).pow(2).sum().backward()
    assert [made.shape[1] for _, made in seen] == [4, 8, 8]
    for p, gradient in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_gradients_of_a_map_that_is_a_leaf() -> None:
    x = positive().detach()
    x.requires_grad = True
    assert x.is_leaf
    assert x.requires_grad
    plain = merge(positive()).requires_grad_()
    for one in (x, plain):
        one.softmax(1).pow(2).sum().backward()
    assert x.grad.shape == plain.grad.shape
    torch.testing.assert_close(x.grad[:, :5], plain.grad[:, :5])


def test_no_gradient_where_none_is_asked_for() -> None:
    high, low, runs = leaves()
    with torch.no_grad():
        assert not OctaveMap(high * 1, low * 1, runs).requires_grad
    with torch.inference_mode():
        x = OctaveMap(high * 1, low * 1, runs)
        x.mul_(2).masked_fill_(x > 1, 0)
        same(x, merge(OctaveMap(high * 2, low * 2, runs)).masked_fill(merge(OctaveMap(high * 2, low * 2, runs)) > 1, 0))
    assert not OctaveMap(high, low, runs).detach().requires_grad
    y = OctaveMap(high * 1, low * 1, runs)
    assert y.requires_grad
    assert not y.is_leaf
    assert y.grad_fn is not None


def test_autocast_works_on_the_parts() -> None:
    x = positive().float()
    with torch.autocast("cpu", torch.bfloat16):
        y = OctConv2d(8, 8, 3, padding=1, low_in=3, low_out=2)(x)
    assert y.dtype == y.high.dtype == y.low.dtype == torch.bfloat16


def test_the_gradient_of_a_map_is_asked_for() -> None:
    """As a class activation map does."""
    high, low, runs = leaves()
    x = OctaveMap(high * 1, low * 1, runs)
    score = (torch.softmax(x, 1) * 2).relu()[:, 2].sum()
    plain = merge(OctaveMap(high, low, runs)).detach().requires_grad_()
    (wanted,) = torch.autograd.grad((torch.softmax(plain, 1) * 2).relu()[:, 2].sum(), plain)
    (got,) = torch.autograd.grad(score, x)
    torch.testing.assert_close(got, merge(split(wanted, runs)))


def test_what_was_merged_without_gradients_is_merged_again_with_them() -> None:
    high, low, runs = leaves()
    x = OctaveMap(high * 1, low * 1, runs)
    with torch.no_grad():
        torch.softmax(x, 1)
    torch.softmax(x, 1)[:, 0].sum().backward()
    assert high.grad is not None
    assert low.grad is not None


def test_autocast_does_not_widen_the_parts() -> None:
    """Up-sampling and pooling keep the type of their map, so that sums and norms behind them do."""
    clip = torch.randn(1, 2, 2, 6, 6, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        for x in (clip[:, :, 0], clip):
            assert double(x, None).dtype is halve(x).dtype is torch.bfloat16


@pytest.mark.parametrize("size", [(5, 6), (2, 5, 6)])
def test_up_sampling_by_repeating(size: tuple[int, ...]) -> None:
    """What runs on a GPU: the numbers, the gradient and the layout of torch's own."""
    layout = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    for x in (torch.randn(2, 3, *size), torch.randn(2, 3, *size).contiguous(memory_format=layout)):
        x.requires_grad_()
        wanted, made = double(x, None), _repeat(x)
        assert torch.equal(made, wanted)
        assert made.is_contiguous(memory_format=layout) == x.is_contiguous(memory_format=layout)
        probe = torch.randn_like(wanted)
        mine, theirs = (torch.autograd.grad(y, x, probe)[0] for y in (made, wanted))
        torch.testing.assert_close(mine, theirs)
