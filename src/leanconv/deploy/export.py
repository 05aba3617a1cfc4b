"""A model as one file whose outputs have been compared with the model's: ONNX, OpenVINO's IR, or torch's .pt2.

The file is written under a temporary name, run by what will run it, compared with torch on new inputs at several batch
sizes, and only then given its name: a file that exists is a file that was verified.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leanconv.data.contract import InputContract, contract_of
from leanconv.deploy import onnx_file, openvino_file, pt2_file
from leanconv.deploy.examples import Examples, Scores
from leanconv.deploy.fold import eval_copy
from leanconv.deploy.fold import fold as fold_norms
from leanconv.deploy.frame_by_frame import frame_by_frame
from leanconv.deploy.in_programs import in_programs
from leanconv.deploy.metadata import input_of
from leanconv.deploy.pixels import FromPixels
from leanconv.deploy.plan import PRECISIONS, ExportPlan, planned
from leanconv.deploy.program_nodes import LIBRARY_NAME, ProgramNode, copy_library
from leanconv.deploy.verify import (
    Difference,
    Runner,
    compare,
    forward,
    one_line,
    onnxruntime_runner,
    openvino_runner,
    random_inputs,
)
from leanconv.dryrun import ModelHolder, Size, Sizes, as_module, is_detector
from leanconv.errors import ExportError, LeanconvError
from leanconv.files import unwritable, whole_folder

__all__ = ["ExportReport", "export", "refuse_elastic"]


class _Format(NamedTuple):
    """How files of one suffix are written and run; `require` gives what will run them, or raises `MissingExtra`."""

    runs_on: str
    require: Callable[[ExportPlan], str]
    write: Callable[[nn.Module, Path, ExportPlan, Sequence[tuple[Any, ...]]], int | None]
    run: Callable[[Path], Runner]


_FORMATS = {
    # Looked up when called: each opens a file of its format.
    ".onnx": _Format("onnxruntime", onnx_file.require, onnx_file.write, lambda path: onnxruntime_runner(path)),
    ".xml": _Format("OpenVINO", openvino_file.require, openvino_file.write, lambda path: openvino_runner(path)),
    ".pt2": _Format("torch", pt2_file.require, pt2_file.write, pt2_file.runner),
}


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written and how well it agrees.

    `max_abs_difference` is the largest absolute difference between the outputs of `backend` and of torch over all
    samples, `folded` the number of BatchNorms that went into convolutions, `bytes` the size of all `files`. `opset` is
    None for what is not ONNX; `scores` is None where no data were given; `remarks` are sentences for the user.
    """

    path: Path
    precision: str
    input_type: str
    max_abs_difference: float
    max_abs_output: float
    tolerance: float
    samples: int
    backend: str
    opset: int | None
    folded: int
    dynamic_batch: bool
    dynamic_size: bool
    size: Sizes
    contract: InputContract | None
    scores: Scores | None
    remarks: tuple[str, ...]
    seconds: float
    bytes: int
    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {
            **asdict(self),
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "contract": None if self.contract is None else self.contract.to_json(),
            "scores": None if self.scores is None else self.scores.to_json(),
        }


def export(
    model: nn.Module | ModelHolder,
    path: str | os.PathLike[str],
    *,
    size: Size | None = None,
    contract: InputContract | None = None,
    input_type: str = "float32",
    precision: str = "fp32",
    data: Iterable[Any] | None = None,
    calibration: int = 128,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    tolerance: float | None = None,
    samples: int = 3,
    seed: int = 0,
    opset: int | None = None,
    fold: bool = True,
    compiled: bool = False,
    kernels: bool = False,
) -> ExportReport:
    """Write `model` to the file `path` and return how well the file agrees with the model.

    The suffix says the format: .onnx, .xml (OpenVINO, its weights in a .bin beside it) or .pt2 (torch.export). The
    input is called `input` and has the shape (batch, *size), with (C, L), (C, H, W) or (C, frames, H, W) as `size`;
    a network of several takes a list of sizes, and they are `input_0`, `input_1`, ... The outputs are `output` or
    `output_0`, `output_1`, ..., in the order of the dictionary, tuple or list that the model returns in evaluation. The
    model itself is not touched: a copy on the CPU in eval mode is exported, its BatchNorms folded first where that is
    exact (`fold`); the file is compared with the unfolded model. ONNX weights above 2 GB go to `<name>.data` beside the
    file. A missing folder is made. The file says how its input is made, see `deploy.metadata`.

    Args:
        size: by default that of the contract.
        contract: how inputs are made; by default the model's own.
        input_type: "float32" for values that the contract normalises, "uint8" for pixels from 0 to 255, which the
            file scales and normalises itself.
        precision: "fp32", "fp16" or "int8".
        data: re-iterable batches (inputs, labels), inputs as the contract says. The report then has the accuracy of the
            model and of the file; int8 needs them, and is calibrated on `calibration` of them, which are not tested.
        dynamic_batch: leave the batch axis free; otherwise it is 1.
        dynamic_size: leave the last two axes free too; the file is compared at two more sizes.
        tolerance: the largest difference from torch's outputs that is accepted, as a share of the largest number of
            that output, by default that of `PRECISIONS`; rounding of 1e-7 is accepted too, in outputs of which it is
            less than a hundredth.
        samples: inputs are compared at the batch sizes 1, 2, ..., `samples` (or that many times at 1).
        seed: draws the random inputs, and the images for calibration.
        opset: ONNX operator set that the file must have; by default the one torch prefers.
        compiled: a .pt2 that AOTInductor has compiled for this machine; takes minutes and a C++ compiler.
        kernels: for .onnx in fp32. The pieces of the network that `accelerate` would run become one node each of
            leanconv's own operator, everything else stays ONNX; the library that runs them, `libleanconv_kernels.so`,
            is written beside the file, and onnxruntime loads it by `register_custom_ops_library`, without leanconv.

    Raises:
        ExportError: if the model cannot be exported (naming the construct) or not in that opset, the file cannot be
            written, or its outputs differ by more than `tolerance`. Nothing is left behind, and a file that had the
            name before stays.
        MissingExtra: if what writes or runs the file is not installed.
        NoLibrary: with `kernels`, where the C library was not built, with what to do.
        NothingToRewrite: with `kernels`, where there is no piece that the library would run, with the reasons.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> export(net, "net.onnx", size=(3, 16, 16)).max_abs_difference < 1e-4
    True
    """
    start = time.perf_counter()
    model, path = as_module(model), Path(path)
    refuse_elastic(model, "export")
    if is_detector(model):
        for name, value, only in (("input_type", input_type, "float32"), ("precision", precision, "fp32")):
            if value != only:
                raise ExportError(f"{path}: a detector is written with {name}={only}, got {value!r}")
        if path.suffix != ".onnx" or data is not None or compiled or kernels:
            raise ExportError(f"{path}: a detector is written as .onnx, without data, not compiled and without kernels")
        return _export_detector(model, path, size, contract, tolerance, samples, opset, start)
    plan = planned(
        path,
        size,
        contract_of(model) if contract is None else contract,
        input_type=input_type,
        precision=precision,
        dynamic_batch=dynamic_batch,
        dynamic_size=dynamic_size,
        tolerance=tolerance,
        samples=samples,
        seed=seed,
        opset=opset,
        compiled=compiled,
        kernels=kernels,
        has_data=data is not None,
    )
    form = _FORMATS[path.suffix]
    backend = form.require(plan)
    reference = eval_copy(model)
    subject, folded = reference, 0
    if fold:
        exact = plan.tolerance if precision == "fp32" else PRECISIONS["fp32"]
        result = fold_norms(reference, plan.size, tolerance=exact, seed=seed)
        subject, folded = result.model, len(result.folded)
    remarks: tuple[str, ...] = ()
    if kernels:
        subject, remarks = _in_kernels(subject, plan)
    if input_type == "uint8":
        assert plan.about is not None  # `planned` saw to it
        reference, subject = (FromPixels(network, plan.about.contract).eval() for network in (reference, subject))
    remarks += _remarks(reference, plan)
    examples = None if data is None else Examples(data, calibration if precision == "int8" else 0, seed)
    drawn = [] if examples is None else [_given(reference, inputs) for inputs in examples.drawn]
    with whole_folder(path.parent, lambda reason: unwritable(path, reason, error=ExportError), last=path.name) as room:
        draft = room / path.name
        opset = form.write(subject, draft, plan, [(inputs,) for inputs in drawn])
        if kernels:
            copy_library(room)
        if input_of(draft) != plan.about:
            raise ExportError(
                f"{path}: what the file says about its input is not what was written: a fault of leanconv"
            )
        difference, scores = _verified(form, draft, plan, reference, drawn, examples)
        names = sorted((file.name for file in room.iterdir()), key=lambda name: name != path.name)
    files = tuple(path.with_name(name) for name in names)
    return ExportReport(
        path=path,
        precision=precision,
        input_type=input_type,
        max_abs_difference=difference.max_abs,
        max_abs_output=difference.max_output,
        tolerance=plan.tolerance,
        samples=difference.samples,
        backend=backend,
        opset=opset,
        folded=folded,
        dynamic_batch=dynamic_batch,
        dynamic_size=dynamic_size,
        size=plan.size,
        contract=None if plan.about is None else plan.about.contract,
        scores=scores,
        remarks=remarks,
        seconds=time.perf_counter() - start,
        bytes=sum(file.stat().st_size for file in files),
        files=files,
    )


def _export_detector(
    model: nn.Module,
    path: Path,
    size: Size | None,
    contract: InputContract | None,
    tolerance: float | None,
    samples: int,
    opset: int | None,
    start: float,
) -> ExportReport:
    """A detector for one image of any size, compared on several."""
    from leanconv.deploy.detector_file import compared, write_detector

    contract = contract_of(model) if contract is None else contract
    shape = size or (None if contract is None else contract.size)
    if shape is None:
        transform: Any = model.transform
        shape = (3, transform.min_size[-1], transform.max_size)
    subject, accepted = eval_copy(model), PRECISIONS["fp32"] if tolerance is None else tolerance
    with whole_folder(path.parent, lambda reason: unwritable(path, reason, error=ExportError), last=path.name) as room:
        written = write_detector(subject, room / path.name, tuple(shape), contract, opset)
        difference = compared(subject, onnxruntime_runner(room / path.name), tuple(shape), samples, accepted)
    return ExportReport(
        path=path,
        precision="fp32",
        input_type="float32",
        max_abs_difference=difference.max_abs,
        max_abs_output=difference.max_output,
        tolerance=accepted,
        samples=difference.samples,
        backend="onnxruntime",
        opset=written,
        folded=0,
        dynamic_batch=False,
        dynamic_size=True,
        size=tuple(shape),
        contract=contract,
        scores=None,
        remarks=("one image (3, h, w) of values from 0 to 1, of any size; the file resizes it itself",),
        seconds=time.perf_counter() - start,
        bytes=path.stat().st_size,
        files=(path,),
    )


def _verified(
    form: _Format,
    draft: Path,
    plan: ExportPlan,
    reference: nn.Module,
    drawn: Sequence[Tensor],
    examples: Examples | None,
) -> tuple[Difference, Scores | None]:
    """What the file at `draft` gives beside the model; it is let go of before it is renamed."""
    try:
        runner = form.run(draft)
        difference = _compared(reference, runner, plan, drawn)
        one_by_one = not plan.dynamic_batch
        return difference, None if examples is None else examples.score(reference, runner, one_by_one=one_by_one)
    except LeanconvError:
        raise
    except Exception as error:  # the backends have no public base class for their errors
        raise ExportError(
            f"{plan.path}: {form.runs_on} cannot run the exported file for inputs of size {plan.size}, batch sizes "
            f"{min(plan.batches)} to {max(plan.batches)}: {one_line(error)}"
        ) from error


def _compared(reference: nn.Module, runner: Runner, plan: ExportPlan, drawn: Sequence[Tensor]) -> Difference:
    """How far the outputs are apart; `ExportError` where that is more than the plan allows.

    Ranges that are calibrated on images are compared on images (those `drawn`): noise goes beyond them.
    """
    found = []
    for size in (plan.size, *plan.other_sizes):
        inputs: list[tuple[Any, ...]] = []
        if drawn and size == plan.size:
            pile, starts = torch.cat(list(drawn)), [sum(plan.batches[:number]) for number in range(plan.samples)]
            inputs = [(pile[a : a + n],) for a, n in zip(starts, plan.batches, strict=True) if a < len(pile)]
        try:
            difference = compare(reference, runner, size, batches=plan.batches, seed=plan.seed + 1, inputs=inputs)
        except LeanconvError as error:
            if size == plan.size:
                raise
            raise ExportError(f"{plan.path}: {_fixed(size)}: {error}") from error
        except Exception as error:
            if size == plan.size:
                raise
            raise ExportError(f"{plan.path}: {_fixed(size)}: {one_line(error)}") from error
        if beyond := difference.beyond(plan.tolerance):
            gap, allowed, largest = beyond
            at = "" if size == plan.size else f"{_fixed(size)}: "
            raise ExportError(
                f"{plan.path}: {at}the outputs of the file differ from torch's by up to {gap:.2e}, more than "
                f"the {allowed:.2e} allowed (largest output {largest:.3g}, tolerance {plan.tolerance:g}); the "
                "file was not written. If outputs of that size may differ so much, pass a larger tolerance"
            )
        found.append(difference)
    return Difference(
        outputs=tuple(pair for difference in found for pair in difference.outputs),
        samples=sum(difference.samples for difference in found),
    )


def _fixed(size: Sizes) -> str:
    return (
        f"its size cannot be dynamic (leave dynamic_size, --dynamic-size, out, and export each size that is needed): a "
        f"file for all sizes is compared at {size} too, and there it fails"
    )


def _in_kernels(subject: nn.Module, plan: ExportPlan) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with its programs as nodes, and what the user should know."""
    found = in_programs(subject, plan.size, ProgramNode, f"{plan.path}: with kernels")
    frame_by_frame(found.model)
    left = f"; of the convolutions {len(found.left)} stay with onnxruntime" if found.left else ""
    nodes = "1 node is" if len(found.programs) == 1 else f"{len(found.programs)} nodes are"
    return found.model, (
        f"{nodes} leanconv's own{left}: whoever runs the file registers {LIBRARY_NAME}, which stands beside it, first: "
        f'options.register_custom_ops_library("./{LIBRARY_NAME}")',
    )


def _given(reference: nn.Module, inputs: Tensor) -> Tensor:
    """What the file is given for normalised `inputs`."""
    return reference.pixels(inputs) if isinstance(reference, FromPixels) else inputs


def _remarks(reference: nn.Module, plan: ExportPlan) -> tuple[str, ...]:
    """What the user should know; `ExportError` for a contract that is another network's."""
    if plan.about is None:
        return (
            "the file does not say how its input is made (size, crop, mean, std, classes), because the model has no "
            "input contract: whoever runs it has to know; --mean R,G,B --std R,G,B say it",
        )
    names = plan.about.contract.class_names
    with torch.inference_mode():
        outputs = forward(reference, *random_inputs(reference, plan.size, 1, plan.seed))
    if names is None or not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] == len(names):
        return ()
    if outputs.shape[1] < len(names):
        raise ExportError(
            f"{plan.path}: the network has {outputs.shape[1]} outputs, and its input contract names {len(names)} "
            f"classes ({', '.join(names[:3])}, ...): it is another network's; attach the right one"
        )
    return (f"the network has {outputs.shape[1]} outputs, and only the first {len(names)} of them have class names",)


def refuse_elastic(model: nn.Module, verb: str) -> None:
    """Raise `ExportError` for an elastic network: which of its sub-networks is meant would be a guess."""
    from leanconv.elastic import ElasticNet

    if isinstance(model, ElasticNet):
        raise ExportError(
            f"{verb} takes one network, and an elastic network is many: give it net.extract(width=..., resolution=...)"
        )
