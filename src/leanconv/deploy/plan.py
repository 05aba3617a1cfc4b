"""What is to be written, in plain data: one plan for every format, checked before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from leanconv.data.contract import InputContract
from leanconv.deploy.metadata import DTYPES, FileInput
from leanconv.dryrun import Size, Sizes, check_sizes
from leanconv.errors import ExportError, LeanconvError, unknown

__all__ = ["PRECISIONS", "SUFFIXES", "ExportPlan", "planned"]

PRECISIONS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.5}
"""How far the outputs may be from torch's where nobody says otherwise, as a share of the largest of them. Outputs in
int8 that are half of that away are broken; how good the others are, only accuracy on images says."""

SUFFIXES = (".onnx", ".xml", ".pt2")


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """One file: where, of which format (the suffix of `path`), and what is free, compressed and said in it.

    `about` is what the file says about its input, None where nobody knows it.
    """

    path: Path
    size: Sizes
    about: FileInput | None
    precision: str
    dynamic_batch: bool
    dynamic_size: bool
    tolerance: float
    samples: int
    seed: int
    opset: int | None
    compiled: bool
    kernels: bool = False

    @property
    def text(self) -> str | None:
        """The text of `about`."""
        return None if self.about is None else self.about.to_text()

    @property
    def batches(self) -> list[int]:
        """The batch sizes at which the file is compared with the model."""
        return list(range(1, self.samples + 1)) if self.dynamic_batch else [1] * self.samples

    @property
    def other_sizes(self) -> list[Sizes]:
        """Two more sizes at which a file of a free size is compared, larger ones that 32 divides where it divides this.

        >>> ExportPlan.larger((3, 64, 96))
        [(3, 96, 160), (3, 160, 128)]
        """
        return self.larger(self.size) if self.dynamic_size else []

    @staticmethod
    def larger(size: Sizes) -> list[Sizes]:
        """See `other_sizes`; neither is square where `size` is."""
        *front, height, width = size
        down, right = math.gcd(height, 32), math.gcd(width, 32)
        return [(*front, height + down, width + 2 * right), (*front, height + 3 * down, width + right)]


def planned(
    path: Path,
    size: Size | None,
    contract: InputContract | None,
    *,
    input_type: str,
    precision: str,
    dynamic_batch: bool,
    dynamic_size: bool,
    tolerance: float | None,
    samples: int,
    seed: int,
    opset: int | None,
    compiled: bool,
    kernels: bool,
    has_data: bool,
) -> ExportPlan:
    """The plan, or a `LeanconvError` for what cannot be done; `size` None is that of the contract."""
    if samples < 1:
        raise LeanconvError(f"samples must be at least 1, otherwise nothing is verified, got {samples}")
    if path.suffix not in SUFFIXES:
        raise LeanconvError(
            f"{path}: the name of an exported file must end in .onnx, .xml (OpenVINO) or .pt2 (torch), got "
            f"{path.suffix or 'no suffix'!r}"
        )
    for what, value, known in (("input type", input_type, DTYPES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise unknown(what, value, known)
    if size is None:
        if contract is None:
            raise LeanconvError(f"{path}: the size of one input is not known: give it, for example (3, 224, 224)")
        size = contract.size
    size = check_sizes(size)
    several = not isinstance(size[0], int)
    about = None
    if contract is not None and not several:
        about = FileInput(contract=contract.at(size), dtype=input_type)
    if input_type == "uint8" and about is None:
        why = "it has several inputs" if several else "nothing says with which mean and std they are to be normalised"
        raise ExportError(
            f"{path}: it cannot be given pixels (input uint8), because {why}"
            + ("" if several else "; say it: --mean R,G,B --std R,G,B, or attach an input contract to the model")
        )
    if dynamic_size and (several or len(size) < 3):
        raise ExportError(f"{path}: a dynamic size is for one input with two sides, (3, H, W), got {size}")
    if opset is not None and path.suffix != ".onnx":
        raise ExportError(f"{path}: opset is for ONNX files: leave it out")
    if compiled and path.suffix != ".pt2":
        raise ExportError(f"{path}: only .pt2 files are compiled (AOTInductor)")
    if kernels:
        _check_kernels(path, precision, dynamic_size)
    if precision == "int8":
        if path.suffix == ".pt2":
            raise ExportError(f"{path}: int8 is for .onnx and .xml files, torch writes none into .pt2 by itself")
        if not has_data:
            raise ExportError(
                f"{path}: int8 needs images that show how large activations become: name some (data=, --data)"
            )
    return ExportPlan(
        path=path,
        size=size,
        about=about,
        precision=precision,
        dynamic_batch=dynamic_batch,
        dynamic_size=dynamic_size,
        tolerance=PRECISIONS[precision] if tolerance is None else tolerance,
        samples=samples,
        seed=seed,
        opset=opset,
        compiled=compiled,
        kernels=kernels,
    )


def _check_kernels(path: Path, precision: str, dynamic_size: bool) -> None:
    """Raise `ExportError` for what a file with kernels cannot be."""
    if path.suffix != ".onnx":
        raise ExportError(
            f"{path}: kernels are for .onnx files, which onnxruntime runs with a library of operators; leave kernels "
            "(--kernels) out, or name the file .onnx"
        )
    if precision != "fp32":
        raise ExportError(
            f"{path}: the kernels compute in fp32 alone, and {precision} was asked for: leave one of the two out"
        )
    if dynamic_size:
        raise ExportError(
            f"{path}: programs of kernels are made for one size of input: leave dynamic_size (--dynamic-size) out, and "
            "export each size that is needed"
        )
