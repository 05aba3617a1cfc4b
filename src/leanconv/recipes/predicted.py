"""What a network takes files for that nobody has labelled: `predict`, which the verb of the same name prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from leanconv.dryrun import ModelHolder
from leanconv.recipes.asked import asked
from leanconv.recipes.detected import Found, detect, find_detector, refuse_for_detector
from leanconv.recipes.images import contact_rows
from leanconv.report.contact_sheet import save_contact_sheet, save_image_sheet
from leanconv.train import Prediction, called

if TYPE_CHECKING:
    from leanconv.data import ImageData, Problem, VideoData

__all__ = ["Predicted", "predict", "predict_files"]

_SHOWN = 48
_CLIPS_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a network took files for.

    Attributes:
        predictions: of every file that could be read, in order, the most probable classes by number, best first.
        class_names: of these numbers.
        unreadable: the files that could not be read, each with its reason.
    """

    predictions: tuple[Prediction, ...]
    class_names: tuple[str, ...]
    unreadable: tuple[Problem, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Plain data, a dictionary for each file: name, classes by name, probabilities."""
        return [
            {
                "name": item.name,
                "classes": [called(self.class_names, number) for number in item.classes],
                "probabilities": list(item.probabilities),
            }
            for item in self.predictions
        ]


def predict(
    model: str | Path | nn.Module | ModelHolder,
    files: Sequence[str | Path],
    *,
    top: int = 5,
    options: Mapping[str, Any] | None = None,
    size: Sequence[int] | None = None,
    width: float | None = None,
    resolution: int | None = None,
    clips: int | None = None,
    given: Mapping[str, Any] | None = None,
    contact_sheet: Path | None = None,
    trust_code: bool = False,
) -> Predicted | Found:
    """The classes of images, or of videos for a network for clips, prepared as its input contract says.

    Of a detector the objects in images (`Found`), in the images' own size; it takes `files`, `width` and `resolution`.

    Args:
        model: a network with an input contract, a saved model, a run folder, "hf:OWNER/NAME", an exported file (.onnx,
            .xml, or .pt2 with `trust_code`), or a name whose `options` take published weights, such as
            {"pretrained": True}.
        files: files, folders (everything in them, at any depth) and patterns ("photos/*.jpg").
        top: how many classes of each.
        size: shape of one input, by default the model's, (3, H, W) or (3, frames, H, W).
        width, resolution: of an elastic network (resolution in pixels); by default its largest.
        clips: of each video; by default as many as the input contract says.
        given: fields of `InputContract` that are said now; a model without a contract needs "mean" and "std".
        contact_sheet: draw the first of them with their predictions into this PNG file.

    A file that cannot be read is in `unreadable`, and the others go on. Raises `LeanconvError` where nothing says how
    inputs are made, for a network with random weights, and `DataError` where no file can be read.

        for row in lc.predict("runs/lean", ["a.jpg"]).rows():
            print(row["name"], row["classes"][0], row["probabilities"][0])
    """
    from leanconv.data import find_files, open_files

    if (detector := find_detector(model, trust_code=trust_code)) is not None:
        refuse_for_detector({"options": options, "size": size, "clips": clips, "given": given})
        refuse_for_detector({"contact_sheet": contact_sheet})
        return detect(detector, files, width=width, resolution=resolution)
    with asked(
        model, options=options, size=size, given=given, width=width, resolution=resolution, trust_code=trust_code
    ) as network:
        contract = network.contract
        found = find_files([str(file) for file in files], videos=contract.clip is not None)
        data = open_files(found, contract, batch_size=1 if network.one_by_one else 32)
        views = (clips or contract.clip.clips, contract.clip.crops) if contract.clip else (1, 1)
        told = predict_files(network.scores, data, top=top, clips=views[0], crops=views[1], contact_sheet=contact_sheet)
    return Predicted(predictions=told, class_names=data.class_names, unreadable=data.test_problems)


def predict_files(
    scores: Callable[[Tensor], Tensor],
    data: ImageData | VideoData,
    *,
    top: int = 5,
    clips: int = 10,
    crops: int = 1,
    contact_sheet: Path | None = None,
) -> tuple[Prediction, ...]:
    """The `top` most probable classes of every file of `data` that can be read, by a network's `scores`.

    `scores` gives logits (n, classes) for inputs (n, 3, ...); of a video the probabilities are the mean over `clips`
    times `crops` clips, as in its test. The first 48 images, or the middle clips of the first 12 videos, are drawn into
    `contact_sheet`. Raises `DataError` where nothing can be read; what else cannot be is in `data.test_problems`.
    """
    limit = _SHOWN if data.unit == "image" else _CLIPS_SHOWN
    found: list[tuple[str, Tensor]] = []
    shown: list[Tensor] = []
    for names, inputs in _batches(data, clips, crops):
        shares = scores(inputs).float().softmax(dim=1).double()
        if data.unit == "video":
            found.append((names[0], shares.mean(dim=0)))
            inputs = inputs[len(inputs) // 2 :][:1]
        else:
            found += zip(names, shares, strict=True)
        if contact_sheet is not None:
            shown += inputs[: limit - len(shown)].clone()
    tops = [(name, share.topk(min(top, len(share)))) for name, share in found]
    predictions = tuple(
        Prediction(
            name=name, label=None, classes=tuple(best.indices.tolist()), probabilities=tuple(best.values.tolist())
        )
        for name, best in tops
    )
    if contact_sheet is not None:
        rows = contact_rows(zip(predictions, shown, strict=False), data.class_names, data.mean, data.std)
        (save_image_sheet if data.unit == "image" else save_contact_sheet)(rows, contact_sheet)
    return predictions


def _batches(data: ImageData | VideoData, clips: int, crops: int) -> Iterator[tuple[list[str], Tensor]]:
    """Inputs (n, 3, ...) by the names of their files: several images, or the clips of one video."""
    from leanconv.data import VideoData

    if isinstance(data, VideoData):
        yield from (([sample.name], sample.clips) for sample in data.test_loader(clips=clips, crops=crops))
    else:
        yield from data.named_batches()
