"""What a network takes files for that nobody has labelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanconv.recipes.images import contact_rows
from leanconv.report.contact_sheet import save_contact_sheet, save_image_sheet
from leanconv.train import Prediction

if TYPE_CHECKING:
    from leanconv.data import ImageData, VideoData

__all__ = ["as_pixels", "predict_files"]

_SHOWN = 48
_CLIPS_SHOWN = 12


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


def as_pixels(scores: Callable[[Tensor], Tensor], data: ImageData | VideoData) -> Callable[[Tensor], Tensor]:
    """`scores` of a file that takes uint8 pixels and normalises them itself, for inputs that are normalised."""

    def of_pixels(inputs: Tensor) -> Tensor:
        shape = (-1, *(1,) * (inputs.ndim - 2))
        mean, std = (torch.tensor(values).reshape(shape) for values in (data.mean, data.std))
        return scores((255 * (inputs * std + mean)).round().clamp(0, 255).to(torch.uint8))

    return of_pixels
