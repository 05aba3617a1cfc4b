"""Mutual learning: one set of weights that runs at any width and input resolution.

`make_elastic` slices the layers of any network, `mutual` trains all its sub-networks at once, `calibrate` measures
their BatchNorm statistics, `ElasticNet.extract` makes one of them an ordinary network.
"""

from __future__ import annotations

from leanconv.elastic.calibrate import calibrate
from leanconv.elastic.detector import ElasticDetector
from leanconv.elastic.ground_truth import DetectionObjective
from leanconv.elastic.make import from_settings, make_elastic
from leanconv.elastic.mutual import MutualObjective, plan_step
from leanconv.elastic.net import ElasticNet
from leanconv.elastic.width import Config, Width

__all__ = [
    "Config",
    "DetectionObjective",
    "ElasticDetector",
    "ElasticNet",
    "MutualObjective",
    "Width",
    "calibrate",
    "from_settings",
    "make_elastic",
    "plan_step",
]
