"""The networks whose counts are compared with torch's own counter, and that counter, set to see all it can see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rewrites.timm_families import FAMILIES

__all__ = ["TIMM", "detector_parts", "torch_counts", "torchvision_names"]

# One network of every model file of timm 1.0.31, the smallest or nearly so; those that are not convolutional here.
TIMM = FAMILIES | {
    "beit": "beit_base_patch16_224",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "davit": "davit_tiny",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "edgenext": "edgenext_xx_small",
    "eva": "vit_tiny_patch16_dinov3_qkvb",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "levit": "levit_128s",
    "mambaout": "mambaout_femto",
    "maxxvit": "maxvit_pico_rw_256",
    "mlp_mixer": "mixer_s16_224",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap",
    "nest": "nest_tiny",
    "pit": "pit_xs_224",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "sequencer": "sequencer2d_s",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "twins": "twins_svt_small",
    "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "vit_srelpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "xcit": "xcit_nano_12_p8_224",
}


def torchvision_names(kind: str) -> list[str]:
    """All networks of torchvision that do one job: "", "segmentation", "video", "detection" or "optical_flow"."""
    from torchvision import models

    return models.list_models(module=getattr(models, kind) if kind else models)  # type: ignore[no-any-return]


def torch_counts(net: nn.Module, *shapes: Sequence[int]) -> int:
    """Multiply-adds that torch's own counter sees in evaluation, on tensors without memory.

    Written out, attention is seen, and so are the layers that the fast path hides; it counts two a multiply-add.
    """
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            # torch's module tracker trips over parameters that are expanded without gradients.
            net.eval().requires_grad_(False)(*(torch.empty(1, *shape, device="meta") for shape in shapes))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


class _Parts(nn.Module):
    """The parts of a detector that its image meets before anything depends on values, and then the heads."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net


class _Dense(_Parts):
    """One-stage detectors: backbone and head."""

    def forward(self, x: Tensor) -> Any:
        return self.net.head(list(self.net.backbone(x).values()))


class _TwoStages(_Parts):
    """Backbone, proposals, and the heads on as many regions as the network takes at most."""

    def forward(self, x: Tensor) -> Any:
        net: Any = self.net
        maps = list(net.backbone(x).values())
        roi, channels = net.roi_heads, net.backbone.out_channels
        boxes = x.new_zeros(net.rpn.post_nms_top_n(), channels, *roi.box_roi_pool.output_size)
        found = [*net.rpn.head(maps), *roi.box_predictor(roi.box_head(boxes))]
        for kind in ("mask", "keypoint"):
            if (pool := getattr(roi, f"{kind}_roi_pool")) is not None:
                regions = x.new_zeros(roi.detections_per_img, channels, *pool.output_size)
                found.append(getattr(roi, f"{kind}_predictor")(getattr(roi, f"{kind}_head")(regions)))
        return found


def detector_parts(name: str) -> nn.Module:
    """A detector of torchvision without what reads values (the choice of boxes), which no count sees either way."""
    from torchvision.models import get_model

    with torch.device("meta"):
        net = get_model(name, weights=None, weights_backbone=None)
    return _TwoStages(net) if hasattr(net, "rpn") else _Dense(net)
