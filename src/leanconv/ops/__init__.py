"""The operators: one file per idea, one row each in `OPERATORS`.

A new operator is a frozen settings class in a file of its own (see `leanconv.ops.operator`; `leanconv.ops.drop_in` for
chains) and a row here. Rewriting, the command line, cost, elastic width, saving, folding and export need nothing more,
and what its file lists in `__all__` is public as `leanconv.NAME`.
"""

from __future__ import annotations

from leanconv.ops.chain import ConvChain
from leanconv.ops.csn import ChannelSeparated
from leanconv.ops.igc import InterleavedGroup
from leanconv.ops.operator import ConvRewrite, conv_maker, spec_of
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import DepthSeparable, Depthwise, Grouped, SpatialSeparable

__all__ = ["OPERATORS", "ConvChain", "ConvRewrite", "conv_maker", "spec_of"]

OPERATORS: dict[str, type[ConvRewrite]] = {
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
