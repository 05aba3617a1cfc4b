"""Networks whose pieces run in the C library: the same outputs, the same costs, and by name what is left to torch."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

import leanconv as lc
from kernels_library import library
from leanconv.deploy import accelerate, bench, compare, fold
from leanconv.deploy.verify import as_exact
from leanconv.errors import ExportError, LeanconvError, NothingToRewrite
from leanconv.kernels.blocks import lies_in_blocks
from leanconv.kernels.library import NAMES, NoLibrary
from leanconv.kernels.operator import ProgramModule
from leanconv.kernels.program import Product
from leanconv.ops.channels import ChannelShuffle

SIZE = (8, 9, 11)


@pytest.fixture(autouse=True)
def _library() -> None:
    library()


def stirred(net: nn.Module) -> nn.Module:
    """With norms that do something."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return net.eval()


def assert_same(model: nn.Module, fast: nn.Module, size: tuple[int, ...]) -> None:
    """To 1e-5 of the largest output, in batches of 1 to 3."""
    assert compare(fold(model, size).model, fast, size, seed=7).beyond(1e-5) is None


class Block(nn.Module):
    """Shuffle, gather, crop, pad, concatenation, a stride, a sum, a mean and every activation."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(12)
        self.shuffle = ChannelShuffle(4)
        self.wide = nn.Conv2d(12, 8, 5, padding=4, dilation=2, groups=2, bias=False)
        self.tall = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=8)
        self.flat = nn.Conv2d(8, 10, (1, 7), padding=(0, 3), groups=2)
        self.down = nn.Conv2d(18, 14, 3, stride=2, padding=1, groups=2)
        self.register_buffer("order", torch.randperm(14))
        self.head = nn.Linear(17, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm(self.grouped(x)))
        y = F.silu(self.wide(self.shuffle(y)) + x)
        z = F.hardswish(self.tall(y))
        y = torch.cat([self.flat(z), y], 1)
        y = F.relu(self.down(y), inplace=True)
        y = y.index_select(1, self.order)[:, 1:12]  # type: ignore[arg-type]
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 3))
        first, second = F.avg_pool2d(y + short, 2).relu_().split([4, 7], 1)
        whole = torch.cat([second, F.pad(first, (0, 0, 0, 0, 1, 5))], 1)
        return self.head(whole.mean((2, 3)))  # type: ignore[no-any-return]


def test_one_program_for_everything_it_knows() -> None:
    net = stirred(Block())
    fast = accelerate(net, SIZE)
    assert (len(fast.programs), fast.left, fast.vectors) == (1, (), NAMES[library().lanes])
    assert [type(module) for module in fast.model.children()] == [ProgramModule]
    assert_same(net, fast.model, SIZE)


@pytest.mark.parametrize(
    ("name", "options", "size", "steps"),
    [
        ("d_resnet20", {}, (3, 20, 27), 23),
        ("igc_l24m2", {"depth": 8}, (3, 32, 32), 9),
    ],
)
def test_networks_of_the_zoo(name: str, options: dict[str, float], size: tuple[int, int, int], steps: int) -> None:
    """A chain, its residual and its ReLU are one step: a stem, 18 or 6 chains, the shortcuts, pool and classifier."""
    net = stirred(lc.create_model(name, **options))
    fast = accelerate(net, size)
    assert [len(program.steps) for program in fast.programs] == [steps]
    assert fast.left == ()
    assert_same(net, fast.model, size)
    assert lc.measure(fast.model, size).macs == lc.measure(net, size).macs


class Mixed(nn.Module):
    """Pieces before, beside and behind what has no step; a dictionary goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
        self.gate = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.first(x)
        gate = self.gate(y.mean((2, 3), keepdim=True)).tanh()
        return {"up": self.up(self.last(y * gate + y)), "first": y}


def test_branches_that_begin_apart_are_one_piece() -> None:
    """Two paths from the input meet in a sum; a third goes through what has no step, and begins a piece again."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = (nn.Conv2d(8, 8, 3, padding=1, groups=2) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x) + self.two(x)
            return self.last(y + torch.tanh(y))  # type: ignore[no-any-return]

    net = Branches().eval()
    fast = accelerate(net, SIZE)
    assert [len(one.inputs) for one in fast.programs] == [1, 2]
    assert_same(net, fast.model, SIZE)


def test_pieces_around_what_torch_runs() -> None:
    net = Mixed().eval()
    fast = accelerate(net, SIZE)
    assert [[len(one.outputs) for one in fast.programs], [one.name for one in fast.left]] == [[2, 1], ["up"]]
    assert "conv_transpose2d" in fast.left[0].reason
    with torch.inference_mode():
        x = torch.randn(2, *SIZE)
        wanted, got = net(x), fast.model(x)
    assert list(got) == ["up", "first"]
    for key in wanted:
        torch.testing.assert_close(got[key], wanted[key], rtol=1e-5, atol=1e-6)


class Gated(nn.Module):
    """Squeeze-and-excitation in both orders of its factors, a gate for each pixel, and a factor that is a weight."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, width, 3, padding=1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.pixel = nn.Conv2d(width, 1, 1)
        self.last = nn.Conv2d(width, 16, 1)
        self.factor = nn.Parameter(torch.rand(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = F.silu(self.grouped(x))
        gate = self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = F.relu(y * F.hardsigmoid(gate) + x)
        y = torch.sigmoid(F.adaptive_avg_pool2d(y, 1)) * y
        y = torch.sigmoid(self.pixel(y)) * y
        return self.last(y * torch.sigmoid(self.pixel(y))) * self.factor


@pytest.mark.parametrize(("groups", "width", "in_blocks"), [(32, 32, False), (4, 32, False), (20, 20, False)])
def test_gates_are_steps(groups: int, width: int, in_blocks: bool) -> None:
    torch.manual_seed(0)
    model = Gated(groups, width).eval()
    found = accelerate(model, SIZE)
    assert_same(model, found.model, SIZE)
    assert (len(found.programs), found.left) == (1, ())
    assert [lies_in_blocks(program) for program in found.programs] == [in_blocks]


def test_the_gates_of_channels_lie_in_blocks() -> None:
    torch.manual_seed(0)
    model = stirred(models.efficientnet_b0(num_classes=5))
    found = accelerate(model, (3, 40, 33))
    assert_same(model, found.model, (3, 40, 33))
    assert (found.left, [lies_in_blocks(program) for program in found.programs]) == ((), [True])
    assert sum(isinstance(step, Product) for step in found.programs[0].steps) == 16


def test_norms_before_convolutions_are_steps() -> None:
    torch.manual_seed(0)
    model = stirred(models.DenseNet(16, (2, 3), 32, num_classes=5))
    found = accelerate(model, (3, 40, 33))
    assert_same(model, found.model, (3, 40, 33))
    assert (found.left, [lies_in_blocks(program) for program in found.programs]) == ((), [True])


class Folded(nn.Module):
    """Halves of the channels become pictures of a batch of twice the length; the mean over the batch is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.last = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        y = self.first(x).relu()
        z = self.second(y.view(2 * batch, 4, height, width)).view(x.shape)
        gate = z.mean(0, keepdim=True).mean((2, 3), keepdim=True)
        return self.last(z * gate + y.mean(0, keepdim=True))  # type: ignore[no-any-return]


def test_what_changes_the_batch_is_left_to_torch() -> None:
    torch.manual_seed(0)
    model = Folded().eval()
    found = accelerate(model, SIZE)
    assert_same(model, found.model, SIZE)
    assert (len(found.programs), found.left) == (3, ())


class Crossing(nn.Module):
    """Two pairs of branches that meet; each pair has one that reads the other pair through what is no step."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a", "b", "c", "d"):
            setattr(self, name, nn.Conv2d(8, 8, 3, padding=1, groups=8))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x.flip(3))
        first = a + self.c(b.cumsum(2))
        second = b + self.d(a.cumsum(3))
        return first * second


def test_pieces_that_would_wait_for_each_other_are_not_both_kept() -> None:
    torch.manual_seed(0)
    model = Crossing().eval()
    found = accelerate(model, SIZE)
    assert_same(model, found.model, SIZE)
    assert len(found.programs) == 1
    assert {one.reason for one in found.left} == {"its piece and another would wait for each other"}


def test_rounding_alone_is_no_fault() -> None:
    """Beyond the tolerance, a network in float32 is as far from itself in float64; one that is wrong is further."""
    torch.manual_seed(0)
    model = Separable().eval()
    assert compare(model, accelerate(model, SIZE, tolerance=1e-9).model, SIZE).beyond(1e-9) is not None
    assert as_exact(model, model, SIZE, seed=0)
    assert not as_exact(model, lambda x: 1.0001 * model(x), SIZE, seed=0)


def test_torchs_own_shuffle_moves_channels() -> None:
    torch.manual_seed(0)
    grouped, depthwise = nn.Conv2d(8, 24, 3, padding=1, groups=4), nn.Conv2d(24, 24, 3, padding=1, groups=24)
    model = nn.Sequential(grouped, nn.ChannelShuffle(3), nn.ReLU(), depthwise, nn.ChannelShuffle(4)).eval()
    found = accelerate(model, SIZE)
    assert_same(model, found.model, SIZE)
    assert (len(found.programs), found.left) == (1, ())


class Separable(nn.Module):
    """Depthwise and pointwise, larger than what runs as well elsewhere; a grouped head behind a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 512, 1)
        self.depthwise = nn.Conv2d(512, 512, 3, padding=1, groups=512)
        self.pointwise = nn.Conv2d(512, 640, 1)
        self.grouped = nn.Conv2d(640, 640, 3, groups=32)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.pointwise(self.depthwise(self.first(x))).cumsum(2))


def test_depthwise_networks_have_convolutions_of_any_size_in_blocks() -> None:
    torch.manual_seed(0)
    model = Separable().eval()
    found = accelerate(model, SIZE)
    assert_same(model, found.model, SIZE)
    assert (found.left, [lies_in_blocks(program) for program in found.programs]) == ((), [True, False])


def test_several_inputs_and_flat_ones() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 4, 3, groups=4)
            self.head = nn.Linear(9, 3)

        def forward(self, maps: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(maps).relu()
            joined = torch.cat([F.adaptive_avg_pool2d(y, 1).flatten(1), numbers], 1)
            return self.head(joined), y

    net = Two().eval()
    fast = accelerate(net, [SIZE, (5,)])
    inputs = torch.randn(3, *SIZE), torch.randn(3, 5)
    with torch.inference_mode():
        for got, wanted in zip(fast.model(*inputs), net(*inputs), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert len(fast.programs) == 1


def chain() -> nn.Module:
    return stirred(
        nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8), nn.ReLU()
        )
    )


def test_batches_of_any_length_and_memory_of_any_order() -> None:
    net = chain()
    model = accelerate(net, SIZE).model
    with torch.inference_mode():
        assert model(torch.zeros(0, *SIZE)).shape == (0, 8, 9, 11)
        x = torch.randn(5, *SIZE).to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x), net(x), rtol=1e-5, atol=1e-6)


def test_the_network_itself_is_left_as_it_was() -> None:
    net = chain().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    accelerate(net, SIZE)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_another_size_or_type_is_refused() -> None:
    model = accelerate(chain(), SIZE).model
    for x in (torch.randn(1, 8, 9, 12), torch.randn(1, *SIZE).double()):
        with pytest.raises(LeanconvError, match=r"here \(batch, \*\(8, 9, 11\)\) was expected, got torch.float"):
            model(x)


def test_there_is_no_gradient_and_it_says_so() -> None:
    model = accelerate(chain(), SIZE).model
    y = model(torch.randn(1, *SIZE, requires_grad=True))
    with pytest.raises(LeanconvError, match="an accelerated network is for inference"):
        y.sum().backward()


def test_a_program_is_let_go_with_its_network() -> None:
    from leanconv.kernels.operator import _READY

    gc.collect()  # those of other tests
    before = set(_READY)
    model = accelerate(nn.Sequential(nn.Conv2d(8, 2, 3, groups=2)), SIZE).model
    assert len(set(_READY) - before) == 1
    copied = copy.deepcopy(model)
    with torch.inference_mode():
        x = torch.randn(1, *SIZE)
        assert torch.equal(copied(x), model(x))
    del model, copied
    gc.collect()
    assert set(_READY) == before


def test_changed_weights_are_noticed() -> None:
    """What runs was packed before: it must not go on with the old numbers in silence."""
    model = accelerate(chain(), SIZE).model
    x = torch.randn(1, *SIZE)
    with torch.no_grad():
        model(x)
        next(model.parameters()).mul_(2)
        with pytest.raises(LeanconvError, match="weights of an accelerated network were changed after it was made"):
            model(x)


def test_torch_export_and_a_file_in_another_process(tmp_path: Path) -> None:
    net = chain()
    model = accelerate(net, SIZE).model
    x = torch.randn(2, *SIZE)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import torch, leanconv.kernels.operator; "
        f"net = torch.export.load({str(tmp_path / 'net.pt2')!r}).module(); x = torch.load({str(tmp_path / 'x.pt')!r}); "
        f"torch.save(net(x[:1]), {str(tmp_path / 'y.pt')!r})"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), net(x[:1]), rtol=1e-5, atol=1e-6)


def test_onnx_has_no_such_operator(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"leanconv\.run_program: export the network .* \(--kernels\)"):
        lc.export(accelerate(chain(), SIZE), tmp_path / "net.onnx", size=SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.ReLU()), "no part of Sequential gains by it: it has no convolution"),
        (
            nn.Sequential(nn.Conv2d(8, 1200, 3), nn.ConvTranspose2d(1200, 4, 2)),
            "0: it has 86400 weights in a group, more than the 65536 up to which",
        ),
        (
            nn.Sequential(nn.Conv2d(8, 4, 3), nn.ConvTranspose2d(4, 4, 2)),
            "0: no grouped convolution is next to it, .*; and 1 more convolutions are left out",
        ),
    ],
)
def test_nothing_to_gain(net: nn.Module, words: str) -> None:
    with pytest.raises(NothingToRewrite, match=words):
        accelerate(net, SIZE)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d((2, 3), 1, (1, 0), dilation=(1, 2), ceil_mode=True),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d((2, 4), divisor_override=3),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        nn.AvgPool3d((2, 3, 2), (1, 2, 2), (1, 1, 0), count_include_pad=False),
        nn.MaxPool1d(3, 2, 1),
        nn.AvgPool1d(4, 2, 1, count_include_pad=False),
    ],
)
def test_pools_are_steps(pool: nn.Module) -> None:
    axes = int(type(pool).__name__[-2])
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](6, 6, 3, padding=1, groups=6)
    size = (6, *(4, 9, 12)[-axes:])
    net = nn.Sequential(conv, pool).eval()
    fast = accelerate(net, size)
    assert [len(program.steps) for program in fast.programs] == [2]
    assert_same(net, fast.model, size)


class Clips(nn.Module):
    """Everything that is known of clips: a shuffle, parts, a sum, strides, filters of several sizes, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 10, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2))
        self.wide = nn.Conv3d(10, 7, 1)
        self.deep = nn.Conv3d(7, 14, 3, padding=1, groups=7)
        self.norm = nn.BatchNorm3d(14)
        self.shuffle = ChannelShuffle(2)
        self.down = nn.Conv3d(14, 14, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), groups=14, bias=False)
        self.last = nn.Conv3d(14, 13, 1, groups=1)
        self.short = nn.Conv3d(10, 13, 1, stride=(1, 2, 2))
        self.head = nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.silu(self.norm(self.deep(F.relu(self.wide(x)))))
        first, second = self.shuffle(y).split([4, 10], 1)
        y = self.last(F.hardswish(self.down(torch.cat([second, first], 1))))
        y = F.relu(y + self.short(x))
        return self.head(y.mean((2, 3, 4)))  # type: ignore[no-any-return]


def test_clips_in_one_program() -> None:
    net = stirred(Clips())
    fast = accelerate(net, (3, 5, 27, 22))
    assert len(fast.programs) == 1
    assert fast.left == ()
    assert_same(net, fast.model, (3, 5, 27, 22))
    assert lc.measure(fast.model, (3, 5, 27, 22)).macs == lc.measure(net, (3, 5, 27, 22)).macs


def test_a_channel_separated_network_runs_in_one_program() -> None:
    """Of each block: 1x1x1, 3x3x3, then 1x1x1 with the sum; three shortcuts in two steps; stem, pool, mean, head."""
    net = stirred(lc.create_model("ip_csn_26", num_classes=5))
    fast = accelerate(net, (3, 8, 48, 33))
    assert [len(program.steps) for program in fast.programs] == [2 + 3 * 8 + 3 * 2 + 1 + 1]
    assert fast.left == ()
    assert_same(net, fast.model, (3, 8, 48, 33))


def test_large_convolutions_over_time_are_left_to_torch() -> None:
    with pytest.raises(NothingToRewrite, match="it has 69120 weights in a group, more than the 65536 up to which"):
        accelerate(nn.Sequential(nn.Conv3d(64, 40, 3)), (64, 4, 8, 8))


@pytest.mark.parametrize(
    "options", [{"groups": 2}, {"stride": (2, 3, 2)}, {"padding": (0, 2, 1), "dilation": (1, 2, 3)}]
)
def test_convolutions_over_time_of_any_groups(options: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Conv3d(4, 6, (2, 3, 4), **options), nn.Hardswish()).eval()
    fast = accelerate(net, (4, 5, 9, 13))
    assert [len(program.steps) for program in fast.programs] == [1]
    assert_same(net, fast.model, (4, 5, 9, 13))


def test_without_the_library_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("leanconv.kernels.library.load.__wrapped__.__defaults__", (tmp_path / "none.so",))
    from leanconv.kernels.library import load

    load.cache_clear()
    try:
        with pytest.raises(NoLibrary, match=r"python -m leanconv\.kernels\.build"):
            accelerate(chain(), SIZE)
        (row,) = bench({"net": chain()}, SIZE, backends=["leanconv"], rounds=1)
        assert row.problem is not None
        assert "python -m leanconv.kernels.build" in row.problem
    finally:
        load.cache_clear()


def test_a_backend_of_the_benchmark() -> None:
    rows = bench({"net": chain()}, SIZE, backends=["eager", "leanconv"], rounds=2, batch=2)
    assert [(row.backend, row.problem) for row in rows] == [("eager", None), ("leanconv", None)]
    assert rows[1].max_abs_difference is not None
    assert rows[1].max_abs_difference < 1e-5
