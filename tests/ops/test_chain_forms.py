"""The forms of a chain: the same function and the same gradients, of the same parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from leanconv.errors import LeanconvError, PlanError
from leanconv.ops.chain import ChainForm, ConvChain
from leanconv.ops.osep import OptimizedSeparableConv2d
from operators import CHAINS, Row


@pytest.mark.parametrize("form", ["composed", "merged"])
@pytest.mark.parametrize("row", CHAINS, ids=lambda row: row.name)
def test_forms_compute_the_same(row: Row, form: ChainForm) -> None:
    """Outputs, gradients of the input and of every weight and bias; in double, so equal but for the last digits."""
    chain = row.rewrite.build(row.spec, dtype=torch.float64)
    assert isinstance(chain, ConvChain)
    other = copy.deepcopy(chain)
    other.run_as(form, multiple=8)
    x = torch.randn(2, row.spec.in_channels, *(7,) * row.spec.ndim, dtype=torch.float64, requires_grad=True)
    wanted = chain(x)
    got = other(x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    probe = torch.randn_like(wanted)
    pairs = zip(
        torch.autograd.grad((got * probe).sum(), [x, *other.parameters()]),
        torch.autograd.grad((wanted * probe).sum(), [x, *chain.parameters()]),
        strict=True,
    )
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)
    assert list(other.state_dict()) == list(chain.state_dict())


def test_back_to_stages_and_channels_given_away() -> None:
    chain = OptimizedSeparableConv2d(62, 62, 3, padding=1)
    x = torch.randn(1, 62, 5, 5)
    before = chain(x)
    chain.run_as("composed", multiple=8, padded=True)
    wide = chain(x)
    assert wide.shape == (1, 64, 5, 5)
    assert not wide[:, 62:].any()
    torch.testing.assert_close(chain(wide), chain(wide[:, :62]))  # a neighbour's channels are taken as they come
    chain.run_as("chain")
    assert torch.equal(chain(x), before)


def test_rounds_once_under_autocast() -> None:
    """The kernel is composed in float32 and rounded where it is used."""
    chain = OptimizedSeparableConv2d(32, 32, 3, padding=1, bias=False)
    chain.run_as("composed")
    x = torch.randn(2, 32, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        got = chain(x)
    exact = nn.functional.conv2d(x.bfloat16().float(), chain.dense_kernel().bfloat16().float(), padding=1)
    torch.testing.assert_close(got.float(), exact, rtol=1e-2, atol=1e-2)


def test_refusals() -> None:
    chain = OptimizedSeparableConv2d(16, 16, 3)
    with pytest.raises(LeanconvError, match="form"):
        chain.run_as("fast")  # type: ignore[arg-type]
    normed = OptimizedSeparableConv2d(16, 16, 3, between="bn")
    with pytest.raises(PlanError, match="not one linear convolution"):
        normed.run_as("composed")
