"""Networks tested on the same items: by how much they differ, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanconv.errors import DataError, LeanconvError
from leanconv.intervals import paired_difference
from leanconv.train import Prediction, called

__all__ = ["TestedRun", "paired_with"]


@dataclass(frozen=True, kw_only=True)
class TestedRun:
    """The predictions of one network for labelled items, and the names of the classes that they number."""

    __test__ = False  # pytest would take it for a test

    name: str
    predictions: Sequence[Prediction]
    class_names: Sequence[str]

    def items(self) -> dict[str, tuple[str, bool]]:
        """Of every item its label by name, and whether it was recognized.

        Raises `DataError` for a name used twice and for an item without a label.
        """
        found = {
            item.name: (called(self.class_names, item.label), item.right)
            for item in self.predictions
            if item.label is not None
        }
        if len(found) != len(self.predictions):
            raise DataError(f"{self.name}: some of its {len(self.predictions)} items have the same name, or no label")
        return found


def paired_with(first: TestedRun, other: TestedRun) -> dict[str, Any]:
    """How `other` differs from `first` on the same items: value (a share), interval, and the items that one got alone.

    Items and classes are matched by name. Raises `LeanconvError` where these differ, with an example: a difference of
    accuracies on other items says nothing about the networks.
    """
    _same("classes", first, first.class_names, other, other.class_names)
    here, there = first.items(), other.items()
    _same("items", first, list(here), other, list(there))
    for name, (label, _) in here.items():
        if there[name][0] != label:
            raise LeanconvError(
                f"{name} is {label!r} for {first.name} and {there[name][0]!r} for {other.name}: they were tested on"
                " other labels, so they cannot be compared; test both on the same with --data"
            )
    only_this = sum(there[name][1] and not right for name, (_, right) in here.items())
    only_first = sum(right and not there[name][1] for name, (_, right) in here.items())
    found = paired_difference(only_this, only_first, len(here))
    return {
        "value": found.value,
        "interval": list(found.interval),
        "clear": found.is_clear,
        "only_this": only_this,
        "only_first": only_first,
    }


def _same(what: str, first: TestedRun, here: Sequence[str], other: TestedRun, there: Sequence[str]) -> None:
    """Raise `LeanconvError` unless the names are the same, in whatever order."""
    for one, names, two, foreign in ((first, here, other, set(there)), (other, there, first, set(here))):
        alone = [name for name in names if name not in foreign]
        if alone:
            raise LeanconvError(
                f"{one.name} and {two.name} have other {what}: {alone[0]!r} ({len(alone)} of {len(names)}) of"
                f" {one.name} is none of {two.name}, so their accuracies cannot be compared; test both on the"
                " same with --data"
            )
