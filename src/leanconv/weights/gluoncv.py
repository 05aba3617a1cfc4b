"""gluon-cv's PyTorch checkpoints of ir-CSN (`ircsn_v2_resnet152_f32s2_kinetics400`); names from its code, not opened.

Its BatchNorms are either ordinary ones or frozen into a scale and a shift per channel, of shape (C, 1, 1, 1). Frozen
ones become a BatchNorm with mean 0 and variance 1 - eps, which does the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from leanconv.weights.csn import OUR_EPS, CsnFormat
from leanconv.weights.formats import Filled, Source

__all__ = ["GLUONCV"]

_MARKERS = ("conv1.weight", "layer1.0.conv4.weight")


class _GluonCv(CsnFormat):
    def tensor(self, module: str, ours: str, tensor: str, theirs: Mapping[str, Tensor]) -> Source:
        frozen = bool(theirs) and "bn1.running_mean" not in theirs
        if frozen and tensor in ("running_mean", "running_var"):
            return Filled(0.0 if tensor == "running_mean" else 1.0 - OUR_EPS)
        return super().tensor(module, ours, tensor, theirs)


GLUONCV = _GluonCv(
    name="gluoncv",
    files="ir-CSN of gluon-cv, PyTorch",
    markers=(_MARKERS,),
    outside={"stem.0.conv": "conv1", "stem.0.bn": "bn1", "fc": "out_fc"},
    block="layer{stage}.{block}.",
    inside={
        "conv1.conv": "conv1",
        "conv1.bn": "bn1",
        "conv3.conv": "conv4",
        "conv3.bn": "bn4",
        "shortcut.conv": "down_sample.0",
        "shortcut.bn": "down_sample.1",
    },
    middle={"ir": {"conv2.conv.conv1": "conv3", "conv2.bn": "bn3"}},
)
