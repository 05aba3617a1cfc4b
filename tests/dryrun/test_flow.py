"""Who reads whom: also through views, in-place operations, functions, containers and TorchScript."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.dryrun import Flow, record_flow
from leanconv.errors import LeanconvError

SIZE = (4, 8, 8)


class Net(nn.Module):
    """Two convolutions `a` and `b` with something between them; `c` reads the input as well."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x), self.c(x)))


def flow_of(between: Callable[[Tensor, Tensor], Tensor]) -> Flow:
    return record_flow(Net(between), SIZE)


def reached(flow: Flow, name: str) -> set[str]:
    """The leaf modules that read, through functions, what the module `name` made."""
    readers = flow.readers()
    queue = [call.number for call in flow.calls if call.module == name and call.function is None]
    assert queue
    found: set[str] = set()
    seen: set[int] = set()
    while queue:
        for number in readers[queue.pop()]:
            call = flow.calls[number]
            if number not in seen:
                seen.add(number)
                if call.function is None:
                    found.add(call.module)
                else:
                    queue.append(number)
    return found


def through_view(a: Tensor, c: Tensor) -> Tensor:
    a.view(-1).add_(c.reshape(-1))
    return a


def into_slice(a: Tensor, c: Tensor) -> Tensor:
    a[:, :2] = c[:, :2]
    return a


def out(a: Tensor, c: Tensor) -> Tensor:
    y = torch.empty_like(a)
    torch.add(a, c, out=y)
    return y


def data(a: Tensor, c: Tensor) -> Tensor:
    a.data.mul_(c)
    return a


def inference(a: Tensor, c: Tensor) -> Tensor:
    with torch.inference_mode():
        y = a * 1
        y += c
    return y


def nested(a: Tensor, c: Tensor) -> Tensor:
    parts = list(torch.cat([a, c], 1).chunk(2, 1))
    return torch.stack(parts).sum(0)


def caught(a: Tensor, c: Tensor) -> Tensor:
    try:
        a + torch.zeros(3)
    except RuntimeError:
        a = a + c
    return a


BOTH = {
    "operator": lambda a, c: a + c,
    "function": lambda a, c: F.relu(torch.add(a, c)),
    "in place": lambda a, c: a.relu_().add_(c),
    "augmented": lambda a, c: a.__iadd__(c),
    "view": through_view,
    "slice": into_slice,
    "out": out,
    "data": data,
    "inference mode": inference,
    "nested": nested,
    "caught": caught,
    "gate": lambda a, c: a * F.adaptive_avg_pool2d(c, 1).sigmoid(),
    "keyword": lambda a, c: torch.add(input=a, other=c),
    "foreach": lambda a, c: torch._foreach_add([a], [c])[0],
}


@pytest.mark.parametrize("between", BOTH.values(), ids=BOTH)
def test_both_are_read(between: Callable[[Tensor, Tensor], Tensor]) -> None:
    flow = flow_of(between)
    assert reached(flow, "a") == {"b"}
    assert reached(flow, "c") == {"b"}
    assert flow.outputs[0].maker == flow.calls[-1].number
    assert flow.calls[-1].module == "b"
    assert flow.input.maker is None


def test_what_is_not_read_is_no_reader() -> None:
    flow = flow_of(lambda a, c: a.clone())
    assert reached(flow, "a") == {"b"}
    assert reached(flow, "c") == set()
    flow = flow_of(lambda a, c: a * c.shape[1] + torch.zeros_like(a))
    assert reached(flow, "c") == set()


def test_an_overwritten_map_is_read_under_every_name() -> None:
    """The older name of a map that was changed in place holds the new values."""

    def between(a: Tensor, c: Tensor) -> Tensor:
        older = a
        newer = a.add_(c)
        assert newer is not None
        return older.clone()

    flow = flow_of(between)
    (add,) = (call for call in flow.calls if call.adds)
    (clone,) = (call for call in flow.calls if call.function is Tensor.clone)
    assert clone.reads[0].maker == add.number
    assert add.writes == {add.reads[0].memory} == {add.makes[0].memory}


def test_sums() -> None:
    for between in (lambda a, c: a + c, lambda a, c: a.add_(c), lambda a, c: a - c, lambda a, c: torch.add(a, c)):
        assert [call.adds for call in flow_of(between).calls].count(True) == 1
    bias = nn.Parameter(torch.zeros(4, 1, 1))
    for between in (lambda a, c: a + 1, lambda a, c: a * c, lambda a, c: a + bias, lambda a, c: torch.cat([a, c])):
        assert not any(call.adds for call in flow_of(between).calls)


def test_leaves_are_not_looked_into_and_others_are() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.scale = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu() * self.scale

    net = nn.Sequential(Block(), nn.BatchNorm2d(4), nn.Identity())
    flow = record_flow(net, SIZE)
    assert [(c.module, c.function and c.function.__name__) for c in flow.calls] == [
        ("0.conv", None),
        ("0", "relu"),
        ("0", "mul"),
        ("1", None),
    ]  # an identity makes nothing
    assert [value.name for value in flow.calls[2].reads] == ["", "0.scale"]
    assert [value.from_input for value in flow.calls[2].reads] == [True, False]
    whole = record_flow(net, SIZE, is_leaf=lambda module: isinstance(module, Block))
    assert [c.module for c in whole.calls if c.function is None] == ["0"]
    assert {c.module for c in whole.calls} == {"0", "1"}


def test_a_leaf_that_changes_its_input() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
    first, relu, second = record_flow(net, SIZE).calls
    assert relu.makes[0].memory == first.makes[0].memory
    assert relu.writes == {first.makes[0].memory}
    assert second.reads[0].maker == relu.number


def test_views_share_their_memory_and_copies_do_not() -> None:
    flow = flow_of(lambda a, c: a.flatten(1).view_as(a) + c.contiguous().clone())
    memories = {c.module: c.makes[0].memory for c in flow.calls if c.function is None}
    views = [c for c in flow.calls if c.function is not None and not c.adds]
    assert [c.makes[0].memory == memories["a"] for c in views] == [True, True, False]


def test_training_and_failures() -> None:
    class Mode(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x if self.training else x * 2

    assert record_flow(Mode(), SIZE, training=True).calls[0].adds
    assert not record_flow(Mode(), SIZE).calls[0].adds

    def reads(a: Tensor, c: Tensor) -> Any:
        return a if c.sum() > 0 else c

    with pytest.raises(LeanconvError, match="reads tensor values"):
        flow_of(reads)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_torchscript_does_is_seen_by_operator() -> None:
    @torch.jit.script
    def swish(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    flow = flow_of(lambda a, c: swish(a) + c)
    assert reached(flow, "a") == reached(flow, "c") == {"b"}
    assert {"sigmoid", "mul"} <= {getattr(c.function, "_opname", "") for c in flow.calls}
