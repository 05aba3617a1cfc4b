"""The comparison itself: it must see every kind of difference, or nothing that rests on it means anything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from leanconv.deploy import compare
from leanconv.errors import ExportError, LeanconvError


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval()


def test_a_model_equals_itself_and_its_outputs_were_seen() -> None:
    found = compare(net(), net(), (3, 8, 8), batches=(1, 4))
    assert found.max_abs == 0.0
    assert found.samples == 5
    assert found.max_output > 0.1


def test_the_largest_difference_is_found_in_any_output() -> None:
    class Two(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: Tensor) -> dict[str, object]:
            y = x.sum(1)
            y[0, -1, -1] += self.shift
            return {"a": x, "b": (x, [y])}

    assert compare(Two(0.0), Two(0.25), (3, 4, 4)).max_abs == pytest.approx(0.25)


def test_not_a_number_is_an_infinite_difference() -> None:
    assert compare(net(), lambda x: net()(x) * float("nan"), (3, 8, 8)).max_abs == float("inf")


def test_equal_infinities_and_nans_are_equal_and_others_are_not() -> None:
    def masked(value: float, *, where: int = 3) -> nn.Module:
        class Masked(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                y = x.clone()
                y[:, :where] = value
                return y

        return Masked()

    inf, nan = float("inf"), float("nan")
    for value in (inf, -inf, nan):
        assert compare(masked(value), masked(value), (8,)).max_abs == 0.0
        assert compare(masked(value), masked(value), (8,)).max_output < inf
        assert compare(masked(value), masked(value, where=4), (8,)).beyond(0.5)
        assert compare(masked(value), masked(0.0), (8,)).max_abs == inf
    assert compare(masked(inf), masked(-inf), (8,)).max_abs == inf
    with pytest.raises(ExportError, match="no finite number"):
        compare(masked(nan, where=8), masked(nan, where=8), (8,))


def test_every_output_is_judged_by_its_own_size() -> None:
    class Two(nn.Module):
        def __init__(self, boxes: float, scores: float) -> None:
            super().__init__()
            self.errors = boxes, scores

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 500 + self.errors[0], x * 1e-3 + self.errors[1]

    same = Two(0.0, 0.0)
    assert compare(same, Two(1e-2, 0.0), (64,)).beyond(1e-4) is None
    assert compare(same, Two(1e-2, 1e-6), (64,)).beyond(1e-4)
    assert compare(same, Two(1e-2, 5e-8), (64,)).beyond(1e-4) is None  # what float32 leaves of 1 - 1


@pytest.mark.parametrize("listed", [False, True])
def test_several_inputs(listed: bool) -> None:
    class Pair(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a.sum(1) - b

    class Listed(nn.Module):
        def forward(self, both: list[Tensor]) -> Tensor:
            return both[0].sum(1) - both[1]

    model = Listed() if listed else Pair()
    sizes = [(3, 8), (8,)]
    assert compare(model, model, sizes).max_output > 1
    with pytest.raises(LeanconvError, match=r"inputs of shape \(1, 3, 8\) and \(1, 7\)"):
        compare(model, model, [(3, 8), (7,)])


def test_a_runner_that_works_in_place_does_not_spoil_the_input_of_the_model() -> None:
    assert compare(nn.ReLU(inplace=True), torch.relu, (3, 8)).max_abs == 0.0


def test_other_shapes_are_another_network() -> None:
    with pytest.raises(ExportError, match=r"shapes \[\(1, 144\)\].*gives \[\(1, 143\)\].*not the same"):
        compare(net(), lambda x: net()(x)[:, 1:], (3, 8, 8))


def test_nothing_to_compare_is_not_agreement() -> None:
    with pytest.raises(ExportError, match="nothing can be compared"):
        compare(Empty(), Empty(), (3, 4))


class Empty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :0]


def test_outputs_that_hold_no_numbers_are_refused() -> None:
    with pytest.raises(ExportError, match=r"outputs must be tensors.*got str"):
        compare(net(), lambda x: "logits", (3, 8, 8))


@pytest.mark.parametrize("size", [(), (3, 0, 8), (3, 8.5, 8)])
def test_a_size_that_is_none_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(LeanconvError, match="size is the shape of one input"):
        compare(net(), net(), size)


def test_a_size_that_does_not_fit_the_model_is_named() -> None:
    with pytest.raises(LeanconvError, match=r"does not run on inputs of shape \(1, 5, 8, 8\)"):
        compare(net(), net(), (5, 8, 8))


def test_random_inputs_leave_the_generator_of_torch_alone() -> None:
    state = torch.get_rng_state()
    compare(nn.ReLU(), torch.relu, (3, 8))
    assert torch.equal(state, torch.get_rng_state())
