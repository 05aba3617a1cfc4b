"""Detectors asked from Python and by the verbs: what is found, how it scores, what a file of results scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import leanconv as lc
from leanconv.cli import main
from leanconv.data.contract import attach
from leanconv.data.detection.data import open_detection
from leanconv.data.detection.digits import canvas
from leanconv.recipes.detected import Found, ScoredObjects, find_detector

DATA = "scattered-digits"


def small(seed: int = 0, **options: Any) -> nn.Module:
    """Untrained; it answers for every proposal, so that there is something to score."""
    torch.manual_seed(seed)
    few = {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5, "box_score_thresh": 0.0}
    model = lc.create_model(
        "detection/mask_rcnn",
        **{
            "backbone": "torchvision/resnet18",
            "num_classes": 10,
            "min_size": 48,
            "max_size": 64,
            "channels": 8,
            "box_features": 16,
            "mask_channels": 8,
            "rcnn": few,
            **options,
        },
    )
    attach(model, open_detection(DATA).contract((3, 48, 64), 64))
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lc.save(small(), tmp_path_factory.mktemp("detector") / "saved")


def verb(capsys: Any, *words: object) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return int(left.value.code or 0), "".join(capsys.readouterr())


def test_what_a_file_of_results_scores_is_what_the_model_scores(saved: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "found.json"
    code, told = verb(capsys, "eval", saved, "--data", DATA, "--predictions", out, "--json")
    assert code == 0, told
    wanted = json.loads(told)
    rows = json.loads(out.read_text())
    assert len(rows) > 32
    assert {"counts", "size"} == rows[0]["segmentation"].keys()
    assert rows[0]["segmentation"]["size"] == [96, 128]
    code, told = verb(capsys, "eval", out, "--data", DATA, "--json")
    found = json.loads(told)
    assert found.pop("model") == str(out)
    assert found == {name: value for name, value in wanted.items() if name != "model"}
    # Some answers that are right, so that the scores say something.
    data = open_detection(DATA)
    for one in data.test_images[::2]:
        for thing in one.things:
            x1, y1, x2, y2 = thing.box
            assert thing.mask is not None
            rle = {"size": list(thing.mask["size"]), "counts": thing.mask["counts"].decode()}
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append(
                {"image_id": one.id, "category_id": thing.label, "bbox": box, "score": 1.5, "segmentation": rle}
            )
    out.write_text(json.dumps(rows))
    tested = lc.evaluate(str(out), DATA)
    assert isinstance(tested, ScoredObjects)
    assert tested.interval is not None
    assert 0.3 < tested.interval.low < tested.box_ap == pytest.approx(tested.detected.scores["mask_ap"], abs=0.02)
    assert tested.box_ap < tested.interval.high < 0.7
    again = tmp_path / "again.json"
    again.write_text(json.dumps(tested.results()))
    second = lc.evaluate(str(again), DATA)
    assert isinstance(second, ScoredObjects)
    assert second.figures("x") == tested.figures("x")


def test_python_has_the_same_functions_for_detectors(saved: Path, tmp_path: Path, capsys: Any) -> None:
    picture = tmp_path / "7.png"
    Image.fromarray(canvas("digits:100").permute(1, 2, 0).numpy()).save(picture)
    model = lc.load(saved)
    told = lc.predict(model, [picture])
    assert isinstance(told, Found)
    assert told.masks is not None
    assert len(told.rows()) == len(told.objects[0]["boxes"]) == len(told.masks[0]) == 5
    assert told.rows()[0]["image_id"] == 7
    assert json.loads(json.dumps(told.rows())) == told.rows()
    tested = lc.evaluate(saved, DATA)
    assert isinstance(tested, ScoredObjects)
    assert tested.figures("x").keys() >= {"box_ap", "box_ap_interval", "mask_ap_interval", "images", "part"}
    with pytest.raises(lc.LeanconvError, match="size, clips: not for detectors"):
        lc.predict(model, [picture], size=(3, 8, 8), clips=3)
    with pytest.raises(lc.LeanconvError, match="crops: not for detectors"):
        lc.evaluate(model, DATA, crops=3)


def test_two_detectors_are_compared_in_pairs(saved: Path, tmp_path: Path, capsys: Any) -> None:
    other = lc.save(small(1), tmp_path / "other")
    code, told = verb(capsys, "compare", saved, other, "--data", DATA, "--json")
    assert code == 0, told
    first, second = json.loads(told)
    assert second["box_ap_difference"] == pytest.approx(second["box_ap"] - first["box_ap"])
    low, high = second["box_ap_difference_interval"]
    assert low <= second["box_ap_difference"] <= high
    assert "mask_ap_difference_interval" in second
    assert "box_ap_difference" not in first


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "not JSON, or cut short"),
        ("{}", "expected a list of answers"),
        ('[{"image_id": "a"}]', "answer 0 has no number as its image_id"),
        ('[{"image_id": 97, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3]}]', "expected [x, y, width, height]"),
        ('[{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}]', "is for image 1, which is none of"),
        ('[{"image_id": 97, "category_id": 44, "score": 0.5, "bbox": [1, 2, 3, 4]}]', "is of category 44"),
        (
            '[{"image_id": 97, "category_id": 4, "score": 1, "bbox": [1, 2, 3, 4], "segmentation": {"size": [2, 2]}}]',
            "its mask is of [2, 2]",
        ),
    ],
)
def test_a_broken_file_of_results_is_one_line(text: str, says: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "found.json").write_text(text)
    code, told = verb(capsys, "eval", tmp_path / "found.json", "--data", DATA)
    assert code == 2
    assert says in told
    assert told.count("\n") == 1


def test_a_network_of_ones_own_code_is_not_loaded_to_see_that_it_is_none(tmp_path: Path) -> None:
    folder = lc.save(lc.create_model("resnet20"), tmp_path / "own")
    text = (folder / "story.json").read_text()
    (folder / "story.json").write_text(text.replace('"resnet20"', '"a_module_that_must_not_run:build"'))
    assert find_detector(folder) is None  # load would refuse, or run the code
    assert find_detector(lc.create_model("resnet20")) is None
