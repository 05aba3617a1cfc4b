"""d-li14/octconv.pytorch: octave ResNets (post-activation) and MobileNetV1 at alpha = 1/2.

Names follow from its code; no released file was opened.

conv1, bn1      layer1.0.conv1.conv.conv_h2l, layer1.0.conv1.bn_l, layer2.0.downsample.0.conv.conv_l2h      fc
features.0.0    features.1.1.conv.conv_h2l, features.1.1.bn_l                                               fc
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from leanconv.weights.formats import Renamed, Source
from leanconv.weights.octave import take_apart

__all__ = ["OCTCONV_PYTORCH"]

_OUTSIDE = {"stem.0.conv": "conv1", "stem.0.bn": "bn1", "fc": "fc", "classifier": "fc"}
_UNIT = re.compile(r"layer(\d)\.(\d+)\.(conv[123]|shortcut)\.(conv|bn)")
_MOBILE = re.compile(r"features\.(\d+)\.(\d)")


def _rename(name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Source | None:
    at = take_apart(name)
    if at.layer in _OUTSIDE:
        return f"{_OUTSIDE[at.layer]}.{at.tensor}"
    if found := _UNIT.fullmatch(at.layer):
        unit = "downsample.0" if found[3] == "shortcut" else found[3]
        home, is_conv = f"layer{found[1]}.{found[2]}.{unit}", found[4] == "conv"
    elif found := _MOBILE.fullmatch(at.layer):
        if found[1] == "0":
            return name
        index = int(found[2])  # depthwise, norm, activation, pointwise, norm
        home, is_conv = f"features.{found[1]}.{index // 3}", index % 3 == 0
    else:
        return None
    return f"{home}.conv.conv_{at.of_path}.{at.tensor}" if is_conv else f"{home}.bn_{at.of_part}.{at.tensor}"


OCTCONV_PYTORCH = Renamed(
    name="octconv-pytorch",
    files="octave ResNets and MobileNetV1 of d-li14",
    markers=(("layer1.0.conv1.conv.conv_h2h.weight",), ("features.1.0.conv.conv_h2h.weight",)),
    heads=("fc", "classifier"),
    norm_eps=1e-5,
    holds="octave ResNets with post-activation and MobileNetV1 (oct_resnet*, oct_mobilenet_v1, alpha=0.5)",
    rename=_rename,
)
