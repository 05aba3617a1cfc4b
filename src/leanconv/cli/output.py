"""What a verb prints or writes as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer

from leanconv.errors import LeanconvError

__all__ = ["print_json", "write_json"]


def print_json(data: Any) -> None:
    """Print `data` as JSON."""
    typer.echo(json.dumps(data, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value)


def write_json(data: Any, path: Path) -> None:
    """Write `data` to `path`, complete or not at all."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(data, indent=2, default=_plain) + "\n")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise LeanconvError(f"{path}: cannot be written ({error.strerror})") from error
