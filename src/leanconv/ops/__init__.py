"""The operators: one file per idea, one row each in `OPERATORS`.

A new operator is a planner and a frozen settings class in a file of its own, and a row here; rewriting, cost, elastic
width, folding and export need nothing more.
"""

from __future__ import annotations

from leanconv.ops.chain import ChainRewrite, ConvChain, conv_maker, spec_of
from leanconv.ops.csn import ChannelSeparated
from leanconv.ops.igc import InterleavedGroup
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import DepthSeparable, Depthwise, Grouped, SpatialSeparable

__all__ = ["OPERATORS", "ChainRewrite", "ConvChain", "conv_maker", "spec_of"]

OPERATORS: dict[str, type[ChainRewrite]] = {
    rewrite.stem: rewrite
    for rewrite in (
        OptimizedSeparable,
        InterleavedGroup,
        ChannelSeparated,
        DepthSeparable,
        SpatialSeparable,
        Depthwise,
        Grouped,
    )
}
