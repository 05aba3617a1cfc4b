"""Labelled inputs for an export: some drawn to calibrate int8 with, all others to say what the file scores."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.deploy.pixels import FromPixels
from leanconv.deploy.verify import Runner
from leanconv.errors import DataError, ExportError
from leanconv.intervals import Difference, Interval, paired_difference, wilson

__all__ = ["Examples", "Scores"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How many of `images` the model in torch and the exported file got right, and how many only one of the two."""

    images: int
    model: int
    file: int
    only_model: int
    only_file: int

    @property
    def intervals(self) -> tuple[Interval, Interval]:
        """The 95 % intervals of the accuracies of the model and of the file."""
        return wilson(self.model, self.images), wilson(self.file, self.images)

    @property
    def change(self) -> Difference:
        """The file's accuracy minus the model's, with its 95 % interval."""
        return paired_difference(self.only_file, self.only_model, self.images)

    def to_json(self) -> dict[str, Any]:
        """Shares from 0 to 1 and their intervals, [low, high]."""
        before, after = self.intervals
        return {
            "images": self.images,
            "model": self.model / self.images,
            "model_interval": list(before),
            "file": self.file / self.images,
            "file_interval": list(after),
            "change": self.change.value,
            "change_interval": list(self.change.interval),
        }


class Examples:
    """The batches of `data`, (inputs, labels) in the same order at every pass, inputs as the contract says.

    `drawn` are `count` inputs (1, ...), at most half of all, as likely from any place in `data`; the `rest` is tested.
    Raises `DataError` where there is none.
    """

    def __init__(self, data: Iterable[Any], count: int, seed: int) -> None:
        self.data = data
        draw = random.Random(seed)
        kept: list[tuple[int, Tensor]] = []
        total = 0
        for inputs, labels in data if count else ():
            for place in range(len(labels)):
                slot = total if total < count else draw.randrange(total + 1)  # Vitter's reservoir
                if slot < count:
                    kept[slot : slot + 1] = [(total, inputs[place : place + 1].clone())]
                total += 1
        if count and total < 2:
            raise DataError(f"int8 is calibrated on some of the images and tested on others: got {total} of them")
        draw.shuffle(kept)
        self._kept = dict(kept[: total // 2])

    @property
    def drawn(self) -> list[Tensor]:
        """The inputs to calibrate with, of one each."""
        return list(self._kept.values())

    @property
    def rest(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All others, (inputs, labels)."""
        total = 0
        for inputs, labels in self.data:
            others = [place for place in range(len(labels)) if total + place not in self._kept]
            total += len(labels)
            if others:
                yield inputs[others], torch.as_tensor(labels)[others]

    def score(self, model: nn.Module, runner: Runner, *, one_by_one: bool) -> Scores:
        """What `model` (on the CPU, in eval mode) and the file that `runner` runs get right of the rest."""
        images = right = file_right = both = 0
        for inputs, labels in self.rest:
            given = model.pixels(inputs) if isinstance(model, FromPixels) else inputs
            with torch.inference_mode():
                ours = _top1(model(given)) == labels
            batches = torch.split(given, 1) if one_by_one else (given,)
            theirs = torch.cat([_top1(runner(batch)) for batch in batches]) == labels
            images += len(labels)
            right += int(ours.sum())
            file_right += int(theirs.sum())
            both += int((ours & theirs).sum())
        if not images:
            raise DataError("there are no images to test the file on")
        return Scores(images=images, model=right, file=file_right, only_model=right - both, only_file=file_right - both)


def _top1(outputs: Any) -> Tensor:
    scores = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    scores = torch.as_tensor(scores)
    if scores.ndim != 2:
        raise ExportError(
            f"accuracy is of networks that return scores (images, classes), got a shape of {tuple(scores.shape)}: leave"
            " the data out"
        )
    return scores.argmax(1)
