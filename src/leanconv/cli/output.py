"""What a verb prints or writes as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from leanconv.files import write_text

__all__ = ["print_json", "write_json"]


def print_json(data: Any) -> None:
    """Print `data` as JSON."""
    typer.echo(json.dumps(data, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value)


def write_json(data: Any, path: Path) -> None:
    """Write `data` to `path`, complete or not at all."""
    write_text(path, json.dumps(data, indent=2, default=_plain) + "\n")
