"""The test of a network on whole videos, and what it leaves: predictions as a CSV file, a contact sheet to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from leanconv.recipes.images import at_largest, pixels_of
from leanconv.recipes.settings import Recipe
from leanconv.train import VideoEvaluation, VideoPrediction, VideoSample, called, evaluate_videos, save_predictions

if TYPE_CHECKING:
    from leanconv.data import VideoData

__all__ = ["score_run", "score_videos", "video_figures"]

_ROWS = 12
_COLUMNS = 8


def score_videos(
    net: nn.Module,
    data: VideoData,
    *,
    clips: int = 10,
    crops: int = 1,
    limit: int | None = None,
    predictions: Path | None = None,
    contact_sheet: Path | None = None,
) -> VideoEvaluation:
    """Test `net` on `clips` clips and `crops` crops of every test video, or of `limit` drawn over all classes.

    Writes a row per video to the CSV file `predictions`, and the middle clip of twelve videos, evenly spread over the
    set, to the PNG `contact_sheet`. Raises as `evaluate_videos`.
    """
    from leanconv.report.contact_sheet import ContactRow, evenly_spaced, save_contact_sheet

    loader = data.test_loader(clips=clips, crops=crops, limit=limit)
    total = len(loader)
    shown = set() if contact_sheet is None else set(evenly_spaced(total, _ROWS))
    rows: list[ContactRow] = []
    seen = 0

    def watch(sample: VideoSample, prediction: VideoPrediction) -> None:
        nonlocal seen
        if seen in shown:
            middle = sample.clips[clips // 2 * crops + crops // 2]
            frames = middle[:, evenly_spaced(middle.shape[1], _COLUMNS)]
            rows.append(
                ContactRow(
                    frames=pixels_of(frames, data.mean, data.std),
                    name=prediction.name,
                    label=called(data.class_names, sample.label),
                    prediction=called(data.class_names, prediction.classes[0]),
                    probability=prediction.probabilities[0],
                )
            )
        seen += 1

    evaluation = evaluate_videos(net, loader, crop=data.resolution, watch=watch)
    if predictions is not None:
        save_predictions(predictions, evaluation.predictions, data.class_names)
    if contact_sheet is not None:
        save_contact_sheet(rows, contact_sheet, columns=_COLUMNS)
    return evaluation


def score_run(net: nn.Module, data: VideoData, recipe: Recipe, out: Path) -> VideoEvaluation:
    """Test the network of a finished run as its recipe says.

    Writes `videos.json`, `predictions.csv` and `contact_sheet.png` into `out`. `steps_per_epoch` cuts this test short
    as it does every other.
    """
    from leanconv.files import write_text
    from leanconv.train.runfolder import write_problems

    video = recipe.data.video
    assert video is not None
    with at_largest(net, recipe.accelerator):
        evaluation = score_videos(
            net,
            data,
            clips=video.test_clips,
            crops=video.test_crops,
            limit=recipe.test_limit,
            predictions=out / "predictions.csv",
            contact_sheet=out / "contact_sheet.png",
        )
    figures = video_figures(evaluation, clips=video.test_clips, crops=video.test_crops)
    write_text(out / "videos.json", json.dumps(figures, indent=2) + "\n")
    if data.problems:
        write_problems(out, data.problems, data.unit)
    return evaluation


def video_figures(evaluation: VideoEvaluation, *, clips: int, crops: int) -> dict[str, Any]:
    """The test in plain data: clip1, video1, video5 (shares) with their 95 % intervals, what chance gives, and how it
    was tested."""
    return {
        "clip1": evaluation.clip1,
        "video1": evaluation.video1,
        "video5": evaluation.video5,
        **{f"{name}_interval": list(interval) for name, interval in evaluation.intervals.items()},
        "chance": 1 / evaluation.classes,
        "videos": evaluation.videos,
        "clips": clips,
        "crops": crops,
    }
