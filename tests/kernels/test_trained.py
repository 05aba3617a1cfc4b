"""Training on the C library: outputs and gradients are torch's, whatever the piece, from any thread."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from kernels_library import library
from leanconv.errors import LeanconvError, PlanError
from leanconv.kernels.piece import Piece, PieceStage, backward_program, read_piece
from leanconv.kernels.program import Sums
from leanconv.kernels.sums import sum_tile
from leanconv.kernels.trained import run_piece
from random_pieces import by_torch, differences, pieces, tensors


@pytest.fixture(autouse=True)
def _there() -> None:
    library()


def stage(
    channels: int, groups: int, kernel: int = 3, stride: int = 1, *, outputs: int = 0, bias: bool = False
) -> PieceStage:
    pad = kernel // 2
    both = (kernel, kernel), (stride, stride), (pad, pad), (1, 1)
    return PieceStage(tuple(range(channels)), outputs or channels, groups, *both, bias)


def piece(*stages: PieceStage) -> Piece:
    return Piece(channels=len(stages[0].reads), stages=stages, order=tuple(range(stages[-1].outputs)))


CHAIN = piece(stage(12, 4), stage(12, 3, 1, bias=True))


@settings(max_examples=40, deadline=None)
@given(pieces())
def test_random_pieces(drawn: tuple[Piece, tuple[int, int]]) -> None:
    one, size = drawn
    assert one.why_not() is None
    assert read_piece(one.write()) == one
    assert differences(one, *size) <= 1e-5


@pytest.mark.parametrize(
    ("one", "size"),
    [
        (piece(stage(7, 7)), (9, 31)),  # one channel per group, odd width
        (piece(stage(22, 2, outputs=26)), (5, 8)),  # prime counts in a group
        (piece(stage(12, 4), stage(12, 3, 1)), (1, 1)),
        (piece(stage(12, 4, stride=2), stage(12, 3, 1)), (16, 16)),
        (piece(stage(60, 20), stage(60, 3, 1)), (32, 32)),
        (piece(stage(6, 6, 5, 2), stage(6, 1, 1)), (33, 17)),
        (piece(stage(32, 1)), (16, 16)),  # dense, in blocks: of numbers that stand for weights no sums may be made
    ],
)
def test_chosen_pieces(one: Piece, size: tuple[int, int]) -> None:
    assert differences(one, *size, images=2) <= 1e-5


def test_sums_by_hand() -> None:
    """Of two images 1 x 3 and a kernel of three columns, where the numbers can be read."""
    one = piece(PieceStage((0,), 1, 1, (1, 3), (1, 1), (0, 1), (1, 1), True))
    x = torch.tensor([[[[1.0, 2.0, 3.0]]], [[[10.0, 0.0, 0.0]]]], requires_grad=True)
    weight = torch.tensor([[[[1.0, 10.0, 100.0]]]], requires_grad=True)
    bias = torch.tensor([0.5], requires_grad=True)
    y = run_piece(x, [weight, bias], one.write())
    assert y.flatten().tolist() == [210.5, 321.5, 32.5, 100.5, 10.5, 0.5]
    y.backward(torch.tensor([[[[1.0, 1.0, 2.0]]], [[[1.0, 1.0, 1.0]]]]))
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [1 + 2 * 2 + 10, 1 + 2 + 2 * 3 + 10, 2 + 3]
    assert bias.grad is not None
    assert bias.grad.tolist() == [7.0]
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [11.0, 112.0, 120.0, 11.0, 111.0, 110.0]


@pytest.mark.parametrize("frozen", ["input", "weights", "one weight"])
def test_what_wants_no_gradient_gets_none(frozen: str) -> None:
    x, parameters = tensors(CHAIN, 8, 8)
    if frozen == "input":
        x = x.detach()
    for parameter in parameters if frozen == "weights" else parameters[:1] if frozen == "one weight" else []:
        parameter.requires_grad_(False)
    run_piece(x, parameters, CHAIN.write()).sum().backward()  # type: ignore[no-untyped-call]
    got = [None if one.grad is None else one.grad.clone() for one in (x, *parameters)]
    for one in (x, *parameters):
        one.grad = None
    by_torch(x, parameters, CHAIN).sum().backward()  # type: ignore[no-untyped-call]
    for mine, one in zip(got, (x, *parameters), strict=True):
        assert (mine is None) == (one.grad is None)
        if mine is not None:
            torch.testing.assert_close(mine, one.grad, rtol=1e-4, atol=1e-4)


def test_no_images_and_maps_that_are_not_contiguous() -> None:
    x, parameters = tensors(CHAIN, 8, 8, images=4)
    assert run_piece(x[:0], parameters, CHAIN.write()).shape == (0, 12, 8, 8)
    wide = x.detach().to(memory_format=torch.channels_last)
    torch.testing.assert_close(run_piece(wide, parameters, CHAIN.write()), run_piece(x, parameters, CHAIN.write()))


def test_the_input_alone_is_kept_for_the_backward_pass() -> None:
    kept: list[tuple[int, ...]] = []
    x, parameters = tensors(CHAIN, 8, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        run_piece(x, parameters, CHAIN.write())
    assert kept == [tuple(x.shape), *(tuple(one.shape) for one in parameters)]


def test_two_threads_at_once_and_images_over_threads() -> None:
    batches = [tensors(CHAIN, 9, 17, images=5) for _ in range(6)]

    def gradients(batch: tuple[torch.Tensor, list[torch.Tensor]]) -> list[torch.Tensor]:
        y = run_piece(batch[0], batch[1], CHAIN.write())
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [batch[0], *batch[1]])]

    alone = [gradients(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            for got, wanted in zip(pool.map(gradients, batches), alone, strict=True):
                assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for got, wanted in zip(map(gradients, batches), alone, strict=True):
            for one, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_second_gradients_are_refused() -> None:
    x, parameters = tensors(CHAIN, 8, 8)
    (first,) = torch.autograd.grad(run_piece(x, parameters, CHAIN.write()).square().sum(), x, create_graph=True)
    with pytest.raises(LeanconvError, match="no second gradients: train with kernels=never"):
        first.sum().backward()  # type: ignore[no-untyped-call]


def test_other_types_and_shapes_are_refused() -> None:
    x, parameters = tensors(CHAIN, 8, 8)
    with pytest.raises(LeanconvError, match=r"train in float32 on a CPU, got torch.float64"):
        run_piece(x.double(), parameters, CHAIN.write())
    with pytest.raises(LeanconvError, match=r"a piece of 12 channels .* got an input of \(3, 11, 8, 8\)"):
        run_piece(x[:, :11], parameters, CHAIN.write())


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (piece(PieceStage((0, 1), 2, 2, (3, 3), (1, 1), (0, 0), (1, 1), False)), "padding other than half the kernel"),
        (piece(PieceStage((0, 0), 2, 2, (1, 1), (1, 1), (0, 0), (1, 1), False)), "a channel is read twice"),
    ],
)
def test_what_the_library_does_not_train(one: Piece, why: str) -> None:
    assert one.why_not() == why
    with pytest.raises(PlanError, match=why):
        backward_program(one, 8, 8, of_input=True, of_weights=True)


def test_steps_of_a_program_are_those_that_are_wanted() -> None:
    def kinds(**wanted: bool) -> list[str]:
        return [type(step).__name__ for step in backward_program(CHAIN, 8, 8, **wanted).steps]

    assert kinds(of_input=True, of_weights=True) == ["Conv", "Sums", "Conv", "Sums", "Conv"]
    assert kinds(of_input=False, of_weights=True) == ["Conv", "Sums", "Conv", "Sums"]
    assert kinds(of_input=True, of_weights=False) == ["Conv", "Conv"]
    sums = [
        step for step in backward_program(CHAIN, 8, 8, of_input=False, of_weights=True).steps if isinstance(step, Sums)
    ]
    assert [(one.weights, one.bias) for one in sums] == [((12, 4, 1, 1), True), ((12, 3, 3, 3), False)]


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize("taps", [1, 3])
def test_tiles_of_sums_fit_the_registers(registers: int, taps: int) -> None:
    for inputs in range(1, 41):
        for outputs in range(1, 41):
            i, o = sum_tile(inputs, outputs, taps, registers)
            assert i <= inputs
            assert o <= outputs
            assert taps * i * o + o + 1 <= registers


def test_compiled_and_copied() -> None:
    """One graph without a break; a copy has its own weights."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(12, 3, 3, 3)), nn.Parameter(torch.randn(12, 4, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return run_piece(x.relu(), [self.first, self.second], text)

    text = piece(stage(12, 4), stage(12, 3, 1)).write()
    net, x = Net(), torch.randn(2, 12, 8, 8)
    other = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    compiled(x).square().sum().backward()
    other(x).square().sum().backward()
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, two.grad)
