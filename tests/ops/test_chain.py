"""What every chain promises, for every row of the table of operators that is one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leanconv.deploy import densify, fold
from leanconv.errors import LeanconvError, PlanError, UnknownName
from leanconv.ops import conv_maker, spec_of
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelShuffle
from leanconv.ops.csn import ChannelSeparated
from leanconv.ops.drop_in import DropIn
from leanconv.ops.igc import InterleavedGroupConv1d, InterleavedGroupConv2d
from leanconv.ops.osep import OptimizedSeparable, OptimizedSeparableConv1d, OptimizedSeparableConv2d
from leanconv.ops.separable import DepthSeparableConv2d, Grouped
from leanconv.spec import ConvSpec
from operators import CHAINS, FITTED, Row

every_row = pytest.mark.parametrize("row", CHAINS, ids=lambda row: row.name)
every_fitted_row = pytest.mark.parametrize("row", FITTED, ids=lambda row: row.name)

PLAIN: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def dense_module(spec: ConvSpec, dtype: torch.dtype = torch.float64) -> Any:
    """The ordinary convolution that a chain for `spec` stands for."""
    return PLAIN[spec.ndim](
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        bias=spec.bias,
        padding_mode=spec.padding_mode,
        dtype=dtype,
    )


def images(spec: ConvSpec, size: int = 9) -> Tensor:
    return torch.randn(2, spec.in_channels, *(size,) * spec.ndim, dtype=torch.float64)


@every_row
def test_counts_are_those_of_the_definition(row: Row) -> None:
    chain = row.rewrite.build(row.spec)
    assert row.rewrite.plan(row.spec).params == row.params
    assert sum(conv.weight.numel() for conv in chain.convs) == row.params


@every_row
def test_chain_is_one_dense_convolution(row: Row) -> None:
    """Forward and gradients, to the weights and to the input, equal those of the composed dense kernel."""
    chain = row.rewrite.build(row.spec, dtype=torch.float64)
    dense = dense_module(row.spec)
    with torch.no_grad():
        dense.weight.copy_(chain.dense_kernel())
        if dense.bias is not None:
            dense.bias.copy_(chain.dense_bias())
    x = images(row.spec).requires_grad_()
    out, expected = chain(x), dense(x)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)

    probe = torch.randn_like(out)
    (x_grad,) = torch.autograd.grad((out * probe).sum(), x, retain_graph=True)
    x_expected, weight_grad = torch.autograd.grad((expected * probe).sum(), [x, dense.weight])
    torch.testing.assert_close(x_grad, x_expected, rtol=0, atol=1e-9)
    ours = torch.autograd.grad((out * probe).sum(), [conv.weight for conv in chain.convs])
    through_kernel = torch.autograd.grad(
        (chain.dense_kernel() * weight_grad).sum(), [conv.weight for conv in chain.convs]
    )
    for got, wanted in zip(ours, through_kernel, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-8)


@every_row
def test_channel_field_is_what_the_kernel_connects(row: Row) -> None:
    chain = row.rewrite.build(row.spec, dtype=torch.float64)
    connected = chain.dense_kernel().detach().flatten(2).abs().sum(2) > 0
    declared = [
        [bool(mask >> channel & 1) for channel in range(row.spec.in_channels)] for mask in chain.plan.channel_field
    ]
    assert connected.tolist() == declared
    assert chain.plan.coverage == pytest.approx(connected.double().mean().item())


@every_row
def test_it_has_a_bias_where_the_convolution_has_one(row: Row) -> None:
    assert (row.rewrite.build(row.spec).bias is None) == (dense_module(row.spec).bias is None)


@every_fitted_row
def test_projection_finds_a_kernel_that_the_chain_can_express(row: Row) -> None:
    source = row.rewrite.build(row.spec, dtype=torch.float64)
    target = row.rewrite.build(row.spec, dtype=torch.float64)
    error = target.project_(source.dense_kernel().detach(), source.dense_bias())
    exact = len(source.plan.stages) <= 2 and len(set(source.plan.wiring(0))) == len(source.plan.wiring(0))
    # Alternating least squares finds local optima only.
    assert error < (1e-7 if exact or len(source.plan.stages) == 1 else 0.1)
    if exact:
        x = images(row.spec)
        torch.testing.assert_close(target(x), source(x), rtol=0, atol=1e-6)


@every_fitted_row
def test_projection_is_a_least_squares_optimum(row: Row) -> None:
    """No small step of any stage's weights comes nearer to the dense kernel."""
    chain, dense = row.rewrite.build(row.spec, dtype=torch.float64), dense_module(row.spec)
    error = chain.project_(dense.weight, dense.bias)
    assert 0 <= error < 1
    loss = (chain.dense_kernel() - dense.weight.detach()).square().sum()
    assert error == pytest.approx(float((loss.sqrt() / dense.weight.norm()).detach()), rel=1e-6, abs=1e-12)
    gradients = torch.autograd.grad(loss, [conv.weight for conv in chain.convs])
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-2 * float(dense.weight.detach().norm())


@pytest.mark.parametrize("row", [row for row in CHAINS if row not in FITTED], ids=lambda row: row.name)
def test_a_kernel_is_not_fitted_by_stages_that_share_an_axis(row: Row) -> None:
    dense = dense_module(row.spec)
    chain = row.rewrite.build(row.spec, dtype=torch.float64)
    with pytest.raises(PlanError, match=r"several stages convolve axis 0, .* init='fresh'"):
        chain.project_(dense.weight, dense.bias)


def test_a_folded_norm_between_stages_that_share_an_axis_is_composed() -> None:
    """Its shift is a bias in the middle, where nothing pads any more."""
    planner = OptimizedSeparable(init="fresh", stage_kernels=(3, 3), stage_groups=(2, 2), between="bn")
    chain = planner.build(ConvSpec(in_channels=8, out_channels=8, kernel_size=(5, 5), padding=(2, 2), bias=True))
    norm = chain.get_submodule("bn1")
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    folded = fold(chain.eval(), (8, 7, 6))
    made = densify(folded.model, (8, 7, 6))
    assert isinstance(made.model, nn.Conv2d)
    assert folded.model.convs[0].bias is not None
    x = torch.randn(2, 8, 7, 6)
    torch.testing.assert_close(made.model(x), chain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["osep-padded", "osep-sparse", "igc", "spatial_separable-3d", "depth_separable"])
def test_torch_export_gives_the_same_outputs(name: str) -> None:
    row = next(row for row in CHAINS if row.name == name)
    chain = row.rewrite.build(row.spec, dtype=torch.float64).eval()
    x = images(row.spec)
    program = torch.export.export(chain, (x,))
    torch.testing.assert_close(program.module()(x), chain(x), rtol=0, atol=1e-12)


def test_shuffles_of_an_interleaved_group_are_inverse() -> None:
    x = torch.randn(1, 24, 3, 3)
    assert torch.equal(ChannelShuffle(4)(ChannelShuffle(6)(x)), x)
    assert not torch.equal(ChannelShuffle(6)(x), x)


def test_plan_and_module_shuffle_alike() -> None:
    chain = InterleavedGroupConv2d(12, 12, 1, bias=False, primary_partitions=3)
    order = torch.arange(12.0).reshape(1, 12, 1, 1)
    assert ChannelShuffle(3)(order).flatten().int().tolist() == list(chain.plan.wiring(0))


def test_fresh_chain_keeps_the_scale_of_a_fresh_convolution() -> None:
    x = torch.randn(4, 128, 16, 16)
    plain = nn.Conv2d(128, 128, 3, padding=1)(x).std()
    chain = OptimizedSeparableConv2d(128, 128, 3, padding=1)(x).std()
    assert 0.7 < float((chain / plain).detach()) < 1.4


def test_between_norms_and_relus() -> None:
    chain = ChannelSeparated().build(ConvSpec(in_channels=8, out_channels=8, kernel_size=(3, 3, 3)))
    assert [name for name, _ in chain.named_children()] == ["conv1", "bn1", "conv2"]
    with pytest.raises(PlanError, match="not one linear convolution"):
        chain.dense_kernel()
    relu = DepthSeparableConv2d(8, 8, 3, between="bn_relu")
    assert [name for name, _ in relu.named_children()] == ["conv1", "bn1", "relu1", "conv2"]
    with pytest.raises(PlanError, match="init='fresh'"):
        relu.project_(torch.zeros(8, 8, 3, 3))


def test_drop_in_takes_the_arguments_of_a_convolution() -> None:
    conv = OptimizedSeparableConv2d(16, 32, 3, 2, 1, 1, 1, False, "circular", overlap=2.0)
    assert (conv.stride, conv.padding, conv.bias, conv.padding_mode) == ((2, 2), (1, 1), None, "circular")
    assert conv(torch.zeros(1, 16, 8, 8)).shape == (1, 32, 4, 4)
    names = list(inspect.signature(OptimizedSeparableConv2d).parameters)
    assert names[:9] == list(inspect.signature(nn.Conv2d).parameters)[:9]
    assert {"num_separated", "overlap", "between"} <= set(names)
    assert OptimizedSeparableConv1d(36, 36, 3)(torch.zeros(1, 36, 9)).shape == (1, 36, 7)


def test_from_conv_keeps_what_it_can() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, dtype=torch.float64).eval()
    full = OptimizedSeparableConv2d.from_conv(conv, num_separated=1)
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(full(x), conv(x))
    assert not full.training
    fresh = OptimizedSeparableConv2d.from_conv(conv, init="fresh")
    assert fresh.convs[0].weight.dtype == torch.float64
    with pytest.raises(PlanError, match="takes 2D"):
        OptimizedSeparableConv2d.from_conv(nn.Conv1d(4, 4, 3))


def test_conv_maker_builds_chains_and_leaves_grouped_convolutions() -> None:
    make = conv_maker(OptimizedSeparable())
    assert isinstance(make(16, 16, 3, padding=1, bias=False), ConvChain)
    assert isinstance(make(16, 16, 3, groups=16), nn.Conv2d)
    assert conv_maker(None) is nn.Conv2d
    assert make(16, 16, 3, device="meta").convs[0].weight.is_meta


def test_spec_of_a_module() -> None:
    conv = nn.Conv3d(4, 8, (1, 3, 3), stride=2, padding="valid", bias=False)
    spec = spec_of(conv)
    assert (spec.kernel_size, spec.stride, spec.padding, spec.bias) == ((1, 3, 3), (2, 2, 2), "valid", False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DropInOf(3, groups=2), "groups must be 1, got 2"),
        (lambda: DropInOf(3, overlapp=2), "did you mean 'overlap'"),
        (lambda: DropInOf(3, overlap=0), "overlap must be above 0, got 0"),
        (lambda: DropInOf(3, overlap=-1.0), "overlap must be above 0"),
        (lambda: DropInOf(3, num_separated=0), "num_separated must be at least 1"),
        (lambda: DropInOf(3, stage_groups=(1,)), "one entry per stage"),
        (lambda: DropInOf(5, stage_kernels=(3,)), "stage_kernels needs one entry per stage"),
        (lambda: DropInOf(5, stage_kernels=(3, 0)), "stage_kernels are at least 1"),
        (lambda: DropInOf(5, inner_channels=(8, 8)), "inner_channels needs one entry per place between two stages"),
        (lambda: DropInOf(5, stage_kernels=(3, 3), spatial=True), "spatial and kernel_at cannot say it as well"),
        (lambda: DropInOf(7, stage_kernels=(3, 3)), r"see 5 positions of an axis, the layer's kernel \(7, 7\)"),
        (lambda: DropInOf(4, stage_kernels=(2, 3), padding="same"), "is not the same at both ends"),
        (lambda: DropInOf(3, stage_groups=(None, 99)), "between 1 and 16, got 99"),
        (lambda: DropInOf(3, search="exact", stage_groups=(3, None)), "must divide 16 and 16"),
        (lambda: DropInOf(3, search="best"), "search must be"),
        (lambda: DropInOf(3, kernel_at="second"), "kernel_at must be one of middle, first, last"),
        (lambda: DropInOf(3, num_separated=9), r"num_separated \(=9\) is larger than useful .* use at most 5"),
        (lambda: DropInOf(3, overlap=float("nan")), "overlap must be above 0"),
        (lambda: DropInOf(3, overlap=float("inf")), "more than the 2304 of the dense"),
        (lambda: DropInOf(1, search="cheapest", stage_groups=(0, None)), "between 1 and 16, got 0"),
        (lambda: OptimizedSeparableConv2d(-8, 16, 3), "at least 1, got in_channels=-8"),
        (lambda: OptimizedSeparableConv2d(8, 0, 3), "out_channels=0"),
        (lambda: InterleavedGroupConv2d(16, 16, 3, spatial="tertiary"), "spatial must be one of"),
        (lambda: InterleavedGroupConv2d(16, 16, 3, primary_outputs=0), "above 0 and at most 1, got 0"),
        (lambda: InterleavedGroupConv2d(16, 16, 3, primary_outputs=1.5), "above 0 and at most 1"),
        (lambda: InterleavedGroupConv2d(16, 16, 3, primary_partitions=4, primary_outputs=0.3), "leaves 1.2 of 4"),
        (lambda: InterleavedGroupConv2d(16, 16, 3, split_primary=True, spatial="both"), "split_primary splits"),
        (lambda: InterleavedGroupConv1d(16, 16, 3, split_primary=True), "a 1D convolution has one"),
        (
            lambda: InterleavedGroupConv2d(16, 32, 3, secondary_of="in", primary_partitions=4, secondary_partitions=8),
            r"4 x 8\) must be in_channels",
        ),
        (lambda: InterleavedGroupConv2d(16, 32, 3, secondary_of="in", primary_outputs=0.5), "leave secondary_of"),
        (lambda: DropInOf(3, width="wide"), "width must be one of"),
        (lambda: DropInOf(3, between="gelu"), "between must be one of"),
        (lambda: DropInOf(3, overlap=1e9), "more than the 2304 of the dense"),
        (lambda: InterleavedGroupConv2d(16, 16, 3, primary_partitions=5), "must divide in_channels"),
        (lambda: InterleavedGroupConv2d(16, 16, 3, secondary_partitions=5), "must divide out_channels"),
        (lambda: InterleavedGroupConv2d(16, 16, 3, primary_partitions=4, secondary_partitions=2), r"4 x 2\) must be"),
        (lambda: InterleavedGroupConv2d(16, 16, 3, primary_partitions=-1), "at least 1"),
        (lambda: Grouped(groups=3).plan(spec_of(nn.Conv2d(16, 16, 3))), r"groups \(=3\) must divide"),
        (lambda: OptimizedSeparableConv1d(16, 16, 3, spatial=True), "a 1D convolution has one"),
    ],
)
def test_bad_input_is_one_clear_error(make: Any, message: str) -> None:
    with pytest.raises(LeanconvError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert issubclass(caught.type, PlanError | UnknownName | LeanconvError)


def DropInOf(kernel: int, **options: Any) -> DropIn:
    return OptimizedSeparableConv2d(16, 16, kernel, **options)
