"""The test of a network on images, and what it leaves: predictions as a CSV file, a contact sheet to look at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from leanconv.files import write_text
from leanconv.recipes.settings import Recipe
from leanconv.report.contact_sheet import ContactRow, evenly_spaced, save_image_sheet
from leanconv.train import Evaluation, Prediction, called, evaluate, save_predictions

if TYPE_CHECKING:
    from leanconv.data import ImageData

__all__ = ["contact_rows", "image_figures", "at_largest", "pixels_of", "score_image_run", "score_images"]

_SHOWN = 48

_Kept = dict[int, Tensor | None]
"""Inputs by their number in the test; None until they have passed."""


def score_images(
    net: nn.Module,
    data: ImageData,
    *,
    limit: int | None = None,
    predictions: Path | None = None,
    contact_sheet: Path | None = None,
) -> Evaluation:
    """Test `net` on the test images, or on `limit` of them drawn over all classes.

    Writes a row per image to the CSV file `predictions`, and up to 48 images, evenly spread over the set and as the
    network saw them, to the PNG `contact_sheet`. Raises as `evaluate`.
    """
    loader = data.eval_loader(limit=limit)
    chosen = evenly_spaced(loader.items, _SHOWN) if contact_sheet is not None else []
    kept: _Kept = dict.fromkeys(chosen)
    evaluation = evaluate(net, _keeping(loader, kept), names=loader.names)
    if predictions is not None:
        save_predictions(predictions, evaluation.predictions, data.class_names)
    if contact_sheet is not None:
        shown = [(evaluation.predictions[number], image) for number, image in kept.items() if image is not None]
        save_image_sheet(contact_rows(shown, data.class_names, data.mean, data.std), contact_sheet)
    return evaluation


def score_image_run(net: nn.Module, data: ImageData, recipe: Recipe, out: Path) -> Evaluation:
    """Test the network of a finished run, an elastic one at its largest; writes `evaluation.json`, `predictions.csv`.

    Data without a test part is tested on its validation part, and `evaluation.json` says so. `steps_per_epoch` cuts
    this test short as it does every other.
    """
    with at_largest(net, recipe.accelerator):
        evaluation = score_images(net, data, limit=recipe.test_limit, predictions=out / "predictions.csv")
    figures = {"part": data.part, **image_figures(evaluation)}
    write_text(out / "evaluation.json", json.dumps(figures, indent=2) + "\n")
    return evaluation


@contextmanager
def at_largest(net: nn.Module, accelerator: str) -> Iterator[None]:
    """Have `net` where training had it, for training hands it back on the CPU; an elastic one at its largest."""
    import torch

    from leanconv.elastic import ElasticNet

    if accelerator in ("auto", "cuda") and torch.cuda.is_available():
        net.cuda()
    with net.at(net.widths[1], net.resolutions[0]) if isinstance(net, ElasticNet) else nullcontext():
        yield
    net.cpu()


def image_figures(evaluation: Evaluation) -> dict[str, Any]:
    """The test in plain data: images, top1, top5 (shares) with their 95 % intervals, and the loss."""
    return {
        "images": evaluation.images,
        "top1": evaluation.top1,
        "top5": evaluation.top5,
        **{f"{name}_interval": list(interval) for name, interval in evaluation.intervals.items()},
        "loss": evaluation.loss,
    }


def contact_rows(
    shown: Iterable[tuple[Prediction, Tensor]],
    class_names: Sequence[str],
    mean: Iterable[float],
    std: Iterable[float],
) -> list[ContactRow]:
    """Predictions with their inputs, images (3, h, w) or clips (3, frames, h, w), as a contact sheet shows them."""
    mean, std = list(mean), list(std)
    return [
        ContactRow(
            frames=pixels_of(image if image.ndim == 4 else image[:, None], mean, std),
            name=prediction.name,
            label=None if prediction.label is None else called(class_names, prediction.label),
            prediction=called(class_names, prediction.classes[0]),
            probability=prediction.probabilities[0],
        )
        for prediction, image in shown
    ]


def pixels_of(clip: Tensor, mean: Iterable[float], std: Iterable[float]) -> Any:
    """A normalised clip (3, frames, h, w) back as uint8 pixels (frames, h, w, 3)."""
    shift, scale = (clip.new_tensor(list(values))[:, None, None, None] for values in (mean, std))
    return (clip * scale + shift).mul(255).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()


def _keeping(batches: Iterable[tuple[Tensor, Tensor]], kept: _Kept) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches; the inputs whose numbers are keys of `kept` stay there."""
    seen = 0
    for inputs, labels in batches:
        for number in kept.keys() & set(range(seen, seen + len(labels))):
            kept[number] = inputs[number - seen].clone()
        seen += len(labels)
        yield inputs, labels
