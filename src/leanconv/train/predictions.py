"""What a network said about each item of a test, and what is made of it: counts by class, who is taken for whom, CSV.

Classes are numbers of outputs; `called` gives an output the name of its class, or its number where it has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanconv.intervals import wilson
from leanconv.train.runfolder import write_rows

__all__ = ["Prediction", "called", "confusions", "per_class", "save_predictions"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The (up to) five most probable classes of an item, best first, and its label, None where nobody has said it."""

    name: str
    label: int | None
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Whether the most probable class is the label."""
        return self.classes[0] == self.label


def called(class_names: Sequence[str], number: int) -> str:
    """The name of class `number`; the number itself for an output beyond the names.

    >>> called(("cat", "dog"), 1), called(("cat", "dog"), 7)
    ('dog', '7')
    """
    return class_names[number] if number < len(class_names) else str(number)


def confusions(predictions: Sequence[Prediction], classes: int) -> list[list[int]]:
    """How many items of class i (the row) were taken for class j (the column), for a network of `classes` outputs."""
    counts = [[0] * classes for _ in range(classes)]
    for prediction in predictions:
        if prediction.label is not None:
            counts[prediction.label][prediction.classes[0]] += 1
    return counts


def per_class(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class of a matrix of `confusions`: how many items, how many right, and the class that the others
    were most often taken for.

    `share` and its 95 % `interval` are None for a class without items, `confused_with` where all are right.

    >>> per_class([[8, 2], [0, 0]], ("cat", "dog"))[0]["confused_with"]
    'dog'
    """
    rows = []
    for number, row in enumerate(counts):
        count, right = sum(row), row[number]
        wrong = {other: taken for other, taken in enumerate(row) if other != number and taken}
        most = max(wrong, key=lambda other: (wrong[other], -other), default=None)
        rows.append(
            {
                "class": called(class_names, number),
                "count": count,
                "right": right,
                "share": right / count if count else None,
                "interval": list(wilson(right, count)) if count else None,
                "confused_with": None if most is None else called(class_names, most),
                "confused": 0 if most is None else wrong[most],
            }
        )
    return rows


def save_predictions(path: Path, predictions: Sequence[Prediction], class_names: Sequence[str]) -> None:
    """Write a CSV file with a row per item: name, label, prediction, its probability, and the five best, best first.

    Classes are written by name (an output beyond the names by its number), the five with bars between them; the label
    is empty where nobody has said it.
    """
    rows = [
        {
            "name": item.name,
            "label": "" if item.label is None else called(class_names, item.label),
            "prediction": called(class_names, item.classes[0]),
            "probability": round(item.probabilities[0], 6),
            "top5": "|".join(called(class_names, number) for number in item.classes),
        }
        for item in predictions
    ]
    write_rows(path, rows)
