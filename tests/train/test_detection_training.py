"""Detectors in training: average precision, exact resume, several processes, and the verbs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor, nn

from detections import by_pycocotools, scene
from leanconv.build import create_model
from leanconv.data.detection.data import open_detection
from leanconv.data.detection.digits import canvas
from leanconv.elastic import DetectionObjective, make_elastic
from leanconv.errors import LeanconvError
from leanconv.train import FitSettings, OptimSettings, fit
from leanconv.train.precision import SCORES, AveragePrecision

TINY = {"rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 40, "box_detections_per_img": 5}
OPTIONS = {"num_classes": 10, "min_size": 48, "max_size": 64, "channels": 8, "box_features": 16, "rcnn": TINY}


def small(kind: str = "mask_rcnn", backbone: str = "torchvision/resnet18") -> Any:
    torch.manual_seed(0)
    few = {"mask_channels": 8} if kind == "mask_rcnn" else {}
    model = create_model(f"detection/{kind}", backbone=backbone, **OPTIONS, **few)
    return make_elastic(model, resolutions=(48, 32))


@pytest.mark.parametrize("seed", [0, 1])
def test_average_precision_is_that_of_pycocotools(seed: int, capsys: Any) -> None:
    found, targets = scene(seed)
    precision = AveragePrecision(masks=True)
    for start in range(0, len(found), 5):
        precision.add(found[start : start + 5], targets[start : start + 5])
    scores = precision.scores()
    assert 0.05 < scores["box_ap"] < 0.95
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        stats = by_pycocotools(found, targets, kind)
        for ours, wanted in zip(SCORES, [*stats[:6], stats[8]], strict=True):
            got = scores[f"{name}_{ours}"]
            assert math.isnan(got) if wanted == -1 else abs(got - wanted) < 1e-6, (name, ours, got, wanted)


def run(out: Path, epochs: int, *, resume: bool = False) -> Any:
    data = open_detection("scattered-digits", batch_size=2)
    objective = DetectionObjective(small(), num_random=1)
    settings = FitSettings(epochs=epochs, steps_per_epoch=2, optim=OptimSettings(lr=0.005), clip=5.0, accelerator="cpu")
    result = fit(objective, data, settings, out, resume=resume, progress=False)
    return objective.net.state_dict(), result


@pytest.mark.slow
def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanconv.train.detection import DetectionTask

    whole, result = run(tmp_path / "whole", 2)
    assert {"val_accuracy", "val_box_ap", "val_mask_ap50", "train_mask"} <= result.history[-1].keys()
    before = DetectionTask.training_step

    def killed(self: DetectionTask, batch: Any, number: int) -> Any:
        if self.current_epoch == 1:
            raise KeyError("the power is gone")
        return before(self, batch, number)

    monkeypatch.setattr(DetectionTask, "training_step", killed)
    with pytest.raises(KeyError):
        run(tmp_path / "cut", 2)
    monkeypatch.undo()
    again, _ = run(tmp_path / "cut", 2, resume=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def gradients(objective: Any, batch: Any) -> list[Tensor]:
    torch.manual_seed(5)
    objective.zero_grad()
    objective(*batch, 3)["loss"].backward()
    return [p.grad.clone() for p in objective.parameters() if p.grad is not None]


def half(rank: int) -> Any:
    data = open_detection("scattered-digits", batch_size=2)
    return next(iter(data.train_loader(rank=rank, world=2)))


def in_process(rank: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    objective = frozen(DetectionObjective(small(), num_random=1))
    found = gradients(nn.parallel.DistributedDataParallel(objective), half(rank))
    precision = AveragePrecision(masks=True)
    answers, targets = scene(3, images=7)
    mine = slice(0, 5) if rank == 0 else slice(5, 7)
    precision.add(answers[mine], targets[mine])
    torch.save((found, precision.scores()), f"{out}/{rank}.pt")
    dist.destroy_process_group()


def frozen(objective: Any) -> Any:
    """With norms that do not look at the batch, of which two processes see halves: their statistics are the same."""
    for module in objective.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = True, None, None
            vars(module)["forward"] = nn.Identity().forward
            module.requires_grad_(False)  # else DDP waits for gradients of what no longer runs
    return objective.train()


@pytest.mark.slow
def test_two_processes_have_the_mean_of_the_gradients_and_one_average_precision(tmp_path: Path) -> None:
    mp.spawn(in_process, (str(tmp_path),), nprocs=2)
    (first, scores), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    objective = frozen(DetectionObjective(small(), num_random=1))
    halves = [gradients(objective, half(rank)) for rank in (0, 1)]
    for one, two, left, right in zip(first, second, *halves, strict=True):
        assert torch.equal(one, two)
        mean = (left + right) / 2
        assert float((one - mean).abs().max()) <= 1e-6 * max(1.0, float(mean.abs().max()))
    alone = AveragePrecision(masks=True)
    alone.add(*scene(3, images=7))
    wanted = alone.scores()
    for name, value in wanted.items():
        assert scores[name] == pytest.approx(value, abs=1e-9, nan_ok=True)
        assert other[name] == pytest.approx(value, abs=1e-9, nan_ok=True)


def test_low_memory_has_the_same_gradients_and_parts_add_up() -> None:
    found = []
    for low_memory in (False, True):
        objective = DetectionObjective(small("faster_rcnn"), num_random=0, low_memory=low_memory).train()
        found.append(gradients(objective, half(0)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.manual_seed(0)
    losses = objective(*half(0), 1)
    losses = {name: value.detach() for name, value in losses.items()}
    parts = sum(float(value) for name, value in losses.items() if name not in ("loss", "full"))
    assert float(losses["loss"]) == pytest.approx(parts, rel=1e-5)
    plan = objective.plan(1)
    assert plan[0] == (1.0, 48)
    assert plan[-1].width == 0.25
    usnet = DetectionObjective(objective.net, resolutions=[48])
    assert {config.resolution for step in range(8) for config in usnet.plan(step)} == {48}
    with pytest.raises(LeanconvError, match="must include 48"):
        DetectionObjective(objective.net, resolutions=[32])
    with pytest.raises(LeanconvError, match="learnt by a detector of torchvision"):
        DetectionObjective(nn.Linear(2, 2))


@pytest.mark.slow
def test_a_recipe_from_its_first_step_to_every_verb(tmp_path: Path, capsys: Any) -> None:
    from leanconv.cli import main
    from leanconv.recipes import get_recipe, run_recipe

    changed = ["data.detection.longest=64", "data.resolution=48", "elastic.resolutions=[48, 32]"]
    recipe = get_recipe("elastic_mask_rcnn_vgg16_coco", tiny=True, overrides=["steps_per_epoch=1", *changed])
    done = run_recipe(recipe, tmp_path / "run", latency=False, progress=False)
    assert done.table is not None
    rows = done.table.rows
    assert [row.config for row in rows] == [(1.0, 48), (0.25, 48), (1.0, 32), (0.25, 32)]
    assert all(sum(row.parts.values()) == row.macs for row in rows)
    assert rows[0].parts["body"] > 3 * rows[1].parts["body"]
    assert rows[0].parts["masks"] == rows[1].parts["masks"]
    capsys.readouterr()

    def verb(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        return int(left.value.code or 0), "".join(capsys.readouterr())

    picture = tmp_path / "1.png"
    Image.fromarray(canvas("digits:100").permute(1, 2, 0).numpy()).save(picture)
    assert verb("eval", tmp_path / "run", "--json")[0] == 0
    out = tmp_path / "found.json"
    code, _ = verb(
        "predict",
        tmp_path / "run",
        picture,
        tmp_path / "none.png",
        "--predictions",
        out,
        "--pictures",
        tmp_path / "drawn",
    )
    assert code == 2 or json.loads(out.read_text()) is not None
    code, _ = verb("predict", tmp_path / "run", picture, "--predictions", out, "--pictures", tmp_path / "drawn")
    assert code == 0
    for row in json.loads(out.read_text()):
        assert row["image_id"] == 1
        assert row["segmentation"]["size"] == [96, 128]
    assert (tmp_path / "drawn" / "1.png").exists()
    code, told = verb("export", tmp_path / "run", tmp_path / "x.onnx", "--width", "0.25", "--resolution", "32")
    assert code == 0, told
    assert verb("pick", tmp_path / "run" / "table.csv", "--max-macs", "1e9")[0] == 0
    code, told = verb("eval", tmp_path / "run", "--clips", "3")
    assert code == 2
    assert "--clips: not for detectors" in told
