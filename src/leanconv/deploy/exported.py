"""An exported file as a network like any other, so that what is deployed is what is tested and compared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.data.contract import attach
from leanconv.deploy import pt2_file
from leanconv.deploy.metadata import FileInput, input_of
from leanconv.deploy.plan import SUFFIXES
from leanconv.deploy.verify import Runner, one_line, onnxruntime_runner, openvino_runner
from leanconv.errors import ExportError
from leanconv.trust import CodeNotTrusted

__all__ = ["ExportedNetwork", "is_exported"]


def is_exported(name: object) -> bool:
    """Whether `name` is that of an exported file, by its suffix.

    >>> is_exported("lean.onnx"), is_exported("runs/lean")
    (True, False)
    """
    return isinstance(name, str | os.PathLike) and Path(name).suffix in SUFFIXES


class ExportedNetwork(nn.Module):
    """The network of an exported file (.onnx, .xml, .pt2), run by onnxruntime, OpenVINO or torch on the CPU.

    It takes what the module took before it was exported, inputs (n, 3, H, W) or (n, 3, frames, H, W) that are
    normalised as its input contract says, and returns logits (n, classes); where the file takes pixels
    (`input_type="uint8"`), they are made of the inputs again. Inputs go in one by one, for a file may have a fixed
    batch of one.

    Raises `LeanconvError` for what is no such file, `CodeNotTrusted` for a .pt2 without `trust_code`: torch runs what
    is in it. `ExportError` where an input does not fit.

        net = ExportedNetwork("lean.onnx")
        logits = net(images)
    """

    def __init__(self, path: str | os.PathLike[str], *, trust_code: bool = False) -> None:
        super().__init__()
        self.path = Path(path)
        self.input: FileInput | None = input_of(self.path)
        if self.path.suffix == ".pt2" and not trust_code:
            raise CodeNotTrusted(
                f"{self.path}: opening a .pt2 file can run code that is in it: pass --trust-code (trust_code=True) if"
                " you trust whoever wrote it, or export to .onnx or .xml"
            )
        self._run: Runner = _RUNNERS[self.path.suffix](self.path)
        if self.input is not None:
            attach(self, self.input.contract)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExportedNetwork:
        """Itself: it has no state, and a runtime's session cannot be copied."""
        return self

    @property
    def takes_pixels(self) -> bool:
        """Whether the file scales and normalises pixels itself."""
        return self.input is not None and self.input.dtype == "uint8"

    def forward(self, inputs: Tensor) -> Tensor:
        fed = self._pixels(inputs) if self.takes_pixels else inputs
        try:
            answers: list[Any] = [self._run(fed[index : index + 1]) for index in range(len(fed))]
            # Cloned: a runtime may write the next answer where this one is.
            logits = torch.cat([torch.as_tensor(_first(answer)).clone() for answer in answers])
        except Exception as error:  # whatever the runtime raises for what the file holds
            raise ExportError(f"{self.path}: it does not run on {list(inputs.shape[1:])}: {one_line(error)}") from error
        if logits.ndim != 2:
            raise ExportError(f"{self.path}: it gives {list(logits.shape)}, expected logits (images, classes)")
        return logits

    def _pixels(self, inputs: Tensor) -> Tensor:
        assert self.input is not None
        contract = self.input.contract
        shape = (-1, *(1,) * (inputs.ndim - 2))
        mean, std = (torch.tensor(values).reshape(shape) for values in (contract.mean, contract.std))
        return (255 * (inputs * std + mean)).round().clamp(0, 255).to(torch.uint8)


def _first(answer: object) -> object:
    """The only output: .pt2 gives it as it is, the runtimes a list of it."""
    return answer[0] if isinstance(answer, list | tuple) else answer


_RUNNERS = {".onnx": onnxruntime_runner, ".xml": openvino_runner, ".pt2": pt2_file.runner}
