"""Measuring leaves the network as it was, and says in one line what it cannot measure."""

from __future__ import annotations

import threading
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from leanconv.cost import measure
from leanconv.elastic import calibrate, make_elastic
from leanconv.errors import LeanconvError, NotCalibrated
from leanconv.ops.separable import DepthSeparable
from leanconv.rewrites import rewrite


class Busy(nn.Module):
    """Does to itself, in its forward, all that a forward should not do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.frozen = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.table = torch.arange(4.0)
        self.cache: Tensor | None = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        self.seen += 1
        self.bn.running_mean += 1
        self.table.mul_(2)
        self.cache = x
        self.calls += 1
        self.conv.weight.data.clamp_(-0.1, 0.1)
        self.hidden = nn.Linear(2, 2)
        return self.frozen(x) * self.table.view(-1, 1, 1)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_as_it_was(training: bool) -> None:
    net = Busy().train(training)
    net.frozen.eval()
    net.conv.weight.requires_grad_(False)
    kept = net.conv.register_forward_hook(lambda *args: None)
    before = {name: (t, t.clone()) for name, t in [*net.state_dict(keep_vars=True).items(), ("table", net.table)]}
    modes = [m.training for m in net.modules()]
    attributes = {name: set(vars(m)) for name, m in net.named_modules()}
    random = torch.get_rng_state()

    first, second = measure(net, (3, 8, 8)), measure(net, (3, 8, 8))

    assert first == second
    assert first.macs == 36 * 4 * 3 * 9 + 36 * 4 * 4
    after = {**dict(net.state_dict(keep_vars=True)), "table": net.table}
    assert after.keys() == before.keys()
    for name, (tensor, values) in before.items():
        assert after[name] is tensor, name
        assert torch.equal(tensor, values), name
        assert not isinstance(tensor, FakeTensor)
    assert [m.training for m in net.modules()] == modes
    assert {name: set(vars(m)) for name, m in net.named_modules()} == attributes
    assert (net.cache, net.calls) == (None, 0)
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 7
    assert list(net.conv._forward_hooks) == [kept.id]
    assert all(not m._forward_pre_hooks for m in net.modules())
    assert sum(len(m._forward_hooks) for m in net.modules()) == 1
    assert torch.equal(torch.get_rng_state(), random)


def test_train_mode_is_measured_as_evaluation() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())
    training = measure(net.train(), (3, 8, 8))
    assert training == measure(net.eval(), (3, 8, 8))
    assert "aten.native_dropout" not in training.not_counted


def test_any_device_type_and_wrapper() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    cost = measure(net, (3, 8, 8))
    assert measure(nn.DataParallel(net), (3, 8, 8)) == cost
    assert measure(nn.Sequential(nn.Conv2d(3, 4, 3, device="meta"), nn.ReLU()), (3, 8, 8)) == cost
    assert 2 * measure(net.bfloat16(), (3, 8, 8)).activation_bytes == cost.activation_bytes
    with warnings.catch_warnings():  # some versions of torch warn about themselves when the compiler is loaded
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.compile(net.float())
    assert measure(compiled, (3, 8, 8)) == cost
    assert measure(nn.Sequential(compiled, nn.ReLU()), (3, 8, 8)).macs == cost.macs


def test_weight_norm_hooks_run() -> None:
    """Reparametrised weights, new style and old: the weight is a function of parameters."""
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    for net in (conv, old):
        cost = measure(net, (3, 8, 8))
        assert (cost.macs, cost.conv_params, cost.params) == (36 * 4 * 27, 4 * 27, 4 * 27 + 4 + 4)


class Reads(nn.Module):
    """A forward that looks at a value of the map."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Masks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


class ReadsBuffer(nn.Module):
    """A flag in a buffer is no data of the image: it may be read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : int(self.scale)] * 2


def test_values_of_the_image_cannot_be_read_but_flags_can() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), Reads())
    with pytest.raises(LeanconvError, match=r"Sequential reads .*_local_scalar_dense.* of module '1'.*take the"):
        measure(inner, (3, 8, 8))
    with pytest.raises(LeanconvError, match="Masks reads tensor values"):
        measure(Masks(), (3, 8, 8))
    assert measure(ReadsBuffer(), (4, 8, 8)).activation_bytes == 4 * 3 * 64


class Refuses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise NotCalibrated("not measured yet")


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


CONV = nn.Conv2d(3, 4, 3)


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (
            nn.Sequential(CONV, nn.Conv2d(5, 4, 3)),
            (3, 8, 8),
            "in aten.convolution of module '1': .*size must be",
        ),
        (CONV, (3, 2, 2), "fails on an input of shape"),
        (CONV, (), "at least one entry"),
        (CONV, (3, 0, 8), "whole number of at least 1, got 0"),
        (CONV, (3, 8.0, 8), "whole number of at least 1, got 8.0"),
        (nn.LazyConv2d(4, 3), (3, 8, 8), "is lazy and has no weights yet: run one batch"),
        (Locked(), (3, 8, 8), "Locked cannot be copied .*lock"),
        (lambda x: x, (3, 8, 8), "expected an nn.Module, got function"),
        (nn.Bilinear(3, 3, 2), (3,), "Bilinear fails on an input of shape .*; it takes 2 inputs"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_cannot_be_measured(net: Any, size: Any, message: str) -> None:
    with pytest.raises(LeanconvError, match=message) as caught:
        measure(net, size)
    assert "\n" not in str(caught.value)


def test_other_refusals() -> None:
    with pytest.raises(LeanconvError, match="batch must be a whole number"):
        measure(CONV, (3, 8, 8), batch=0)
    with pytest.raises(NotCalibrated, match=r"^not measured yet$"):
        measure(Refuses(), (3, 8, 8))

    class Holder:
        model = CONV

    with pytest.raises(LeanconvError, match=r"got Holder; pass its \.model"):
        measure(Holder(), (3, 8, 8))  # type: ignore[arg-type]


def test_what_rewrite_returns_is_measured_as_its_model() -> None:
    done = rewrite(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), DepthSeparable(init="fresh"))
    assert measure(done, (3, 8, 8)) == measure(done.model, (3, 8, 8))
    assert measure(done, (3, 8, 8)).macs == 36 * 8 * 27 + 16 * 8 * (9 + 8)


def test_the_size_is_the_one_that_the_model_says() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(LeanconvError, match=r"^measure: Sequential does not say which input .*pass size"):
        measure(net)
    net.pretrained_cfg = {"input_size": (3, 10, 12)}  # type: ignore[assignment]
    assert measure(net).size == (3, 10, 12)
    assert measure(net, (3, 8, 8)).size == (3, 8, 8)
    assert measure(nn.DataParallel(net)).size == (3, 10, 12)


class Scaled(nn.Module):
    """Two norms that remember and a head, for an elastic network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 4, 1)
        self.na, self.nb = nn.BatchNorm2d(32), nn.BatchNorm2d(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.nb(self.b(self.na(self.a(x)).relu())).relu())


@pytest.mark.parametrize("widths", [(0.25, 1.0), (0.5, 2.0)])
def test_an_elastic_network_at_any_configuration_calibrated_or_not(widths: tuple[float, float]) -> None:
    net = make_elastic(Scaled(), widths=widths, resolutions=(16, 12)).eval()
    for width in (*widths, 0.5):
        for side in net.resolutions:
            static = measure(net.extract(width, side, calibrated=False), (3, side, side))
            with net.at(width, side):
                cost = measure(net, (3, side, side))
                native = measure(net)
            assert native.size == (3, 16, 16)
            # params are those of all weights; the rest is what ran.
            assert replace(cost, params=0, modules=()) == replace(static, params=0, modules=())
            assert (native.macs, native.conv_params) == (static.macs, static.conv_params)
            assert cost.params == sum(p.numel() for p in net.parameters())
    with net.at(0.5, 12), pytest.raises(NotCalibrated), torch.no_grad():
        net(torch.zeros(1, 3, 16, 16))  # an answer needs what a cost does not
    calibrate(net, [torch.randn(20, 3, 16, 16)], [(0.5, 12)])
    with net.at(0.5, 12):
        assert measure(net, (3, 12, 12)) == replace(cost, size=(3, 12, 12))
    assert (0.5, 12) in net.calibrated


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
def test_weights_that_are_packed_away_are_refused() -> None:
    quantize = torch.ao.quantization.quantize_dynamic
    net = quantize(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), {nn.Linear})
    with pytest.raises(LeanconvError, match=r"^measure: 1\._packed_params .* has packed its weights .*before it is qu"):
        measure(net, (3, 2, 2))
