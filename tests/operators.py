"""THE table of operators: a row is one way to write a convolution. The conformance suites run every row.

`test_operators.py` has what any operator promises, `test_chain.py` what those promise that are chains.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from leanconv.ops.csn import ChannelSeparated
from leanconv.ops.drop_in import ChainRewrite
from leanconv.ops.igc import InterleavedGroup
from leanconv.ops.operator import CONVS, ConvRewrite
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import DepthSeparable, Depthwise, Grouped, SpatialSeparable
from leanconv.spec import ConvSpec


@dataclass(frozen=True)
class Row:
    """`params` is worked out by hand from the operator's definition, not by the code under test."""

    name: str
    rewrite: ConvRewrite
    spec: ConvSpec
    params: int


def spec(inputs: int, outputs: int, kernel: int | tuple[int, ...], ndim: int = 2, **more: object) -> ConvSpec:
    size = (kernel,) * ndim if isinstance(kernel, int) else kernel
    settings = {name: (value,) * len(size) if isinstance(value, int) else value for name, value in more.items()}
    settings["bias"] = bool(more.get("bias", True))
    return ConvSpec(in_channels=inputs, out_channels=outputs, kernel_size=size, **settings)  # type: ignore[arg-type]


ROWS = [
    Row("group", Grouped(groups=4), spec(16, 24, 3, padding=1), 24 * 4 * 9),
    Row("group-1d", Grouped(groups=2), spec(6, 4, 5, 1, padding=2, stride=2), 4 * 3 * 5),
    Row("depthwise", Depthwise(), spec(12, 12, 3, padding=1), 12 * 9),
    Row("depthwise-multiplier", Depthwise(), spec(6, 12, 3, padding=1, stride=2), 12 * 9),
    Row("depth_separable", DepthSeparable(), spec(16, 24, 3, padding=1, stride=2), 16 * 9 + 16 * 24),
    Row("depth_separable-dilated", DepthSeparable(), spec(8, 8, 3, padding=2, dilation=2), 8 * 9 + 64),
    Row("depth_separable-reflect", DepthSeparable(), spec(8, 10, 3, padding=1, padding_mode="reflect"), 72 + 80),
    Row("spatial_separable", SpatialSeparable(), spec(8, 12, 3, padding=1, stride=2), 8 * 8 * 3 + 8 * 12 * 3),
    Row("spatial_separable-3d", SpatialSeparable(), spec(4, 6, 3, 3, padding=1), 4 * 4 * 3 * 2 + 4 * 6 * 3),
    Row("spatial_separable-oblong", SpatialSeparable(), spec(4, 4, (3, 5), padding=(1, 2)), 16 * 3 + 16 * 5),
    # 62 channels: n = (3, 24), g = (21, 3), 63 slots everywhere (the worked example of the recovered rules).
    Row("osep-padded", OptimizedSeparable(), spec(62, 62, 3, padding=1), 63 * 3 * 9 + 63 * 21),
    # C_2 = 16; n* = (2, 9) for 16 -> 32: g = (8, 2).
    Row("osep-widening", OptimizedSeparable(), spec(16, 32, 3, padding=1, stride=2), 16 * 2 * 9 + 32 * 8),
    Row("osep-exact", OptimizedSeparable(search="exact"), spec(64, 64, 3, padding=1), 64 * 2 * 9 + 64 * 32),
    Row("osep-one-stage", OptimizedSeparable(num_separated=1), spec(8, 12, 3, padding=1), 8 * 12 * 9),
    # n* = (C^3 9)^(1/2) / (3 C) = 6 in both stages.
    Row("osep-spatial", OptimizedSeparable(spatial=True), spec(36, 36, 3, padding=1), 36 * 6 * 3 + 36 * 6 * 3),
    # 64 slots feed 66: the second stage reads two channels twice.
    Row("osep-sparse", OptimizedSeparable(overlap=0.25), spec(64, 64, 3, padding=1), 64 * 2 * 9 + 66 * 11),
    Row("osep-masked", OptimizedSeparable(stage_groups=(None, 4)), spec(64, 64, 3, padding=1), 64 * 4 * 9 + 64 * 16),
    Row("osep-1d", OptimizedSeparable(), spec(36, 36, 4, 1, padding=2), 36 * 3 * 4 + 36 * 12),
    Row("osep-3d", OptimizedSeparable(), spec(27, 27, 3, 3, padding=1, stride=(1, 2, 2)), 27 * 1 * 27 + 27 * 27),
    # n_1* = 0.67 is under one channel: g_1 is held at 24 and the rest re-optimised, n = sqrt(24) -> 5, 25 slots.
    Row("osep-three", OptimizedSeparable(num_separated=3), spec(24, 24, 3, padding=1), 24 * 9 + 25 * 5 + 25 * 5),
    # The cheapest of all group counts for 64 -> 59: 20 x 3, 60 slots (Algorithm 1's rounding takes 3468).
    Row("osep-cheapest", OptimizedSeparable(search="cheapest"), spec(64, 59, 3, padding=1), 60 * 4 * 9 + 60 * 20),
    # n* = (36^3 9)^(1/2) / 36 = 18, then 2; the stride on the last.
    Row(
        "osep-last",
        OptimizedSeparable(kernel_at="last"),
        spec(36, 36, 3, padding=1, stride=2),
        36 * 18 * 1 + 36 * 2 * 9,
    ),
    Row("osep-first", OptimizedSeparable(kernel_at="first", num_separated=4), spec(64, 64, 3, padding=1), 1344),
    Row(
        "osep-spatial-last",
        OptimizedSeparable(spatial=True, kernel_at="last", num_separated=3),
        spec(36, 36, 3, padding=1),
        36 * 6 + 2 * 36 * 3 * 3,
    ),
    # Figure 2's 3 + 3 for a 5: n* = (64^3 9 9)^(1/2) / (64 9) = 8 in both.
    Row(
        "osep-preset",
        OptimizedSeparable(init="fresh", stage_kernels=(3, 3)),
        spec(64, 64, 5, padding=2),
        2 * 64 * 8 * 9,
    ),
    # 2, 1 and 3 see 4 positions; everything is preset.
    Row(
        "osep-preset-strided",
        OptimizedSeparable(
            init="fresh",
            num_separated=3,
            stage_kernels=(2, 1, 3),
            inner_channels=(24, 32),
            stage_groups=(4, 2, 4),
            overlap=0.5,
        ),
        spec(16, 24, 4, padding=3, stride=2, dilation=2),
        24 * 4 * 4 + 32 * 12 + 24 * 8 * 9,
    ),
    Row(
        "osep-preset-1d",
        OptimizedSeparable(init="fresh", stage_kernels=(3, 3), stage_groups=(4, 4)),
        spec(16, 16, 5, 1, padding=2, padding_mode="reflect"),
        2 * 16 * 4 * 3,
    ),
    Row(
        "osep-preset-oblong",  # one of its axes is not convolved at all
        OptimizedSeparable(init="fresh", stage_kernels=(3, 3), stage_groups=(4, 4)),
        spec(16, 16, (5, 1), padding="same"),
        2 * 16 * 4 * 3,
    ),
    Row("osep-at-most-dense", OptimizedSeparable(overlap=64.0, at_most_dense=True), spec(8, 8, 3, padding=1), 576),
    Row("igc", InterleavedGroup(primary_partitions=4), spec(32, 32, 3, padding=1), 32 * 8 * 9 + 32 * 4),
    Row("igc-widening", InterleavedGroup(primary_partitions=4), spec(16, 32, 3, padding=1, stride=2), 1152 + 128),
    Row("igc-secondary", InterleavedGroup(secondary_partitions=2), spec(24, 24, 3, padding=1), 24 * 2 * 9 + 24 * 12),
    Row("igc-1d", InterleavedGroup(primary_partitions=2), spec(8, 8, 3, 1, padding=1), 8 * 4 * 3 + 8 * 2),
    Row("igc-3d", InterleavedGroup(primary_partitions=4), spec(8, 8, 3, 3, padding=1), 8 * 2 * 27 + 8 * 4),
    # 16 -> 32 with L = 4: the secondary keeps 16 / 4 = 4 groups of 8.
    Row("igc-in", InterleavedGroup(primary_partitions=4, secondary_of="in"), spec(16, 32, 3, stride=2), 1152 + 32 * 8),
    Row("igc-last", InterleavedGroup(primary_partitions=4, spatial="secondary"), spec(16, 16, 3, stride=2), 64 + 576),
    Row("igc-both", InterleavedGroup(primary_partitions=4, spatial="both"), spec(16, 16, 3, padding=1), 192 + 192),
    Row("igc-both-3d", InterleavedGroup(primary_partitions=2, spatial="both"), spec(4, 4, 3, 3, padding=1), 24 + 72),
    Row("igc-split", InterleavedGroup(primary_partitions=4, split_primary=True), spec(16, 16, 3, padding=1), 448),
    Row("igc-fewer", InterleavedGroup(primary_partitions=4, primary_outputs=0.5), spec(32, 32, 3, padding=1), 1280),
    Row("igc-dense", InterleavedGroup(primary_partitions=4, dense_secondary=True), spec(16, 16, 3, padding=1), 832),
    Row("csn-ip", ChannelSeparated(between="none"), spec(8, 8, 3, 3, padding=1, stride=2), 64 + 8 * 27),
    Row("csn-ir", ChannelSeparated(mode="ir"), spec(8, 8, 3, 3, padding=1), 8 * 27),
    Row("csn-space-time", ChannelSeparated(between="none", space_time=True), spec(8, 6, 3, 3, padding=1), 48 + 54 + 18),
    Row("csn-ir-space-time", ChannelSeparated(mode="ir", between="none", space_time=True), spec(4, 8, 3, 3), 72 + 24),
    Row("csn-2d", ChannelSeparated(between="none"), spec(6, 10, 3, padding="same"), 60 + 90),
]

CHAINS = [row for row in ROWS if isinstance(row.rewrite, ChainRewrite)]

FITTED = [row for row in CHAINS if row.rewrite.init == "project"]
"""Those that can be fitted to a kernel."""


def network(name: str) -> nn.Sequential:
    """A network with the convolution of the row called `name` in it, as "1"; built by name, as somebody's own."""
    conv = next(row for row in ROWS if row.name == name).spec
    kind = CONVS[conv.ndim]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[conv.ndim - 1]
    return nn.Sequential(
        kind(3, conv.in_channels, 1),  # type: ignore[arg-type]
        kind(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            bias=conv.bias,
            padding_mode=conv.padding_mode,  # type: ignore[arg-type]
        ),
        nn.ReLU(),
        pool(1),
        nn.Flatten(),
        nn.Linear(conv.out_channels, 4),
    )
