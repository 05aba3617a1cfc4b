"""Octave on somebody else's networks: one smallest model of every convolutional family of timm.

The walk (slow) prints how many families there are and which are refused, with reasons; the list is in the card.
"""

from __future__ import annotations

import pytest
import torch
from timm_families import FAMILIES, NOT_CONVOLUTIONAL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from leanconv.cost import measure
from leanconv.errors import LeanconvError
from leanconv.ops.octave import OctConv
from leanconv.rewrites import Octave, rewrite

timm = pytest.importorskip("timm")

SIZES = (224, 225, 320)

REFUSED = {"nfnet": "ScaledStdConv2d is not a plain nn.Conv1d/2d/3d"}
"""Family -> why it is refused."""

FAST = ("vgg", "regnet", "starnet")


def shapes(net: nn.Module, size: int) -> list[tuple[int, ...]]:
    """Shapes of the outputs for a fake batch."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        out = net(torch.zeros(2, 3, size, size))
    return [tuple(part.shape) for part in (out if isinstance(out, (tuple, list)) else [out])]


def runs(net: nn.Module, size: int) -> bool:
    """Whether the dense network takes this size at all; some have windows or position tables of fixed size."""
    try:
        shapes(net, size)
    except Exception:
        return False
    return True


def check(family: str) -> tuple[int, list[int]]:
    """Rewrite the family's smallest model and hold the result against the dense one; layers changed, sizes seen."""
    torch.manual_seed(0)
    name = FAMILIES[family]
    dense = timm.create_model(name, num_classes=7).eval()
    native = dense.pretrained_cfg["input_size"][-1]
    sizes = [size for size in SIZES if runs(dense, size)] or [native]
    example = (3, sizes[0], sizes[0])
    done = rewrite(dense, Octave(alpha=0.5), size=example)
    net = done.model
    octaves = [module for module in net.modules() if isinstance(module, OctConv)]
    assert len(octaves) == len(done.changes) >= 1
    assert any(module.low_out for module in octaves)
    assert measure(net, example).macs < measure(dense, example).macs
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in dense.parameters())
    for size in sizes:
        assert shapes(net, size) == shapes(dense, size), size

    small = next(size for size in (64, 65, 96, 128, *sizes) if size in sizes or runs(dense, size))
    trained = {name for name, gradient in gradients(dense, small).items() if gradient is not None}
    ours = gradients(net, small)
    for name, gradient in ours.items():
        if name in trained:
            assert gradient is not None, f"{name} got no gradient"
            assert bool(torch.isfinite(gradient).all()), name
    return len(octaves), sizes


def gradients(net: nn.Module, size: int) -> dict[str, Tensor | None]:
    """Of one real step in training mode."""
    net.train()
    net.zero_grad()
    out = net(torch.randn(2, 3, size, size))
    sum(part.square().mean() for part in (out if isinstance(out, (tuple, list)) else [out])).backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad()
    net.eval()
    return found


@pytest.mark.parametrize("family", FAST)
def test_some_families(family: str) -> None:
    check(family)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_convolutional_family(capsys: pytest.CaptureFixture[str]) -> None:
    refused: dict[str, str] = {}
    passed: dict[str, tuple[int, list[int]]] = {}
    for family in FAMILIES:
        if FAMILIES[family] not in timm.list_models():
            continue  # an older timm
        try:
            passed[family] = check(family)
        except LeanconvError as error:
            refused[family] = str(error)
    with capsys.disabled():
        total = len(passed) + len(refused)
        print(f"\n{len(passed)} of {total} convolutional families of timm {timm.__version__} rewritten and run")
        for family, (layers, sizes) in passed.items():
            print(f"  {family}: {FAMILIES[family]}, {layers} octave convolutions, at {sizes}")
        for family, reason in refused.items():
            print(f"  refused, {family}: {FAMILIES[family]}: {reason}")
    assert set(refused) <= set(REFUSED)
    assert all(REFUSED[family] in reason for family, reason in refused.items())
    assert len(passed) >= 0.95 * total


@pytest.mark.slow
def test_no_family_is_forgotten() -> None:
    from timm.models._registry import _module_to_models

    assert set(_module_to_models) <= set(FAMILIES) | NOT_CONVOLUTIONAL
