"""The OctConv authors' "ablation" files (MXNet's Symbol API): pre-activation ResNets, ResNeXts, SE-ResNets, DenseNets.

Names follow from their code; no released file was opened. Stages count from 2, blocks from 01; `conv4` is the
projection; what is at two resolutions, and everything else in an octave network's blocks, ends in `-h` or `-l`, a path
in `-h2l`:

    conv1_conv_weight    conv1_bn_gamma     L2_B01_conv1_bn-h_gamma          L2_B01_conv1_conv-h2l_weight
    tail_bn_moving_mean  classifier_weight  L2_B01_se_fc1-l2h_weight         L3_Trans_conv_conv-h2h_weight

BatchNorm has eps 1e-4 there, which the variances make up for where a network has another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from leanconv.weights.formats import Joined, Renamed, Source
from leanconv.weights.octave import OctaveName, has_low, take_apart

__all__ = ["OCTCONV_SYMBOL"]

_TENSORS = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
_OUTSIDE = {
    "stem.0.conv": "conv1_conv",
    "stem.0.bn": "conv1_bn",
    "tail.0": "tail_bn",
    "fc": "classifier",
    "features.conv0": "conv1_conv",
    "features.norm0": "conv1_bn",
    "features.norm5": "tail_bn",
    "classifier": "classifier",
}
_NORMS = ("stem.0.bn", "tail.0", "features.norm0", "features.norm5")
_UNIT = re.compile(r"layer(\d)\.(\d+)\.(conv[123]|shortcut)\.(conv|bn)")
_GATE = re.compile(r"(layer(\d)\.(\d+))\.se\.(reduce|expand)")
_DENSE = re.compile(r"features\.denseblock(\d)\.denselayer(\d+)\.(conv|norm)([12])")
_TRANSITION = re.compile(r"features\.transition(\d)\.(conv|norm)")


def _rename(name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Source | None:
    at = take_apart(name)
    if at.layer in _OUTSIDE:
        tensor = _TENSORS.get(at.tensor, at.tensor) if at.layer in _NORMS else at.tensor
        return f"{_OUTSIDE[at.layer]}_{tensor}"
    octave = "L2_B01_conv1_conv_weight" not in theirs if theirs else any(".conv_hl." in ours for ours in own)
    if found := _UNIT.fullmatch(at.layer):
        unit = "conv4" if found[3] == "shortcut" else found[3]
        return _named(at, f"L{int(found[1]) + 1}_B{int(found[2]) + 1:02d}_{unit}", found[4] == "conv", octave)
    if found := _DENSE.fullmatch(at.layer):
        block = f"L{int(found[1]) + 1}_B{int(found[2]):02d}_conv{found[4]}"
        return _named(at, block, found[3] == "conv", octave)
    if found := _TRANSITION.fullmatch(at.layer):
        return _named(at, f"L{int(found[1]) + 2}_Trans_conv", found[2] == "conv", octave)
    if found := _GATE.fullmatch(at.layer):
        block = f"L{int(found[2]) + 1}_B{int(found[3]) + 1:02d}"
        return _gate(at.tensor, block, found[4], octave, has_low(own, f"{found[1]}.conv3.conv"))
    return None


def _named(at: OctaveName, unit: str, is_conv: bool, octave: bool) -> str:
    if is_conv:
        return f"{unit}_conv{f'-{at.of_path}' if octave else ''}_{at.tensor}"
    return f"{unit}_bn{f'-{at.of_part}' if octave else ''}_{_TENSORS.get(at.tensor, at.tensor)}"


def _gate(tensor: str, block: str, layer: str, octave: bool, low: bool) -> Source:
    """Their two linear layers have a part per path; only those from high have a bias."""
    fc = f"{block}_se_{'fc1' if layer == 'reduce' else 'fc2'}"
    if not octave:
        return f"{fc}_{tensor}"
    if layer == "reduce":
        if tensor == "bias" or not low:
            return f"{fc}-h2h_{tensor}"
        return Joined((f"{fc}-h2h_weight", f"{fc}-l2h_weight"), axis=1)
    return Joined((f"{fc}-h2h_{tensor}", f"{fc}-h2l_{tensor}")) if low else f"{fc}-h2h_{tensor}"


OCTCONV_SYMBOL = Renamed(
    name="octconv-symbol",
    files="the OctConv authors' ablation networks, MXNet Symbol",
    markers=(("L2_B01_conv1_conv-h2h_weight",), ("L2_B01_conv1_conv_weight",)),
    heads=("fc", "classifier"),
    norm_eps=1e-4,
    absorbs_eps=True,
    holds="pre-activation ResNets and DenseNets (oct_resnet*, oct_resnext*, oct_se_resnet50 with "
    "pre_activation=True, oct_densenet121)",
    rename=_rename,
)
