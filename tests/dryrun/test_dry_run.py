"""A dry run: the model stays as it was, the stack names what runs, sizes and wrappers are checked."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from leanconv.dryrun import (
    DryRun,
    ModuleStack,
    as_module,
    check_size,
    check_sizes,
    default_size,
    duplicate,
    fake_input,
    record_flow,
    refuse_wrapped,
    running,
    shapes_of,
    unwrapped,
)
from leanconv.errors import LeanconvError, RewriteError
from leanconv.ops.separable import DepthSeparable
from leanconv.rewrites import rewrite


class Net(nn.Module):
    """A module under two names, one that is tried and fails, an attribute and a mode that the forward sets."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.again = self.first
        self.fails = nn.Linear(7, 7)
        self.inner = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        self.seen: Any = None

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.again(x)
        try:
            self.fails(x)
        except RuntimeError:
            x = self.inner(x)
        self.seen = x
        return x, {"mean": x.mean((2, 3))}


def test_shapes_order_and_calls() -> None:
    net = Net()
    ran = DryRun(net, (3, 8, 8)).run()
    assert ran.shapes == ((2, 8, 6, 6), (2, 8))
    assert dict(ran.calls) == {"": 1, "first": 1, "fails": 1, "inner": 1, "inner.0": 1, "inner.1": 1}
    assert list(ran.calls) == ["", "first", "fails", "inner", "inner.0", "inner.1"]
    assert net.seen is None
    assert net.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert not any(isinstance(t, FakeTensor) for t in (*net.parameters(), *net.buffers()))


def test_batch_mode_and_type_of_the_input() -> None:
    class Mode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3).bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.bfloat16
            assert running()
            return self.conv(x) if self.training else x

    net = Mode().eval()
    net.conv.train()
    assert DryRun(net, (3, 8, 8), batch=5).run().shapes == ((5, 3, 8, 8),)
    assert DryRun(net, (3, 8, 8), training=True).run().shapes == ((2, 8, 6, 6),)
    assert DryRun(net, (3, 8, 8), training=None).run().shapes == ((2, 3, 8, 8),)
    assert not running()
    with torch.device("meta"):
        there = DryRun(Mode().float(), (3, 8, 8))
    assert there.inputs[0].device.type == "meta"
    assert fake_input(nn.ReLU(), (3, 4)).shape == (2, 3, 4)


def test_enter_and_leave_are_called_around_every_module() -> None:
    net = Net()
    dry = DryRun(net, (3, 8, 8))
    seen: list[str] = []
    dry.stack.on_enter.append(lambda name, *_: seen.append(f"+{name}"))
    dry.stack.on_leave.append(lambda name, module, args, kwargs, output: seen.append(f"-{name}"))
    dry.run()
    # The one that fails is entered and never left; the others leave though they run while its error is handled.
    assert seen == [
        "+",
        "+first",
        "-first",
        "+fails",
        "+inner",
        "+inner.0",
        "-inner.0",
        "+inner.1",
        "-inner.1",
        "-inner",
        "-",
    ]
    assert dry.stack.running == []


def test_the_stack_names_where_an_error_arose() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("gone")

    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), Raises()))
    stack = ModuleStack(net)
    with pytest.raises(KeyError) as caught, stack:
        net(torch.zeros(1))
    assert stack.path_of(caught.value) == "1.1"
    assert stack.running == []
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())

    def look(name: str, *_: Any) -> None:
        if name == "1.0":
            raise ValueError("by who looks")

    stack.on_leave.append(look)
    with pytest.raises(ValueError, match="by who looks") as told, stack:
        net(torch.zeros(1))
    assert stack.path_of(told.value) == "1.0"
    assert stack.running == []


def test_weight_norms_and_flags_work_on_the_copy() -> None:
    class Flag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
            self.register_buffer("many", torch.tensor(2))

        def forward(self, x: Tensor) -> Tensor:
            self.many += 1
            return self.conv(x)[:, : int(self.many)]

    net = Flag()
    assert DryRun(net, (3, 8, 8)).run().shapes == ((2, 3, 6, 6),)
    assert int(net.many) == 2


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((), r"without the batch axis, such as \(3, 224, 224\): it has at least one entry; got \(\)"),
        ((3, 0), "every entry of size must be a whole number of at least 1, got 0"),
        ((3, True), "every entry of size must be a whole number of at least 1, got True"),
        ("3,8", "without the batch axis, such as .*; got '3,8'"),
        (224, "without the batch axis, such as .*; got 224"),
    ],
)
def test_sizes(size: Any, message: str) -> None:
    with pytest.raises(LeanconvError, match=message):
        check_size(size)


def test_axes_of_a_size() -> None:
    assert check_size([3, 8, 8], axes=(1, 3)) == (3, 8, 8)
    for size in ((3,), (3, 4, 5, 6, 7)):
        with pytest.raises(LeanconvError, match="it has 2 to 4 entries; got"):
            check_size(size, axes=(1, 3))


def test_a_model_says_its_size() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    assert default_size(net) is None
    for wrong in ({"input_size": None}, {"input_size": 224}, {"input_size": (0, 2)}, {}, "cfg"):
        net.pretrained_cfg = wrong  # type: ignore[assignment]
        assert default_size(net) is None
    net.pretrained_cfg = {"input_size": (3, 96, 64)}  # type: ignore[assignment]
    assert default_size(net) == (3, 96, 64)
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        assert default_size(timm.create_model("test_byobnet")) == (3, 160, 160)


def test_what_holds_a_model_is_taken_as_it() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    done = rewrite(net, DepthSeparable())
    assert as_module(done) is done.model
    assert as_module(net) is net

    class Other:
        model = net

    for value, message in ((Other(), r"got Other; pass its \.model"), (None, "got NoneType: build or load")):
        with pytest.raises(RewriteError, match=f"expected an nn.Module, {message}"):
            as_module(value, error=RewriteError)


def test_wrappers() -> None:
    net = nn.Sequential(nn.ReLU())
    assert unwrapped(nn.DataParallel(nn.DataParallel(net))) is net
    refuse_wrapped(net)
    with pytest.raises(RewriteError, match=r"^0: the model is wrapped in DataParallel: pass model\.module"):
        refuse_wrapped(nn.Sequential(nn.DataParallel(net)), error=RewriteError)


def test_copies_share_what_they_are_told_to() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    shared = duplicate(net, share_tensors=True)
    assert shared[0] is not net[0]
    assert all(
        a is b
        for a, b in zip(
            shared.state_dict(keep_vars=True).values(), net.state_dict(keep_vars=True).values(), strict=True
        )
    )
    own = duplicate(net)
    assert not {p.data_ptr() for p in own.parameters()} & {p.data_ptr() for p in net.parameters()}


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Listed(nn.Module):
    def forward(self, inputs: list[Tensor]) -> Tensor:
        assert isinstance(inputs, list)
        return inputs[0] + inputs[1]


class Starred(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]


class One(nn.Module):
    def forward(self, inputs: list[Tensor], scale: float = 1.0) -> Tensor:
        assert isinstance(inputs, list)
        return inputs[0] * scale


def test_several_inputs() -> None:
    sizes = [(3, 4), (3, 4)]
    for net in (Two(), Listed(), Starred()):
        dry = DryRun(net, sizes)
        assert dry.size == ((3, 4), (3, 4))
        assert [tuple(tensor.shape) for tensor in dry.inputs] == [(2, 3, 4)] * 2
        assert dry.run().shapes == ((2, 3, 4),)
        flow = record_flow(net, sizes)
        assert len(flow.inputs) == 2
        assert all(value.from_input and value.maker is None for value in flow.inputs)
        assert sum(call.adds for call in flow.calls) == 1
    assert DryRun(One(), [sizes]).run().shapes == ((2, 3, 4),)
    assert len(DryRun(nn.ReLU(), [(3, 4)]).arguments) == 1
    assert isinstance(DryRun(nn.ReLU(), [(3, 4)]).arguments[0], Tensor)


def test_shapes_of_several_inputs() -> None:
    assert check_sizes([[3, 4], [[1, 2], [5]]]) == ((3, 4), ((1, 2), (5,)))
    assert shapes_of(((3, 4), ((1, 2), (5,)))) == [(3, 4), (1, 2), (5,)]
    assert check_sizes([3, 4]) == (3, 4)
    with pytest.raises(LeanconvError, match=r"it has 2 to 4 entries; got \(5,\)"):
        check_sizes([(3, 4), (5,)], axes=(1, 3))


def test_transformer_layers_run_as_they_are_written() -> None:
    """torch's fast path for evaluation would hide their parts."""
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    ran = DryRun(net, (5, 8)).run()
    assert {"layers.0.linear1", "layers.0.linear2", "layers.0.self_attn"} <= set(ran.calls)
    assert torch.backends.mha.get_fastpath_enabled()


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(importlib.import_module("leanconv.dryrun.size")).failed == 0
