"""From a model to something that runs elsewhere: folded, exported, checked against torch, timed on every backend."""

from __future__ import annotations

import os

# onnxruntime reports on its use over the network, from its first import on, unless this is said before; whoever wants
# that says ORT_DISABLE_TELEMETRY=0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from leanconv.deploy.accelerate import Accelerated, accelerate
from leanconv.deploy.bench import BACKENDS, BenchRow, bench
from leanconv.deploy.densify import Densified, densify
from leanconv.deploy.export import ExportReport, export
from leanconv.deploy.fold import Folded, Kept, fold
from leanconv.deploy.metadata import KEY, FileInput, input_of
from leanconv.deploy.train_bench import TrainBenchRow, bench_training
from leanconv.deploy.verify import Difference, Runner, compare, onnxruntime_runner, openvino_runner

__all__ = [
    "Accelerated",
    "BACKENDS",
    "BenchRow",
    "Densified",
    "Difference",
    "ExportReport",
    "FileInput",
    "Folded",
    "KEY",
    "Kept",
    "Runner",
    "TrainBenchRow",
    "accelerate",
    "bench",
    "bench_training",
    "compare",
    "densify",
    "export",
    "fold",
    "input_of",
    "onnxruntime_runner",
    "openvino_runner",
]
