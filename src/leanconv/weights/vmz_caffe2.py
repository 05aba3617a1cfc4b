"""VMZ's Caffe2 weights: a pickle of {"blobs": {name: array}}; names from its code, no released file was opened.

Blocks are counted through (`comp_0` to `comp_15` of 50 layers), convolutions within a block from 1, and the depthwise
one of ir networks counts twice. The first of two in the place of one (1x1x1 in ip networks, 1x3x3 in R(2+1)D) is called
its middle. The blob `_riv` is, in spite of its name, the running variance.

    conv1_w  conv1_spatbn_relu_{s,b,rm,riv}      comp_0_conv_1_w  comp_0_spatbn_1_{s,b,rm,riv}      last_out_L400_{w,b}
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from leanconv.weights.csn import CsnFormat, Kind, Outline, kind_of
from leanconv.weights.formats import Source

__all__ = ["VMZ_CAFFE2"]

_FIRST = "comp_{block}_"
_NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
_OTHER = {"weight": "w", "bias": "b"}
_WIDTHS = (64, 128, 256, 512)


_KERNELS: dict[Kind, list[str]] = {
    "ip": ["comp_0_conv_2_middle_w", "comp_0_conv_2_w"],
    "ir": ["comp_0_conv_3_w"],
    "r2plus1d": ["comp_0_conv_3_w", "comp_0_conv_2_middle_w", "comp_0_conv_2_w"],
    "r2plus1d_simple": ["comp_0_conv_1_middle_w", "comp_0_conv_1_w"],
}


def _decomposed(ours: str, number: int) -> dict[str, str]:
    """A decomposed convolution: 1x3x3, BatchNorm, ReLU, 3x1x1."""
    names = "conv_{}_middle", "spatbn_{}_middle", "conv_{}"
    parts = f"{ours}.conv.spatial", f"{ours}.conv.bn", f"{ours}.conv.temporal"
    return {part: f"comp_{{block}}_{name.format(number)}" for part, name in zip(parts, names, strict=True)}


_STEM = {
    "stem.0.conv.spatial": "conv1_middle",
    "stem.0.conv.bn": "conv1_middle_spatbn_relu",
    "stem.0.conv.temporal": "conv1",
}


class _Caffe2(CsnFormat):
    def module(self, ours: str, stage: int, block: int, blocks: tuple[int, ...], kind: Kind) -> str | None:
        theirs = {**self.inside, **self.middle[kind]}.get(ours)
        return None if theirs is None else theirs.format(block=sum(blocks[: stage - 1]) + block)

    def tensor(self, module: str, ours: str, tensor: str, theirs: Mapping[str, Tensor]) -> Source:
        if ours == "fc":
            module = next((name[:-2] for name in theirs if re.fullmatch(r"last_out_L\d{1,6}_w", name)), module)
        suffix = (_NORM if ours.rpartition(".")[2].startswith("bn") else _OTHER).get(tensor, tensor)
        return f"{module}_{suffix}"

    def outline(self, tensors: Mapping[str, Tensor]) -> Outline | None:
        firsts = {name: len(kernel) for name, kernel in tensors.items() if re.fullmatch(r"comp_\d+_conv_1_w", name)}
        blocks = tuple(sum(width == wanted for width in firsts.values()) for wanted in _WIDTHS)
        kind = kind_of(tensors, _KERNELS)
        classes = next((len(value) for name, value in tensors.items() if re.fullmatch(r"last_out_L\d+_w", name)), None)
        return Outline(kind, blocks, classes) if kind else None


VMZ_CAFFE2 = _Caffe2(
    name="vmz-caffe2",
    files="channel-separated networks and R(2+1)D of VMZ, Caffe2 .pkl",
    markers=(("conv1_w", "comp_0_conv_1_w"),),
    outside={"stem.0.conv": "conv1", "stem.0.bn": "conv1_spatbn_relu", "fc": "last_out_L400"},
    block=_FIRST,
    inside={
        "conv1.conv": "comp_{block}_conv_1",
        "conv1.bn": "comp_{block}_spatbn_1",
        "shortcut.conv": "shortcut_projection_{block}",
        "shortcut.bn": "shortcut_projection_{block}_spatbn",
    },
    middle={
        "ip": {
            "conv2.conv.conv1": "comp_{block}_conv_2_middle",
            "conv2.conv.bn1": "comp_{block}_spatbn_2_middle",
            "conv2.conv.conv2": "comp_{block}_conv_2",
            "conv2.bn": "comp_{block}_spatbn_2",
            "conv3.conv": "comp_{block}_conv_3",
            "conv3.bn": "comp_{block}_spatbn_3",
        },
        "ir": {
            "conv2.conv.conv1": "comp_{block}_conv_3",
            "conv2.bn": "comp_{block}_spatbn_3",
            "conv3.conv": "comp_{block}_conv_4",
            "conv3.bn": "comp_{block}_spatbn_4",
        },
        "r2plus1d": {
            **_decomposed("conv2", 2),
            "conv2.bn": "comp_{block}_spatbn_2",
            "conv3.conv": "comp_{block}_conv_3",
            "conv3.bn": "comp_{block}_spatbn_3",
        },
        "r2plus1d_simple": {
            **_decomposed("conv1", 1),
            **_decomposed("conv2", 2),
            "conv2.bn": "comp_{block}_spatbn_2",
        },
    },
    stems={"r2plus1d": _STEM, "r2plus1d_simple": _STEM},
)
