"""Detectors in a rewrite: the body changes, neck and heads stay; they are saved, made elastic and trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from leanconv.build import create_model, load, save
from leanconv.elastic import ElasticDetector
from leanconv.errors import LeanconvError, NothingToRewrite, RewriteError
from leanconv.ops.octave import OctConv
from leanconv.ops.osep import OptimizedSeparable
from leanconv.ops.separable import DepthSeparable
from leanconv.recipes import change, finetune
from leanconv.recipes.detection import build_detector, open_objects
from leanconv.rewrites import Inflate, Octave, rewrite
from leanconv.story import story_of

FEW = {"rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20, "box_detections_per_img": 5}
SIZES = {"min_size": 64, "max_size": 96}


def small() -> nn.Module:
    torch.manual_seed(0)
    options = {"num_classes": 3, "channels": 8, "box_features": 16, "rcnn": FEW, **SIZES}
    return create_model("detection/faster_rcnn", backbone="torchvision/resnet18", **options)


def outputs(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    image = torch.rand(3, 70, 100, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: list[dict[str, torch.Tensor]] = model.eval()([image])
    return found


def test_the_body_is_rewritten_and_the_rest_is_what_it_was() -> None:
    plain = small()
    done = rewrite(plain, Octave(alpha=0.25), OptimizedSeparable(where="backbone.body.layer4.1.* kernel>1"))
    assert {change.name.split(".layer")[0] for change in done.changes} == {"backbone.body"}
    assert sum(isinstance(module, OctConv) for module in done.model.modules()) == 16
    chains = [change.name for change in done.changes if change.after.startswith("osep")]
    assert chains == ["backbone.body.layer4.1.conv1", "backbone.body.layer4.1.conv2"]
    before, after = plain.state_dict(), done.model.state_dict()
    rest = [name for name in before if not name.startswith("backbone.body.")]
    assert len(rest) == 30  # 16 of the neck, 6 of the proposals, 8 of the boxes
    assert all(torch.equal(before[name], after[name]) for name in rest)
    assert not any(isinstance(module, OctConv) for module in plain.modules())
    story = story_of(done.model)
    assert story is not None
    assert [(stem, settings.get("size")) for stem, settings in story.steps] == [
        ("octave", [3, 64, 96]), ("osep", None)
    ]  # fmt: skip


def test_what_comes_out_is_saved_and_trained_further_elastic_and_not(tmp_path: Path) -> None:
    done = rewrite(small(), DepthSeparable(where="layer[34].*.conv2"))
    assert len(done.changes) == 4
    folder = save(done, tmp_path / "saved")
    wanted, found = outputs(done.model), outputs(load(folder))
    assert all(torch.equal(wanted[0][name], found[0][name]) for name in wanted[0])
    recipe = finetune(str(folder), "scattered-digits", elastic=True, new_classifier=True)
    assert recipe.data.detection is not None
    assert (recipe.data.resolution, recipe.data.detection.longest, recipe.data.detection.masks) == (64, 96, False)
    recipe = change(recipe, ["elastic.resolutions=[64, 48]"])
    data = open_objects(recipe)
    net = build_detector(recipe, data)
    assert isinstance(net, ElasticDetector)
    assert net.num_classes == 10
    images, targets = next(iter(data.train_loader()))
    with net.at(width=0.5, resolution=48):
        losses = net.train()(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    assert net.get_parameter("model.backbone.fpn.inner_blocks.0.0.weight").grad is not None
    with pytest.raises(LeanconvError, match="tells 3 classes apart, and the data have 10"):
        build_detector(finetune(str(folder), "scattered-digits"), data)


def test_those_of_torchvision_are_built_for_the_classes_and_rewritten() -> None:
    recipe = finetune("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", "scattered-digits")
    assert recipe.data.detection is not None
    assert (recipe.data.resolution, recipe.data.detection.longest) == (320, 640)
    recipe = change(recipe, ["rewrites=['igc:where=16.0']", "model_args.box_detections_per_img=5"])
    built: Any = build_detector(recipe, open_objects(recipe))
    assert built.roi_heads.box_predictor.cls_score.out_features == 11  # one is the background
    assert type(built.backbone.body["16"][0]).__name__ == "ConvChain"


def test_what_is_not_of_the_body_is_refused_by_name() -> None:
    with pytest.raises(RewriteError, match=r"means rpn\.head\.conv\.0\.0, which is not in the body \(backbone\.body\)"):
        rewrite(small(), DepthSeparable(where="rpn.*"))
    with pytest.raises(NothingToRewrite, match=r"nothing matches where='layer9\.\*'"):
        rewrite(small(), DepthSeparable(where="layer9.*"))
    with pytest.raises(RewriteError, match="a detector is given images, and this makes a network for clips"):
        rewrite(small(), Inflate(frames=4))
    other = create_model("torchvision/ssdlite320_mobilenet_v3_large", num_classes=3)
    with pytest.raises(RewriteError, match="rewrite: SSD chooses boxes by values"):
        rewrite(other, DepthSeparable())
