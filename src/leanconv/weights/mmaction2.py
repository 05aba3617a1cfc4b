"""mmaction2's checkpoints of CSN recognizers (`state_dict` in a .pth file); a backbone alone drops `backbone.`."""

from __future__ import annotations

from leanconv.weights.csn import CsnFormat

__all__ = ["MMACTION2"]

MMACTION2 = CsnFormat(
    name="mmaction2",
    files="channel-separated networks of mmaction2",
    markers=(
        ("backbone.conv1.conv.weight", "backbone.layer1.0.conv1.conv.weight"),
        ("conv1.conv.weight", "layer1.0.conv1.conv.weight"),
    ),
    outside={"stem.0.conv": "backbone.conv1.conv", "stem.0.bn": "backbone.conv1.bn", "fc": "cls_head.fc_cls"},
    block="backbone.layer{stage}.{block}.",
    inside={
        "conv1.conv": "conv1.conv",
        "conv1.bn": "conv1.bn",
        "conv3.conv": "conv3.conv",
        "conv3.bn": "conv3.bn",
        "shortcut.conv": "downsample.conv",
        "shortcut.bn": "downsample.bn",
    },
    middle={
        "ip": {
            "conv2.conv.conv1": "conv2.0.conv",
            "conv2.conv.bn1": "conv2.0.bn",
            "conv2.conv.conv2": "conv2.1.conv",
            "conv2.bn": "conv2.1.bn",
        },
        "ir": {"conv2.conv.conv1": "conv2.0.conv", "conv2.bn": "conv2.0.bn"},
    },
    optional_prefix="backbone.",
)
