"""The octave operator: laws of the pair, and the convolution against its definition and the dense one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.errors import LeanconvError, PlanError
from leanconv.ops.octave import OctConv2d, OctConv3d
from leanconv.ops.octave_map import OctaveMap, merge, split
from leanconv.ops.octave_parts import halve, low_channels, match


def half(size: int) -> int:
    return -(-size // 2)


def pair_of(high: int, low: int, *size: int, dtype: torch.dtype = torch.float64) -> OctaveMap:
    """A random pair for maps of `size`; of three sizes the first is time."""
    small = (*size[:-2], half(size[-2]), half(size[-1]))
    return OctaveMap(torch.randn(2, high, *size, dtype=dtype), torch.randn(2, low, *small, dtype=dtype))


SIZES = [(8, 8), (9, 9), (7, 10), (1, 1), (2, 3), (3, 8, 9), (1, 5, 4)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_split_undoes_merge_bit_for_bit(size: tuple[int, ...]) -> None:
    pair = pair_of(5, 3, *size, dtype=torch.float32)
    again = split(merge(pair), 3)
    assert torch.equal(again.high, pair.high)
    assert torch.equal(again.low, pair.low)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("function", [torch.relu, functional.silu, lambda x: x * 3 - 1])
def test_pointwise_functions_commute_with_merging(function: Any, size: tuple[int, ...]) -> None:
    pair = pair_of(5, 3, *size)
    assert torch.equal(merge(OctaveMap(function(pair.high), function(pair.low))), function(merge(pair)))


def test_low_channels_are_rounded_down() -> None:
    assert [low_channels(alpha, 32) for alpha in (0, 0.01, 0.125, 0.9999, 1)] == [0, 0, 4, 31, 32]
    assert low_channels(0.29, 100) == 29, "0.29 * 100 is 28.999999999999996"
    assert all(low_channels(low / c, c) == low for c in range(1, 300) for low in range(c + 1))
    for alpha in (-0.1, 1.1):
        with pytest.raises(PlanError, match="between 0"):
            low_channels(alpha, 8)


def test_match_crops_to_half() -> None:
    assert match(torch.zeros(1, 1, 5, 6), torch.zeros(1, 1, 7, 11)).shape == (1, 1, 4, 6)


def reference(conv: OctConv2d, high: Tensor | None, low: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Equation 4, with the authors' stride, on even sizes, from the dense kernel and nothing of the module."""
    weight = conv.dense_kernel()
    h_in, h_out = conv.high_in, conv.high_out
    padding = conv.padding

    def path(x: Tensor, rows: slice, columns: slice) -> Tensor:
        kernel = weight[rows, columns]
        if not kernel.numel():
            return x.new_zeros(len(x), 0, *x.shape[2:])
        return functional.conv2d(x, kernel, padding=padding)

    up, down = slice(0, h_out), slice(h_out, None)
    from_high, from_low = slice(0, h_in), slice(h_in, None)
    stride = conv.stride[0]
    outs: list[list[Tensor]] = [[], []]
    if high is not None:
        here = functional.avg_pool2d(high, 2) if stride == 2 else high
        outs[0].append(path(here, up, from_high))
        outs[1].append(path(functional.avg_pool2d(here, 2), down, from_high))
    if low is not None:
        rising = path(low, up, from_low)
        outs[0].append(rising if stride == 2 else rising.repeat_interleave(2, -1).repeat_interleave(2, -2))
        outs[1].append(path(functional.avg_pool2d(low, 2) if stride == 2 else low, down, from_low))
    high_out = sum(outs[0]) if h_out else None
    low_out = sum(outs[1]) if conv.low_out else None
    return high_out, low_out  # type: ignore[return-value]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("alpha_in", "alpha_out"), list(itertools.product((0, 0.25, 0.5, 1), repeat=2)))
def test_is_the_definition(alpha_in: float, alpha_out: float, stride: int) -> None:
    conv = OctConv2d(8, 12, 3, stride, 1, bias=False, dtype=torch.float64, alpha_in=alpha_in, alpha_out=alpha_out)
    pair = pair_of(conv.high_in, conv.low_in, 8, 8)
    x = pair if conv.low_in and conv.high_in else (pair.low if conv.low_in else pair.high)
    wanted = reference(conv, pair.high if conv.high_in else None, pair.low if conv.low_in else None)
    got = conv(x)
    parts = (got.high, got.low) if isinstance(got, OctaveMap) else ((None, got) if conv.low_out else (got, None))
    for one, other in zip(parts, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


OPTIONS = [
    {"stride": stride, "stride_mode": mode, "downsample": down, "exchange": exchange}
    for stride in (1, 2)
    for mode in ("pool", "strided")
    for down in ("pool", "strided")
    for exchange in ("both", "high_to_low", "low_to_high", "none")
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (2, 3), (1, 1)], ids=str)
def test_sizes_round_up_in_every_mode(options: dict[str, Any], size: tuple[int, int]) -> None:
    conv = OctConv2d(8, 12, 3, padding=1, **options)
    out = conv(pair_of(4, 4, *size, dtype=torch.float32))
    full = tuple(half(n) if options["stride"] == 2 else n for n in size)
    assert out.high.shape == (2, 6, *full)
    assert out.low.shape == (2, 6, half(full[0]), half(full[1]))
    (out.high.sum() + out.low.sum()).backward()
    assert all(parameter.grad is not None for parameter in conv.parameters())


SHAPES = [
    {"kernel_size": 1},
    {"kernel_size": 5, "padding": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": (1, 7), "padding": (0, 3)},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3},  # from here on, not centred
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 4, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 2},
    {"kernel_size": 7, "stride": 2},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [13, 14, 15])
@pytest.mark.parametrize("alphas", [(0, 0.5), (0.5, 0.5), (0.5, 0), (0.5, 1)], ids=str)
def test_any_padding_gives_the_size_of_the_ordinary_convolution(
    shape: dict[str, Any], size: int, alphas: tuple[float, float]
) -> None:
    plain = nn.Conv2d(8, 8, **shape)(torch.zeros(2, 8, size, size))
    conv = OctConv2d(8, 8, **shape, alpha_in=alphas[0], alpha_out=alphas[1])
    pair = pair_of(4, 4, size, size, dtype=torch.float32)
    out = conv(pair if alphas[0] else torch.randn(2, 8, size, size))
    high, low = (out.high, out.low) if isinstance(out, OctaveMap) else ((None, out) if alphas[1] else (out, None))
    assert high is None or high.shape[2:] == plain.shape[2:]
    assert low is None or low.shape[2:] == (half(plain.shape[2]), half(plain.shape[3]))


def test_a_map_smaller_than_the_kernel_is_refused() -> None:
    conv = OctConv2d(8, 8, 5)
    with pytest.raises(LeanconvError, match="a map of 4x4 is smaller than the kernel 5x5"):
        conv(pair_of(4, 4, 4, 4, dtype=torch.float32))


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_alpha_0_strided_is_the_ordinary_convolution_bit_for_bit(size: int, groups: int, stride: int) -> None:
    dense = nn.Conv2d(8, 16, 3, stride, 1, groups=groups)
    x = torch.randn(2, 8, size, size)
    octave = OctConv2d.from_conv(dense, alpha_in=0, alpha_out=0, stride_mode="strided")
    assert torch.equal(octave(x), dense(x))
    pooled = OctConv2d.from_conv(dense, alpha_in=0, alpha_out=0)
    assert torch.equal(pooled(x), dense(x)) == (stride == 1), "the authors' stride is another network"


CUTS = [(1, 0, 0.5), (1, 0.5, 0), (1, 0.25, 0.75), (1, 1, 0.5), (1, 0.5, 1), (4, 0.5, 0.5), (4, 0.25, 0.5)]


@pytest.mark.parametrize(("groups", "alpha_in", "alpha_out"), [*CUTS, (16, 0.25, 0.25), (16, 0.5, 0.5)])
@pytest.mark.parametrize("bias", [True, False])
def test_cut_weights_recombine_to_the_dense_kernel(groups: int, alpha_in: float, alpha_out: float, bias: bool) -> None:
    dense = nn.Conv2d(16, 32, 3, padding=1, groups=groups, bias=bias)
    octave = OctConv2d.from_conv(dense, alpha_in=alpha_in, alpha_out=alpha_out)
    assert torch.equal(octave.dense_kernel(), dense.weight)
    assert sum(p.numel() for p in octave.parameters()) == sum(p.numel() for p in dense.parameters())
    biases = [parameter for name, parameter in octave.named_parameters() if name.endswith("bias")]
    assert sum(parameter.numel() for parameter in biases) == (32 if bias else 0), "one bias per output frequency"
    if bias:
        assert sorted(torch.cat(biases).tolist()) == sorted(dense.bias.tolist())


def test_a_constant_image_goes_through_as_through_the_dense_layer() -> None:
    """At one value per channel resolution means nothing, so the cut kernel computes the same, borders aside."""
    dense = nn.Conv2d(8, 12, 3, padding=1, groups=2, dtype=torch.float64)
    octave = OctConv2d.from_conv(dense, alpha_in=0.25, alpha_out=0.5)
    value = torch.randn(1, 8, 1, 1, dtype=torch.float64)
    grouped = value.reshape(1, 2, 4, 1, 1)
    high = grouped[:, :, :3].reshape(1, 6, 1, 1).expand(1, 6, 16, 16)
    low = grouped[:, :, 3:].reshape(1, 2, 1, 1).expand(1, 2, 8, 8)
    out = octave(OctaveMap(high, low))
    wanted = dense(value.expand(1, 8, 16, 16))[0, :, 8, 8].reshape(2, 6)
    torch.testing.assert_close(out.high[0, :, 8, 8], wanted[:, :3].flatten())
    torch.testing.assert_close(out.low[0, :, 4, 4], wanted[:, 3:].flatten())


def test_exchange_paths_can_be_switched_off() -> None:
    def paths(**options: Any) -> set[str]:
        return {name for name, _ in OctConv2d(8, 8, 3, **options).named_children()}

    assert paths() == {"conv_hh", "conv_hl", "conv_lh", "conv_ll"}
    assert paths(exchange="high_to_low") == {"conv_hh", "conv_hl", "conv_ll"}
    assert paths(exchange="low_to_high") == {"conv_hh", "conv_lh", "conv_ll"}
    assert paths(exchange="none") == {"conv_hh", "conv_ll"}
    assert paths(groups=8) == {"conv_hh", "conv_ll"}, "a depthwise convolution has no exchange"
    assert paths(exchange="none", alpha_in=0) == {"conv_hh", "conv_hl"}, "the first layer cannot do without"


def test_three_axes_keep_time_and_its_stride() -> None:
    conv = OctConv3d(8, 8, (3, 3, 3), stride=(2, 2, 2), padding=1)
    out = conv(pair_of(4, 4, 5, 9, 9, dtype=torch.float32))
    assert out.high.shape == (2, 4, 3, 5, 5)
    assert out.low.shape == (2, 4, 3, 3, 3)
    assert halve(torch.zeros(1, 1, 3, 5, 5)).shape == (1, 1, 3, 3, 3)


def test_gradients_are_right() -> None:
    conv = OctConv2d(4, 4, 3, 2, 1, dtype=torch.float64)
    pair = pair_of(2, 2, 5, 5)
    high, low = (part.requires_grad_() for part in (pair.high, pair.low))

    def parts(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        y = conv(OctaveMap(high, low))
        return y.high, y.low

    assert torch.autograd.gradcheck(parts, (high, low))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 3}, "stride 1 or 2 in space"),
        ({"stride": (1, 2)}, "stride 1 or 2 in space"),
        ({"groups": 4, "alpha_in": 0.25}, "4 groups cannot divide"),
        ({"groups": 8, "alpha_in": 0.25, "alpha_out": 0.5}, "make alpha_in and alpha_out equal"),
        ({"alpha_in": 1.5}, "alpha must be between 0"),
        ({"stride_mode": "nearest"}, "stride_mode must be one of pool, strided"),
        ({"exchange": "some"}, "exchange must be one of"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        OctConv2d(8, 8, 3, **options)


def test_bad_inputs() -> None:
    with pytest.raises(LeanconvError, match="expects a map of 4 high and 4 low channels"):
        OctConv2d(8, 8, 3)(torch.zeros(1, 8, 8, 8))
    with pytest.raises(LeanconvError, match="expects one plain tensor"):
        OctConv2d(8, 8, 3, alpha_in=0)(pair_of(4, 4, 8, 8))
    with pytest.raises(PlanError, match="takes 2D convolutions, got Conv3d"):
        OctConv2d.from_conv(nn.Conv3d(4, 4, 3))
