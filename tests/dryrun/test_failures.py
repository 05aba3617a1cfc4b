"""What cannot be followed is said in one sentence, the same whoever looks, and torch says nothing beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import followed
import numpy as np
import pytest
import torch
from followed import SIZE, VERBS, Branch
from torch import Tensor, nn

from leanconv.cost import measure
from leanconv.dryrun import DryRun, record_flow
from leanconv.errors import LeanconvError, PlanError, RewriteError


def said(call: Callable[[], object]) -> LeanconvError:
    with pytest.raises(LeanconvError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_branch_on_values_has_one_sentence_in_all_verbs() -> None:
    file = Path(followed.__file__)
    line = 1 + [line.strip() for line in file.read_text().splitlines()].index("if x.mean() > 0:")
    errors = {verb: said(lambda call=call: call(Branch())) for verb, call in VERBS.items()}  # type: ignore[misc]
    assert {str(error) for error in errors.values()} == {
        f"the forward of Branch reads tensor values: `if x.mean() > 0:` at {file}:{line} (aten._local_scalar_dense of "
        "module 'inner.1'), and it is followed by shapes alone, without values: take the .item(), the branch or the "
        "boolean mask out of the forward, or pass a part of the network that has none"
    }
    assert isinstance(errors["octave"], RewriteError)
    assert isinstance(errors["elastic"], RewriteError)


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_size_has_one_sentence_in_all_verbs_and_no_log(
    verb: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
            self.join = Join()

        def forward(self, x: Tensor) -> Tensor:
            return self.join(self.a(x), self.b(x.new_zeros(2, 16, 3, 3)))

    class Join(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([x, y], 1)

    error = said(lambda: VERBS[verb](Cat()))
    assert str(error).startswith(
        "the forward of Cat fails on an input of shape (3, 16, 16) in aten.cat of module 'join': RuntimeError: Sizes "
        "of tensors must match except in dimension 1."
    )
    assert str(error).endswith("; size must be what the network takes, without the batch axis")
    assert not caplog.records
    assert capfd.readouterr().err == ""


class Asks(nn.Module):
    def __init__(self, ask: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.ask = ask

    def forward(self, x: Tensor) -> Tensor:
        self.ask(x)
        return x


@pytest.mark.parametrize(
    ("ask", "operator"),
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense"),
        (lambda x: x.tolist(), "aten._local_scalar_dense"),
        (lambda x: [0, 1, 2][x.sum().long()], "aten._local_scalar_dense"),
        (lambda x: x[x > 0], "aten.index"),
        (lambda x: x.nonzero(), "aten.nonzero"),
        (lambda x: x.unique(), "aten._unique2"),
        (lambda x: torch.equal(x, x), "aten.equal"),
        (lambda x: x.numpy(), "Tensor.numpy"),
        (lambda x: np.asarray(x), "Tensor.numpy"),
    ],
)
def test_every_way_to_ask_for_values_is_called_so(ask: Callable[[Tensor], Any], operator: str) -> None:
    error = said(lambda: DryRun(Asks(ask), SIZE).run())
    assert str(error).startswith("the forward of Asks reads tensor values: `")
    assert f"` at {__file__}:" in str(error)
    assert f" ({operator}), and it is followed by shapes alone" in str(error)


def test_a_forward_of_torch_alone_has_no_line_to_show() -> None:
    class Threshold(nn.Sequential):
        pass

    net = Threshold(nn.Flatten(), nn.AdaptiveLogSoftmaxWithLoss(4, 5, [2]))
    error = said(lambda: DryRun(net, (4,)).run())
    assert "takes 2 inputs" not in str(error)  # that of the part, not of the network
    assert "fails on an input of shape (4,) in module '1': TypeError: " in str(error)


def test_errors_of_ours_and_warnings_pass() -> None:
    def plan(_: Tensor) -> None:
        raise PlanError("groups that cannot divide")

    def warn(_: Tensor) -> None:
        raise UserWarning("on purpose")

    with pytest.raises(PlanError, match=r"^groups that cannot divide$"):
        DryRun(Asks(plan), SIZE, error=RewriteError).run()
    with pytest.raises(UserWarning, match="on purpose"):
        DryRun(Asks(warn), SIZE).run()


def test_a_forward_that_takes_no_input_is_told_so() -> None:
    class Source(nn.Module):
        def forward(self) -> Tensor:
            return torch.zeros(1)

    assert str(said(lambda: DryRun(Source(), SIZE).run())).endswith("; its forward takes no input")


LIBRARY = torch.library.Library("leanconv_tests", "DEF")
LIBRARY.define("doubled(Tensor x) -> Tensor")
LIBRARY.impl("doubled", lambda x: 2 * x, "CPU")


@pytest.mark.parametrize(
    ("forward", "operator"),
    [
        (lambda x: torch.ops.leanconv_tests.doubled(x), "leanconv_tests.doubled"),
        (lambda x: torch.nested.nested_tensor([x[0], x[0]]), "aten._nested_tensor_from_tensor_list"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_operator_that_runs_on_values_only_is_named(forward: Any, operator: str) -> None:
    for verb in (
        lambda net: DryRun(net, SIZE).run(),
        lambda net: record_flow(net, SIZE),
        lambda net: measure(net, SIZE),
    ):
        error = str(said(lambda verb=verb: verb(nn.Sequential(Asks(forward)))))
        assert error.startswith(f"the forward of Sequential uses {operator} in module '0', of which torch cannot say ")
        assert error.endswith("or, where the operator is yours, register that with torch.library.register_fake")


def test_a_choice_by_values_is_refused() -> None:
    def choose(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))  # type: ignore[no-any-return]

    for verb in (lambda net: record_flow(net, SIZE), lambda net: measure(net, SIZE)):
        assert "uses torch.cond in module '0', of which" in str(said(lambda v=verb: v(nn.Sequential(Asks(choose)))))


@pytest.mark.filterwarnings("ignore:`create_unbacked_symint` is deprecated:FutureWarning")
def test_the_line_of_a_function_that_torchvision_wraps_is_the_callers() -> None:
    ops = pytest.importorskip("torchvision.ops")

    def boxes(x: Tensor) -> Any:
        return ops.nms(x[0, 0, :, :4], x[0, 0, :, 0], 0.5)

    error = str(said(lambda: DryRun(Asks(boxes), SIZE).run()))
    assert "reads tensor values: `return ops.nms(x[0, 0, :, :4], x[0, 0, :, 0], 0.5)` at" in error
