"""VMZ's PyTorch checkpoints: torchvision's VideoResNet with channel-separated middles and a pooling stem."""

from __future__ import annotations

from leanconv.weights.csn import CsnFormat

__all__ = ["VMZ"]

VMZ = CsnFormat(
    name="vmz",
    files="channel-separated networks of VMZ, PyTorch",
    markers=(("stem.0.weight", "layer1.0.conv1.0.weight"),),
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
    },
)
