"""OpenVINO's IR, an .xml with the weights in a .bin beside it: what OpenVINO makes of the ONNX file.

In int8 it is made of the ONNX file that onnxruntime has quantized, whose scales OpenVINO takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from leanconv.deploy import onnx_file
from leanconv.deploy.metadata import KEY
from leanconv.deploy.plan import ExportPlan
from leanconv.errors import need
from leanconv.files import scratch_folder

__all__ = ["require", "write"]


def require(plan: ExportPlan) -> str:
    """What will run the file, with its version; raises `MissingExtra` before any work is done."""
    onnx_file.require(plan)
    try:
        import openvino
    except ImportError as error:
        raise need("openvino", "export", "export to OpenVINO") from error
    return f"openvino {openvino.__version__.partition('-')[0]}"


def write(model: nn.Module, path: Path, plan: ExportPlan, calibration: Sequence[tuple[Any, ...]] = ()) -> None:
    """Write `model` (on the CPU, in eval mode) to `path` as `plan` says, unverified; see `onnx_file.write`."""
    import openvino

    halved = plan.precision == "fp16"
    with scratch_folder() as folder:
        onnx = folder / "network.onnx"
        onnx_file.write(model, onnx, replace(plan, precision="fp32") if halved else plan, calibration)
        # Not openvino.convert_model, which tells its maker over the network that it was called.
        network = openvino.Core().read_model(onnx)
        if plan.text is not None:
            network.set_rt_info(plan.text, KEY.split("."))
        openvino.save_model(network, path, compress_to_fp16=halved)
