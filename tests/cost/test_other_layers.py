"""Layers that are neither `aten.convolution` nor a plain matrix product, and products in other words, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from leanconv.cost import measure


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_deformable_convolutions(groups: int, masked: bool) -> None:
    """That of the offsets, and the deformable one; interpolating is in no count."""
    ops = pytest.importorskip("torchvision.ops")

    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.mask = nn.Conv2d(4, 18, 3, padding=1), nn.Conv2d(4, 9, 1)
            self.conv = ops.DeformConv2d(4, 6, 3, padding=1, stride=1, groups=groups)

        def forward(self, x: Tensor) -> Tensor:
            mask = self.mask(x).sigmoid() if masked else None
            return self.conv(x, self.offset(x), mask)  # type: ignore[no-any-return]

    kernel = 6 * 4 // groups * 9
    for batch, device in ((1, "cpu"), (3, "cpu"), (1, "meta")):
        cost = measure(Deformable().to(device), (4, 5, 6), batch=batch)
        assert cost.macs == 30 * (18 * 4 * 9 + kernel + (9 * 4 if masked else 0))
        assert cost.conv_params == 18 * 4 * 9 + kernel + (9 * 4 if masked else 0)
        pairs = {1: 6, 2: 1}[groups]
        assert cost.interactions == 18 * 6 + 6 * pairs + (9 * 6 if masked else 0)
        assert cost.by_operator()["torchvision.deform_conv2d"] == 30 * kernel
        assert cost.params_not_run == (0 if masked else 9 * 4 + 9)
        assert cost.receptive_field is None
        assert "torchvision.deform_conv2d" in cost.receptive_field_note


def test_bilinear_layers() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(3, 4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[..., :3], x[..., 3:])  # type: ignore[no-any-return]

    for batch in (1, 4):
        cost = measure(Pair(), (2, 7), batch=batch)
        assert (cost.macs, cost.conv_params, cost.params_not_counted) == (2 * 3 * 4 * 5, 3 * 4 * 5, {})


def test_time_first_convolutions() -> None:
    class Tbc(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4, 6)), nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.conv_tbc(x.transpose(0, 1).contiguous(), self.weight, self.bias, 1)

    for batch in (1, 2):
        cost = measure(Tbc(), (8, 4), batch=batch)
        assert (cost.macs, cost.conv_params, cost.interactions) == (8 * 3 * 4 * 6, 3 * 4 * 6, 6 * 6)


W, V = torch.randn(4, 5), torch.randn(4)
FORMS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]] = {
    "einsum": (lambda x, w, v: torch.einsum("bnc,cd->bnd", x, w), 3 * 4 * 5),
    "einsum of three": (lambda x, w, v: torch.einsum("bnc,cd,c->bnd", x, w, v), 3 * 4 * 5),
    "tensordot": (lambda x, w, v: torch.tensordot(x, w, 1), 3 * 4 * 5),
    "matmul": (lambda x, w, v: x @ w, 3 * 4 * 5),
    "from the left": (lambda x, w, v: w.T @ x.mT, 3 * 4 * 5),
    "baddbmm": (lambda x, w, v: torch.baddbmm(x.new_zeros(1, 1, 5), x, w.expand(len(x), 4, 5)), 3 * 4 * 5),
    "addbmm": (lambda x, w, v: torch.addbmm(x.new_zeros(3, 5), x, w.expand(len(x), 4, 5)), 3 * 4 * 5),
    "vector": (lambda x, w, v: x @ v, 3 * 4),
    "mv": (lambda x, w, v: torch.mv(x.flatten(0, 1), v), 3 * 4),
    "addmv": (lambda x, w, v: torch.addmv(x.new_zeros(1), x.flatten(0, 1), v), 3 * 4),
    "dot": (lambda x, w, v: torch.dot(x[0, 0], v), 4),
    "vdot": (lambda x, w, v: torch.vdot(x[0, 0], v), 4),
}


@pytest.mark.parametrize("form", FORMS)
def test_products_in_other_words(form: str) -> None:
    product, macs = FORMS[form]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(W), nn.Parameter(V)

        def forward(self, x: Tensor) -> Tensor:
            return product(x, self.w, self.v)

    cost = measure(Net(), (3, 4))
    assert (cost.macs, cost.attention_macs) == (macs, 0)


def test_products_of_maps_are_not_layers_in_any_words() -> None:
    """Gram matrices and bilinear pooling."""
    forms: list[Callable[[Tensor], Tensor]] = [
        lambda x: x @ x.mT,
        lambda x: torch.einsum("bnc,bmc->bnm", x, x),
        lambda x: torch.bmm(x, x.mT),
        lambda x: torch.baddbmm(x.new_zeros(1, 1, 3), x, x.mT),
    ]
    for form in forms:

        class Gram(nn.Module):
            def forward(self, x: Tensor, form: Callable[[Tensor], Tensor] = form) -> Tensor:
                return form(x)

        cost = measure(Gram(), (3, 4))
        assert (cost.macs, cost.attention_macs) == (0, 3 * 3 * 4)
