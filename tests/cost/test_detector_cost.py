"""What detectors cost by part: counted by hand, in scopes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import retinanet_resnet50_fpn

from leanconv.build import create_model
from leanconv.cost import measure
from leanconv.elastic import make_elastic
from leanconv.errors import LeanconvError
from leanconv.nets.stages import body_of

FEW = {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}
SMALL = {"backbone": "torchvision/resnet18", "num_classes": 3, "min_size": 64, "max_size": 96, "channels": 8}


def small(kind: str = "mask_rcnn", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    few = {"mask_channels": 4} if kind == "mask_rcnn" else {}
    return create_model(f"detection/{kind}", **{**SMALL, **few, "box_features": 16, "rcnn": FEW, **options})


def test_the_parts_are_those_counted_by_hand() -> None:
    cost = measure(small())
    levels = [16 * 24, 8 * 12, 4 * 6, 2 * 3, 1 * 2]
    found = {part.name: part for part in cost.parts}
    assert cost.size == (3, 64, 96)
    assert found["body"].macs == measure(body_of(resnet18()), (3, 64, 96)).macs
    channels = (64, 128, 256, 512)
    inner = sum(n * c * 8 for n, c in zip(levels, channels, strict=False))
    assert found["neck"].macs == inner + 8 * 8 * 9 * sum(levels[:4])
    assert found["proposals"].macs == (8 * 8 * 9 + 8 * 3 + 8 * 12) * sum(levels)
    assert found["boxes"].macs == 20 * (8 * 49 * 16 + 16 * 16 + 16 * 4 + 16 * 16)
    convs = (8 * 4 + 3 * 4 * 4) * 9 * 14 * 14
    assert found["masks"].macs == 5 * (convs + 4 * 4 * 4 * 14 * 14 + 4 * 4 * 28 * 28)
    assert (found["boxes"].times, found["boxes"].size, found["masks"].size) == (20, (8, 7, 7), (8, 14, 14))
    assert sum(part.macs for part in cost.parts) == cost.macs == sum(cost.by_operator().values())
    assert sum(part.params for part in cost.parts) == cost.params
    modules = cost.by_module()
    assert modules[""].macs == cost.macs
    assert modules["roi_heads.box_head"].macs + modules["roi_heads.box_predictor"].macs == found["boxes"].macs
    assert [part["name"] for part in cost.to_json()["parts"]] == ["body", "neck", "proposals", "boxes", "masks"]


def test_the_image_is_the_one_that_is_given_and_the_detector_resizes_it() -> None:
    model = small("faster_rcnn")
    assert measure(model).parts[0].size == (3, 64, 96)
    assert measure(model, (3, 500, 500)).parts[0].size == (3, 64, 64)
    assert measure(model, (3, 50, 200)).parts[0].size == (3, 32, 96)  # the longest side decides
    assert measure(model.train()).macs == measure(model.eval()).macs


def test_an_elastic_one_is_counted_in_the_configuration_in_force() -> None:
    net = make_elastic(small(), resolutions=(64, 32))
    assert measure(net).macs == measure(small()).macs
    with net.at(width=0.5, resolution=32):
        cost = measure(net)
    static = measure(net.extract(0.5, 32, calibrated=False), (3, 32, 48))
    assert cost.parts[0].size == static.parts[0].size == (3, 32, 64)
    assert [part.macs for part in cost.parts] == [part.macs for part in static.parts]
    assert cost.macs < measure(net).macs


def test_detectors_that_cannot_be_counted_are_refused_in_words_that_fit() -> None:
    with pytest.raises(LeanconvError, match=r"given one image \(3, height, width\), which it resizes itself"):
        measure(small(), (1, 64, 64))
    other = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(LeanconvError, match=r"RetinaNet chooses boxes by values.*pass its backbone"):
        measure(other)
