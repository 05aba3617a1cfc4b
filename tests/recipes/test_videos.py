"""Recipes for video: the published settings, what a run leaves, and a sheet that shows what the network saw."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leanconv.build import create_model, default_size
from leanconv.errors import LeanconvError
from leanconv.recipes import RECIPES, build_model, change, get_recipe, open_data, run_recipe, score_videos
from leanconv.recipes.csn import CSN
from leanconv.report import contact_sheet
from leanconv.train import Classify
from leanconv.train.optim import rate

VIDEO = [name for name in RECIPES if RECIPES[name]().data.video is not None]


def tiny(name: str, spec: str, *settings: str):
    return get_recipe(name, tiny=True, overrides=[f"data.spec={spec}", *settings])


def test_the_papers_training() -> None:
    recipe = get_recipe("ip_csn_152_kinetics")
    video = recipe.data.video
    assert video is not None
    assert recipe.data.input_size == (3, 32, 224, 224)
    assert (video.rate, video.fps, video.test_clips, video.test_crops) == (2, 30, 10, 3)
    steps = recipe.steps_per_epoch
    assert steps is not None
    assert 0.999e6 < steps * recipe.data.batch_size <= 1e6  # clips per epoch
    assert 240_000 * video.clips_per_video >= 1e6  # which that many passes hold
    # .01 for each of 64 GPUs at the end of the warm-up; half a cosine over the other 35 epochs.
    rates = [recipe.optim.lr * rate(recipe.schedule, step, steps_per_epoch=steps, epochs=45)
             for step in (0, 10 * steps, 27.5 * steps, 45 * steps)]  # fmt: skip
    assert rates == pytest.approx([0.64 / (10 * steps), 0.64, 0.32, 0.0])
    ablation = get_recipe("ip_csn_50_kinetics_8x2").data
    assert ablation.input_size == (3, 8, 224, 224)
    assert ablation.video is not None
    assert ablation.video.test_crops == 1
    assert get_recipe("ir_csn_101_sports1m").data.video == video.__class__(frames=32, rate=2, clips_per_video=2)


def test_every_row_of_the_tables_is_a_recipe() -> None:
    for kind in ("resnet3d", "ir_csn", "ip_csn"):
        assert {f"{kind}_{depth}_kinetics_8x2" for depth in (26, 50, 101)} <= CSN.keys()
        for data in ("kinetics", "sports1m", "kinetics_finetune"):
            assert {f"{kind}_{depth}_{data}" for depth in (50, 101, 152)} <= CSN.keys()
    for name in ("i3d_resnet50", "c2d_resnet50"):
        assert {f"{name}_kinetics", f"oct_{name}_kinetics"} <= RECIPES.keys()


def test_every_network_is_one_of_the_zoo() -> None:
    for make in CSN.values():
        recipe = make()
        assert len(default_size(recipe.model)) == 4
        assert recipe.model_args.get("frames") == recipe.data.input_size[1] or "figure6" in recipe.name


@pytest.mark.parametrize("name", [name for name in CSN if "figure6" in name and name.endswith("_8")])
def test_the_blocks_of_figure_6(name: str) -> None:
    recipe = CSN[name]()
    with torch.device("meta"):
        net = create_model(recipe.model, num_classes=7, **recipe.model_args)
        scores = net.eval()(torch.empty(1, *recipe.data.input_size))
    assert scores.shape == (1, 7)


def test_finetuning_starts_from_the_run_that_sports1m_leaves() -> None:
    recipe = get_recipe("ir_csn_152_kinetics_finetune")
    assert recipe.weights == f"runs/{get_recipe('ir_csn_152_sports1m').name}"
    assert recipe.frozen_norms
    rates = [rate(recipe.schedule, epoch, steps_per_epoch=1, epochs=58) for epoch in (15, 31, 32, 47, 48, 57)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_table_8_follows_the_nonlocal_schedule() -> None:
    recipe = get_recipe("oct_i3d_resnet50_kinetics")
    assert recipe.data.input_size == (3, 8, 224, 224)
    assert recipe.data.video is not None
    assert (recipe.data.video.rate, recipe.data.video.test_crops, recipe.data.batch_size) == (8, 3, 64)
    steps = 3750  # 240 thousand videos in batches of 64: 300 thousand steps
    assert recipe.epochs * steps == 300_000
    rates = [recipe.optim.lr * rate(recipe.schedule, step * 1000, steps_per_epoch=steps, epochs=recipe.epochs)
             for step in (0, 149, 150, 249, 250, 299)]  # fmt: skip
    assert rates == pytest.approx([0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    scratch = get_recipe("oct_i3d_resnet50_kinetics_scratch")
    assert (scratch.weights, scratch.optim.lr, scratch.epochs) == (None, 0.1, 16 * 80)


@pytest.mark.parametrize("name", VIDEO)
def test_tiny_video_recipes_are_small_and_whole(name: str) -> None:
    full, small = get_recipe(name), get_recipe(name, tiny=True)
    assert small.data.video is not None
    assert full.data.video is not None
    assert small.data.video.frames == min(full.data.video.frames, 8)
    assert (small.weights, small.data.spec, small.data.augment) == (None, "moving-digits", full.data.augment)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.video.frames=0", "data.video.frames must be at least 1, got 0"),
        ("data.video.test_crops=2", r"test_crops is 1 \(the centre\) or 3, got 2"),
        ("data.video.short_side=[128]", "expected a list of 2 values"),
        ("data.video.frame=3", "did you mean 'data.video.frames'"),
    ],
)
def test_bad_video_settings(setting: str, told: str) -> None:
    with pytest.raises(LeanconvError, match=told):
        change(get_recipe("ip_csn_26_moving_digits"), [setting])


def test_what_a_run_on_videos_leaves(moving_digits: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tiny("ip_csn_26_moving_digits", moving_digits)
    result = run_recipe(recipe, tmp_path / "run")
    out = tmp_path / "run"
    assert "  test " in capfd.readouterr().out
    assert result.videos is not None
    assert (result.videos.videos, result.videos.clips, result.videos.classes) == (8, 16, 6)
    told = json.loads((out / "videos.json").read_text())
    assert told == {
        "clip1": result.videos.clip1, "video1": result.videos.video1, "video5": result.videos.video5,
        "video1_interval": list(result.videos.intervals["video1"]),
        "video5_interval": list(result.videos.intervals["video5"]),
        "chance": 1 / 6, "videos": 8, "clips": 2, "crops": 1,
    }  # fmt: skip
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert len({row["label"] for row in rows}) == 6, "a short test sees every class"
    assert sum(row["label"] == row["prediction"] for row in rows) / 8 == result.videos.video1
    assert (out / "contact_sheet.png").stat().st_size > 2000
    assert not (out / "problems.csv").exists()
    with open(out / "metrics.csv") as file:
        assert "clips_per_second" in next(csv.DictReader(file))


def test_a_video_run_resumes_to_the_same_weights(
    moving_digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(
        "ip_csn_26_moving_digits", moving_digits, "epochs=2", "data.resolution=16", "data.video.short_side=[16,20]"
    )
    whole = run_recipe(recipe, tmp_path / "whole", progress=False)
    forward = Classify.forward

    def broken(self: Classify, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        if step == 3:
            raise RuntimeError("power cut")
        return forward(self, inputs, targets, step)

    with monkeypatch.context() as patch:
        patch.setattr(Classify, "forward", broken)
        with pytest.raises(RuntimeError, match="power cut"):
            run_recipe(recipe, tmp_path / "run", progress=False)
    again = run_recipe(recipe, tmp_path / "run", resume=True, progress=False)
    one, other = whole.net.state_dict(), again.net.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_broken_videos_are_named_in_the_run_folder(moving_digits: str, tmp_path: Path) -> None:
    open_data(tiny("ip_csn_26_moving_digits", moving_digits))  # writes them
    [source] = Path(moving_digits.partition(":")[2]).iterdir()
    shutil.copytree(source, tmp_path / "data")
    broken = sorted((tmp_path / "data" / "test" / "left").iterdir())  # whichever a short test draws
    for path in broken:
        path.write_bytes(path.read_bytes()[:700])
    spec = f"video-csv:{tmp_path / 'data' / 'train.csv'},{tmp_path / 'data' / 'test.csv'}"
    result = run_recipe(tiny("ip_csn_26_moving_digits", spec, "data.resolution=16"), tmp_path / "run", progress=False)
    with open(tmp_path / "run" / "problems.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["video"] for row in rows} <= set(map(str, broken))
    assert rows
    assert all(row["reason"] for row in rows)
    assert result.videos is not None
    assert not set(map(str, broken)) & {said.name for said in result.videos.predictions}


def test_a_single_frame_is_a_clip_of_one(moving_digits: str) -> None:
    data = open_data(tiny("ip_csn_26_moving_digits_single_frame", moving_digits))
    clips, _ = next(iter(data.train_loader()))
    assert clips.shape == (4, 3, 1, 32, 32)


def test_videos_and_images_are_not_mixed_up() -> None:
    with pytest.raises(LeanconvError, match="names videos, and this recipe is for images"):
        open_data(change(get_recipe("digits_resnet20"), ["data.spec=video-csv:a.csv,b.csv"]))
    with pytest.raises(LeanconvError, match="unknown kind of video set 'digits'"):
        open_data(change(get_recipe("ip_csn_26_moving_digits"), ["data.spec=digits"]))
    with pytest.raises(LeanconvError, match=r"resnet20 was made for inputs \[3, 32, 32\], and the data are \[3, 8, 32"):
        build_model(change(get_recipe("ip_csn_26_moving_digits"), ["model=resnet20", "model_args={}"]), 6)
    with pytest.raises(LeanconvError, match="choose a network for images"):
        build_model(change(get_recipe("digits_resnet20"), ["model=ip_csn_26"]), 10)


@dataclass(frozen=True)
class Sample:
    name: str
    label: int
    clips: Tensor


class Counting:
    """Six test videos whose clip j is filled, before normalisation, with the level 20 * video + j in red."""

    class_names = ("a", "b", "c", "d", "e", "f", "g")
    num_classes, resolution, test_size, unit = 7, 8, 6, "video"
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.2, 0.1)
    problems = ()

    def test_loader(self, clips: int, crops: int, *, limit: int | None = None) -> list[Sample]:
        shift, scale = (torch.tensor(values)[:, None, None, None] for values in (self.mean, self.std))
        samples = []
        for video in range(limit or self.test_size):
            made = torch.zeros(clips * crops, 3, 4, self.resolution, self.resolution)
            for number in range(clips * crops):
                made[number, 0] = (20 * video + number) / 255
            samples.append(Sample(f"v{video}", video, (made - shift) / scale))
        return samples


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(7)[torch.zeros(len(x), dtype=torch.int64)]


def test_the_sheet_shows_what_the_network_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[contact_sheet.ContactRow] = []
    save = contact_sheet.save_contact_sheet

    def spy(rows, path, **settings):
        shown.extend(rows)
        return save(rows, path, **settings)

    monkeypatch.setattr(contact_sheet, "save_contact_sheet", spy)
    evaluation = score_videos(Constant(), Counting(), clips=5, crops=3, contact_sheet=tmp_path / "s.png")  # type: ignore[arg-type]
    assert (evaluation.videos, evaluation.clips, evaluation.video1) == (6, 90, 1 / 6)
    assert [row.name for row in shown] == [f"v{video}" for video in range(6)]
    assert [row.title.split("  ")[0] for row in shown] == ["a", "b -> a", "c -> a", "d -> a", "e -> a", "f -> a"]
    for video, row in enumerate(shown):
        # The middle crop of the middle clip, number 7 of 15, back in pixels.
        expected = np.zeros((4, 8, 8, 3), dtype=np.uint8)
        expected[..., 0] = 20 * video + 7
        assert np.array_equal(row.frames, expected)
    assert (tmp_path / "s.png").exists()


def test_a_limit_cuts_the_test_short() -> None:
    evaluation = score_videos(Constant(), Counting(), clips=2, limit=3)  # type: ignore[arg-type]
    assert [said.name for said in evaluation.predictions] == ["v0", "v1", "v2"]
