"""leanconv: rewrite any CNN into cheaper convolutions, see what it costs, train it, make it elastic, deploy it.

The names in `_HOME` are the public surface, together with what the file of every operator lists in its `__all__`. They
are imported when first used, so that `leanconv --help` need not wait for torch and `import leanconv` never loads
torchvision, timm or Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "build": ("create_model", "list_models", "load", "save"),
    "cost": ("Cost", "measure"),
    "deploy.accelerate": ("accelerate",),
    "deploy.export": ("export",),
    "elastic": ("ElasticNet", "MutualObjective", "calibrate", "make_elastic"),
    "errors": ("LeanconvError",),
    "ops.octave": ("OctConv2d", "OctConv3d"),
    "ops.osep_linear": ("OptimizedSeparableLinear",),
    "query": ("QueryTable",),
    "recipes.predicted": ("predict",),
    "recipes.tested": ("evaluate",),
    "rewrites": ("Inflate", "Octave", "Rewritten", "rewrite"),
    "serve": ("Governor", "Runtime"),
}

if TYPE_CHECKING:  # the same for type checkers, and the operators; a test compares them
    from leanconv.build import create_model as create_model
    from leanconv.build import list_models as list_models
    from leanconv.build import load as load
    from leanconv.build import save as save
    from leanconv.cost import Cost as Cost
    from leanconv.cost import measure as measure
    from leanconv.deploy.accelerate import accelerate as accelerate
    from leanconv.deploy.export import export as export
    from leanconv.elastic import ElasticNet as ElasticNet
    from leanconv.elastic import MutualObjective as MutualObjective
    from leanconv.elastic import calibrate as calibrate
    from leanconv.elastic import make_elastic as make_elastic
    from leanconv.errors import LeanconvError as LeanconvError
    from leanconv.ops.csn import ChannelSeparated as ChannelSeparated
    from leanconv.ops.csn import ChannelSeparatedConv2d as ChannelSeparatedConv2d
    from leanconv.ops.csn import ChannelSeparatedConv3d as ChannelSeparatedConv3d
    from leanconv.ops.igc import InterleavedGroup as InterleavedGroup
    from leanconv.ops.igc import InterleavedGroupConv1d as InterleavedGroupConv1d
    from leanconv.ops.igc import InterleavedGroupConv2d as InterleavedGroupConv2d
    from leanconv.ops.igc import InterleavedGroupConv3d as InterleavedGroupConv3d
    from leanconv.ops.octave import OctConv2d as OctConv2d
    from leanconv.ops.octave import OctConv3d as OctConv3d
    from leanconv.ops.osep import OptimizedSeparable as OptimizedSeparable
    from leanconv.ops.osep import OptimizedSeparableConv1d as OptimizedSeparableConv1d
    from leanconv.ops.osep import OptimizedSeparableConv2d as OptimizedSeparableConv2d
    from leanconv.ops.osep import OptimizedSeparableConv3d as OptimizedSeparableConv3d
    from leanconv.ops.osep_linear import OptimizedSeparableLinear as OptimizedSeparableLinear
    from leanconv.ops.separable import DepthSeparable as DepthSeparable
    from leanconv.ops.separable import DepthSeparableConv2d as DepthSeparableConv2d
    from leanconv.ops.separable import Depthwise as Depthwise
    from leanconv.ops.separable import Grouped as Grouped
    from leanconv.ops.separable import SpatialSeparable as SpatialSeparable
    from leanconv.query import QueryTable as QueryTable
    from leanconv.recipes.predicted import predict as predict
    from leanconv.recipes.tested import evaluate as evaluate
    from leanconv.rewrites import Inflate as Inflate
    from leanconv.rewrites import Octave as Octave
    from leanconv.rewrites import Rewritten as Rewritten
    from leanconv.rewrites import rewrite as rewrite
    from leanconv.serve import Governor as Governor
    from leanconv.serve import Runtime as Runtime


def _operators() -> dict[str, str]:
    """Public name -> module of the operators; this imports torch."""
    from leanconv.ops import OPERATORS

    modules = [import_module(operator.__module__) for operator in OPERATORS.values()]
    return {name: module.__name__ for module in modules for name in module.__all__}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(("__version__", *(name for names in _HOME.values() for name in names), *_operators()))
    module = next((f"leanconv.{home}" for home, names in _HOME.items() if name in names), None)
    if module is None and not name.startswith("_"):  # Python and its tools ask a module for many a private name
        module = _operators().get(name)
    if module is None:
        raise AttributeError(f"module 'leanconv' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))
