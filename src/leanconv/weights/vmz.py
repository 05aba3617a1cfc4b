"""VMZ's PyTorch checkpoints: torchvision's VideoResNet with channel-separated middles and a pooling stem, or R(2+1)D.

R(2+1)D of 34 layers has the middle channels of VMZ's Caffe2 networks, which torchvision's own class computes otherwise
where channels change; files with torchvision's are refused by their shapes.
"""

from __future__ import annotations

from leanconv.weights.csn import CsnFormat

__all__ = ["VMZ"]


def _decomposed(ours: str) -> dict[str, str]:
    """A decomposed convolution: 1x3x3, BatchNorm, ReLU, 3x1x1."""
    return {
        f"{ours}.conv.spatial": f"{ours}.0.0",
        f"{ours}.conv.bn": f"{ours}.0.1",
        f"{ours}.conv.temporal": f"{ours}.0.3",
    }


_STEM = {
    "stem.0.conv.spatial": "stem.0",
    "stem.0.conv.bn": "stem.1",
    "stem.0.conv.temporal": "stem.3",
    "stem.0.bn": "stem.4",
}

VMZ = CsnFormat(
    name="vmz",
    files="channel-separated networks and R(2+1)D of VMZ, PyTorch",
    markers=(("stem.0.weight", "layer1.0.conv1.0.weight"), ("stem.0.weight", "layer1.0.conv1.0.0.weight")),
    outside={"stem.0.conv": "stem.0", "stem.0.bn": "stem.1", "fc": "fc"},
    block="layer{stage}.{block}.",
    inside={
        "conv1.conv": "conv1.0",
        "conv1.bn": "conv1.1",
        "conv3.conv": "conv3.0",
        "conv3.bn": "conv3.1",
        "shortcut.conv": "downsample.0",
        "shortcut.bn": "downsample.1",
    },
    middle={
        "ip": {
            "conv2.conv.conv1": "conv2.0.0",
            "conv2.conv.bn1": "conv2.0.1",
            "conv2.conv.conv2": "conv2.0.2",
            "conv2.bn": "conv2.1",
        },
        "ir": {"conv2.conv.conv1": "conv2.0", "conv2.bn": "conv2.1"},
        "r2plus1d": {**_decomposed("conv2"), "conv2.bn": "conv2.1"},
        "r2plus1d_simple": {**_decomposed("conv1"), **_decomposed("conv2"), "conv2.bn": "conv2.1"},
    },
    stems={"r2plus1d": _STEM, "r2plus1d_simple": _STEM},
)
