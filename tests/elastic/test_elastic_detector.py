"""Detectors with an elastic body: at full width they are torchvision's own, elsewhere only the body is narrower."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leanconv.build import create_model, load, save
from leanconv.data.contract import InputContract
from leanconv.deploy import export
from leanconv.elastic import ElasticDetector, make_elastic
from leanconv.elastic.inputs import sides_at
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.nets.stages import body_of
from leanconv.recipes.detection import take_body
from leanconv.serve import Runtime

FEW = {"rpn_post_nms_top_n_test": 30, "rpn_post_nms_top_n_train": 50, "box_detections_per_img": 20}
SMALL = {"num_classes": 5, "min_size": 64, "max_size": 96, "channels": 32, "box_features": 64, "rcnn": FEW}


def detector(backbone: str, kind: str = "mask_rcnn", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    few = {"mask_channels": 16} if kind == "mask_rcnn" else {}
    return create_model(f"detection/{kind}", backbone=backbone, **{**SMALL, **few, **options})


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    draws = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 70, 100, generator=draws), torch.rand(3, 90, 60, generator=draws)]
    masks = torch.zeros(2, 70, 100, dtype=torch.uint8)
    masks[0, 5:40, 5:40] = masks[1, 10:30, 10:60] = 1
    boxes = torch.tensor([[5.0, 5, 40, 40], [10, 10, 60, 30]])
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, [
        {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks},
        {**empty, "masks": torch.zeros(0, 90, 60, dtype=torch.uint8)},
    ]


@pytest.mark.parametrize("backbone", ["torchvision/vgg16", "torchvision/resnet50"])
def test_at_full_width_it_is_the_detector_that_it_was(backbone: str) -> None:
    plain = detector(backbone)
    net = make_elastic(plain, resolutions=(64, 48, 32))
    assert isinstance(net, ElasticDetector)
    images, targets = batch()
    losses = []
    for one in (plain, net):
        torch.manual_seed(1)  # both draw the anchors that they train on
        losses.append(one.train()(images, targets))
    assert losses[0].keys() == losses[1].keys() == {
        "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"
    }  # fmt: skip
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    with torch.no_grad():
        answers = [one.eval()(images) for one in (plain, net)]
    for wanted, found in zip(*answers, strict=True):
        assert len(wanted["boxes"]) > 0
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_widths_and_resolutions_are_those_of_the_body_and_the_image() -> None:
    net = make_elastic(detector("torchvision/resnet18"), resolutions=(64, 48, 32))
    images, targets = batch()
    seen: dict[str, Any] = {}
    net.model.backbone.register_forward_pre_hook(lambda _, given: seen.update(batch=given[0].shape))
    net.model.rpn.register_forward_pre_hook(
        lambda _, given: seen.update(sizes=given[0].image_sizes, boxes=given[2][0]["boxes"] if given[2] else None)
    )
    with net.at(width=0.5, resolution=48):
        losses = net(images, targets)
    # 70 x 100 has 48 x 68 within 96, 90 x 60 has 72 x 48; padded together to multiples of 32.
    assert seen["sizes"] == [(48, 68), (72, 48)]
    assert seen["batch"] == (2, 3, 96, 96)
    assert seen["boxes"][0].tolist() == pytest.approx([5 * 68 / 100, 5 * 48 / 70, 40 * 68 / 100, 40 * 48 / 70], 1e-5)
    torch.stack(list(losses.values())).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    stem = grads["model.backbone.body.conv1.weight"]
    assert stem[:32].abs().sum() > 0
    assert not stem[32:].any()
    # 200 pixels of width: the limit of the longer side decides, whatever the resolution is.
    with net.at(resolution=64):
        net([torch.rand(3, 50, 200), images[1]], [targets[0], targets[1]])
    assert seen["sizes"][0] == (24, 96)


def test_what_is_extracted_answers_as_the_sub_network_does() -> None:
    net = make_elastic(detector("torchvision/vgg16", "faster_rcnn"), resolutions=(64, 32)).eval()
    images, _ = batch()
    static = net.extract(width=0.25, resolution=32).eval()
    assert type(static) is type(net.model)
    assert static.transform.min_size == (32,)
    assert net.model.transform.min_size == (64,)
    assert static.backbone.fpn.inner_blocks[0][0].in_channels == 64  # a quarter of conv3_3
    assert static.backbone.fpn.inner_blocks[0][0].out_channels == 32
    with torch.no_grad(), net.at(width=0.25, resolution=32):
        for wanted, found in zip(net(images), static(images), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    runtime = Runtime(net, [(0.25, 32)])  # boxes are those of the images as they are given
    for wanted, found in zip(static(images), runtime(images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        pytest.param("oct_resnet50", {}, marks=pytest.mark.slow),
        pytest.param("torchvision/resnet50", {"rewrites": ["osep:overlap=1"]}, marks=pytest.mark.slow),
        ("torchvision/mobilenet_v2", {}),
        ("timm/resnet18", {"backbone_args": {"features_only": True}}),
    ],
    ids=["octave", "osep", "mobilenet", "timm"],
)
def test_other_bodies_train_a_step_and_come_back_from_a_folder(backbone: str, options: Any, tmp_path: Any) -> None:
    net = make_elastic(detector(backbone, **options), resolutions=(64, 48))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with net.at(width=0.5, resolution=48):
        loss = torch.stack(list(net.train()(*batch()).values())).sum()
    loss.backward()
    before = net.model.backbone.fpn.inner_blocks[0][0].weight.detach().clone()
    optimizer.step()
    assert loss.isfinite()
    assert not torch.equal(net.model.backbone.fpn.inner_blocks[0][0].weight, before)
    back = load(save(net.eval(), tmp_path / "saved"))
    assert isinstance(back, ElasticDetector)
    assert (back.resolutions, back.longest, back.masks, back.num_classes) == ((64, 48), 96, True, 5)
    with torch.no_grad():
        wanted, found = net(batch()[0]), back(batch()[0])
    assert all(torch.equal(wanted[0][name], found[0][name]) for name in wanted[0])
    if backbone in ("oct_resnet50", "torchvision/resnet50"):
        static = net.extract(width=0.5, resolution=48, calibrated=False)
        report = export(static, tmp_path / "small.onnx", size=(3, 70, 100), samples=2)
        assert report.max_abs_difference < 1e-2  # of boxes in pixels


def test_the_body_starts_from_a_classifier_of_the_same_network(tmp_path: Any) -> None:
    torch.manual_seed(3)
    classifier = make_elastic(create_model("torchvision/resnet18", num_classes=7), resolutions=(64, 32))
    folder = save(classifier, tmp_path / "classifier")
    net = make_elastic(detector("torchvision/resnet18", "faster_rcnn"), resolutions=(64, 48))
    taken = take_body(net, folder)
    assert len(taken.copied) == 120
    assert all(name.startswith(("backbone.fpn", "rpn", "roi_heads")) for name in taken.fresh)
    given = classifier.state_dict()
    for name, tensor in net.model.backbone.body.state_dict().items():
        assert torch.equal(tensor, given[f"model.{name}"])
    other = make_elastic(detector("torchvision/mobilenet_v2", "faster_rcnn"), resolutions=(64, 48))
    with pytest.raises(CheckpointError, match="its weights are not for the body of this detector"):
        take_body(other, folder)


def test_stages_have_the_names_of_the_network_and_nothing_behind_the_last() -> None:
    network = create_model("torchvision/resnet18")
    names = {name for name in network.state_dict() if not name.startswith("fc.")}
    body = body_of(network)
    assert set(body.state_dict()) == names
    with pytest.raises(LeanconvError, match="is missing: name a network"):
        body_of(create_model("resnet20"))


def test_clear_errors() -> None:
    with pytest.raises(LeanconvError, match="build it with min_size=600, or pass resolutions= that begin with 64"):
        make_elastic(detector("torchvision/resnet18"), resolutions=(600, 480))
    with pytest.raises(LeanconvError, match="let that function build the whole detector"):
        create_model("detection/mask_rcnn", backbone="mine:build")
    assert sides_at((3, 600, 1000), 600, 480) == (480, 800)
    contract = InputContract(size=(3, 600, 1000), mean=(0,) * 3, std=(1,) * 3, resize="inside", longest=1000)
    assert contract.at((3, 480, 800)).longest == 1000
    assert InputContract.from_json(contract.to_json()) == contract
