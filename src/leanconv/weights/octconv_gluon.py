"""The OctConv authors' other files (MXNet's Gluon API): MobileNets, deep ResNet-152, ResNets with post-activation.

Names follow from their code; no released file was opened. Stages count from 1; a MobileNet's blocks count from 0 where
the map is halved, so that the first is `L1_B1`. The classifier (`classifer`, sic) is a 1x1 convolution. The norms at
the start of a branch (`bn1a`, `bn4a`) use neither scale nor shift, but the file has both.

    conv1.0.weight  conv1.1.gamma   L1_B0.conv1.conv_h2l.weight  L1_B0.bn1.bn_l.gamma   L1_B0.se_block.conv2_l.weight
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from leanconv.weights.formats import Joined, Renamed, Source
from leanconv.weights.octave import has_low, take_apart

__all__ = ["OCTCONV_GLUON"]

_TENSORS = {"weight": "gamma", "bias": "beta"}
_UNIT = re.compile(r"layer(\d)\.(\d+)\.(?:conv([123])|shortcut(?:\.1)?)\.(conv|bn)")
_FREE = re.compile(r"layer(\d)\.(\d+)\.(norm|shortcut\.0)")
_GATE = re.compile(r"(layer(\d)\.(\d+))\.se\.(reduce|expand)")
_STEM = re.compile(r"stem\.(\d)\.(conv|bn)")
_STEM_BLOCK = re.compile(r"stem\.3\.(?:conv([123])|shortcut)\.(conv|bn)")
_MOBILE = re.compile(r"features\.(\d+)(\.body)?\.(\d)")

_V1_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
_V2_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)


def _blocks(strides: tuple[int, ...]) -> list[str]:
    """The names of a MobileNet's blocks.

    >>> _blocks((1, 2, 1))
    ['L1_B1', 'L2_B0', 'L2_B1']
    """
    names, stage, block = [], 1, 0
    for stride in strides:
        stage, block = (stage + 1, 0) if stride > 1 else (stage, block + 1)
        names.append(f"L{stage}_B{block}")
    return names


_V1, _V2 = _blocks(_V1_STRIDES), _blocks(_V2_STRIDES)


def _rename(name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Source | None:
    at = take_apart(name)
    if at.layer in ("fc", "classifier"):
        return f"classifer.{at.tensor}"
    if found := _MOBILE.fullmatch(at.layer):
        return _mobile(int(found[1]), found[2] is not None, int(found[3]), name)
    if found := _GATE.fullmatch(at.layer):
        return _gate(at.tensor, f"L{found[2]}_B{found[3]}", found[4], has_low(own, f"{found[1]}.conv3.conv"))
    tensor = at.tensor
    if found := _STEM_BLOCK.fullmatch(at.layer):  # before the plain stem, whose third is a convolution
        number = found[1] or "4"
        return f"conv2.conv{number}.{tensor}" if found[2] == "conv" else f"conv2.bn{number}.{_norm(tensor)}"
    if found := _STEM.fullmatch(at.layer):
        index = 3 * int(found[1])
        return f"conv1.{index}.{tensor}" if found[2] == "conv" else f"conv1.{index + 1}.{_norm(tensor)}"
    if found := _FREE.fullmatch(at.layer):
        number = "1a" if found[3] == "norm" else "4a"
        return f"L{found[1]}_B{found[2]}.bn{number}.bn_{at.of_part}.{_norm(tensor)}"
    if found := _UNIT.fullmatch(at.layer):
        return _unit(f"L{found[1]}_B{found[2]}", found[3] or "4", found[4] == "conv", name)
    return None


def _norm(tensor: str) -> str:
    return _TENSORS.get(tensor, tensor)


def _unit(block: str, number: str, is_conv: bool, name: str) -> str:
    at = take_apart(name)
    if is_conv:
        return f"{block}.conv{number}.conv_{at.of_path}.{at.tensor}"
    return f"{block}.bn{number}.bn_{at.of_part}.{_norm(at.tensor)}"


def _mobile(feature: int, is_v2: bool, index: int, name: str) -> str | None:
    """Convolution, norm, activation, and again; the stem first, V2's last 1x1 behind its blocks."""
    blocks, tensor = _V2 if is_v2 else _V1, name.rpartition(".")[2]
    is_conv = index % 3 == 0
    if feature == 0 or (feature == len(_V2) + 1 and not is_v2):
        home = "tail" if feature else "conv1"
        return f"{home}.{index}.{tensor if is_conv else _norm(tensor)}"
    return None if feature > len(blocks) else _unit(blocks[feature - 1], str(index // 3 + 1), is_conv, name)


def _gate(tensor: str, block: str, layer: str, low: bool) -> Source:
    if layer == "reduce":
        return f"{block}.se_block.conv1.{tensor}"
    high = f"{block}.se_block.conv2_h.{tensor}"
    return Joined((high, f"{block}.se_block.conv2_l.{tensor}")) if low else high


class _Gluon(Renamed):
    def idle(self, name: str, value: Tensor) -> str | None:
        """The scale of a norm that uses none, whatever it is; its shift, if it is 0."""
        found = re.fullmatch(r"L\d_B\d+\.bn[14]a\.bn_[hl]\.(gamma|beta)", name)
        if found is None or (found[1] == "beta" and bool(value.any())):
            return None
        return "of a norm that does not use it"


OCTCONV_GLUON = _Gluon(
    name="octconv-gluon",
    files="the OctConv authors' MobileNets and ResNet-152, MXNet Gluon",
    markers=(("L1_B0.conv1.conv_h2h.weight",), ("L1_B1.conv1.conv_h2h.weight",)),
    heads=("fc", "classifier"),
    norm_eps=1e-5,
    holds="MobileNets, ResNet-152 with deep stems and post-activation ResNets (oct_mobilenet_*, oct_*resnet152_deep, "
    "oct_resnet*)",
    rename=_rename,
)
