"""The run folder: its settings (`config.yaml`), where it ran (`environment.json`), what came out, all written whole.

config.yaml        the settings of the run, as resolved
environment.json   versions, machine and command line of the start and of every resume
metrics.csv        one row per epoch
tensorboard/       the same for TensorBoard
last.ckpt          the state after the last finished epoch; `resume` continues from here
best.ckpt          the state of the epoch with the best validation accuracy, where there is a validation part
problems.csv       images or videos that could not be read, when there are any

A finished run of a recipe also holds its network, in `model/`.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from leanconv.errors import CheckpointError, LeanconvError, shown
from leanconv.files import csv_text, write_text
from leanconv.machine import gpu_names, this_machine, versions
from leanconv.plain_text import BadText, read_json, read_yaml, to_yaml
from leanconv.schema import Fault, ListOf, Plain

__all__ = [
    "differences",
    "environment",
    "prepare_run_folder",
    "read_problems",
    "read_rows",
    "refuse_nothing_to_resume",
    "saved_model",
    "write_problems",
    "write_rows",
]

_PACKAGES = ("leanconv", "torch", "torchvision", "timm", "lightning", "numpy", "pillow")
_FREE = ("note", "workers", "kernels")
"""Settings that never change what a run computes, up to rounding: a resumed run may choose others."""


def prepare_run_folder(out: Path, config: Mapping[str, Any], *, resume: bool) -> Path | None:
    """Prepare the run folder and return the checkpoint to continue from, None for a fresh start.

    Refused, each with what to do: a folder that already holds a run, unless `resume` (one that never finished an epoch
    is begun anew); a resume under other settings than those of its `config.yaml`. To be called by who holds the folder
    (`files.held`), where it resumes after `refuse_nothing_to_resume`.
    """
    path, checkpoint = out / "config.yaml", out / "last.ckpt"
    if out.exists() and not out.is_dir():
        raise LeanconvError(f"{out}: expected a folder for the run, found a file: choose another --out")
    if not resume:
        if checkpoint.exists() or (out / "metrics.csv").exists() or (out / "model").exists():
            raise LeanconvError(
                f"{out}: already holds a run, and a new one would overwrite it: continue it with --resume, or choose"
                " another --out"
            )
        # What never finished an epoch holds nothing to be lost: the folder is begun anew.
        for name in ("environment.json", "problems.csv"):
            (out / name).unlink(missing_ok=True)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LeanconvError(f"{out}: cannot be created: {error.strerror or error}") from error
        write_text(path, to_yaml(_plain(config)))
        _note_environment(out, "started")
        return None
    differing = differences(_read_yaml(path), config)
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise CheckpointError(
            f"{out}: cannot resume under other settings, the result would be neither run:"
            f" {'; '.join(differing[:3])}{more}: set them back, or choose another --out"
        )
    _note_environment(out, "resumed")
    # Killed before the first epoch was finished: the run starts over, and ends where it would have.
    return checkpoint if checkpoint.exists() else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings in which two configurations compute other things: "epochs was 3 and is 4".

    >>> differences({"epochs": 3, "data": {"workers": 0}}, {"epochs": 4, "data": {"workers": 8}})
    ['epochs was 3 and is 4']
    """
    old, new = _flat(_plain(before)), _flat(_plain(now))
    return [
        f"{key} was {old.get(key, 'unset')!r} and is {new.get(key, 'unset')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.rpartition(".")[2] not in _FREE
    ]


def refuse_nothing_to_resume(out: Path) -> None:
    """Raise `CheckpointError` where `out` holds no run."""
    if not (out / "config.yaml").exists():
        what = "holds no run (no config.yaml)" if out.is_dir() else "does not exist"
        raise CheckpointError(f"{out}: {what}, so there is nothing to resume: leave out --resume to start one")


def saved_model(folder: str | Path) -> Path:
    """The saved model of a run folder, or the folder itself where it is no run: then it is taken for a saved model."""
    folder = Path(folder)
    run = os.path.exists(folder / "config.yaml") or os.path.isdir(folder / "model")
    return folder / "model" if run else folder


def environment() -> dict[str, Any]:
    """Date, command line, versions and machine, in plain data."""
    machine = asdict(this_machine())
    installed = {package: found for package, found in versions(_PACKAGES).items() if found is not None}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "versions": {"python": machine.pop("python"), **installed},
        **machine,
        "threads": torch.get_num_threads(),
        "gpus": gpu_names(),
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as CSV; the columns are the keys in order of appearance."""
    write_text(path, csv_text(rows))


def read_rows(path: Path) -> list[dict[str, float]]:
    """The epochs of `metrics.csv`, empty cells left out; no rows when there is no file. Raises `CheckpointError`."""
    if not path.exists():
        return []
    rows = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rows.append({key: _number(cell) for key, cell in row.items() if cell})
                if not {"epoch", "val_accuracy"} <= rows[-1].keys():
                    raise ValueError("epoch and val_accuracy are expected in every row")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise CheckpointError(
            f"{path}: line {len(rows) + 2} is no epoch of a run: {shown(str(error))[1:-1]}"
        ) from error
    return rows


def _number(cell: str) -> float:
    return float(cell) if "." in cell or "e" in cell or "n" in cell else int(cell)


def write_problems(out: Path, problems: Iterable[tuple[str, str]], unit: str = "image") -> Path:
    """Add the (name, reason) of every unreadable image (or other `unit`) to `problems.csv` and return its path.

    What the run had found before it was resumed stays there.
    """
    path = out / "problems.csv"
    found = dict(read_problems(out))
    found |= {name: reason for name, reason in problems if name not in found}
    write_rows(path, [{unit: name, "reason": reason} for name, reason in found.items()])
    return path


def read_problems(out: Path) -> tuple[tuple[str, str], ...]:
    """What `write_problems` has written, nothing where there is no such file."""
    try:
        with open(out / "problems.csv", encoding="utf-8", newline="") as file:
            return tuple((row[0], row[1]) for row in list(csv.reader(file))[1:] if len(row) == 2)
    except FileNotFoundError:
        return ()


def _note_environment(out: Path, what: str) -> None:
    path = out / "environment.json"
    try:
        notes = read_json(path.read_text(encoding="utf-8")) if path.exists() else []
        ListOf(Plain()).check(notes, "it")
    except (OSError, UnicodeDecodeError, BadText, Fault) as error:
        raise CheckpointError(f"{path}: no notes of a run: {error}; move it away to go on without") from error
    begun = {"event": what, "process": os.getpid(), "host": platform.node()}
    write_text(path, json.dumps([*notes, {**begun, **environment()}], indent=2) + "\n")


def _read_yaml(path: Path) -> Any:
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, BadText) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: not a readable configuration: {reason}") from error


def _plain(value: Any) -> Any:
    """The value with every tuple as a list, as YAML gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    return dict(_leaves(value, prefix))


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
