"""The interleaved-group authors' files (MXNet's Symbol API), of the networks and of the ResNets they compare with.

Names of the ImageNet networks are those of the released symbols, the others' those of the code; no `.params` file was
opened. Stages and blocks count from 1; of the two convolutions of a block the first is the primary one:

    released ImageNet    g0_conv  g1_b1_conv1_conv1  g1_b1_conv1_bn  g2_b1_proj_conv  g2_b1_proj_bn  fc_score
    its ResNets          g0       g1_b1_conv1        g1_b1_conv1_bn  g2_b1_proj       g2_b1_proj_bn  fc_score
    code, ImageNet       g0_conv  g1_b1_igc1_conv1   g1_b1_igc1_bn   g2_b1_proj_conv                 fc_score
    CIFAR, "+Ident."     g0_conv  g1_b1_p2_two1_conv1  (_conv in ResNets)  g2_b1_p0_line_conv        fc
    CIFAR, plain         g0_conv  g1_b1_conv1  g1_b1_bn    (g1_b1_conv  g1_b1_bn without groups)     fc_score
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from leanconv.weights.formats import Renamed, Source

__all__ = ["IGC"]

_TENSORS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
_STEM = re.compile(r"stem\.([01])\.(\w+)")
_RESIDUAL = re.compile(r"stages\.(\d)\.(\d+)\.(?:(conv)([12])(?:\.conv([12]))?|(bn)([12])|shortcut\.([01]))\.(\w+)")
_PLAIN = re.compile(r"stages\.(\d)\.(\d+)\.(?:0(?:\.conv([12]))?|(1))\.(\w+)")


@dataclass(frozen=True)
class _Style:
    """How one of their scripts calls the parts: `unit` with {}, the number of the convolution pair; the projection."""

    marker: str
    unit: str = "conv{}"
    conv: str = "_conv"
    projection: str = "proj"
    classifier: str = "fc_score"


_STYLES = (
    _Style("g1_b1_conv1_conv1_weight"),
    _Style("g1_b1_igc1_conv1_weight", unit="igc{}"),
    _Style("g1_b1_p2_two1_conv1_weight", unit="p2_two{}", projection="p0_line", classifier="fc"),
    _Style("g1_b1_p2_two1_conv_weight", unit="p2_two{}", projection="p0_line", classifier="fc"),
    _Style("g0_weight", conv=""),
)
"""The residual networks' styles, the released one first; plain networks have one."""


def _rename(name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Source | None:
    dense = not {"stages.0.0.conv1.conv1.weight", "stages.0.0.0.conv1.weight"} & own.keys()
    style = next((style for style in _STYLES if style.marker in theirs), _STYLES[0])
    if not theirs and dense and "stages.0.0.bn1.weight" in own:
        style = _STYLES[-1]  # the released ResNets
    if found := re.fullmatch(r"fc\.(\w+)", name):
        return f"{style.classifier}_{found[1]}"
    if found := _STEM.fullmatch(name):
        return f"g0{style.conv}_{found[2]}" if found[1] == "0" else f"g0_bn_{_norm(found[2])}"
    if found := _RESIDUAL.fullmatch(name):
        stage, block, _, pair, one, norm, of_norm, shortcut, tensor = found.groups()
        home = f"g{int(stage) + 1}_b{int(block) + 1}"
        if norm:
            return f"{home}_{style.unit.format(of_norm)}_bn_{_norm(tensor)}"
        if shortcut:
            part = f"{style.conv}_{tensor}" if shortcut == "0" else f"_bn_{_norm(tensor)}"
            return f"{home}_{style.projection}{part}"
        last = f"_conv{one}" if one else style.conv if style.unit != "conv{}" else ""
        return f"{home}_{style.unit.format(pair)}{last}_{tensor}"
    if found := _PLAIN.fullmatch(name):
        stage, block, one, norm, tensor = found.groups()
        home = f"g{int(stage) + 1}_b{int(block) + 1}"
        return f"{home}_bn_{_norm(tensor)}" if norm else f"{home}_conv{one or ''}_{tensor}"
    return None


def _norm(tensor: str) -> str:
    return _TENSORS.get(tensor, tensor)


IGC = Renamed(
    name="igc",
    files="the interleaved-group authors' networks, MXNet",
    markers=(("g0_conv_weight",), ("g0_weight",)),
    norm_eps=2e-5,
    absorbs_eps=True,
    holds="interleaved-group networks and their baselines (igc_*, regconv_*)",
    rename=_rename,
)
