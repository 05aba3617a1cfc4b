"""Every error that a user can cause, in one small family.

A message is one sentence or a few, in this order: where, what was expected, what came, why it matters, what to do.
The command line prints it as one line and exits with code 2; anything that is not a `LeanconvError` is a fault of ours
and exits with code 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = [
    "LeanconvError",
    "BudgetError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "MissingExtra",
    "NotCalibrated",
    "NothingToRewrite",
    "PlanError",
    "RewriteError",
    "UnknownName",
    "need",
    "shown",
    "unknown",
]


class LeanconvError(ValueError):
    """Bad input: the caller asked for something that cannot be done, and the message says what to do instead."""


class UnknownName(LeanconvError):
    """A model, option, layer, recipe or file format that does not exist."""


class PlanError(LeanconvError):
    """A convolution cannot be planned as asked (groups that cannot divide, an overlap of zero, ...)."""


class RewriteError(LeanconvError):
    """A model cannot be rewritten as asked."""


class NothingToRewrite(RewriteError):
    """A rewrite that would change no layer at all."""


class DataError(LeanconvError):
    """A data set that is missing, empty or broken."""


class CheckpointError(LeanconvError):
    """A saved model that is truncated, foreign or does not fit its story."""


class BudgetError(LeanconvError):
    """No configuration of the query table is within the budget."""


class NotCalibrated(LeanconvError):
    """An elastic network is asked to evaluate a configuration whose BatchNorm statistics were never measured."""


class ExportError(LeanconvError):
    """An exported file that could not be made, or whose outputs differ from the model's."""


class MissingExtra(LeanconvError):
    """An optional dependency is not installed."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a `name` that is not one of the `known`, with the nearest of them.

    >>> str(unknown("model", "oct_resnet5", ["oct_resnet50", "igc_l4m8"]))
    "unknown model 'oct_resnet5': did you mean 'oct_resnet50'? (2 known)"
    """
    names = sorted(known)
    name = name if len(name) <= 80 else f"{name[:77]}..."
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        hint = "did you mean " + " or ".join(repr(match) for match in near) + f"? ({len(names)} known)"
    elif len(names) <= 20:
        hint = "expected one of " + ", ".join(names)
    else:
        hint = f"{len(names)} are known, none of them similar"
    return UnknownName(f"unknown {kind} {name!r}: {hint}")


def need(package: str, extra: str, what: str) -> MissingExtra:
    """The error for an optional `package` that `what` needs and that `leanconv[extra]` would install."""
    return MissingExtra(
        f"{what} needs the package {package!r}, which is not installed: pip install 'leanconv[{extra}]'"
    )


def shown(value: Any, longest: int = 80) -> str:
    """A value of somebody's file or command line as it stands in a message: on one line, shortened.

    >>> shown("x" * 100, 12)
    "'xxxxxxx...'"
    """
    if isinstance(value, str | bytes):
        value = value[: longest + 1]
    elif isinstance(value, int) and abs(value) >= 10**longest:
        return "a number of many digits"
    elif isinstance(value, list | tuple | dict) and len(value) > longest:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = " ".join(repr(value).split())
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return (
        text if len(text) <= longest else f"{text[: longest - 4]}...{text[0] if text[0] in chr(39) + chr(34) else ''}"
    )
