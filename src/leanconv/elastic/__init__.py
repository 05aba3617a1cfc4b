"""Mutual learning: one set of weights that runs at any width and input resolution, and the table that picks.

`make_elastic` slices the layers of any network, `mutual` trains all its sub-networks at once, `calibrate` measures
their BatchNorm statistics, `QueryTable` what they score and cost, `extract` makes one of them an ordinary network.
`Runtime` holds many at once and changes between calls; `Governor` says to which, so that a latency target is kept.
"""

from __future__ import annotations

from leanconv.elastic.calibrate import calibrate
from leanconv.elastic.extract import extract
from leanconv.elastic.governor import Governor
from leanconv.elastic.mutual import MutualObjective, plan_step
from leanconv.elastic.net import ElasticNet, from_settings, make_elastic
from leanconv.elastic.rows import Row, Setting
from leanconv.elastic.runtime import Runtime
from leanconv.elastic.table import QueryTable
from leanconv.elastic.width import Config, LayerWidths

__all__ = [
    "Config",
    "ElasticNet",
    "Governor",
    "LayerWidths",
    "MutualObjective",
    "QueryTable",
    "Row",
    "Runtime",
    "Setting",
    "calibrate",
    "extract",
    "from_settings",
    "make_elastic",
    "plan_step",
]
