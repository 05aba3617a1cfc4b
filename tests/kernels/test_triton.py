"""The Triton kernels, number by number in Triton's interpreter; and their operators of torch on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import leanconv as lc
from leanconv.deploy.forms import in_form
from leanconv.kernels.channelwise import channelwise_conv

CHECKS = Path(__file__).parent / "triton_checks.py"


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("which", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_in_the_interpreter(which: str) -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, CHECKS, which], capture_output=True, text=True, env=environment, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == (6 if which == "few" else 46)
    allowed = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}
    wrong = [row for row in rows if not row["error"] <= allowed[row["type"]]]
    assert not wrong


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("stride", "padding"), [((1, 1, 1), (1, 1, 1)), ((2, 1, 2), (0, 1, 1))])
def test_channelwise_operator(relu: bool, stride: tuple[int, ...], padding: tuple[int, ...]) -> None:
    """Outputs and gradients of torch's own convolution; the operator passes torch's checks of operators."""
    x = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    made = channelwise_conv(x, weight, bias, stride, padding, relu=relu)
    wanted = functional.conv3d(x, weight, bias, stride, padding, groups=3)
    wanted = wanted.relu() if relu else wanted
    torch.testing.assert_close(made, wanted)
    probe = torch.randn_like(wanted)
    for mine, theirs in zip(
        torch.autograd.grad(made, (x, weight, bias), probe),
        torch.autograd.grad(wanted, (x, weight, bias), probe),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    operator = torch.ops.leanconv.channelwise_conv.default
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, (x, weight, bias, list(stride), list(padding), relu), test_utils=tests)


def test_chain_operator_passes_the_checks_of_operators() -> None:
    from leanconv.deploy.forms.chains import ChainUnit

    unit = ChainUnit(lc.OptimizedSeparableConv2d(12, 16, 3, stride=2, padding=1), relu=True)
    x = torch.randn(2, 12, 5, 6, requires_grad=True)
    residual: Tensor = torch.randn(2, 16, 3, 3)
    arguments = (
        x, unit.first, unit.second, unit.bias, residual, unit.kernel, [3, 3], 2, 1, unit.step, 16, True, 9, 1,
    )  # fmt: skip
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.leanconv.chain_conv.default, arguments, test_utils=tests)
    torch.testing.assert_close(
        unit(x, residual), (functional.conv2d(x, unit.kernel, unit.bias, 2, 1) + residual).relu()
    )


def test_counted_as_the_convolutions_that_they_are() -> None:
    """On our kernels MACs and channel interactions are those of the network as it was made; a composed chain has those
    of the dense convolution that it runs as."""
    for name, form, training in (
        ("d_resnet20", "kernel", True),
        ("d_resnet20", "kernel", False),
        ("resnet20", "fused", False),
    ):
        plain = lc.create_model(name)
        fast = in_form(plain, form, (3, 8, 8), training=training)  # type: ignore[arg-type]
        counted, wanted = lc.measure(fast, size=(3, 8, 8)), lc.measure(plain, size=(3, 8, 8))
        assert (counted.macs, counted.interactions) == (wanted.macs, wanted.interactions)
        assert not [name for name in counted.not_counted if name.startswith("leanconv")]


def test_under_autocast() -> None:
    """As torch's convolutions: float32 parameters, bfloat16 outputs, float32 gradients."""
    conv = torch.nn.Conv2d(4, 4, 3, padding=1, groups=4)
    x = torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        made = channelwise_conv(x, conv.weight, conv.bias, (1, 1), (1, 1))
        wanted = conv(x)
    assert made.dtype is wanted.dtype is torch.bfloat16
    torch.testing.assert_close(made, wanted)
    made.float().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype is torch.float32
