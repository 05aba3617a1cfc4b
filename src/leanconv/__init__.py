"""leanconv: rewrite any CNN into cheaper convolutions, tell what it costs, train it, make it elastic, deploy it.

The names below are the public surface. They are imported when first used, so that `leanconv --help` need not wait for
torch and `import leanconv` never loads torchvision, timm or Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from leanconv.build import create_model, list_models, load, save
    from leanconv.cost import Cost, measure
    from leanconv.deploy import export
    from leanconv.elastic import calibrate, make_elastic
    from leanconv.errors import LeanconvError
    from leanconv.ops.csn import (
        ChannelSeparated,
        ChannelSeparatedConv2d,
        ChannelSeparatedConv3d,
    )
    from leanconv.ops.igc import InterleavedGroup, InterleavedGroupConv2d, InterleavedGroupConv3d
    from leanconv.ops.octave import OctConv2d, OctConv3d
    from leanconv.ops.osep import OptimizedSeparable, OptimizedSeparableConv2d, OptimizedSeparableConv3d
    from leanconv.ops.osep_linear import OptimizedSeparableLinear
    from leanconv.ops.separable import DepthSeparable, Depthwise, Grouped, SpatialSeparable
    from leanconv.query import QueryTable
    from leanconv.rewrites import Inflate, Octave, Rewritten, rewrite

_HOME = {
    "create_model": "build",
    "list_models": "build",
    "rewrite": "rewrites",
    "measure": "cost",
    "make_elastic": "elastic",
    "calibrate": "elastic",
    "QueryTable": "query",
    "export": "deploy",
    "save": "build",
    "load": "build",
    "OptimizedSeparable": "ops.osep",
    "InterleavedGroup": "ops.igc",
    "ChannelSeparated": "ops.csn",
    "DepthSeparable": "ops.separable",
    "SpatialSeparable": "ops.separable",
    "Octave": "rewrites.octave",
    "Inflate": "rewrites.inflate",
    "OctConv2d": "ops.octave",
    "OctConv3d": "ops.octave",
    "Depthwise": "ops.separable",
    "Grouped": "ops.separable",
    "OptimizedSeparableConv2d": "ops.osep",
    "OptimizedSeparableConv3d": "ops.osep",
    "OptimizedSeparableLinear": "ops.osep_linear",
    "InterleavedGroupConv2d": "ops.igc",
    "InterleavedGroupConv3d": "ops.igc",
    "ChannelSeparatedConv2d": "ops.csn",
    "ChannelSeparatedConv3d": "ops.csn",
    "Cost": "cost",
    "Rewritten": "rewrites",
    "LeanconvError": "errors",
}

__all__ = [
    "ChannelSeparated",
    "ChannelSeparatedConv2d",
    "ChannelSeparatedConv3d",
    "Cost",
    "DepthSeparable",
    "Depthwise",
    "Grouped",
    "Inflate",
    "InterleavedGroup",
    "InterleavedGroupConv2d",
    "InterleavedGroupConv3d",
    "LeanconvError",
    "OctConv2d",
    "OctConv3d",
    "Octave",
    "OptimizedSeparable",
    "OptimizedSeparableConv2d",
    "OptimizedSeparableConv3d",
    "OptimizedSeparableLinear",
    "QueryTable",
    "Rewritten",
    "SpatialSeparable",
    "__version__",
    "calibrate",
    "create_model",
    "export",
    "list_models",
    "load",
    "make_elastic",
    "measure",
    "rewrite",
    "save",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'leanconv' has no attribute {name!r}")
    value = getattr(import_module(f"leanconv.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
