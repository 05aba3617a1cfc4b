"""The input contract: plain data that survives every way a model goes, and is obeyed to the pixel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import folder_set, picture
from torch import nn

import leanconv as lc
from leanconv.build import create_model
from leanconv.data import ClipContract, InputContract, attach, contract_of, open_images, open_inputs
from leanconv.data.contract import amended, from_timm, from_torchvision, match_classes
from leanconv.data.images.prepare import Prepare
from leanconv.deploy import densify, fold
from leanconv.errors import DataError, LeanconvError, UnknownName

IMAGES = InputContract(
    size=(3, 32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resize="shorter_side", interpolation="bicubic",
    crop=0.875, exif=False, class_names=("a", "b"),
)  # fmt: skip
CLIPS = InputContract(
    size=(3, 8, 32, 32), mean=(0.1,) * 3, std=(0.4,) * 3, clip=ClipContract(rate=2, fps=30.0, short_side=40)
)


@pytest.mark.parametrize("contract", [IMAGES, CLIPS])
def test_json_and_back(contract: InputContract) -> None:
    assert InputContract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


def test_another_resolution_keeps_the_ratio_of_the_short_side() -> None:
    assert IMAGES.at((3, 16, 16)) == replace(IMAGES, size=(3, 16, 16))
    at_16 = CLIPS.at((3, 4, 16, 16))
    assert at_16.clip is not None
    assert (at_16.size, at_16.clip.short_side) == ((3, 4, 16, 16), 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": "shortest"}, "unknown resize rule 'shortest'"),
        ({"interpolation": "cubic"}, "did you mean 'bicubic'"),
        ({"crop": 0.0}, "crop is the share"),
        ({"crop": 1.5}, "crop is the share"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be above 0"),
        ({"mean": (0.5,)}, "needs 3 values of mean and of std, got 1 and 3"),
        ({"channel_order": "BGR"}, "leanconv feeds RGB from 0 to 1"),
        ({"value_range": (0.0, 255.0)}, "leanconv feeds RGB from 0 to 1"),
        ({"clip": ClipContract(rate=1, fps=None, short_side=32)}, "clip belongs to"),
    ],
)
def test_what_nobody_could_obey_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(LeanconvError, match=message):
        replace(IMAGES, **change)  # type: ignore[arg-type]


def test_what_is_no_contract_is_refused() -> None:
    with pytest.raises(LeanconvError, match="not an input contract"):
        InputContract.from_json({"size": [3, 8, 8], "means": [0, 0, 0]})


# ------------------------------------------------------------------------------------------------------ what carries it


def test_a_contract_goes_wherever_the_model_goes(tmp_path: Path) -> None:
    net = create_model("resnet20", num_classes=2)
    assert contract_of(net) is None
    attach(net, IMAGES)
    rewritten = lc.rewrite(net, lc.OptimizedSeparable(), size=(3, 48, 48))  # what it is looked at with, not fed
    elastic = lc.make_elastic(rewritten.model, widths=(0.5, 1.0), resolutions=(32, 24), size=(3, 32, 32), divisor=4)
    smaller = IMAGES.at((3, 24, 24))
    models: list[tuple[nn.Module, InputContract]] = [
        (net, IMAGES),
        (rewritten.model, IMAGES),
        (elastic, IMAGES),
        (elastic.extract(width=0.5, calibrated=False), IMAGES),
        (elastic.extract(width=0.5, resolution=24, calibrated=False), smaller),
        (lc.make_elastic(net, widths=(0.5, 1.0), resolutions=(24,), size=(3, 24, 24)), smaller),
        (lc.rewrite(net, lc.Inflate(frames=4), size=(3, 32, 32)).model, IMAGES.at((3, 4, 32, 32))),
    ]
    for number, (model, contract) in enumerate(models):
        assert contract_of(model) == contract
        if number in (0, 4, 6):
            assert contract_of(lc.load(lc.save(model, tmp_path / f"{number}"))) == contract
    for changed in (fold(net, (3, 32, 32)).model, densify(rewritten.model).model, densify(net).model):
        assert contract_of(changed) == IMAGES


def test_frames_that_an_elastic_network_leaves_out_are_in_its_contract() -> None:
    net = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 2))
    attach(net, CLIPS)
    elastic = lc.make_elastic(net, widths=(0.5, 1.0), resolutions=(32, 16), frames=(8, 4), size=CLIPS.size, divisor=4)
    found = contract_of(elastic.extract(0.5, 16, 4))
    assert found == CLIPS.at((3, 4, 16, 16))


def test_images_become_clips_cropped_as_the_images_were() -> None:
    clips = IMAGES.at((3, 8, 28, 28))
    assert clips.clip == ClipContract(rate=2, fps=30.0, short_side=32)
    assert clips.class_names == IMAGES.class_names
    assert replace(IMAGES, crop=1.0).at((3, 8, 28, 28)).clip == ClipContract(rate=2, fps=30.0, short_side=28)


def test_what_is_said_now_goes_before_what_was_said() -> None:
    given = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert amended(None, (3, 32, 32), {"mean": (0.5,) * 3}) is None
    assert amended(None, (3, 32, 32), given) == InputContract(size=(3, 32, 32), **given)  # type: ignore[arg-type]
    clips = amended(None, (3, 8, 28, 28), given)
    assert clips is not None
    assert clips.clip == ClipContract(rate=2, fps=30.0, short_side=32)
    changed = amended(IMAGES, (3, 24, 24), {"crop": 0.5, **given})
    assert changed == replace(IMAGES, size=(3, 24, 24), crop=0.5, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_old_stories_have_none(tmp_path: Path) -> None:
    folder = lc.save(create_model("resnet20"), tmp_path / "net")
    assert "contract" not in json.loads((folder / "story.json").read_text())["story"]


# ----------------------------------------------------------------------------------------------------- who published it


def test_timm_says_how_its_weights_are_fed() -> None:
    import timm

    cfg = timm.get_pretrained_cfg("resnet50.a1_in1k").to_dict()
    found = from_timm(cfg)
    assert found is not None
    assert (found.size, found.mean, found.interpolation) == ((3, 224, 224), tuple(cfg["mean"]), "bicubic")
    assert (found.resize, found.crop, found.exif) == ("shorter_side", cfg["crop_pct"], False)
    assert from_timm({**cfg, "crop_mode": "border"}) is None, "a rule that cannot be obeyed is no rule"


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("crop", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("size", [(40, 60), (75, 51), (33, 33), (28, 29)])
def test_pixels_are_those_of_timm(mode: str, crop: float, size: tuple[int, int]) -> None:
    from timm.data import create_transform

    cfg = {"input_size": (3, 28, 28), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_mode": mode, "crop_pct": crop}
    contract = from_timm({**cfg, "interpolation": "bicubic"})
    assert contract is not None
    image = picture(1, *size)
    theirs = create_transform(  # type: ignore[call-overload]
        (3, 28, 28), interpolation="bicubic", crop_pct=crop, crop_mode=mode, use_prefetcher=True
    )
    assert torch.equal(Prepare.by(contract)(image), torch.as_tensor(np.asarray(theirs(image))))


@pytest.mark.parametrize("name", ["ResNet50_Weights.IMAGENET1K_V2", "EfficientNet_B1_Weights.IMAGENET1K_V2"])
def test_pixels_are_those_of_torchvision(name: str) -> None:
    from torchvision.models import get_weight

    weights = get_weight(name)
    contract = from_torchvision(weights)
    assert contract is not None
    image = picture(2, 300, 280)
    theirs = weights.transforms(antialias=True)(image)
    mean, std = (torch.tensor(values)[:, None, None] for values in (contract.mean, contract.std))
    ours = (Prepare.by(contract)(image).float() / 255 - mean) / std
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert contract.class_names is not None
    assert contract.class_names[0] == "tench"


def test_weights_that_are_not_for_images_have_no_rule() -> None:
    from torchvision.models import get_weight

    assert from_torchvision(get_weight("FasterRCNN_ResNet50_FPN_Weights.COCO_V1")) is None


def test_published_weights_bring_their_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *arguments, **options: None)
    found = contract_of(create_model("timm/resnet18", pretrained=True))
    assert found is not None
    assert found.size == (3, 224, 224)
    assert contract_of(create_model("timm/resnet18")) is None
    assert contract_of(create_model("torchvision/resnet18")) is None


# --------------------------------------------------------------------------------------------------------- who obeys it


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_images_are_made_by_the_contract_whatever_else_is_said(tmp_path: Path, memory_limit: int) -> None:
    root = tmp_path / "set"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for index in range(2):
            picture(index, 50, 40).save(root / name / f"{index}.png")
    data = open_inputs(f"folder:{root}", IMAGES, testing=True, batch_size=4, memory_limit=memory_limit)
    [(images, labels)] = list(data.eval_loader())
    assert (data.input_size, labels.tolist()) == ((3, 32, 32), [0, 0, 1, 1])
    pixels = picture(0, 50, 40).resize((int(36 * 50 / 40), 36), Image.Resampling.BICUBIC).crop((6, 2, 38, 34))
    expected = torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGES.mean, IMAGES.std))
    torch.testing.assert_close(images[0], (expected - mean) / std, atol=1e-5, rtol=0)


def test_what_was_trained_on_is_what_is_tested_on(tmp_path: Path) -> None:
    spec = f"folder:{folder_set(tmp_path, per_class=6, side=20)}"
    for augment in ("none", "cifar", "imagenet40", "imagenet"):
        data = open_images(spec, resolution=16, augment=augment, batch_size=5)
        again = open_inputs(
            spec, InputContract.from_json(json.loads(json.dumps(data.contract.to_json()))), batch_size=5
        )
        for (one, labels), (other, numbers) in zip(data.eval_loader(), again.eval_loader(), strict=True):
            assert torch.equal(one, other)
            assert torch.equal(labels, numbers)


def test_data_that_the_network_cannot_be_fed(tmp_path: Path) -> None:
    spec = f"folder:{folder_set(tmp_path, classes=('a', 'b'))}"
    with pytest.raises(DataError, match="names videos, and the network is fed images"):
        open_inputs("video-folder:x", IMAGES)
    with pytest.raises(DataError, match=r"images are made square, 3,SIDE,SIDE"):
        open_inputs(spec, IMAGES.at((3, 32, 24)))
    grey = InputContract(size=(1, 32, 32), mean=(0.5,), std=(0.5,))
    with pytest.raises(DataError, match="is fed 1 channels, and images are read as 3"):
        open_inputs(spec, grey)
    grey_clips = replace(CLIPS, size=(1, *CLIPS.size[1:]), mean=(0.5,), std=(0.5,))
    with pytest.raises(DataError, match="is fed 1 channels, and videos are read as 3"):
        open_inputs("video-folder:x", grey_clips)
    with pytest.raises(UnknownName):
        open_inputs("no-such-kind:x", CLIPS)


# -------------------------------------------------------------------------------------------------------------- classes


def test_classes_by_name() -> None:
    known = ["ant", "bee", "cat"]
    assert match_classes("X", known, known) == ((0, 1, 2), None)
    assert match_classes("X", ["cat", "ant", "bee"], known) == ((2, 0, 1), None)
    places, told = match_classes("X", ["cat"], known)
    assert (places, told) == ((2,), "X has none of 2 classes (ant, bee), which the network knows")
    with pytest.raises(DataError, match=r"X: the class 'dog' \(1 of 2\) is none of the 3 that the network knows \(ant"):
        match_classes("X", ["cat", "dog"], known)
    numbers = ["0", "1", "2"]
    assert match_classes("X", numbers, known) == ((0, 1, 2), "X names no classes, so X is matched by number")
    assert match_classes("X", known, numbers)[1] == "the network names no classes, so X is matched by number"
    with pytest.raises(DataError, match="the class '0'"):
        match_classes("X", ["0", "1"], known)


@pytest.mark.parametrize("classes", [("b",), ("c", "b"), ("a", "c"), ("a", "b", "c")])
def test_a_part_of_the_classes_is_numbered_as_the_network_knows_them(tmp_path: Path, classes: tuple[str, ...]) -> None:
    root = tmp_path / "set"
    for name in classes:
        (root / name).mkdir(parents=True)
        picture(1).save(root / name / "x.png")
    contract = replace(IMAGES, class_names=("a", "b", "c"))
    data = open_inputs(f"folder:{root}", contract, testing=True)
    [(_, labels)] = list(data.eval_loader())
    assert labels.tolist() == sorted("abc".index(name) for name in classes)
    assert data.class_names == ("a", "b", "c")
    assert len(data.remarks) == (len(classes) < 3)


def test_a_class_that_the_network_does_not_know_is_named(tmp_path: Path) -> None:
    root = folder_set(tmp_path, classes=("a", "z"))
    with pytest.raises(DataError, match=r"the class 'z' .* is none of the 2 that the network knows"):
        open_inputs(f"folder:{root}", IMAGES, testing=True)


def test_a_contract_is_no_module() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1))
    attach(net, IMAGES)
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
