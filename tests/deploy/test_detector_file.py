"""Detectors as files: also where nothing is proposed, as in many an image of an empty street."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leanconv.build import create_model
from leanconv.deploy import export
from leanconv.deploy.verify import onnxruntime_runner
from leanconv.errors import ExportError


def test_a_file_runs_on_images_without_any_region(tmp_path: Path) -> None:
    torch.manual_seed(0)
    few = {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5, "rpn_score_thresh": 0.5}
    options = {"backbone": "torchvision/resnet18", "num_classes": 3, "min_size": 64, "max_size": 96, "rcnn": few}
    model = create_model("detection/mask_rcnn", channels=8, box_features=16, mask_channels=8, **options).eval()
    torch.nn.init.constant_(model.rpn.head.cls_logits.bias, -5.0)  # nothing reaches a half
    size, path = (3, 64, 96), tmp_path / "small.onnx"
    coder = model.roi_heads.box_coder
    assert export(model, path, size=size, samples=2).size == size
    assert model.roi_heads.box_coder is coder
    run = onnxruntime_runner(path)
    proposed = []
    model.rpn.register_forward_hook(lambda _, __, out: proposed.append(len(out[0][0])))
    for image in (torch.zeros(size), torch.rand(size, generator=torch.Generator().manual_seed(1))):
        with torch.no_grad():
            [wanted] = model([image])
        assert [tuple(torch.as_tensor(one).shape) for one in run(image)] == [tuple(v.shape) for v in wanted.values()]
    assert proposed == [0, 0]
    with pytest.raises(ExportError, match=r"written as \.onnx, without data"):
        export(model, path, size=size, data=[])
