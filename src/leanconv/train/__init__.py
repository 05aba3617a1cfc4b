"""Training through Lightning: objectives, settings, `fit`. Lightning itself is imported when `fit` runs."""

from __future__ import annotations

from leanconv.train.check import check_inputs
from leanconv.train.evaluate import Evaluation, evaluate
from leanconv.train.fit import fit, is_main_process
from leanconv.train.objectives import Classify, ClassifyWithTower, Objective
from leanconv.train.optim import OptimSettings, ScheduleSettings
from leanconv.train.predictions import Prediction, called, confusions, per_class, save_predictions
from leanconv.train.settings import FitResult, FitSettings
from leanconv.train.video import VideoEvaluation, VideoPrediction, VideoSample, evaluate_videos

__all__ = [
    "Classify",
    "ClassifyWithTower",
    "Evaluation",
    "FitResult",
    "FitSettings",
    "Objective",
    "OptimSettings",
    "Prediction",
    "ScheduleSettings",
    "VideoEvaluation",
    "VideoPrediction",
    "VideoSample",
    "called",
    "check_inputs",
    "confusions",
    "evaluate",
    "evaluate_videos",
    "fit",
    "is_main_process",
    "per_class",
    "save_predictions",
]
