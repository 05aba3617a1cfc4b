"""`leanconv predict`: what a model takes images or videos for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from leanconv.cli.evaluate import configured
from leanconv.cli.options import (
    CropOption,
    ExifOption,
    InterpolationOption,
    JsonOption,
    MeanOption,
    ResolutionOption,
    SetOption,
    SizeOption,
    StdOption,
    TrustOption,
    WidthOption,
)
from leanconv.cli.output import print_json
from leanconv.cli.values import read_contract, read_options, read_size
from leanconv.errors import ExportError, LeanconvError

if TYPE_CHECKING:
    from torch import Tensor

    from leanconv.data import InputContract

_FILES = (".onnx", ".xml")


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A saved model, a run folder, an exported file (.onnx, .xml), or a name with weights:"
            " timm/resnet18 --set pretrained=true.",
        ),
    ],
    files: Annotated[
        list[str], typer.Argument(metavar="FILE|FOLDER|GLOB ...", help="Images, or videos for a network for clips.")
    ],
    settings: SetOption = [],
    top: Annotated[int, typer.Option(min=1, help="How many classes of each, the most probable first.")] = 5,
    clips: Annotated[int | None, typer.Option(min=1, help="Clips per video; default: the model's, or 10.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write the prediction for every file.")
    ] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the first of them with their predictions.")
    ] = None,
    size: SizeOption = None,
    width: WidthOption = None,
    resolution: ResolutionOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    interpolation: InterpolationOption = None,
    exif: ExifOption = None,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Predict the classes of images or videos.

    They are prepared as `eval` prepares them, by the model's input contract. What cannot be read is named, and the
    others go on.
    """
    from leanconv.data import find_files, open_files
    from leanconv.recipes import predict_files
    from leanconv.report import predictions_table, print_table
    from leanconv.train import called, save_predictions

    given = read_contract(mean, std, crop, interpolation, exif)
    with _ready(model, settings, size, given, width, resolution, trust_code) as ready:
        contract = ready.contract
        found = find_files(files, videos=contract.clip is not None)
        data = open_files(found, contract, batch_size=1 if ready.one_by_one else 32)
        scores = ready.scores
        if ready.dtype == "uint8":
            from leanconv.recipes import as_pixels

            scores = as_pixels(scores, data)
        views = (clips or contract.clip.clips, contract.clip.crops) if contract.clip else (1, 1)
        told = predict_files(scores, data, top=top, clips=views[0], crops=views[1], contact_sheet=contact_sheet)
    if predictions is not None:
        save_predictions(predictions, told, data.class_names)
    problems = data.test_problems
    rows = [
        {
            "name": item.name,
            "classes": [called(data.class_names, number) for number in item.classes],
            "probabilities": list(item.probabilities),
        }
        for item in told
    ]
    if json:
        unread = [{"name": problem.name, "reason": problem.reason} for problem in problems]
        print_json({"model": model, "predictions": rows, "unreadable": unread})
        return
    print_table(predictions_table(rows))
    for path in (predictions, contact_sheet):
        if path is not None:
            typer.echo(f"written: {path}")
    if problems:
        missing = sum(problem.is_missing for problem in problems)
        typer.echo(
            f"{len(problems)} of {len(found)} files could not be read ({len(problems) - missing} broken, {missing}"
            f" missing): {', '.join(problem.name for problem in problems[:5])}"
        )


class _Ready(NamedTuple):
    """A network that can be asked: logits (n, classes) for inputs that `contract` describes, of type `dtype`."""

    scores: Callable[[Tensor], Tensor]
    contract: InputContract
    dtype: str = "float32"
    one_by_one: bool = False


@contextmanager
def _ready(
    name: str,
    settings: list[str],
    size: str | None,
    given: dict[str, Any],
    width: float | None,
    resolution: int | None,
    trust_code: bool,
) -> Iterator[_Ready]:
    """The network called `name`, whatever it is kept in. Raises `LeanconvError` where nothing says how to feed it."""
    from leanconv.build import default_size, is_folder, resolve
    from leanconv.data import amended, contract_of
    from leanconv.modes import eval_mode
    from leanconv.recipes import asks_for_contract
    from leanconv.train.runfolder import saved_model

    if Path(name).suffix in _FILES:
        if settings or width is not None or resolution is not None:
            raise LeanconvError(
                f"{name} is an exported file, one network as it is: leave out --set, --width, --resolution"
            )
        yield _exported(Path(name), size, given)
        return
    if Path(name).is_file():
        raise LeanconvError(f"{name}: expected a folder, a name, or an exported file that ends in .onnx or .xml")
    if folder := Path(name).is_dir():
        name = str(saved_model(name))
    network = resolve(name, read_options(settings), trust_code=trust_code)
    contract = contract_of(network)
    if contract is None and not folder and not is_folder(name) and ":" not in name:
        raise LeanconvError(
            f"{name}: this name alone is a network with random weights, whose predictions mean nothing: give"
            " --set pretrained=true (timm), --set weights=DEFAULT (torchvision), or a folder with trained weights"
        )
    shape = read_size(size) if size else default_size(name) if contract is None else contract.size
    wanted = amended(contract, shape, given)
    if wanted is None:
        raise LeanconvError(f"{name}: {asks_for_contract()}")
    with configured(network, width, resolution) as (chosen, _), eval_mode(chosen) as device:
        yield _Ready(lambda inputs: chosen(inputs.to(device)).cpu(), wanted)


def _exported(path: Path, size: str | None, given: dict[str, Any]) -> _Ready:
    """The network of an exported file, by what the file says about its input."""
    import torch

    from leanconv.data import amended
    from leanconv.deploy import input_of, onnxruntime_runner, openvino_runner
    from leanconv.deploy.verify import one_line
    from leanconv.recipes import asks_for_contract

    said = input_of(path)
    contract = None if said is None else said.contract
    if contract is None and size is None:
        raise LeanconvError(f"{path}: {asks_for_contract()}; and --size C,H,W, which it does not say either")
    shape = read_size(size) if size else contract.size if contract is not None else ()
    wanted = amended(contract, shape, given)
    if wanted is None:
        raise LeanconvError(f"{path}: {asks_for_contract()}")
    runner = (onnxruntime_runner if path.suffix == ".onnx" else openvino_runner)(path)

    def scores(inputs: Tensor) -> Tensor:
        # One by one: the file may have a fixed batch of one.
        try:
            answers: list[Any] = [runner(inputs[index : index + 1]) for index in range(len(inputs))]
            logits = torch.cat([torch.as_tensor(answer[0]).clone() for answer in answers])
        except Exception as error:  # whatever the runtime raises for what the file holds
            raise ExportError(f"{path}: it does not run on {list(inputs.shape[1:])}: {one_line(error)}") from error
        if logits.ndim != 2:
            raise ExportError(f"{path}: it gives {list(logits.shape)}, expected logits (images, classes)")
        return logits

    return _Ready(scores, wanted, "float32" if said is None else said.dtype, one_by_one=True)
