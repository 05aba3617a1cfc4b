"""Kernels made of weights: the product that makes one is no layer, and no weight is counted twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as pruning
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from leanconv.cost import measure


def old(wrap: Callable[[nn.Module], nn.Module], layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():  # of torch, for the older of two ways
        warnings.simplefilter("ignore", FutureWarning)
        return wrap(layer)


def conv() -> nn.Module:
    return nn.Conv2d(4, 8, 3, padding=1)


WEIGHTS, PIXELS = 8 * 4 * 9, 36
NORMED = {
    "spectral norm": lambda: parametrizations.spectral_norm(conv()),
    "spectral norm, three iterations": lambda: parametrizations.spectral_norm(conv(), n_power_iterations=3),
    "spectral norm by hook": lambda: old(spectral_norm, conv()),
    "weight norm": lambda: parametrizations.weight_norm(conv()),
    "weight norm by hook": lambda: old(weight_norm, conv()),
    "weight norm of the whole": lambda: old(lambda layer: weight_norm(layer, dim=None), conv()),  # type: ignore[arg-type]
    "both": lambda: parametrizations.spectral_norm(parametrizations.weight_norm(conv())),
    "pruned": lambda: pruning.l1_unstructured(conv(), "weight", 0.5),
}


@pytest.mark.parametrize("kind", NORMED)
def test_normed_convolutions(kind: str) -> None:
    net = nn.Sequential(NORMED[kind](), nn.ReLU())
    for training in (True, False):
        for batch in (1, 3):
            cost = measure(net.train(training), (4, 6, 6), batch=batch)
            assert (cost.macs, cost.conv_params, cost.interactions) == (WEIGHTS * PIXELS, WEIGHTS, 8 * 6)
            assert (cost.params_not_counted, cost.params_not_run) == ({}, 0)
            assert cost.by_operator() == {"aten.convolution": WEIGHTS * PIXELS}


@pytest.mark.parametrize("outputs", [1, 8])
def test_spectral_norm_of_other_layers(outputs: int) -> None:
    """A single output makes the matrix a row, as in discriminators; a transposed kernel is turned."""
    for wrap in (parametrizations.spectral_norm, lambda layer: old(spectral_norm, layer)):
        assert measure(wrap(nn.Linear(6, outputs)), (6,)).macs == 6 * outputs
        cost = measure(wrap(nn.ConvTranspose2d(6, outputs, 2, 2)), (6, 3, 3))
        assert (cost.macs, cost.conv_params) == (9 * 6 * outputs * 4, 6 * outputs * 4)


def test_a_spectral_norm_that_expands_its_scale() -> None:
    """As older code writes it, where the scale of a single output looks like a row for each image."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, 4, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            matrix = self.weight.flatten(1)
            sigma = (torch.randn(1, 1) @ matrix).norm()
            return F.conv2d(x, self.weight / sigma.expand_as(self.weight))

    cost = measure(Normed(), (4, 6, 6))
    assert (cost.macs, cost.conv_params, cost.attention_macs) == (16 * 36, 36, 0)


@pytest.mark.parametrize("how", ["matrix_exp", "cayley", "householder"])
def test_orthogonal_weights(how: str) -> None:
    cost = measure(parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map=how), (5, 8))
    assert (cost.macs, cost.conv_params) == (5 * 64, 64)


class Gram(nn.Module):
    """A parametrization that is itself a product."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight @ weight.T


class LowRank(nn.Module):
    """y = (W + B A) x, or without W."""

    def __init__(self, *, dense: bool, conv: bool) -> None:
        super().__init__()
        self.dense = nn.Parameter(torch.randn(8, 8)) if dense else None
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        weight = self.b @ self.a if self.dense is None else self.dense + self.b @ self.a
        return F.conv1d(x.mT, weight[:, :, None]) if self.conv else F.linear(x, weight)


@pytest.mark.parametrize("conv", [True, False])
def test_products_of_weights_are_no_layers(conv: bool) -> None:
    cost = measure(LowRank(dense=True, conv=conv), (5, 8))
    assert (cost.macs, cost.conv_params, cost.params) == (5 * 64, 64, 96)
    # A kernel of two factors holds no more numbers than they do.
    cost = measure(LowRank(dense=False, conv=conv), (5, 8))
    assert (cost.macs, cost.conv_params, cost.params) == (5 * 64, 32, 32)
    assert cost.not_counted["aten.mm"] == 1
    layer = nn.Linear(8, 8, bias=False)
    parametrize.register_parametrization(layer, "weight", Gram())
    assert measure(layer, (5, 8)).macs == 5 * 64


def test_factors_that_run_one_after_the_other_are_two_layers() -> None:
    class Factors(LowRank):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.a), self.b)

    cost = measure(Factors(dense=False, conv=False), (5, 8))
    assert (cost.macs, cost.conv_params) == (5 * 32, 32)


@pytest.mark.parametrize("form", ["einsum", "matmul"])
def test_a_learned_graph_is_a_layer_and_its_making_is_not(form: str) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            graph = (self.left @ self.right.T).softmax(-1)
            return graph @ x if form == "matmul" else torch.einsum("nm,bmc->bnc", graph, x)

    for batch in (1, 3):
        cost = measure(Graph(), (6, 8), batch=batch)
        assert (cost.macs, cost.attention_macs, cost.conv_params) == (6 * 6 * 8, 0, 24)


def test_a_kernel_from_a_network_of_its_own() -> None:
    """Its layers depend on no image, so they are not work for one; the kernel has no more numbers than its output."""

    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.make = nn.Parameter(torch.randn(4)), nn.Linear(4, 3 * 3 * 9)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.make(self.code).view(3, 3, 3, 3), padding=1)

    cost = measure(Hyper(), (3, 6, 6))
    assert (cost.macs, cost.conv_params, cost.params_not_counted) == (36 * 81, 81, {})


def test_a_table_of_positions_is_a_layer_once_per_forward() -> None:
    """A small network on a fixed table of offsets (as in Swin v2), whose result is added to the scores."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(25, 2))
            self.mlp = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mlp(self.table).view(5, 5)  # type: ignore[no-any-return]

    for batch in (1, 5):
        cost = measure(Positions(), (5, 5), batch=batch)
        assert (cost.macs, cost.conv_params) == (25 * (32 + 16), 32 + 16)
        assert (cost.params_not_counted, cost.params_not_run) == ({}, 0)


def test_one_weight_in_several_kernels_is_counted_once() -> None:
    class Differences(nn.Module):
        """Central differences: the kernel, and its sum over the window."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) - F.conv2d(x, self.conv.weight.sum((2, 3), keepdim=True))  # type: ignore[no-any-return]

    cost = measure(Differences(), (3, 6, 6))
    assert (cost.macs, cost.conv_params) == (36 * (108 + 12), 108)

    class Slices(nn.Module):
        """Two slices that overlap, and two that do not."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8, bias=False), nn.Linear(4, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a.weight, self.b.weight
            return F.linear(x, a[:6]).sum() + F.linear(x, a).sum() + F.linear(x, b[:3]).sum() + F.linear(x, b[5:]).sum()

    cost = measure(Slices(), (4,))
    assert (cost.macs, cost.conv_params) == (4 * (6 + 8 + 3 + 3), 32 + 24)
    tied = nn.Linear(4, 4, bias=False)
    transposed = nn.Linear(4, 4, bias=False)
    transposed.weight = tied.weight
    assert measure(nn.Sequential(tied, transposed, tied), (4,)).conv_params == 16
