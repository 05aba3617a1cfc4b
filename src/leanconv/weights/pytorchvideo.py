"""pytorchvideo's checkpoints of CSN (`model_state` in a .pyth file): ir networks, BatchNorm with torch's own eps."""

from __future__ import annotations

from leanconv.weights.csn import CsnFormat

__all__ = ["PYTORCHVIDEO"]

PYTORCHVIDEO = CsnFormat(
    name="pytorchvideo",
    files="channel-separated networks of pytorchvideo",
    markers=(("blocks.0.conv.weight", "blocks.1.res_blocks.0.branch2.conv_a.weight"),),
    outside={"stem.0.conv": "blocks.0.conv", "stem.0.bn": "blocks.0.norm", "fc": "blocks.5.proj"},
    block="blocks.{stage}.res_blocks.{block}.",
    inside={
        "conv1.conv": "branch2.conv_a",
        "conv1.bn": "branch2.norm_a",
        "conv3.conv": "branch2.conv_c",
        "conv3.bn": "branch2.norm_c",
        "shortcut.conv": "branch1_conv",
        "shortcut.bn": "branch1_norm",
    },
    middle={"ir": {"conv2.conv.conv1": "branch2.conv_b", "conv2.bn": "branch2.norm_b"}},
    norm_eps=1e-5,
)
